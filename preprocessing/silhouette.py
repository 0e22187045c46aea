"""The crop of a head without a face: from its silhouette and its angles, by the mean relation of crop and silhouette.

The silhouette is measured by what shoulders and long hair hardly change: the height h, from the crown down, at which the
area so far is SHAPE * h^2 (about at the mouth). Crop size, crown and middle are then functions of the angles. The mean
relation is that of seven published and freshly made crops of faces, its change with yaw that of synthetic heads; hair makes
heads differ by some 8 % from it. Views whose crop is known (a front of the same person) make it that person's own.
"""

import dataclasses

import numpy as np
import scipy.ndimage

from preprocessing import crops, poses

SHAPE = 0.8
THIN = 0.06                   # of the square root of its area
MIN_HEIGHT = 8                # pixels
HALF_CROP = crops.CROP_SIZE / 2 * 2 / crops.QUAD_SPAN      # half the published crop's side, in half sides of the quad


@dataclasses.dataclass(frozen=True)
class Measures:
    """`top`: row of the crown; `height`: h; `middle`: column of the middle of the part above, weighed by area; `cut`: whether
    the silhouette meets the picture's upper or lateral borders. All in pixels."""
    top: float
    height: float
    middle: float
    cut: bool


@dataclasses.dataclass(frozen=True)
class Relation:
    """How a crop follows from a silhouette: coefficients of the terms of _terms, for the logarithm of h in half sides of the
    crop, for the way from the crown down to the crop's centre in h, and for the way from the middle to the centre, to the
    right, in h (this one of _odd_terms)."""
    size: tuple = (0.566, -0.003, -0.087, 0.029, 0.017)
    down: tuple = (0.555, 0.004, 0.060, -0.022, 0.001)
    across: tuple = (0.0, -0.038, 0.009)


# What heads differ by: standard deviations of the coefficients, for fit_relation.
SPREAD = Relation(size=(0.2, 0.04, 0.04, 0.2, 0.2), down=(0.1, 0.03, 0.03, 0.2, 0.2), across=(0.01, 0.03, 0.015))
NOISE = 0.012                 # of one view


def _terms(yaw, pitch):
    return np.array([1.0, np.cos(yaw), np.cos(2 * yaw), pitch, pitch * np.cos(yaw)])


def _odd_terms(yaw, pitch):
    return np.array([1.0, np.sin(yaw), np.sin(2 * yaw)])


def measure(mask):
    """Measures of an upright head in a mask uint8 [H, W], 255 = head. Raises ValueError where there is none."""
    weight = largest_part(mask).astype(np.float64) / 255
    rows = weight.sum(axis=1)
    filled = np.flatnonzero(weight.max(axis=1, initial=0) > 0.5)
    if not len(filled):
        raise ValueError('the mask is empty')
    first = filled[0]
    top = first + 1 - weight[first].max() - (weight[first - 1].max() if first else 0.0)
    area, height = np.cumsum(rows[first:]), np.arange(1, len(rows) - first + 1) - (top - first)
    excess = area - SHAPE * height ** 2
    below = np.flatnonzero((excess <= 0) & (height > 2))
    if len(below) and below[0] > 0:
        k = below[0]
        h = height[k - 1] + excess[k - 1] / (excess[k - 1] - excess[k])
    else:
        h = height[-1]       # the picture ends before: the head is cut below
    if h < MIN_HEIGHT:
        raise ValueError(f'the head in the mask is {h:.0f} pixels high, wanted at least {MIN_HEIGHT}')
    columns = weight[first:first + int(np.ceil(h))].sum(axis=0)
    middle = (columns * np.arange(len(columns))).sum() / columns.sum()
    cut = first == 0 or columns[0] > 0.05 * h or columns[-1] > 0.05 * h or not len(below)
    return Measures(float(top) - 0.5, float(h), float(middle), bool(cut))


def largest_part(mask):
    """Mask uint8 [H, W] with its largest connected part alone, without holes and strands thinner than THIN of its size."""
    inside = scipy.ndimage.binary_fill_holes(mask > 127)
    mask = np.where(inside & (mask <= 127), 255, mask)
    radius = THIN / 2 * np.sqrt(inside.sum())
    # Eroded by that radius, then grown again: what was thinner is gone.
    inside = scipy.ndimage.distance_transform_edt(np.pad(inside, 1, mode='edge'))[1:-1, 1:-1] > radius
    parts, count = scipy.ndimage.label(inside)
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    # With its soft edge, which lies below half.
    return np.where(scipy.ndimage.distance_transform_edt(parts != sizes.argmax()) < radius + 2, mask, 0).astype(np.uint8)


