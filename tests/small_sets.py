"""Tiny image sets for tests: random images, a square mask, cameras all round the head."""

import json

import numpy as np

import camera_utils
from training.dataset_writer import DatasetWriter

YAWS = (0, 60, 120, -170)


def labels_at(yaws=YAWS):
    """float32 [n, 25]: cameras round the origin, so that their yaw is the angle given (mirrored in sign)."""
    return camera_utils.label_from_yaw(np.array(yaws, dtype=np.float32), lookat=(0.0, 0.0, 0.0)).numpy()


def image_of(i, size=16):
    """uint8 [size, size, 3], another for each `i`."""
    return np.random.RandomState(i).randint(0, 256, [size, size, 3], dtype=np.uint8)


def mask_of(i, size=16):
    """uint8 [size, size]: a rectangle that tells left from right and one `i` from another."""
    mask = np.zeros([size, size], dtype=np.uint8)
    mask[2:10 + i % 4, 3:8] = 255
    return mask


def write_set(img_dest, seg_dest=None, yaws=YAWS, size=16, labels=True):
    """Write one image per yaw, with masks when there is a `seg_dest`."""
    rows = labels_at(yaws)
    with DatasetWriter(img_dest, seg_dest) as writer:
        for i, row in enumerate(rows):
            writer.add(image_of(i, size), None if seg_dest is None else mask_of(i, size), row if labels else None, f'old{i}.png')


def edit_json(folder, change):
    """Replace `folder`/dataset.json by what `change` makes of its content."""
    path = folder / 'dataset.json'
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
