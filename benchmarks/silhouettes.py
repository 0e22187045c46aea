"""How well heads without a face are cropped by their silhouette: python benchmarks/silhouettes.py [--heads 28] [--size 192].

Synthetic heads, 50 level cameras all round each, exact masks, yaw given; crops lie anywhere at any size in the picture. Errors of
scale and centre are shares of the crop's side. "Known" are views of the same head whose crop is given beforehand
(outlines.fit_outlines); with none, the relation of crop and silhouette is that of the other heads. The last row is the
error of scale that remains to who knows all but a head's size: heads are drawn at different sizes, the crop keeps its
size, and a head and the same head a little larger have one silhouette (but for perspective, which tells a size only where
the distance is known).

python benchmarks/silhouettes.py --mean prints the table of preprocessing/mean_outline.py, from other heads than those measured.
"""

import sys
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocessing import outlines, silhouette  # noqa: E402
from training.synthetic.cameras import label_at  # noqa: E402
from training.synthetic.heads import sample_identities  # noqa: E402
from training.synthetic.render import render_heads  # noqa: E402

NUM_CAMERAS = 50
KNOWN_YAWS = (0, 90, 180, -90, -60, 60, -30, 30)
KNOWN = {'the front': (0,), 'front, 30 and 60 degrees': (0, 4, 5, 6, 7), 'four sides': (0, 1, 2, 3),
         'four sides and 60 degrees': (0, 1, 2, 3, 4, 5)}
FIRST_IDENTITY = 60
MEAN_OF = range(1000, 1032)   # other identities, for the mean outline
MANY = range(1000, 2000)      # and for the mean of their sizes


def photographed(identity, yaws, size, rng, pitch=0.0):
    """(masks, labels, centres, half sides) of one head."""
    zoom, shift = rng.uniform(0.5, 0.7, len(yaws)), rng.uniform([-0.08, -0.1], [0.08, 0.0], (len(yaws), 2))
    labels = label_at(torch.tensor(yaws, dtype=torch.float32), pitch)
    wide = labels.clone()
    wide[:, [16, 20]] *= torch.tensor(zoom, dtype=torch.float32)[:, None]
    wide[:, [18, 21]] += torch.tensor(shift, dtype=torch.float32)
    masks = render_heads(sample_identities([identity] * len(yaws)), wide, size, 2).mask[:, 0].numpy()
    return (masks * 255).round().astype(np.uint8), labels.numpy(), (0.5 + shift) * size - 0.5, zoom * size / 2


def views_of(head, indices):
    """What fit_outlines takes of the views with those indices."""
    masks, labels, centres, halves = head
    return [(masks[i], labels[i], silhouette.quad_around(centres[i], halves[i], 0.0)) for i in indices]


def placed(head, yaws, known=None, relation=None):
    """[NUM_CAMERAS, 3]: logarithms of the scale's errors, and ways from the true centres in the crop's side."""
    masks, _, centres, halves = head
    found = []
    for i in range(NUM_CAMERAS):
        quad, *_ = outlines.quad_of_outline(masks[i], known, yaws[i], relation=relation)
        centre, half = silhouette.crop_centre(quad)
        found.append((np.log(half / halves[i]), *((centre - centres[i]) / (2 * halves[i]))))
    return np.array(found)


def table_of_mean():
    """Coefficients [ROWS, 10] and [10] of mean_outline.py: least squares over the heads MEAN_OF, as they are and mirrored."""
    rng, terms, rows = np.random.default_rng(2), [], []
    yaws = np.arange(-180, 180, 15)
    for identity in tqdm(MEAN_OF, unit='head'):
        for pitch in (-20, 0, 20):
            masks, _, centres, halves = photographed(identity, yaws, 160, rng, pitch)
            for mask, yaw, centre, half in zip(masks, np.deg2rad(yaws), centres, halves):
                vector = outlines.vector_of(outlines.trace(mask), centre, half)
                left, right, crown = vector[:outlines.ROWS], vector[outlines.ROWS:-1], vector[-1:]
                for turn, side in ((yaw, left), (-yaw, right)):
                    terms.append(outlines.terms_of(turn, np.deg2rad(pitch)))
                    rows.append(np.concatenate([side, crown]))
    return np.linalg.lstsq(np.array(terms), np.array(rows), rcond=None)[0].T


def least_errors(heads):
    """Errors of scale [heads] of who knows everything of a head but how large it was drawn, and takes the mean of many others."""
    mean = sample_identities(MANY).scale.mean()
    return (sample_identities(range(FIRST_IDENTITY, FIRST_IDENTITY + heads)).scale / mean - 1).abs().numpy()


def spread_of(found):
    """Text of errors [N]."""
    return f'median {np.median(found):.1%}, within 3 % {np.mean(found < 0.03):.1%}, worst {found.max():.1%}'


def report(name, found):
    """Print a row: `found` [heads, NUM_CAMERAS, 3] of placed."""
    found = found.reshape(-1, 3)
    errors = np.abs(np.exp(found[:, 0]) - 1), np.hypot(*found[:, 1:].T)
    click.echo(f'{name}: ' + '; '.join(f'{label}: {spread_of(e)}' for label, e in zip(('scale', 'centre'), errors)))


@click.command()
@click.option('--heads', type=click.IntRange(2), default=28, show_default=True, help='Identities.')
@click.option('--size', type=click.IntRange(64), default=192, show_default=True, help='Pixels of the photographs.')
@click.option('--mean', is_flag=True, help='Print the table of mean_outline.py instead.')
def main(heads, size, mean):
    """Print the table of cropping_guide.md."""
    if mean:
        for row in table_of_mean():
            click.echo('    (' + ', '.join(f'{value:.4f}' for value in row) + '),')
        return
    yaws = np.concatenate([np.linspace(-180, 180, NUM_CAMERAS, endpoint=False), KNOWN_YAWS])
    rng = np.random.default_rng(1)
    people = [photographed(FIRST_IDENTITY + k, yaws, size, rng) for k in tqdm(range(heads), desc='rendering', unit='head')]
    alone, rows = [], {}
    for k, head in enumerate(people):
        others = [view for other in people[:k] + people[k + 1:] for view in views_of(other, range(0, NUM_CAMERAS, 5))]
        alone.append(placed(head, yaws, relation=silhouette.fit_relation(others)))
        for name, known in KNOWN.items():
            of_head = outlines.fit_outlines(views_of(head, [NUM_CAMERAS + i for i in known]))
            rows.setdefault(name, []).append(placed(head, yaws, of_head))
    alone = np.array(alone)
    report('known none', alone)
    # All views of a head share its size and height over the crop, which a silhouette cannot tell.
    report('known none, but for one size and height a head', alone - alone.mean(axis=1, keepdims=True) * [1, 0, 1])
    for name, found in rows.items():
        report(f'known {name}', np.array(found))
    click.echo(f'all but the size of the head: scale: {spread_of(least_errors(heads))}')


if __name__ == '__main__':
    main()
