"""Make the README's pictures of networks: python docs/make_pictures.py [--network demo] [--run demo/training-runs/NNNNN-...].

Writes docs/images/turning.gif and demo_network.png (of --network) and demo_run.png (of the last snapshot of --run).
"""

import sys
from pathlib import Path

import click
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from inference.images import frames as to_frames  # noqa: E402
from inference.images import grid  # noqa: E402
from inference.session import Session  # noqa: E402
from inference.trajectories import orbit, turned  # noqa: E402

SIDES = (0, -45, -90, -135, -180, -225, -270, -315)


def render(session, seeds, labels_of, truncation):
    """uint8 frames: one list per seed with an image per label."""
    rows = []
    for seed in seeds:
        identity = session.identity(session.seeds_to_ws([seed], truncation))
        rows.append([to_frames(session.view(identity, label[None]), 'image')[0] for label in labels_of(session.camera())])
    return rows


def sheet(session, seeds, path, truncation, scale):
    """One row a seed, its eight sides from the front round."""
    rows = render(session, seeds, lambda camera: [turned(camera, yaw, pivot=(0, 0, 0))[0] for yaw in SIDES], truncation)
    picture = Image.fromarray(grid([image for row in rows for image in row], (len(SIDES), len(rows))))
    picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.LANCZOS).save(path)


def turning(session, seeds, path, truncation, scale, num_frames=48):
    """A GIF of heads side by side, once round."""
    rows = render(session, seeds, lambda camera: orbit('Head', num_frames, camera), truncation)
    pictures = [Image.fromarray(grid([row[i] for row in rows], (len(rows) // 2, 2))) for i in range(num_frames)]
    pictures = [p.resize((int(p.width * scale), int(p.height * scale)), Image.LANCZOS).quantize(128) for p in pictures]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=70, loop=0)


@click.command()
@click.option('--network', default='demo', show_default=True, help='Network of turning.gif and demo_network.png')
@click.option('--run', type=click.Path(path_type=Path), help='Run folder whose last snapshot demo_run.png shows')
@click.option('--outdir', default=HERE / 'images', type=click.Path(path_type=Path), help='Where the pictures go')
@click.option('--trunc', default=0.8, show_default=True, help='Truncation psi')
@click.option('--scale', default=1.5, show_default=True, help='Enlargement of the networks\' pixels')
def main(network, run, outdir, trunc, scale):
    """Make the pictures."""
    outdir.mkdir(parents=True, exist_ok=True)
    session = Session.open(network)
    turning(session, range(8), outdir / 'turning.gif', trunc, scale)
    sheet(session, range(5), outdir / 'demo_network.png', trunc, scale)
    if run is not None:
        sheet(Session.open(max(run.glob('network-snapshot-*.pkl'))), range(3), outdir / 'demo_run.png', trunc, scale)


if __name__ == '__main__':
    main()
