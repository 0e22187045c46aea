"""Makes and checks image sets: converts pictures with masks and labels, renders synthetic heads, or reports every fault.

Convert:    python dataset_tool_seg.py --img_source A --seg_source B --img_dest A.zip --seg_dest B.zip --resolution 512x512
Synthetic:  python dataset_tool_seg.py --synthetic 1000 --resolution 64x64 --img_dest A.zip --seg_dest B.zip
Check:      python dataset_tool_seg.py --check --img_source A.zip --seg_source B.zip
"""

import sys

import click

from dnnlib import UserError
from dnnlib.cli import FiniteFloat, Size, user_errors
from training.dataset_check import check_dataset, faults_error, summarize_dataset
from training.dataset_convert import TRANSFORMS, convert_dataset

FULL_RANGE = {'min_yaw': 0, 'max_yaw': 180, 'max_pitch': 90}


@click.command(epilog='Images without label or mask, or that cannot be used, are reported and left out. Destinations appear only '
                      'when complete: after Ctrl-C or an error nothing is left. Grey pictures become RGB, transparent pixels '
                      'are laid over white; with --seg_dest but no --seg_source the alpha channel becomes the mask.')
@click.option('--img_source', help='Folder or zip of images, with labels in dataset.json at its root', metavar='PATH')
@click.option('--seg_source', help='Folder or zip of masks, 255 = head, named like the images', metavar='PATH')
@click.option('--img_dest', help='Folder or .zip to write images and labels to', metavar='PATH')
@click.option('--seg_dest', help='Folder or .zip to write masks to', metavar='PATH')
@click.option('--resolution', help='Size of the images written, a power of two; default: as they are', type=Size())
@click.option('--transform', help='Crop in the middle first (labels must describe the crop)', type=click.Choice(TRANSFORMS))
@click.option('--max-images', help='Stop after this many images', type=click.IntRange(min=1))
@click.option('--use_basename', help='Pair images, masks and labels by file name without folders', type=bool, default=False,
              show_default=True)
@click.option('--ext', help='File type of the images written', type=click.Choice(['png', 'jpg']), default='png',
              show_default=True)
@click.option('--check', help='Write nothing; report every fault of --img_source and --seg_source, and the yaws', is_flag=True)
@click.option('--min_yaw', help='With --check: smallest |yaw| in degrees', type=FiniteFloat(0, 180))
@click.option('--max_yaw', help='With --check: largest |yaw| in degrees', type=FiniteFloat(0, 180))
@click.option('--max_pitch', help='With --check: largest |pitch| in degrees', type=FiniteFloat(0, 90))
@click.option('--synthetic', help='Render this many synthetic heads instead of converting', type=click.IntRange(min=1),
              metavar='N')
@click.option('--seed', help='With --synthetic: random seed  [default: 0]', type=click.IntRange(min=0))
@click.option('--jitter', help='With --synthetic: mis-centring as in-the-wild crops have it  [default: 0]', type=FiniteFloat(0))
@user_errors
def main(**opts):
    """Convert, check or synthesize a set of images with masks and camera labels."""
    if opts['check'] and opts['synthetic']:
        raise UserError('--check and --synthetic: give one of them')
    _refuse(opts, '--check', opts['check'], FULL_RANGE)
    _refuse(opts, '--synthetic', opts['synthetic'], ('seed', 'jitter'))
    if opts['check']:
        check(opts)
    elif opts['synthetic']:
        synthesize(opts)
    else:
        convert(opts)


def _refuse(opts, mode_flag, mode, names):
    """Raise UserError if an option of a mode is given without it."""
    for name in names:
        if opts[name] is not None and not mode:
            raise UserError(f'--{name} {opts[name]} goes with {mode_flag} only; leave it out')


def _need(opts, *names):
    for name in names:
        if opts[name] is None:
            raise UserError(f'--{name} is missing; see --help')


def check(opts):
    """Print a summary with the yaw histogram; raise UserError with all faults, if any."""
    _need(opts, 'img_source')
    angles = {name: opts[name] for name in FULL_RANGE if opts[name] is not None}
    faults = check_dataset(opts['img_source'], opts['seg_source'], deep=True, angles={**FULL_RANGE, **angles} if angles else None,
                           progress=sys.stderr.isatty())
    if not any(fault.kind == 'store' for fault in faults):
        click.echo('\n'.join(summarize_dataset(opts['img_source'], opts['seg_source'])))
    if faults:
        raise faults_error(faults, opts['img_source'])
    click.echo('No faults.')


def synthesize(opts):
    """Render synthetic heads into the destinations."""
    from training.synthetic.write import write_dataset  # the other modes do without it
    _need(opts, 'resolution', 'img_dest')
    for name in ('img_source', 'seg_source', 'transform', 'max_images'):
        if opts[name] is not None:
            raise UserError(f'--{name.replace("max_images", "max-images")} does not go with --synthetic; leave it out')
    write_dataset(opts['synthetic'], opts['resolution'], opts['img_dest'], opts['seg_dest'], seed=opts['seed'] or 0,
                  jitter=opts['jitter'] or 0.0, ext=opts['ext'], progress=sys.stderr.isatty())
    click.echo(f'{opts["synthetic"]} images written to {opts["img_dest"]}')


def convert(opts):
    """Convert the sources and report what was left out."""
    _need(opts, 'img_source', 'img_dest')
    names = ('img_source', 'img_dest', 'seg_source', 'seg_dest', 'resolution', 'transform', 'max_images', 'use_basename', 'ext')
    written, faults = convert_dataset(**{name: opts[name] for name in names}, progress=sys.stderr.isatty())
    if faults:
        click.echo(faults_error(faults, f'{opts["img_source"]}, left out or passed over'), err=True)
    click.echo(f'{written} images written to {opts["img_dest"]}')


if __name__ == '__main__':
    main()
