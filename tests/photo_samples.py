"""The sample photographs and the weights for them, or tests that skip and say why; pictures made of them for bad inputs."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from preprocessing import crops, load_tools, prepare_photo

FOLDER = Path(os.environ.get('SHARED_DATA') or Path(__file__).resolve().parents[2] / 'shared' / 'data')
WEIGHTS = FOLDER / '3ddfa_v2'
CROPS = ('photos/man.jpg', 'photos/woman.jpg', 'panohead_sample/testdata_img/000134.jpg', 'panohead_sample/testdata_img/000157.jpg')
needs_samples = pytest.mark.skipif(not (WEIGHTS.is_dir() and (FOLDER / 'photos').is_dir()),
                                   reason=f'no sample photographs and weights in {FOLDER}; set SHARED_DATA')


@functools.lru_cache(maxsize=None)
def tools():
    """The networks, loaded once; nobody changes them."""
    return load_tools(WEIGHTS)


def picture(name):
    """uint8 [H, W, 3] of a sample."""
    return np.array(PIL.Image.open(FOLDER / name).convert('RGB'))


@functools.lru_cache(maxsize=None)
def published_labels():
    """Labels [25] of the sample crops by file name."""
    found = {}
    for name in ('photos/dataset_reference_labels.json', 'panohead_sample/testdata_img/dataset.json'):
        labels = json.loads((FOLDER / name).read_text(encoding='utf-8'))['labels']
        found.update({file: np.array(label, dtype=np.float64) for file, label in labels})
    return found


def front_and_back(folder):
    """The new `folder`, with front.png, a head with a face, and back.png, with the outline of the front and no face: a plain
    head as seen from the other side, cut out by its alpha channel."""
    image = picture('photos/trump_hillary.jpg')[:, :780]
    head, = prepare_photo(image, tools=tools())
    matrix = crops.crop_map(head.quad)
    yy, xx = np.mgrid[:image.shape[0], :image.shape[1]]
    places = np.rint((np.stack([xx, yy], axis=-1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T).astype(int)
    inside = ((places >= 0) & (places < crops.CROP_SIZE)).all(axis=-1)
    whole = np.zeros(image.shape[:2], np.uint8)
    whole[inside] = head.mask[places[inside][:, 1], places[inside][:, 0]]
    mirrored = whole[:, ::-1]
    back = np.where(mirrored[..., None] > 127, np.uint8([90, 60, 40]), np.uint8([30, 60, 160]))
    folder.mkdir()
    PIL.Image.fromarray(image).save(folder / 'front.png')
    PIL.Image.fromarray(np.dstack([back, mirrored]).astype(np.uint8)).save(folder / 'back.png')
    return folder
