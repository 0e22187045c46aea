"""The demo driver and the pictures of the docs, small."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return done.stdout


@pytest.mark.slow
def test_demo_leaves_all_it_promises_and_the_docs_can_picture_it(tmp_path):
    out = tmp_path / 'demo'
    printed = run('demo.py', '--outdir', out, '--images', 16, '--kimg', 0.016, '--frames', 3, '--shape-res', 24, '--device', 'cpu')
    assert 'Frechet distance' in printed and 'images/s' in printed
    for name in ('seed0000-0003.mp4', 'sheet.png', 'grid.png', 'shape/seed0000.mrc', 'shape/seed0000.glb'):
        assert (out / 'results' / name).stat().st_size > 0
        assert name in printed
    (run_dir,) = (out / 'training-runs').iterdir()
    run('docs/make_pictures.py', '--run', run_dir, '--outdir', tmp_path / 'images')
    assert {path.name for path in (tmp_path / 'images').iterdir()} == {'turning.gif', 'demo_network.png', 'demo_run.png'}
