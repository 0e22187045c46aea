"""The picture to invert: one image of a set, or a file of its own, cropped and sized for the network, with its camera."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from camera_utils import LABEL_DIM
from dnnlib import UserError
from training.dataset_convert import LeftOut, to_rgb
from training.dataset_labels import parse_labels, read_labels
from training.dataset_store import META_NAME, ImageStore, decode_image


@dataclasses.dataclass(frozen=True)
class Target:
    """`image` [1, 3, R, R] in [-1, 1], of 8-bit values; `label` [1, 25]; `name`: what its results are filed under;
    `source`: the file it came from."""
    image: torch.Tensor
    label: torch.Tensor
    name: str
    source: str

    def to(self, device):
        """The same on another device."""
        return dataclasses.replace(self, image=self.image.to(device), label=self.label.to(device))


class _LabelFile:
    """A JSON file of labels where an ImageStore is expected."""

    def __init__(self, path):
        self.path = Path(path)
        self.has_meta = self.path.is_file()

    def locate(self, name):
        return str(self.path) if name == META_NAME else str(self.path.with_name(name))

    def read(self, name):
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UserError(f'{self.path}: cannot be read ({error.strerror})') from error


def load_target(path, resolution, index=0, label_file=None):
    """Target number `index` in name order of a folder or zip of images with dataset.json, or of one image file.

    One image takes its camera from `label_file`, a JSON file with 25 numbers or of the form of dataset.json, or else
    from the dataset.json beside it. The largest square in the middle is resized to `resolution`.
    Raises UserError naming flag or file for everything that cannot be used.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == '.zip':
        if label_file is not None:
            raise UserError(f'--label {label_file}: goes with a single image; {path} has its labels in dataset.json')
        store = ImageStore(path)
        if not store.names:
            raise UserError(f'--target_img {path}: holds no images; check the path')
        if not 0 <= index < len(store.names):
            raise UserError(f'--idx {index}: {path} holds {len(store.names)} images; choose 0 to {len(store.names) - 1}')
        name = store.names[index]
        picture, source, filed_under = store.read_image(name), store.locate(name), str(index)
    else:
        if index != 0:
            raise UserError(f'--idx {index}: --target_img {path} is a single image; leave --idx out')
        store = _LabelFile(path.with_name(META_NAME) if label_file is None else label_file)
        name, source, filed_under = path.name, str(path), path.stem
        try:
            picture = decode_image(path.read_bytes(), source)
        except OSError as error:
            raise UserError(f'--target_img {path}: cannot be read ({error.strerror}); check the path') from error
    label = _camera(store, name, source)
    return Target(_pixels(picture, source, resolution), label, filed_under, source)


def _pixels(picture, source, resolution):
    """float32 [1, 3, R, R] in [-1, 1]."""
    try:
        image, _ = to_rgb(PIL.ImageOps.exif_transpose(picture))
    except LeftOut as error:
        raise UserError(f'{source}: {error}') from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped before it is resized, as published: nothing beyond the square bleeds in.
    image = image.crop((left, top, left + side, top + side)).resize((resolution, resolution), PIL.Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _camera(store, name, source):
    """Label [1, 25] of the image `name`."""
    where = store.locate(META_NAME)
    bare = _bare_label(store)
    labels, faults = ({name: bare}, []) if bare is not None else read_labels(store)
    if faults:
        raise UserError(str(faults[0]))
    if labels is None:
        raise UserError(f'{source}: its camera is not known, {where} is not there or has no labels; write one, or give --label '
                        'for a single image')
    if name not in labels:
        raise UserError(f'{source}: {where} has no label for {name}; add it')
    array, _, faults = parse_labels(store, {name: labels[name]})
    if faults:
        raise UserError(str(faults[0]))
    return torch.from_numpy(array).reshape(1, LABEL_DIM)


def _bare_label(store):
    """The list in a label file that holds nothing but one label, else None."""
    if not isinstance(store, _LabelFile) or not store.has_meta:
        return None
    try:
        data = json.loads(store.read(META_NAME))
    except (ValueError, RecursionError):
        return None      # read_labels says what is wrong with it
    return data if isinstance(data, list) else None
