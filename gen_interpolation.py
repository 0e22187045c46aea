"""Two heads mixed layer by layer: what early and late latents hold.

    python gen_interpolation.py --network demo --trunc 0.7 --outdir interpolation_out
    python gen_interpolation.py --network demo --latent out/demo/photo/head.safetensors --seeds 0-3   # a photograph's head and four
"""

from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import user_errors, writable_folder
from dnnlib.util import counted
from inference import cli, heads, images, latents, trajectories
from inference.session import Session

ROW_YAWS = (0.0, 45.0, 180.0)           # front, 45 degrees, back
COLUMN_LAYERS = (0, 2, 3, 4, 6, 8)      # the second head's latents are taken from here on


def generate_mixtures(session, first, second, labels, mode='image'):
    """Yield, a column at a time, pictures [V, H, W, 3] from labels [V, 25] of mixtures of ws `first` and `second`
    [1, num_ws, w_dim]."""
    for layer in COLUMN_LAYERS:
        identity = session.identity(latents.mix_styles(first, second, layer))
        yield np.concatenate([images.frames(session.view(identity, label), mode) for label in labels.split(1)])


def named_pairs(session, given, name, seeds, seeds_to_ws):
    """[(file name, first ws, second ws)]: every two of the seeds, or the Head `given` of a file called `name` with each of them."""
    if given is None:
        ws = seeds_to_ws(seeds)
        names = [f'interpolation{first:04d}-{second:04d}' for first, second in zip(seeds[::2], seeds[1::2])]
        return list(zip(names, ws[::2].split(1), ws[1::2].split(1)))
    firsts = session.given_ws(given)      # before the seeds' latents: it changes the network
    seconds = seeds_to_ws(seeds)
    return [(f'interpolation-{name}{number:04d}-{seed:04d}', first, second) for number, first in enumerate(firsts.split(1))
            for seed, second in zip(seeds, seconds.split(1))]


@click.command()
@cli.network_options(outdir='interpolation_out')
@cli.precision_option()
@cli.latent_options(seeds='0,1')
@click.option('--latent', metavar='FILE', default=None,
              help='First heads from the head.safetensors or projected_w.npz of projector.py; every one of --seeds is a second.')
@cli.picture_options()
@user_errors
def main(network, outdir, device, precision, seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg, latent, image_mode, nrr,
         sample_mult):
    """Write a picture for every two seeds: rows are front, 45 degrees and back; columns take the second head's latents
    from layer 0, 2, 3, 4, 6 and 8 on, so that the second head stands left and the first shows more to the right."""
    given = None if latent is None else heads.load_head(latent)
    if given is None and len(seeds) % 2:
        raise UserError(f'--seeds names {counted(len(seeds), "head")}; two are mixed at a time, so give an even number')
    outdir = writable_folder(outdir)
    session = Session.open(network, device, nrr, sample_mult, precision)
    pairs = named_pairs(session, given, latent and Path(latent).stem, seeds, lambda seeds: session.seeds_to_ws(
        seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg))
    labels = trajectories.turned(session.camera(fov_deg), ROW_YAWS, pivot=trajectories.ORIGIN)

    with tqdm(total=len(pairs) * len(COLUMN_LAYERS), unit='column') as progress:
        for name, first, second in pairs:
            columns = []
            for column in generate_mixtures(session, first, second, labels, image_mode):
                columns.append(column)
                progress.update()
            rows = np.stack(columns, axis=1)                                                  # [V, columns, H, W, 3]
            picture = images.grid(rows.reshape(-1, *rows.shape[2:]), (len(columns), len(labels)))
            images.save_png(outdir / f'{name}.png', picture)
    click.echo(f'{counted(len(pairs), "picture")} written to {outdir}')


if __name__ == '__main__':
    main()
