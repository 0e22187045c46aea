"""Precision and recall of a generator by nearest neighbours in feature space (Kynkaanniemi et al., 1904.06991)."""

import torch

from metrics.collectors import Rows
from metrics.registry import register_metric

NEIGHBOUR = 3
BLOCK = 4096          # rows at a time: distances of 64 MB


def _centred_blocks(rows, centre):
    for start, block in rows.blocks(BLOCK):
        yield start, torch.from_numpy(block).sub_(centre)


def _radii(rows, centre):
    """[N] distance of every row to its NEIGHBOUR-th nearest other row."""
    radii = []
    for start, block in _centred_blocks(rows, centre):
        nearest = torch.full([len(block), NEIGHBOUR], float('inf'))
        for other_start, other in _centred_blocks(rows, centre):
            distance = torch.cdist(block, other)
            if start == other_start:
                distance.fill_diagonal_(float('inf'))       # a row is not its own neighbour
            nearest = torch.cat([nearest, distance], dim=1).topk(NEIGHBOUR, dim=1, largest=False).values
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _covered(rows, manifold, radii, centre):
    """Share of `rows` that lie within the radius of at least one row of `manifold`."""
    inside = 0
    for _, block in _centred_blocks(rows, centre):
        covered = torch.zeros(len(block), dtype=torch.bool)
        for start, other in _centred_blocks(manifold, centre):
            covered |= (torch.cdist(block, other) <= radii[start:start + len(other)]).any(dim=1)
        inside += int(covered.sum())
    return inside / len(rows)


def precision_recall(real, fake):
    """(share of fakes within the reals' manifold, share of reals within the fakes') of two metrics.collectors.Rows, whose
    manifold is the union of balls up to each row's 3rd nearest neighbour. A set of 3 rows or fewer covers everything."""
    centre = torch.from_numpy(real.take(range(min(len(real), BLOCK)))).mean(dim=0)     # distances lose no digits to an offset
    return _covered(fake, real, _radii(real, centre), centre), _covered(real, fake, _radii(fake, centre), centre)


@register_metric('pr50k3_full', max_real=200_000, features='vgg16', collects=Rows)
def pr50k3_full(real, fake):
    """Precision (do fakes look real) and recall (is everything real made), 0 to 1, both best at 1, of 200,000 reals at most
    and 50,000 fakes. Good generators of faces have about 0.7 and 0.5; both depend on the counts."""
    precision, recall = precision_recall(real, fake)
    return {'pr50k3_full_precision': precision, 'pr50k3_full_recall': recall}
