"""Contact sheet of synthetic heads: one identity per row, turned once round.

    python -m training.synthetic.sheet --out sheet.png
"""

import click
import imageio.v3 as imageio
import numpy as np
import torch

from dnnlib import UserError
from dnnlib.cli import SeedRange, user_errors
from training.synthetic.cameras import label_at
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads


def draw_sheet(seeds, num_views=8, resolution=128, pitch_deg=0.0):
    """uint8 [len(seeds) * resolution, num_views * resolution, 3]: a row per seed, yaw from -180 degrees upwards."""
    yaw = torch.linspace(-180, 180, num_views + 1)[:-1]
    labels = label_at(yaw, pitch_deg)
    rows = []
    for seed in seeds:
        batch = render_heads(sample_identities([seed] * num_views), labels, resolution)
        rows.append(torch.cat(list(batch.image), dim=2))
    return ((torch.cat(rows, dim=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


@click.command()
@click.option('--out', help='Picture to write', metavar='FILE.png', required=True)
@click.option('--seeds', help='Identities, one row each', type=SeedRange(), default='0-7', show_default=True)
@click.option('--views', help='Pictures in a row', type=click.IntRange(1, 64), default=8, show_default=True)
@click.option('--resolution', help='Size of a picture', type=click.IntRange(8, 1024), default=128, show_default=True)
@click.option('--pitch', help='Degrees the camera looks down', type=click.FloatRange(-60, 60), default=0.0, show_default=True)
@user_errors
def main(out, seeds, views, resolution, pitch):
    """Draw a contact sheet of synthetic heads."""
    picture = draw_sheet(seeds, views, resolution, pitch)
    try:
        imageio.imwrite(out, np.ascontiguousarray(picture))
    except (OSError, ValueError) as error:
        raise UserError(f'--out {out}: cannot write this picture ({error}); name a .png file in a folder that exists') from error
    click.echo(f'{out}: {len(seeds)} heads, {views} views each')


if __name__ == '__main__':
    main()
