"""A picture becomes a head: pivotal tuning inversion of a cropped picture with a known camera.

    python projector.py --network demo --target_img crops --idx 0 --outdir out
    python gen_videos.py --network out/demo/0/fintuned_generator.pkl --latent out/demo/0/projected_w.npz
"""

import contextlib
import dataclasses
import urllib.parse
from pathlib import Path

import click
import numpy as np

from dnnlib.cli import FiniteFloat, user_errors, writable_folder
from inference import cli, images, shapes
from inference.inversion import InversionOptions, invert, psnr, save_inversion
from inference.perceptual import load_features
from inference.session import Session
from inference.targets import load_target
from inference.video import video_writer
from torch_utils import misc
from training.snapshot import load_network

FRAME_EVERY = {'latents': 4, 'generator': 20}     # steps of each stage that a frame of the video stands for


def network_name(network):
    """File name without extension of a network file, address or 'demo'."""
    return Path(urllib.parse.urlparse(network).path).stem


@contextlib.contextmanager
def optimisation_video(path, fps, target):
    """Context giving an observer for `invert` that films the target next to what has become of it; `path` None films nothing."""
    if path is None:
        yield None
        return
    target = images.to_uint8(target)[0]
    with video_writer(path, fps) as write:
        def observe(stage, step, image):
            if step % FRAME_EVERY[stage] == 0:
                write(np.concatenate([target, images.to_uint8(image)[0]], axis=1))
        yield observe


@click.command(epilog='Results go to OUTDIR/NETWORK/IDX: projected_w.npz, fintuned_generator.pkl, target.png, pre.png (before '
                      'the generator was tuned), proj.png (after), proj.mp4, settings.json and, with --shapes, '
                      "geometry.mrc. A single picture's go to OUTDIR/NETWORK/FILE NAME.")
@cli.network_options(outdir='out')
@click.option('--target_img', metavar='PATH', required=True,
              help='Folder or zip of cropped pictures with dataset.json, or one picture.')
@click.option('--target_seg', metavar='PATH', default=None, help='Taken for the sake of published commands; masks are not used.')
@click.option('--label', 'label_file', metavar='JSON', default=None,
              help='Camera of a single picture: 25 numbers, or a dataset.json that names it.  [default: dataset.json beside it]')
@click.option('--idx', type=click.IntRange(min=0), default=0, show_default=True, help='Number of the picture in name order.')
@click.option('--num-steps', type=click.IntRange(1, 10 ** 6), default=500, show_default=True, help='Steps looking for latents.')
@click.option('--num-steps-pti', type=click.IntRange(0, 10 ** 6), default=500, show_default=True,
              help='Steps tuning the generator; 0 leaves it as it is.')
@click.option('--keep', type=click.Choice(['best', 'last']), default='best', show_default=True,
              help='Which of the tuned weights are written: of least loss, or the last, as published.')
@click.option('--perceptual', metavar='PATH|URL', default=None,
              help='TorchScript VGG16 that gives LPIPS features, as published.  [default: a built-in structural distance]')
@click.option('--seed', type=click.IntRange(0, 2 ** 32 - 1), default=666, show_default=True, help='Random seed.')
@click.option('--save-video', type=bool, default=True, show_default=True, help='Film the optimisation.')
@click.option('--fps', type=FiniteFloat(min=1, max=240), default=30, show_default=True, help='Frames a second of that film.')
@cli.shape_options()
@user_errors
def main(network, outdir, device, target_img, target_seg, label_file, idx, num_steps, num_steps_pti, keep, perceptual, seed,
         save_video, fps, with_shapes, shape_formats, shape_res, level, max_mem):
    """Find the head in a cropped picture, and tune the network until it shows it."""
    outdir = writable_folder(outdir)
    device = misc.resolve_device(device)
    generator = load_network(network, 'G_ema', device)
    target = load_target(target_img, generator.img_resolution, idx, label_file).to(device)
    features = load_features(perceptual, device)
    options = InversionOptions(steps_w=num_steps, steps_g=num_steps_pti, keep=keep, seed=seed)
    folder = writable_folder(outdir / network_name(network) / target.name)
    if target_seg is not None:
        click.echo(f'--target_seg {target_seg}: masks are not used')
    click.echo(f'{target.source} -> {folder} on {device}; perceptual loss: {features.description}')

    with optimisation_video(folder / 'proj.mp4' if save_video else None, fps, target.image) as observe:
        result = invert(generator, target, features, options, observe, progress=True)
    settings = {'network': network, 'target': target.source, 'perceptual': features.description, **dataclasses.asdict(options)}
    save_inversion(folder, generator, result, target, settings)
    if with_shapes:
        session = Session(generator, device)
        shapes.export_shape(session, session.identity(result.ws), folder / 'geometry',
                            shapes.ShapeOptions(shape_formats, shape_res, level, max_mem), cli.shape_progress)
    click.echo(f'PSNR {psnr(result.pre, target.image):.2f} dB from the latents alone, '
               f'{psnr(result.post, target.image):.2f} dB with the generator tuned; written to {folder}')


if __name__ == '__main__':
    main()
