"""Hair styles: the ellipsoids that carry hair, the space kept free for face and ears, and the lower edge.

A style is a row of STYLE_TABLE; every entry is varied by the identity. All styles share one list of ellipsoids, of
which each uses some, so identities of all styles share one batch.
"""

import torch

from training.synthetic.geometry import CARVE, HAIR

STYLES = ('bald', 'short', 'long', 'curly', 'bun', 'asymmetric')
STYLE_WEIGHTS = (1.0, 2.2, 2.6, 2.0, 2.0, 2.2)

# cap: thickness on the skull; hairline: its height on the forehead; nape: lower edge at the back (-1 = none); side, back:
# lower ends of the hair beside and behind the neck (1 = none); top: volume above the forehead; bun: radius of the bun;
# ears: 1 = kept free; curl: amplitude
STYLE_COLUMNS = ('cap', 'hairline', 'nape', 'side', 'back', 'top', 'bun', 'ears', 'curl')
STYLE_TABLE = (
    (-0.030, 0.140, -0.10, 1.00, 1.00, 0.0, 0.000, 1, 0.000),
    (0.021, 0.138, -0.10, 1.00, 1.00, 1.0, 0.000, 1, 0.000),
    (0.026, 0.132, -1.00, -0.21, -0.23, 0.0, 0.000, 0, 0.000),
    (0.039, 0.132, -0.13, 1.00, 1.00, 0.0, 0.000, 1, 0.0050),
    (0.015, 0.142, -0.11, 1.00, 1.00, 0.0, 0.066, 1, 0.000),
    (0.022, 0.140, -0.09, -0.10, 1.00, 1.4, 0.000, 1, 0.000),
)
CUT_SLOPE = 0.40  # the lower edge rises towards the face by this much per unit of z


def add_hair(draws, shapes, style):
    """Add hair and its cuts to `shapes` for styles [N]. Returns the cut plane [N, 4], curls [N, 2] and how strongly a
    shaved scalp shows the colour of the hair [N]."""
    row = dict(zip(STYLE_COLUMNS, torch.tensor(STYLE_TABLE)[style].unbind(1)))
    asymmetric, bald = style == STYLES.index('asymmetric'), style == STYLES.index('bald')
    cap = row['cap'] * draws.around(1, 0.2)
    shapes.add(HAIR, (0, 0.083, -0.036), (0.148 + cap, 0.163 + cap, 0.182 + cap))

    long = row['back'] < 0.9
    # One in three with long hair wears it as a bob, some with a fringe.
    bob, fringe = long & (draws.unit() < 0.35), (long | (style == STYLES.index('short'))) & (draws.unit() < 0.35)
    side = torch.where(bob, -0.11, row['side']) + draws.around(0, 0.03)
    back = torch.where(bob, -0.12, row['back']) + draws.around(0, 0.03)
    shapes.add(HAIR, (0.122, 0.5 * (side + 0.12), -0.045), (0.054, 0.5 * (0.12 - side), 0.085), roll=0.06, paired=True, used=long)
    shapes.add(HAIR, (0, 0.5 * (back + 0.14), -0.115), (0.145, 0.5 * (0.14 - back), 0.095), tilt=-0.1, used=long)
    # Asymmetric: all the length falls on the +x side, a wave lies over that side of the forehead.
    shapes.add(HAIR, (0.126, 0.5 * (side + 0.14), -0.030), (0.047, 0.5 * (0.14 - side), 0.098), roll=0.08, used=asymmetric)
    volume = row['top'] * draws.around(0.022, 0.006)
    lean = torch.where(asymmetric, 0.045, 0.0)
    shapes.add(HAIR, (lean, 0.205, 0.045), (0.095, 0.035 + volume, 0.085), tilt=0.35, roll=torch.where(asymmetric, -0.25, 0.0),
               used=row['top'] > 0)

    _add_bun(draws, shapes, row['bun'] * draws.around(1, 0.15))
    hairline = torch.where(fringe, 0.088, row['hairline'] + draws.around(0, 0.008))
    _add_carves(draws, shapes, hairline, row['ears'] > 0.5, asymmetric)

    nape = row['nape'] + draws.around(0, 0.015)
    normal = torch.tensor([0.0, -1.0, CUT_SLOPE]) / (1 + CUT_SLOPE ** 2) ** 0.5
    # The plane passes through (y, z) = (nape, -0.2).
    offset = (-nape - 0.2 * CUT_SLOPE) / (1 + CUT_SLOPE ** 2) ** 0.5
    cut = torch.cat([normal.expand(len(style), 3), offset[:, None]], dim=1)
    # The long side of an asymmetric cut hangs below the plane; its slope leans with it.
    side_cut = torch.tensor([-0.62, -0.76, 0.20])
    cut = torch.where(asymmetric[:, None], torch.cat([side_cut.expand(len(style), 3), cut[:, 3:] - 0.015], dim=1), cut)
    curl = torch.stack([row['curl'] * draws.around(1, 0.25), draws.between(58, 78)], dim=1)
    scalp = torch.where(asymmetric | (bald & (draws.unit() < 0.5)), draws.between(0.3, 0.55), 0.0)
    return cut, curl, scalp


def _add_bun(draws, shapes, radius):
    """A bun on top or behind, or a pony tail hanging from one."""
    bun, place = radius > 0, draws.unit()
    top, tail = place < 0.35, place > 0.65
    y, z = torch.where(top, 0.245, torch.where(tail, 0.13, 0.11)), torch.where(top, -0.085, -0.225)
    radius = torch.where(top, 0.8, 1.0) * torch.where(tail, 0.6, 1.0) * radius
    shapes.add(HAIR, (0, y, z), (radius, radius * 0.92, radius * 0.92), used=bun)
    shapes.add(HAIR, (0, 0.00, -0.245), (0.042, 0.15, 0.042), tilt=0.10, used=bun & tail)


def _add_carves(draws, shapes, hairline, ears, asymmetric):
    """The space kept free of hair: before the face (its top is the hairline) and round the ears."""
    depth = 0.27
    base = -0.06
    # Height of the ellipsoid such that its edge stands at the hairline where the forehead is (z = 0.13).
    height = (hairline - base) / (1 - ((0.30 - 0.13) / depth) ** 2) ** 0.5
    roll = torch.where(asymmetric, draws.between(0.20, 0.34), draws.around(0, 0.05))
    shift = torch.where(asymmetric, -0.022, 0.0)
    shapes.add(CARVE, (shift, base, 0.30), (draws.around(0.190, 0.008), height, depth), roll=roll)
    # On the covered side the ear of an asymmetric cut stays under the hair.
    left = ears & ~asymmetric
    for side, free in ((1.0, left), (-1.0, ears)):
        shapes.add(CARVE, (side * 0.172, -0.005, -0.010), (0.050, 0.062, 0.046), used=free)
