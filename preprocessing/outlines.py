"""Crops of one person's views without a face, by comparing whole outlines with those of views whose crop is known.

An outline is where the head begins and ends in rows from the crown to the neck. How it looks from any side is predicted from
the known views: the mean outline of synthetic heads (mean_outline.py), moved and scaled to the person, and what the person
differs from it by, a Gaussian process over the direction of the camera. From opposite sides an outline is the same, mirrored,
but for perspective, so a front tells of the back. A new view's crop is where its outline and the predicted one overlap best.
"""

import dataclasses

import numpy as np
import scipy.optimize

from preprocessing import silhouette
from preprocessing.mean_outline import CROWN, LEFT

ROWS = len(LEFT)
FRACTIONS = np.linspace(0, 1, ROWS) ** 1.5       # of the way from the crown to LOWEST: denser where the outline is flat
LOWEST = 0.8                  # half sides of the mean head's crop below its centre: the neck, short of the shoulders
STEP = 0.02                   # half sides between the rows in which outlines are compared
MAX_PITCH_DEG = 35.0
CAP = 0.3                    # half sides by which a row can count at most, so that shoulders or a hand do not decide

# Of the person's difference from the mean head, in its own variance: how it keeps with the camera's direction, what it has
# in common from everywhere, and what is not common to a view, or to a view and the mirrored one from the other side.
LENGTH, COMMON, NOISE, MIRRORED = 0.9, 0.15, 0.15, 0.19
FARTHEST = 0.5                # from the first guess, as the logarithm of a factor and in half sides; beyond, nothing is seen
UNSURE = 0.06                 # mismatch from which other sizes are tried as well
UNLIKE = 0.07                 # mismatch from which a user should look


@dataclasses.dataclass(frozen=True)
class Outline:
    """Of an upright head in a mask of `width` columns: the row of its `crown`, and below it `rows` with the head's first and
    last column, `left` and `right` (subpixel; the first of them is the crown itself)."""
    crown: float
    rows: np.ndarray
    left: np.ndarray
    right: np.ndarray
    width: int


@dataclasses.dataclass(frozen=True)
class Outlines:
    """Outlines of one person, of fit_outlines. The person's crop is `size` times as large as that of the mean head, its
    centre `down` half sides of that crop below. `directions` [K, 3] of known views and their opposites, `weights` [K, V]:
    what a direction adds to the mean outline is its covariance with those times the weights."""
    size: float
    down: float
    directions: np.ndarray
    weights: np.ndarray


def trace(mask):
    """Outline of the head in a mask uint8 [H, W], 255 = head. Raises ValueError where there is none."""
    weight = silhouette.largest_part(mask).astype(np.float64) / 255
    inside = weight > 0.5
    filled = np.flatnonzero(inside.any(axis=1))
    if not len(filled):
        raise ValueError('the mask is empty')
    # The share of the pixel at an edge and of the next one out say where between pixels the edge lies.
    padded = np.pad(weight, 1)[1:-1]
    rows, width = np.arange(filled[0], filled[-1] + 1), mask.shape[1]
    first = np.where(inside.any(axis=1), inside.argmax(axis=1), 0)[rows]
    last = np.where(inside.any(axis=1), width - 1 - inside[:, ::-1].argmax(axis=1), 0)[rows]
    left = first + 0.5 - padded[rows, first + 1] - padded[rows, first]
    right = last - 0.5 + padded[rows, last + 1] + padded[rows, last + 2]
    above = weight[filled[0] - 1].max() if filled[0] else 0.0
    crown = filled[0] + 0.5 - weight[filled[0]].max() - above
    # A row without head between rows with head: as the rows around it.
    known = inside.any(axis=1)[rows]
    left, right = (np.interp(rows, rows[known], side[known]) for side in (left, right))
    middle = (left[0] + right[0]) / 2
    return Outline(float(crown), np.concatenate([[crown], rows]), np.concatenate([[middle], left]),
                   np.concatenate([[middle], right]), width)


def mean_outline(yaw, pitch):
    """Outline of the mean synthetic head [2 ROWS + 1] from a camera at `yaw`, `pitch` in radians: how far it reaches to the left
    and to the right of the crop's centre in rows from the crown down, and the crown's row, in half sides of the crop. Beyond
    MAX_PITCH_DEG as there: the table was made up to 20 degrees."""
    pitch = np.clip(pitch, -np.deg2rad(MAX_PITCH_DEG), np.deg2rad(MAX_PITCH_DEG))
    there, mirrored = terms_of(yaw, pitch), terms_of(-yaw, pitch)
    return np.concatenate([LEFT @ there, LEFT @ mirrored, [CROWN @ there]])


def terms_of(yaw, pitch):
    """What the columns [10] of mean_outline.py belong to, for a camera at `yaw`, `pitch` in radians."""
    waves = [1.0] + [wave(k * yaw) for k in (1, 2, 3) for wave in (np.cos, np.sin)]
    return np.array(waves + [pitch, pitch * np.cos(yaw), pitch * np.sin(yaw)])


def vector_of(outline, centre, half):
    """The outline as of mean_outline [2 ROWS + 1], for a crop with that centre and half side in pixels. Rows below its last
    one are NaN."""
    crown = (outline.crown - centre[1]) / half
    rows = crown + (LOWEST - crown) * FRACTIONS
    at = (outline.rows - centre[1]) / half
    left = np.interp(rows, at, (centre[0] - outline.left) / half, right=np.nan)
    right = np.interp(rows, at, (outline.right - centre[0]) / half, right=np.nan)
    return np.concatenate([left, right, [crown]])


