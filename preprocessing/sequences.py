"""Several views of one person: those with a face say how the others are cropped and, in a sequence, where they were taken.

Angles of single photographs are also read here: from a table, or spread evenly over a turntable.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL.Image
import scipy.ndimage

from dnnlib import UserError
from preprocessing import crops, outlines, poses, silhouette
from training.dataset_store import name_stem

WIDE = 1.6                    # how much more than the crop is segmented, so that no hair is cut off
WIDE_SIZE = 448               # pixels
NEIGHBOURS = 3                # photographs from one known yaw to the next, at most, for the pace between them
MIN_PACE_DEG = 1.0
CUT = 0.1                     # of the crop's side: so many pixels of the head at the picture's border, and it is cut off


def view_of(photo, head, matting, mask=None):
    """(mask, label, quad) for outlines.fit_outlines of a PreparedHead with a face: a wider part of the picture, cut out by
    `mask` uint8 [H, W] of the whole, else the photograph's own, else segmented. None where no head is cut out, or the picture
    ends within the head's upper half."""
    centre, right, down = crops.axes_of_quad(head.quad)
    corner, span = centre - WIDE * (right + down), WIDE_SIZE - 1
    matrix = np.stack([2 * WIDE * right / span, 2 * WIDE * down / span, corner], axis=1)
    mask = photo.alpha if mask is None else mask
    if mask is not None:
        mask = crops.warp(mask, matrix, WIDE_SIZE)
    elif matting.function is not None:
        mask = _segmented(photo.image, matrix, head.landmarks, matting)
    else:
        return None
    inside = crops.warp(np.full(photo.image.shape[:2], 255, dtype=np.uint8), matrix, WIDE_SIZE)
    border = scipy.ndimage.binary_dilation(inside < 128, iterations=2)
    if (border & (mask > 127))[:WIDE_SIZE // 2].sum() > CUT * WIDE_SIZE / WIDE:
        return None
    try:
        if silhouette.measure(mask).cut:
            return None
    except ValueError:
        return None
    return mask, head.label, (head.quad - corner) @ np.linalg.inv(matrix[:, :2]).T


def _segmented(image, matrix, landmarks, matting):
    """Mask [WIDE_SIZE, WIDE_SIZE] of the part of a picture that `matrix` shows, segmented without what lies beyond its borders."""
    corners = matrix @ np.array([[0, WIDE_SIZE - 1, 0, WIDE_SIZE - 1], [0, 0, WIDE_SIZE - 1, WIDE_SIZE - 1], [1, 1, 1, 1]])
    limit = np.array(image.shape[1::-1])
    low = np.clip(np.floor(corners.min(axis=1)), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(corners.max(axis=1)) + 1, low + 1, limit).astype(int)
    part = PIL.Image.fromarray(image[low[1]:high[1], low[0]:high[0]])
    factor = min(WIDE_SIZE / max(part.size), 1.0)
    part = part.resize([max(round(side * factor), 1) for side in part.size], PIL.Image.Resampling.BOX)
    scale = np.array(part.size) / (high - low)
    points = None if landmarks is None else (landmarks + 0.5 - low) * scale - 0.5
    to_part = np.concatenate([matrix[:, :2] * scale[:, None], ((matrix[:, 2] + 0.5 - low) * scale - 0.5)[:, None]], axis=1)
    return crops.warp(matting(np.asarray(part), points), to_part, WIDE_SIZE)


def of_person(options, views):
    """PhotoOptions for further views of the person in `views` (of view_of; None are left out)."""
    views = [view for view in views if view is not None]
    if not views:
        return options
    try:
        relation = silhouette.fit_relation(views, options.relation)
        return dataclasses.replace(options, relation=relation, person=outlines.fit_outlines(views))
    except ValueError:       # turned upright, too little is left of one
        return options


def fill_yaws(known, count):
    """Yaws in degrees, dict of index -> value in (-180, 180], of `count` photographs taken one after another while the camera
    went round at an even pace, from those `known`. Empty where no two of them, at most NEIGHBOURS apart, tell a pace of at
    least MIN_PACE_DEG."""
    at = sorted(known)
    steps = [(180 - (180 - known[b] + known[a]) % 360) / (b - a) for a, b in zip(at, at[1:]) if b - a <= NEIGHBOURS]
    if not steps or abs(np.median(steps)) < MIN_PACE_DEG:
        return {}
    pace = float(np.median(steps))
    # Round the back the yaw jumps by whole turns: take the number of turns that the pace says.
    unwrapped = {at[0]: known[at[0]]}
    for a, b in zip(at, at[1:]):
        expected = unwrapped[a] + pace * (b - a)
        unwrapped[b] = known[b] + 360 * round((expected - known[b]) / 360)
    # Beyond the known ones by the line through all of them, which errs less than single steps do.
    slope, start = np.polyfit(at, [unwrapped[index] for index in at], 1)
    index = np.arange(count)
    values = np.interp(index, at, [unwrapped[k] for k in at])
    values = np.where((index < at[0]) | (index > at[-1]), start + slope * index, values)
    return {int(k): wrapped(float(value)) for k, value in enumerate(values)}


def wrapped(degrees):
    """The angle in (-180, 180]."""
    return 180.0 - (180.0 - degrees) % 360.0


def spread_yaws(names, first, last):
    """Dict of name -> (yaw, None, None): `names` in order, evenly from `first` to `last` degrees."""
    return {name: (wrapped(float(yaw)), None, None) for name, yaw in zip(names, np.linspace(first, last, len(names)))}


def read_angles(path):
    """Dict of name -> (yaw, pitch or None, roll or None) in degrees from a CSV file (name,yaw[,pitch[,roll]]), or JSON: an
    object of name -> yaw or [yaw, pitch, roll], or a dataset.json. Raises UserError naming file and entry."""
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8-sig')     # spreadsheets begin theirs with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--angles {path}: cannot be read ({error})') from error
    if path.suffix.lower() != '.json':
        rows = [row for row in csv.reader(text.splitlines()) if row and not row[0].startswith('#')]
        if rows and len(rows[0]) > 1 and rows[0][1].strip().lower() == 'yaw':
            rows = rows[1:]
        return {row[0].strip(): _angles(path, row[0], row[1:]) for row in rows}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f'--angles {path}: not readable as JSON ({error})') from error
    if not isinstance(data, dict):
        raise UserError(f'--angles {path}: holds a {type(data).__name__}, wanted an object of name -> yaw or [yaw, pitch, roll]')
    if isinstance(data.get('labels'), list):
        try:
            return {name: poses.camera_angles([float(v) for v in label]) for name, label in data['labels']}
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f'--angles {path}: its labels are not of the form [name, [25 numbers]] ({error})') from error
    return {name: _angles(path, name, value if isinstance(value, list) else [value]) for name, value in data.items()}


def by_name(table, *names):
    """What a dict of names has of a photograph: by one of its names, or one without its extension; else None."""
    keys = (key for name in names for key in (name, name_stem(name)))
    return next((table[key] for key in keys if key in table), None)


def angles_of(path, names):
    """read_angles of the photographs `names`. Raises UserError also where the file names none of them."""
    angles = read_angles(path)
    if all(by_name(angles, name, Path(name).name) is None for name in names):
        has = ', '.join(list(angles)[:3]) or 'no names'
        raise UserError(f'--angles {path}: names none of the photographs, such as {names[0]}; it has {has}')
    return angles


def _angles(path, name, values):
    try:
        numbers = [float(value) if value not in ('', None) else None for value in values]
    except (TypeError, ValueError):
        numbers = []
    if not 1 <= len(numbers) <= 3 or not all(number is None or abs(number) <= 360 for number in numbers):
        raise UserError(f'--angles {path}: {name} has {values}, wanted yaw, or yaw, pitch and roll, in degrees')
    return tuple((wrapped(numbers[0]) if numbers[0] is not None else None, *numbers[1:], None, None)[:3])
