"""How well heads without a face are cropped by their silhouette: python benchmarks/silhouettes.py [--heads 16] [--size 192].

Synthetic heads, 50 cameras all round each, exact masks, yaw given; crops lie anywhere at any size in the picture. Errors of
scale and centre are shares of the crop's side. "Known" are views whose crop is given beforehand (silhouette.fit_relation).

The last line is the least error of scale that any measure of a silhouette alone can have: heads are drawn at different sizes, the
crop keeps its size, and a head and the same head a little larger have one silhouette (but for perspective, which tells a size
only where the distance is known).
"""

import sys
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from preprocessing import silhouette  # noqa: E402
from training.synthetic.cameras import label_at  # noqa: E402
from training.synthetic.heads import sample_identities  # noqa: E402
from training.synthetic.render import render_heads  # noqa: E402

NUM_CAMERAS = 50
KNOWN_YAWS = (0, 90, 180, -90, -60, 60, -30, 30)
KNOWN = {'the front': (0,), 'front, 30 and 60 degrees': (0, 4, 5, 6, 7), 'four sides': (0, 1, 2, 3)}
FIRST_IDENTITY = 60
MANY = range(1000, 2000)      # other identities, for the mean of their sizes


def photographed(identity, yaws, size, rng):
    """(masks, labels, centres, half sides) of one head."""
    zoom, shift = rng.uniform(0.5, 0.7, len(yaws)), rng.uniform([-0.08, -0.1], [0.08, 0.0], (len(yaws), 2))
    labels = label_at(torch.tensor(yaws, dtype=torch.float32), 0.0)
    wide = labels.clone()
    wide[:, [16, 20]] *= torch.tensor(zoom, dtype=torch.float32)[:, None]
    wide[:, [18, 21]] += torch.tensor(shift, dtype=torch.float32)
    masks = render_heads(sample_identities([identity] * len(yaws)), wide, size, 2).mask[:, 0].numpy()
    return (masks * 255).round().astype(np.uint8), labels.numpy(), (0.5 + shift) * size - 0.5, zoom * size / 2


def views_of(head, indices):
    """What fit_relation takes of the views with those indices."""
    masks, labels, centres, halves = head
    return [(masks[i], labels[i], silhouette.quad_around(centres[i], halves[i], 0.0)) for i in indices]


def errors(head, yaws, relation):
    """(scale, centre) errors [NUM_CAMERAS, 2] of one head."""
    masks, _, centres, halves = head
    found = []
    for i in range(NUM_CAMERAS):
        quad, _ = silhouette.quad_of_mask(masks[i], yaws[i], relation=relation)
        centre, half = silhouette.crop_centre(quad)
        found.append((abs(half / halves[i] - 1), np.hypot(*(centre - centres[i])) / (2 * halves[i])))
    return np.array(found)


def least_errors(heads):
    """Errors of scale [heads] of who knows everything of a head but how large it was drawn, and takes the mean of many others."""
    mean = sample_identities(MANY).scale.mean()
    return (sample_identities(range(FIRST_IDENTITY, FIRST_IDENTITY + heads)).scale / mean - 1).abs().numpy()


def spread_of(found):
    """Text of errors [N]."""
    return f'median {np.median(found):.1%}, within 3 % {np.mean(found < 0.03):.0%}, worst {found.max():.1%}'


@click.command()
@click.option('--heads', type=click.IntRange(2), default=16, show_default=True, help='Identities.')
@click.option('--size', type=click.IntRange(64), default=192, show_default=True, help='Pixels of the photographs.')
def main(heads, size):
    """Print the table of cropping_guide.md."""
    yaws = np.concatenate([np.linspace(-180, 180, NUM_CAMERAS, endpoint=False), KNOWN_YAWS])
    rng = np.random.default_rng(1)
    people = [photographed(FIRST_IDENTITY + k, yaws, size, rng) for k in range(heads)]
    rows = {'none': []}
    for k, head in enumerate(people):
        others = [view for other in people[:k] + people[k + 1:] for view in views_of(other, range(0, NUM_CAMERAS, 5))]
        rows['none'].append(errors(head, yaws, silhouette.fit_relation(others)))
        for name, known in KNOWN.items():
            relation = silhouette.fit_relation(views_of(head, [NUM_CAMERAS + i for i in known]))
            rows.setdefault(name, []).append(errors(head, yaws, relation))
    for name, found in rows.items():
        found = np.concatenate(found)
        text = [f'{label}: {spread_of(e)}' for label, e in zip(('scale', 'centre'), found.T)]
        click.echo(f'known {name}: ' + '; '.join(text))
    click.echo(f'all but the size of the head: scale: {spread_of(least_errors(heads))}')


if __name__ == '__main__':
    main()
