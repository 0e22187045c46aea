"""The labels of an image set: reading dataset.json, judging every label, angles and their histogram.

A label is cam2world row-major (16) then normalised intrinsics row-major (9); see camera_utils and
docs/conventions.md.
"""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

import camera_utils
from training.dataset_store import META_NAME

# In-the-wild labels are printed with few digits: measured ones depart from orthonormal by up to 0.004.
ROTATION_TOLERANCE = 0.02
BOX_HALF_SIDE = 0.5
LARGEST = float(np.finfo(np.float32).max)  # labels are kept as float32
ANGLE_TOLERANCE_DEG = 1e-3  # so that a camera straight behind, at 180.00001, is not past the 180 asked for


@dataclass(frozen=True)
class Fault:
    """One thing wrong with an image set. `kind` is a short constant name; `name` the image concerned, or None when
    the whole set is; `message` names file and value and says what to do."""
    kind: str
    name: str | None
    message: str

    def __str__(self):
        return f'[{self.kind}] {self.message}'


def read_labels(store):
    """(labels, faults) of an ImageStore: a dict from image name to the raw list in dataset.json, or None when there
    are no labels (no dataset.json, no "labels", or null)."""
    if not store.has_meta:
        return None, []
    where = store.locate(META_NAME)
    try:
        meta = json.loads(store.read(META_NAME))
    except (ValueError, RecursionError) as error:
        return None, [Fault('json', None, f'{where}: not readable as JSON ({error}); write it again')]
    if not isinstance(meta, dict):
        return None, [Fault('json', None, f'{where}: holds a {type(meta).__name__}; '
                                          'wanted {"labels": [[name, [25 numbers]], ...]}')]
    entries = meta.get('labels')
    if entries is None:
        return None, []
    faults = []
    labels = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            faults.append(Fault('json', None, f'{where}: an entry of "labels" is {_shorten(entry)}; '
                                              'wanted [name, [25 numbers]]'))
            continue
        name = entry[0].replace('\\', '/')
        if name in labels:
            faults.append(Fault('label-duplicate', name, f'{where}: {name} has more than one label; keep one'))
        labels[name] = entry[1]
    return labels, faults


def match_labels(store, labels):
    """Faults where images and label names (dict of read_labels) do not meet."""
    where = store.locate(META_NAME)
    images = set(store.names)
    absent = [name for name in labels if name not in images]
    missing = [name for name in store.names if name not in labels]
    return ([Fault('label-absent-file', name, f'{where}: names {name}, which is not there; add the image or drop the label')
             for name in absent]
            + [Fault('label-missing', name, f'{store.locate(name)}: has no label in {META_NAME}; add one or drop the image')
               for name in missing])


def parse_labels(store, labels):
    """(array, names, faults): float32 [n, 25] of the labels that are sound, the n image names they belong to, and a
    fault for each label that is not. `labels` is the dict of read_labels."""
    names, rows, faults = [], [], []
    for name, raw in labels.items():
        row, problem = _parse_label(raw)
        if problem:
            faults.append(_label_fault(store, name, 'label-numbers', problem))
        else:
            names.append(name)
            rows.append(row)
    array = np.array(rows, dtype=np.float64).reshape(-1, camera_utils.LABEL_DIM)
    sound = np.ones(len(array), dtype=bool)
    for kind, bad, describe in _camera_problems(array):
        for i in np.flatnonzero(bad & sound):
            faults.append(_label_fault(store, names[i], kind, describe(array[i])))
        sound &= ~bad
    return array[sound].astype(np.float32), [name for name, ok in zip(names, sound) if ok], faults


def _parse_label(raw):
    """(row, problem) of one label: 25 floats and None, or None and what is wrong."""
    if not isinstance(raw, list) or len(raw) != camera_utils.LABEL_DIM:
        count = f'{len(raw)} entries' if isinstance(raw, list) else f'{_shorten(raw)}'
        return None, f'label has {count}, wanted {camera_utils.LABEL_DIM} numbers'
    row = []
    for index, value in enumerate(raw):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None, f'label entry {index} is {_shorten(value)}, wanted a number'
        except OverflowError:
            return None, f'label entry {index} is {_shorten(value)}, wanted a number of 32 bits'
        if not abs(number) <= LARGEST:  # also when it is NaN
            return None, f'label entry {index} is {number}, wanted a finite number of 32 bits'
        row.append(number)
    return row, None


