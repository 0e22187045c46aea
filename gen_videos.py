"""Videos of heads from a moving camera: one head, a grid of heads, or heads that turn into others.

    python gen_videos.py --network demo --seeds 0-3 --grid 2x2 --outdir=out --cfg Head --trunc 0.7
"""

import contextlib
import functools

import click
import numpy as np
import torch
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import FiniteFloat, Size, user_errors, writable_folder
from dnnlib.util import counted
from inference import cli, images, latents, shapes, trajectories
from inference.session import Session
from inference.video import video_writer
from torch_utils import distributed, misc


def arrange_seeds(seeds, num_cells, num_keyframes):
    """Seeds [keyframes][cells]: every keyframe fills the grid with the next seeds, which are taken again from the first
    when `num_keyframes` asks for more than there are. Raises UserError if they do not fill whole grids."""
    if num_keyframes is None:
        if len(seeds) % num_cells:
            raise UserError(f'{counted(len(seeds), "head")} cannot fill grids of {num_cells}; '
                            'change --seeds or --grid, or give --num-keyframes')
        num_keyframes = len(seeds) // num_cells
    return [[seeds[(k * num_cells + cell) % len(seeds)] for cell in range(num_cells)] for k in range(num_keyframes)]


def generate_frames(session, paths, labels, grid, mode='image', depth_range=None):
    """Yield pictures [H, W, 3] of a grid (columns, rows) of heads: cell k has the latents paths[k] [F, num_ws, w_dim],
    all are seen from labels [F, 25]. Each cell keeps its field while its latents stay. `depth_range`: (nearest, farthest)
    depth shown, by default that of these labels."""
    depth_range = depth_range or session.depth_range(labels)
    for outputs in zip(*(session.film(path, labels) for path in paths), strict=True):
        yield images.grid(np.concatenate([images.frames(output, mode, depth_range=depth_range) for output in outputs]), grid)


def video_name(keyframes, mode, name='seed'):
    """File name from the first and last number, and the kind of picture where it is not the usual."""
    first, last = keyframes[0][0], keyframes[-1][-1]
    seeds = f'{first:04d}' if len(keyframes) * len(keyframes[0]) == 1 else f'{first:04d}-{last:04d}'
    return f'{name}{seeds}{mode.removeprefix("image")}.mp4'


def generate_in_turn(session, paths, labels, grid, mode):
    """`generate_frames` of all processes, each of which makes every so-manieth frame: yields the frames on process 0."""
    own = generate_frames(session, [distributed.shard(path) for path in paths], distributed.shard(labels), grid, mode,
                          session.depth_range(labels))
    for first in range(0, len(labels), distributed.world_size()):
        mine = [next(own)] if first + distributed.rank() < len(labels) else []
        yield from distributed.gather_shards(mine) or ()


def generate(network, outdir, device, precision, seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg, latent, grid,
             num_keyframes, interpolate, w_frames, fps, cfg, trajectory, image_mode, nrr, sample_mult, with_shapes, shape_formats,
             shape_res, level, max_mem):
    """Make this process's share of the frames of every video; process 0 writes them."""
    name, given = cli.read_latent(latent)
    keyframes = arrange_seeds(seeds if given is None else range(len(given)), grid[0] * grid[1], num_keyframes)
    shape_options = shapes.ShapeOptions(shape_formats, shape_res, level, max_mem) if with_shapes else None
    outdir = writable_folder(outdir)
    session = Session.open(network, str(distributed.init(misc.resolve_device(device))), nrr, sample_mult, precision)
    first_process = distributed.rank() == 0
    camera = session.camera(fov_deg)
    videos = [keyframes] if interpolate else [[row] for row in keyframes]
    num_frames = w_frames * len(videos[0])
    if trajectory is None:
        labels = trajectories.orbit(cfg, num_frames, camera)
    else:
        labels = trajectories.load_trajectory(trajectory, camera, num_frames)

    if given is None:
        heads = {seed: session.seeds_to_ws([seed], truncation_psi, truncation_cutoff, pose_cond, fov_deg)
                 for seed in sorted({seed for row in keyframes for seed in row})}
    else:
        heads = dict(enumerate(session.given_ws(given).split(1)))
    for video in videos:
        cells = zip(*video)                                                                   # a cell's seeds, one a keyframe
        paths = [latents.glide(torch.cat([heads[seed] for seed in cell]), len(labels)) for cell in cells]
        path = outdir / video_name(video, image_mode, name)
        frames = generate_in_turn(session, paths, labels, grid, image_mode)
        with video_writer(path, fps) if first_process else contextlib.nullcontext(lambda frame: None) as write:
            for frame in tqdm(frames, total=len(labels), unit='frame', disable=not first_process):
                write(frame)
        if first_process:
            click.echo(f'{path}: {counted(len(labels), "frame")}')
    for seed in distributed.shard(sorted(heads)) if shape_options else ():
        shapes.export_shape(session, session.identity(heads[seed]), outdir / f'{name}{seed:04d}', shape_options, cli.shape_progress)


@click.command(epilog=trajectories.FILE_FORMATS)
@cli.network_options(outdir='out')
@cli.gpus_option()
@cli.precision_option()
@cli.latent_options(seeds='0')
@cli.latent_file_option()
@click.option('--grid', type=Size(), default='1x1', show_default=True, help='Heads shown side by side, columns x rows.')
@click.option('--num-keyframes', type=click.IntRange(min=1), default=None, help='Heads a cell turns into.  [default: all]')
@click.option('--interpolate', type=bool, default=True, show_default=True,
              help='Glide from keyframe to keyframe in one video; false: a video for each keyframe.')
@click.option('--w-frames', type=click.IntRange(1, 10 ** 5), default=240, show_default=True, help='Frames a keyframe.')
@click.option('--fps', type=FiniteFloat(min=1, max=240), default=60, show_default=True, help='Frames a second.')
@click.option('--cfg', type=click.Choice(list(trajectories.ORBITS), case_sensitive=False), default='Head', show_default=True,
              metavar='|'.join(trajectories.ORBITS),
              help='Orbit of the camera: Head and Shapenet all the way round, FFHQ and AFHQ before the face.')
@click.option('--trajectory', metavar='JSON', default=None, help='Own camera path, see below; one video takes it once.')
@cli.picture_options()
@cli.shape_options()
@user_errors
def main(gpus, **options):
    """Film the heads of the seeds; the camera goes once along its path in each video."""
    distributed.run_processes(functools.partial(generate, **options), gpus)


if __name__ == '__main__':
    main()
