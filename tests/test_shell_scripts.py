"""gen_pti_script.sh and get_metrics.sh, run as users run them, on a tiny network."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from project_files import ROOT
from training.generators.panohead import PanoHeadGenerator
from training.snapshot import save_snapshot

pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='the scripts are bash scripts, there is no bash')


@pytest.fixture
def script(tmp_path):
    """Function (name, variables) that runs a script in an empty folder with a network X.v2.pkl, and gives the process."""
    torch.manual_seed(0)
    rendering = {'depth_resolution': 4, 'depth_resolution_importance': 0}
    network = PanoHeadGenerator(img_resolution=32, z_dim=8, w_dim=16, channel_base=256, channel_max=8, plane_resolution=8,
                                neural_rendering_resolution=8, rendering=rendering)
    save_snapshot(tmp_path / 'X.v2.pkl', {'G_ema': network}, {})

    def run(name, *arguments, **variables):
        environment = {**os.environ, 'PYTHON': sys.executable, 'NETWORK': 'X.v2.pkl', 'DEVICE': 'cpu', **variables}
        return subprocess.run(['bash', str(ROOT / name), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    return run


@pytest.mark.slow
def test_inversion_of_heads_it_makes_itself(script, tmp_path):
    done = script('gen_pti_script.sh', STEPS='2', FRAMES='2', NUM_SYNTHETIC='1', OUTDIR='my heads')
    assert done.returncode == 0, done.stderr
    assert 'built-in multi-scale structural distance' in done.stdout
    folder = tmp_path / 'my heads' / 'X.v2' / '0'
    assert sorted(p.name for p in folder.iterdir()) == [
        'PTI_render', 'finetuned_generator.pkl', 'fintuned_generator.pkl', 'head.safetensors', 'pre.png', 'proj.mp4', 'proj.png',
        'projected_w.npz', 'settings.json', 'target.png']
    assert sorted(p.name for p in (folder / 'PTI_render').iterdir()) == ['post.mp4', 'pre.mp4']
    assert (folder / 'PTI_render' / 'pre.mp4').read_bytes() != (folder / 'PTI_render' / 'post.mp4').read_bytes()
    settings = json.loads((folder / 'settings.json').read_text())['settings']
    assert (settings['recipe'], settings['steps_w'], settings['steps_g']) == ('omni', 2, 2)


@pytest.mark.slow
def test_metrics_of_all_modes(script, tmp_path):
    done = script('get_metrics.sh', NUM='8', NUM_SYNTHETIC='8')
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r['mode'] for r in records] == ['all', 'front', 'back']
    assert records[0]['num_real'] == 8 == records[1]['num_real'] + records[2]['num_real']
    written = (tmp_path / 'metric-frechet_seeded.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in written] == records


@pytest.mark.slow
def test_metrics_of_several_networks(script, tmp_path):
    shutil.copy(tmp_path / 'X.v2.pkl', tmp_path / 'Y 2.pkl')
    done = script('get_metrics.sh', 'X.v2.pkl', 'Y 2.pkl', NUM='8', NUM_SYNTHETIC='8', MODES='all', METRICS='kid50k,frechet_seeded',
                  FEATURES='seeded')
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r['network'], r['metric']) for r in records] == [
        (network, metric) for network in ('X.v2.pkl', 'Y 2.pkl') for metric in ('kid50k', 'frechet_seeded')]
    assert [r['results'] for r in records[:2]] == [r['results'] for r in records[2:]]


@pytest.mark.parametrize('name, variables, message', [
    ('gen_pti_script.sh', {'TARGET_IMG': 'absent'}, 'TARGET_IMG absent'),
    ('gen_pti_script.sh', {'TARGET_IMG': 'X.v2.pkl', 'INDICES': '0'}, 'X.v2.pkl'),
    ('get_metrics.sh', {'NETWORK': 'absent.pkl'}, 'absent.pkl'),
])
def test_what_is_not_there_ends_them(script, name, variables, message):
    done = script(name, **variables)
    assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr
