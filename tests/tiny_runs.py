"""Training runs that take a second: a small synthetic set, a preset shrunk to almost nothing, train.py as users call it."""

import pickle

from click.testing import CliRunner

import train
from training.synthetic.write import write_dataset

# The whole recipe at 32 pixels; figures of a network are small enough for any machine.
TINY = (
    '--preset synthetic-64 --device cpu --workers 0 --batch 4 --gamma 0.2 --gamma_seg 0.2 --cbase 256 --cmax 8 '
    '--triplane_size 16 --neural_rendering_resolution_initial 8 --kimg 0.008 --tick 0.004 --snap 1 --trans_reg 1 '
    '--set D.channel_base=256 --set D.channel_max=8 --set G.z_dim=8 --set G.w_dim=12 --set G.sr_channel_scale=0.125 '
    '--set loss.noise_mode=none --set G.rendering.depth_resolution=6 --set G.rendering.depth_resolution_importance=4')
PANOHEAD_ONLY = '--set G.features=4 '


def write_heads(folder, num=16, size=32):
    """(images, masks): zips of `num` synthetic heads, written into `folder`."""
    paths = folder / 'heads.zip', folder / 'masks.zip'
    write_dataset(num, size, *paths, samples=1, progress=False)
    return paths


def invoke(script, arguments):
    """Result of a script's command; anything but a clean exit is raised here."""
    arguments = arguments.split() if isinstance(arguments, str) else [str(a) for a in arguments]
    result = CliRunner().invoke(script.main, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_train(outdir, data, flags='', tiny=TINY + ' ' + PANOHEAD_ONLY):
    """Run folder of a training run on `data` = (images, masks or None) with more flags, which must succeed."""
    images, masks = data
    masks = '' if masks is None else f'--seg_data {masks}'
    result = invoke(train, f'--outdir {outdir} --img_data {images} {masks} {tiny} {flags}')
    assert result.exit_code == 0, result.output
    return max(outdir.iterdir())


def snapshot(run_dir):
    """Entries of the last snapshot of a run, by plain pickle."""
    with open(max(run_dir.glob('network-snapshot-*.pkl')), 'rb') as file:
        return pickle.load(file)