def place(outline, vector, centre, half):
    """(centre [2], half side, mismatch) of the crop in which the outline fits `vector` (as of mean_outline) best, sought from
    `centre` and `half`. The mismatch is the share of the two areas that does not overlap, 0 to 1."""
    crown = vector[-1]
    rows = np.arange(crown, LOWEST, STEP)
    at = crown + (LOWEST - crown) * FRACTIONS
    reach = [np.interp(rows, at, side) for side in (vector[:ROWS], vector[ROWS:2 * ROWS])]

    def mismatch(move):
        if np.abs(move).max() > FARTHEST:
            return 1.0
        scale = half * np.exp(move[0])
        x, y = centre[0] + move[1] * half, centre[1] + move[2] * half
        at_rows = y + rows * scale
        found = (at_rows >= outline.crown) & (at_rows <= outline.rows[-1])
        a, b = (np.interp(at_rows, outline.rows, side) for side in (outline.left, outline.right))
        # Beyond the picture nothing is seen of either.
        c, d = (np.clip(side, -0.5, outline.width - 0.5) for side in (x - reach[0] * scale, x + reach[1] * scale))
        both = np.where(found, np.abs(a - c) + np.abs(b - d), d - c)
        sizes = np.where(found, b - a, 0) + d - c
        seen = (at_rows <= outline.rows[-1]) & (at_rows >= -0.5)
        return np.minimum(both, 2 * CAP * scale)[seen].sum() / max(sizes[seen].sum(), 1e-9)

    best = None
    for start in (0.0, -0.16, 0.16):
        corners = np.array([[start, 0, 0], [start + 0.06, 0, 0], [start, 0.05, 0], [start, 0, 0.05]])
        found = scipy.optimize.minimize(mismatch, corners[0], method='Nelder-Mead',
                                        options={'initial_simplex': corners, 'xatol': 1e-4, 'fatol': 1e-6})
        if best is None or found.fun < best.fun:
            best = found
        if best.fun < UNSURE:
            break
    size, right, down = best.x
    return np.array([centre[0] + right * half, centre[1] + down * half]), half * np.exp(size), float(best.fun)


def fit_outlines(views):
    """Outlines of one person from `views`: (mask uint8 [H, W], label [25], quad [4, 2]) of each view whose crop is known, at
    least one; the more sides, the better. Raises ValueError where a mask is empty."""
    seen = []
    for view in views:
        upright, _, angles, centre, half = silhouette.upright_view(*view)
        seen.append((trace(upright), angles, centre, half))
    # The person's frame: where the mean head would have its crop.
    moves = []
    for outline, angles, centre, half in seen:
        as_mean, half_mean, _ = place(outline, mean_outline(*angles), centre, half)
        moves.append((np.log(half / half_mean), (centre[1] - as_mean[1]) / half_mean))
    size, down = np.mean(moves, axis=0)
    directions, rows, noises = [], [], []
    for outline, angles, centre, half in seen:
        half_mean = half * np.exp(-size)
        difference = vector_of(outline, centre - [0, down * half_mean], half_mean) - mean_outline(*angles)
        difference = np.nan_to_num(difference)     # below the picture's end: as the mean head
        direction = _direction(*angles)
        directions += [direction, -direction]
        rows += [difference, _mirrored(difference)]
        noises += [NOISE ** 2, NOISE ** 2 + MIRRORED ** 2]
    directions = np.array(directions)
    weights = np.linalg.solve(_covariance(directions, directions) + np.diag(noises), np.array(rows))
    return Outlines(float(np.exp(size)), float(down), directions, weights)


def quad_of_outline(mask, outlines, yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0, relation=None):
    """(quad, Measures, mismatch) of the person's head in a mask uint8 [H, W]: the crop of silhouette.quad_of_mask, to which
    `relation` goes, then moved to where the outlines agree. Without `outlines` (None) it stays there, mismatch 0. Raises
    ValueError where there is no head."""
    quad, measures = silhouette.quad_of_mask(mask, yaw_deg, pitch_deg, roll_deg, relation)
    if outlines is None:
        return quad, measures, 0.0
    upright, matrix = silhouette.turned(mask, roll_deg)
    yaw, pitch = np.deg2rad([yaw_deg, pitch_deg])
    vector = mean_outline(yaw, pitch) + _covariance(_direction(yaw, pitch)[None], outlines.directions)[0] @ outlines.weights
    centre, half = silhouette.crop_centre(quad)
    half_mean = half / outlines.size
    as_mean = np.linalg.inv(matrix[:, :2]) @ (centre - matrix[:, 2]) - [0, outlines.down * half_mean]
    as_mean, half_mean, mismatch = place(trace(upright), vector, as_mean, half_mean)
    centre = as_mean + [0, outlines.down * half_mean]
    quad = silhouette.quad_around(matrix[:, :2] @ centre + matrix[:, 2], half_mean * outlines.size, roll_deg)
    return quad, measures, mismatch


def _direction(yaw, pitch):
    return np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])


def _covariance(a, b):
    return COMMON + (1 - COMMON) * np.exp((a @ b.T - 1) / LENGTH ** 2)


def _mirrored(vector):
    return np.concatenate([vector[ROWS:2 * ROWS], vector[:ROWS], vector[-1:]])