def _camera_problems(c):
    """Yields (kind, bool [n], describe(row)) per rule over labels c float64 [n, 25]; a label is reported under the
    first rule it breaks."""
    pose, intrinsics = c[:, :16].reshape(-1, 4, 4), c[:, 16:].reshape(-1, 3, 3)
    rotation, position = pose[:, :3, :3], pose[:, :3, 3]
    departure = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    yield ('label-pose', np.abs(pose[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-4,
           lambda row: f'entries 12-15 are {row[12:16].tolist()}, wanted 0 0 0 1 (cam2world is row-major)')
    yield ('label-rotation', departure > ROTATION_TOLERANCE,
           lambda row: f'rotation {np.round(row[[0, 1, 2, 4, 5, 6, 8, 9, 10]], 4).tolist()} is not orthonormal')
    yield ('label-handedness', np.linalg.det(rotation) < 0,
           lambda row: 'rotation is left-handed (determinant -1): one axis of the camera is turned round')
    yield ('label-inside', np.abs(position).max(axis=1) < BOX_HALF_SIDE,
           lambda row: f'camera at {np.round(row[[3, 7, 11]], 4).tolist()} stands inside the box [-0.5, 0.5]^3 of the head')
    yield ('label-direction', (rotation[:, :, 2] * position).sum(axis=1) >= 0,
           lambda row: 'camera looks away from the head: wanted OpenCV axes (x right, y down, z forward)')
    focal, centre = intrinsics[:, [0, 1], [0, 1]], intrinsics[:, [0, 1], [2, 2]]
    yield ('label-intrinsics', (focal <= 0).any(axis=1) | (centre < 0).any(axis=1) | (centre > 1).any(axis=1),
           lambda row: f'intrinsics {row[16:].tolist()} need a positive focal length and a centre in 0..1, '
                       'divided by the image size')


def _label_fault(store, name, kind, problem):
    return Fault(kind, name, f'{store.locate(META_NAME)}: {name}: {problem}; correct the label or drop the image')


def _shorten(value, length=60):
    text = repr(value)
    return text if len(text) <= length else text[:length] + '...'


def angles_deg(labels):
    """(yaw, pitch), each float32 [n] in degrees, of labels float32 [n, 25]."""
    angles = camera_utils.label_angles_deg(torch.from_numpy(labels)).numpy()
    return angles[:, 0], angles[:, 1]


def within_angles(labels, min_yaw=0, max_yaw=180, max_pitch=90):
    """bool [n]: which labels [n, 25] have min_yaw <= |yaw| <= max_yaw and |pitch| <= max_pitch, in degrees."""
    yaw, pitch = (np.abs(angle) for angle in angles_deg(labels))
    return ((yaw >= min_yaw - ANGLE_TOLERANCE_DEG) & (yaw <= max_yaw + ANGLE_TOLERANCE_DEG)
            & (pitch <= max_pitch + ANGLE_TOLERANCE_DEG))


def yaw_histogram(labels, bin_deg=15, width=40):
    """Lines of text, one bar for each `bin_deg` degrees of yaw from -180 to 180, over labels float32 [n, 25]."""
    yaw, _ = angles_deg(labels)
    counts = Counter(np.clip(np.floor(yaw / bin_deg), -180 // bin_deg, 180 // bin_deg - 1).astype(int).tolist())
    longest = max(counts.values(), default=1)
    lines = []
    for index in range(-180 // bin_deg, 180 // bin_deg):
        bar = '#' * -(-counts[index] * width // longest)
        lines.append(f'{index * bin_deg:5d} ..{(index + 1) * bin_deg:5d}  {counts[index]:7d}  {bar}'.rstrip())
    return lines
