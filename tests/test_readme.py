"""The README's commands, as written but for sizes: each rule below only shortens a run or stands in for private data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dnnlib import construct_class_by_name
from readme_blocks import code_blocks, commands
from training.configure import training_config
from training.snapshot import save_snapshot
from training.synthetic.write import write_dataset

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
ENVIRONMENT = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'STEPS': '2', 'PTI_STEPS': '2', 'FRAMES': '4', 'NUM': '8'}

NARROW = ['--cbase', '1024', '--cmax', '8']    # of the stand-in for a snapshot of days on eight GPUs
# Appended to every command of that script; the last of two equal flags counts.
SHORTER = {
    'gen_samples.py': ['--shape-res', '24'],
    'gen_videos.py': ['--w-frames', '3'],
    'gen_interpolation.py': [],
    'calc_metrics.py': ['--num', '8'],
    'dataset_tool_seg.py': [],
    'train.py': [],
}


def adapted(words, folder):
    """The command to run for the words of one in the README, and its environment."""
    environment = dict(ENVIRONMENT)
    while '=' in words[0] and not words[0].startswith('-'):
        name, _, value = words[0].partition('=')
        environment[name] = value
        words = words[1:]
    if words[0] == 'make':
        return ['make', '--dry-run', '-C', str(ROOT), *words[1:]], environment
    if words[0].startswith('./'):
        return ['bash', str(ROOT / words[0]), *words[1:]], environment
    assert words[0] == 'python', f'the README runs {words[0]!r}, which this test does not know'
    if words[1] == '-m':
        return [sys.executable, *words[1:]], {**environment, 'PYTHONPATH': str(ROOT)}
    script, args = words[1], list(words[2:])
    if '--synthetic' in args:
        args[args.index('--synthetic') + 1] = '16'
    if script == 'train.py' and '--gpus' in args:
        args.append('--dry-run')      # wants eight GPUs
    elif script == 'train.py':
        args += ['--kimg', '0.016', '--tick', '0.008']
    if '--resume' in args:
        args[args.index('--resume') + 1] = 'narrow.pkl'
        args += NARROW
    return [sys.executable, str(ROOT / script), *args, *SHORTER[script]], environment


def groups():
    """One test per bash block; blocks of one heading may need files of earlier ones, so all run in one folder, in order."""
    return [pytest.param(commands(block), id=f'line{block.line}') for block in code_blocks(README.read_text(encoding='utf-8'), 'bash')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A working folder with a few photographs, masks and labels in it."""
    path = tmp_path_factory.mktemp('readme')
    write_dataset(4, 64, path / 'photos/img', path / 'photos/seg', progress=False)
    config = training_config(dict(preset='panohead-512', img_data='photos.zip', seg_data='photos-masks.zip', cbase=1024, cmax=8))
    shape = {'c_dim': 25, 'img_resolution': 512}
    networks = {key: construct_class_by_name(**config[key], **shape) for key in ('G', 'D')}
    save_snapshot(path / 'narrow.pkl', {**networks, 'G_ema': networks['G']})
    return path


@pytest.mark.slow
@pytest.mark.parametrize('block', groups())
def test_bash_block(block, folder):
    for words in block:
        command, environment = adapted(words, folder)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f'{" ".join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'


def test_python_block():
    (block,) = code_blocks(README.read_text(encoding='utf-8'), 'python')
    check = '\nassert image.shape[:2] == (1, 3) and image.dtype == torch.float32 and 0 <= mask.mean() <= 1\n'
    done = subprocess.run([sys.executable, '-c', block.text + check], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
