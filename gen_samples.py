"""Pictures of heads from several sides, one strip a seed, and their shapes.

    python gen_samples.py --outdir=out --trunc=0.7 --shapes=true --seeds=0-3 --network demo
"""

import math

import click
import numpy as np
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import Size, user_errors, writable_folder
from dnnlib.util import counted
from inference import cli, images, shapes, trajectories
from inference.session import Session

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


@click.command()
@cli.network_options(outdir='out')
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
def main(network, outdir, device, precision, seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg, latent, image_mode, nrr,
         sample_mult, views, sheet, grid, rgba, with_shapes, shape_formats, shape_res, level, max_mem):
    """Write a strip of views, front to back, of the head of every seed."""
    name, given = cli.read_latent(latent)
    seeds = seeds if given is None else range(len(given))
    if grid and grid[0] * grid[1] != len(seeds):
        raise UserError(f'--grid {grid[0]}x{grid[1]} holds {grid[0] * grid[1]} pictures for {counted(len(seeds), "head")}; '
                        'make them equal')
    shape_options = shapes.ShapeOptions(shape_formats, shape_res, level, max_mem) if with_shapes else None
    outdir = writable_folder(outdir)
    session = Session.open(network, device, nrr, sample_mult, precision)
    if given is None:
        ws = session.seeds_to_ws(seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg)
    else:
        ws = session.given_ws(given)
    labels = trajectories.turned(session.camera(fov_deg), view_yaws(views, sheet), SIDE_VERTICAL, trajectories.ORIGIN)

    strips = []
    samples = generate_samples(session, ws, labels, image_mode, rgba)
    for seed, (identity, pictures) in zip(seeds, tqdm(samples, total=len(seeds), unit='seed')):
        images.save_png(outdir / f'{name}{seed:04d}.png', images.strip(pictures))
        if shape_options:
            shapes.export_shape(session, identity, outdir / f'{name}{seed:04d}', shape_options, cli.shape_progress)
        if sheet or grid:
            strips.append(pictures)
    if sheet:
        images.save_png(outdir / 'sheet.png', images.grid(np.concatenate(strips), (len(labels), len(seeds))))
    if grid:
        images.save_png(outdir / 'grid.png', images.grid([pictures[0] for pictures in strips], grid))
    click.echo(f'{counted(len(seeds), "head")} written to {outdir}')


if __name__ == '__main__':
    main()
