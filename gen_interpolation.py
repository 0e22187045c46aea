"""Two heads mixed layer by layer: what early and late latents hold.

    python gen_interpolation.py --network demo --trunc 0.7 --outdir interpolation_out
"""

import click
import numpy as np
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import user_errors, writable_folder
from dnnlib.util import counted
from inference import cli, images, latents, trajectories
from inference.session import Session

ROW_YAWS = (0.0, 45.0, 180.0)           # front, 45 degrees, back
COLUMN_LAYERS = (0, 2, 3, 4, 6, 8)      # the second head's latents are taken from here on


def generate_mixtures(session, first, second, labels, mode='image'):
    """Yield, a column at a time, pictures [V, H, W, 3] from labels [V, 25] of mixtures of ws `first` and `second`
    [1, num_ws, w_dim]."""
    for layer in COLUMN_LAYERS:
        identity = session.identity(latents.mix_styles(first, second, layer))
        yield np.concatenate([images.frames(session.view(identity, label), mode) for label in labels.split(1)])


@click.command()
@cli.network_options(outdir='interpolation_out')
@cli.precision_option()
@cli.latent_options(seeds='0,1')
@cli.picture_options()
@user_errors
def main(network, outdir, device, precision, seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg, image_mode, nrr, sample_mult):
    """Write a picture for every two seeds: rows are front, 45 degrees and back; columns take the second head's latents
    from layer 0, 2, 3, 4, 6 and 8 on, so that the second head stands left and the first shows more to the right."""
    if len(seeds) % 2:
        raise UserError(f'--seeds names {counted(len(seeds), "head")}; two are mixed at a time, so give an even number')
    outdir = writable_folder(outdir)
    session = Session.open(network, device, nrr, sample_mult, precision)
    ws = session.seeds_to_ws(seeds, truncation_psi, truncation_cutoff, pose_cond, fov_deg)
    labels = trajectories.turned(session.camera(fov_deg), ROW_YAWS, pivot=trajectories.ORIGIN)

    pairs = list(zip(seeds[::2], seeds[1::2], ws[::2].split(1), ws[1::2].split(1)))
    with tqdm(total=len(pairs) * len(COLUMN_LAYERS), unit='column') as progress:
        for first_seed, second_seed, first, second in pairs:
            columns = []
            for column in generate_mixtures(session, first, second, labels, image_mode):
                columns.append(column)
                progress.update()
            rows = np.stack(columns, axis=1)                                                  # [V, columns, H, W, 3]
            picture = images.grid(rows.reshape(-1, *rows.shape[2:]), (len(columns), len(labels)))
            images.save_png(outdir / f'interpolation{first_seed:04d}-{second_seed:04d}.png', picture)
    click.echo(f'{counted(len(pairs), "picture")} written to {outdir}')


if __name__ == '__main__':
    main()