def turned(mask, roll_deg):
    """(mask uint8 [H, W] turned upright, matrix [2, 3] from its pixels to those of `mask`)."""
    if not roll_deg:
        return mask, np.array([[1.0, 0, 0], [0, 1, 0]])
    size = int(np.ceil(np.hypot(*mask.shape)))
    cos, sin = np.cos(np.deg2rad(roll_deg)), np.sin(np.deg2rad(roll_deg))
    turn = np.array([[cos, -sin], [sin, cos]])
    centre = (np.array(mask.shape[::-1]) - 1) / 2
    matrix = np.concatenate([turn, (centre - turn @ np.full(2, (size - 1) / 2))[:, None]], axis=1)
    return crops.warp(mask, matrix, size), matrix


def quad_of_mask(mask, yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0, relation=None):
    """(quad, Measures) of the head in a mask uint8 [H, W], 255 = head. Angles as of poses.label_of_camera; `roll_deg` is
    how far the head leans clockwise in the picture. Raises ValueError where there is no head."""
    relation = relation or Relation()
    upright, matrix = turned(mask, roll_deg)
    found = measure(upright)
    yaw, pitch = np.deg2rad([yaw_deg, pitch_deg])
    half_crop = found.height / np.exp(_terms(yaw, pitch) @ relation.size)
    centre = np.array([found.middle + found.height * (_odd_terms(yaw, pitch) @ relation.across),
                       found.top + found.height * (_terms(yaw, pitch) @ relation.down), 1.0])
    return quad_around(matrix @ centre, half_crop, roll_deg), found


def quad_around(centre, half_crop, roll_deg):
    """Quad whose published crop has that centre and half side."""
    half_side = half_crop / HALF_CROP
    step = 2 * half_side / crops.QUAD_SPAN
    offset = np.array([crops.QUAD_LEFT, crops.QUAD_TOP]) + crops.QUAD_SPAN / 2 - (crops.CROP_SIZE - 1) / 2
    quad = crops.upright_quad((0, 0), half_side, roll_deg)
    _, right, down = crops.axes_of_quad(quad)
    return quad + centre + (offset[0] * right + offset[1] * down) / half_side * step


def crop_centre(quad):
    """(centre (x, y), half side) in pixels of the picture of the published crop of a quad."""
    matrix = crops.crop_map(quad)
    middle = (crops.CROP_SIZE - 1) / 2
    return matrix @ [middle, middle, 1], np.linalg.norm(matrix[:, 0]) * crops.CROP_SIZE / 2


def upright_view(mask, label, quad):
    """(mask turned upright, matrix [2, 3] from its pixels to those of `mask`, (yaw, pitch) in radians, the crop's centre [2]
    and half side in its pixels) of a view whose crop is known."""
    yaw, pitch, _ = np.deg2rad(poses.camera_angles(label))
    _, right, _ = crops.axes_of_quad(quad)
    upright, matrix = turned(mask, np.rad2deg(np.arctan2(right[1], right[0])))
    centre, half_crop = crop_centre(quad)
    return upright, matrix, (yaw, pitch), np.linalg.inv(matrix[:, :2]) @ (centre - matrix[:, 2]), half_crop


def fit_relation(views, relation=None):
    """The Relation of one person, or one kind of picture, from `views`: (mask uint8 [H, W], label [25], quad [4, 2]) of each
    view whose crop is known; the more sides, the better. What they do not tell stays as in `relation`."""
    relation = relation or Relation()
    even, odd, size, down, across = [], [], [], [], []
    for view in views:
        upright, _, (yaw, pitch), centre, half_crop = upright_view(*view)
        found = measure(upright)
        even.append(_terms(yaw, pitch))
        odd.append(_odd_terms(yaw, pitch))
        size.append(np.log(found.height / half_crop))
        down.append((centre[1] - found.top) / found.height)
        across.append((centre[0] - found.middle) / found.height)
    return Relation(_fit(even, size, relation.size, SPREAD.size), _fit(even, down, relation.down, SPREAD.down),
                    _fit(odd, across, relation.across, SPREAD.across))


def _fit(terms, values, mean, spread):
    """Coefficients most likely after what was seen (Gaussian prior and noise)."""
    terms, mean = np.array(terms), np.array(mean)
    precision = terms.T @ terms / NOISE ** 2 + np.diag(1 / np.square(spread))
    return tuple((mean + np.linalg.solve(precision, terms.T @ (np.array(values) - terms @ mean)) / NOISE ** 2).tolist())
