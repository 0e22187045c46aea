"""Pictures of heads from several sides, one strip a seed, and their shapes.

    python gen_samples.py --outdir=out --trunc=0.7 --shapes=true --seeds=0-3 --network demo
"""

import functools
import math

import click
import numpy as np
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import Size, user_errors, writable_folder
from dnnlib.util import counted
from inference import cli, images, shapes, trajectories
from inference.session import Session
from torch_utils import distributed, misc

SIDE_VERTICAL = math.pi / 2 - 0.2    # cameras of the views stand a little above the head
SHEET_VIEWS = 8


def view_yaws(views, sheet):
    """Yaws in degrees: `views` from the front round to the back, or, for a sheet, evenly all the way round."""
    if sheet:
        return np.arange(views or SHEET_VIEWS) * -360 / (views or SHEET_VIEWS)
    return np.linspace(0, -180, views or 5)


def generate_samples(session, ws, labels, mode='image', rgba=False):
    """Yield (identity, pictures [V, H, W, C]) for each of the latents ws [N, num_ws, w_dim] seen from labels [V, 25]."""
    for row in ws.split(1):
        identity = session.identity(row)
        views = [images.frames(session.view(identity, label), mode, rgba) for label in labels.split(1)]
        yield identity, np.concatenate(views)


def generate(network, outdir, device, precision, seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg, latent, image_mode,
             nrr, sample_mult, views, sheet, grid, rgba, with_shapes, shape_formats, shape_res, level, max_mem):
    """Write the strips of this process's share of the seeds; process 0 writes what holds all of them."""
    name, given = cli.read_latent(latent)
    seeds = seeds if given is None else range(len(given))
    if grid and grid[0] * grid[1] != len(seeds):
        raise UserError(f'--grid {grid[0]}x{grid[1]} holds {grid[0] * grid[1]} pictures for {counted(len(seeds), "head")}; '
                        'make them equal')
    shape_options = shapes.ShapeOptions(shape_formats, shape_res, level, max_mem) if with_shapes else None
    outdir = writable_folder(outdir)
    session = Session.open(network, str(distributed.init(misc.resolve_device(device))), nrr, sample_mult, precision)
    own = distributed.shard(seeds)
    ws = None                                   # there may be more processes than heads
    if given is not None:
        ws = session.given_ws(given)[distributed.rank()::distributed.world_size()]
    elif own:
        ws = session.seeds_to_ws(own, truncation_psi, truncation_cutoff, pose_cond, fov_deg)
    labels = trajectories.turned(session.camera(fov_deg), view_yaws(views, sheet), SIDE_VERTICAL, trajectories.ORIGIN)

    strips = []
    samples = generate_samples(session, ws, labels, image_mode, rgba) if own else ()
    for seed, (identity, pictures) in zip(own, tqdm(samples, total=len(own), unit='seed', disable=distributed.rank() > 0)):
        images.save_png(outdir / f'{name}{seed:04d}.png', images.strip(pictures))
        if shape_options:
            shapes.export_shape(session, identity, outdir / f'{name}{seed:04d}', shape_options, cli.shape_progress)
        strips.append(pictures if sheet or grid else None)
    strips = distributed.gather_shards(strips)
    if distributed.rank() == 0:
        if sheet:
            images.save_png(outdir / 'sheet.png', images.grid(np.concatenate(strips), (len(labels), len(seeds))))
        if grid:
            images.save_png(outdir / 'grid.png', images.grid([pictures[0] for pictures in strips], grid))
        click.echo(f'{counted(len(seeds), "head")} written to {outdir}')


@click.command()
@cli.network_options(outdir='out')
@cli.gpus_option()
@cli.precision_option()
@cli.latent_options(seeds='0-3')
@cli.latent_file_option()
@cli.picture_options()
@click.option('--views', type=click.IntRange(1, 360), default=None, help='Views a seed.  [default: 5, or 8 with --sheet]')
@click.option('--sheet', is_flag=True, help='Views go all the way round; also write sheet.png, one row a seed.')
@click.option('--grid', type=Size(), default=None, help='Also write grid.png, the first view of all seeds, columns x rows.')
@click.option('--rgba', is_flag=True, help='Transparent background: the mask becomes the alpha channel.')
@cli.shape_options()
@user_errors
def main(gpus, **options):
    """Write a strip of views, front to back, of the head of every seed."""
    distributed.run_processes(functools.partial(generate, **options), gpus)


if __name__ == '__main__':
    main()
