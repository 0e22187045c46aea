"""The picture to invert: one image of a set, or a file of its own, cropped and sized for the network, with its camera."""

import dataclasses
import json
from pathlib import Path
from typing import Optional

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from camera_utils import LABEL_DIM, half_turn_label
from dnnlib import UserError
from training.dataset_convert import LeftOut, to_mask, to_rgb
from training.dataset_labels import parse_labels, read_labels
from training.dataset_store import META_NAME, ImageStore, decode_image, name_stem

TURNED_NAME = 'data_rotate.json'


@dataclasses.dataclass(frozen=True)
class Target:
    """One view of the head to find.

    `image` [1, 3, R, R] in [-1, 1]; `label` [1, 25]; `name`: what its results are filed under; `source`: the file it came
    from; `mask` [1, 1, R, R], 1 = head, or None; `weight`: what the view counts for; `correct_camera`: whether the
    generator's learned translation of the camera applies to it, and whether it may be refined.
    """
    image: torch.Tensor
    label: torch.Tensor
    name: str
    source: str
    mask: Optional[torch.Tensor] = None
    weight: float = 1.0
    correct_camera: bool = True

    def to(self, device):
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return dataclasses.replace(self, image=self.image.to(device), label=self.label.to(device), mask=mask)


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


def target_of_arrays(image, label, name, source, mask=None, **fields):
    """Target of a picture uint8 [R, R, 3], a label of 25 numbers and a mask uint8 [R, R] (255 = head) or None; `fields`:
    others of Target."""
    image = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    label = torch.as_tensor(label, dtype=torch.float32).reshape(1, LABEL_DIM)
    mask = None if mask is None else torch.from_numpy(np.array(mask))[None, None].float() / 255
    return Target(image, label, name, source, mask, **fields)


def load_target(path, resolution, index=0, label_file=None, masks=None):
    """Target number `index` in name order of a folder or zip of images with dataset.json, or of one image file.

    One image takes its camera from `label_file`, a JSON file with 25 numbers or of the form of dataset.json, or else
    from the dataset.json beside it. The largest square in the middle is resized to `resolution`. `masks`: folder or zip of
    masks named like the images. Raises UserError naming flag or file for everything that cannot be used.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == '.zip':
        if label_file is not None:
            raise UserError(f'--label {label_file}: goes with a single image; {path} has its labels in dataset.json')
        picture, name, store = _numbered_picture(path, index, '--target_img')
        source, filed_under = store.locate(name), str(index)
    else:
        if index != 0:
            raise UserError(f'--idx {index}: --target_img {path} is a single image; leave --idx out')
        store = _LabelFile(path.with_name(META_NAME) if label_file is None else label_file)
        name, source, filed_under = path.name, str(path), path.stem
        picture = _read_picture(path, '--target_img')
    label = _camera(store, name, source)
    mask = None if masks is None else _square(_mask_of(name, masks), resolution)
    return target_of_arrays(_square(_rgb(picture, source), resolution), label, filed_under, source, mask)


def load_back(path, resolution, index, front_label, weight):
    """Target of a picture from behind, in a folder or zip, number `index` in name order, or a file of its own. Its camera is
    that of dataset.json, else of data_rotate.json (the name that PSO-HEAD's crop tool gives the turned labels), else
    `front_label` turned by half a turn. It is not corrected. Raises UserError."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == '.zip':
        picture, name, store = _numbered_picture(path, index, '--target_img_back')
        folder, source = path, store.locate(name)
    else:
        folder, name, source = path.parent, path.name, str(path)
        picture = _read_picture(path, '--target_img_back')
        store = _LabelFile(folder / META_NAME)
    turned = _LabelFile(folder / TURNED_NAME)
    if store.has_meta:
        label = _camera(store, name, source)
    elif turned.has_meta:
        label = _camera(turned, name, source)
    else:
        label = half_turn_label(front_label)
    return target_of_arrays(_square(_rgb(picture, source), resolution), label, name, source, weight=weight, correct_camera=False)


def _numbered_picture(path, index, flag):
    """(picture, name, store) of number `index` of a folder or zip."""
    store = ImageStore(path)
    if not store.names:
        raise UserError(f'{flag} {path}: holds no images; check the path')
    if not 0 <= index < len(store.names):
        raise UserError(f'--idx {index}: {path} holds {len(store.names)} images; choose 0 to {len(store.names) - 1}')
    return store.read_image(store.names[index]), store.names[index], store


def _read_picture(path, flag):
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f'{flag} {path}: cannot be read ({error.strerror}); check the path') from error


def _rgb(picture, source):
    try:
        return to_rgb(PIL.ImageOps.exif_transpose(picture))[0]
    except LeftOut as error:
        raise UserError(f'{source}: {error}') from error


def _mask_of(name, path):
    """The mask of the image `name` in the folder or zip --target_seg, or that file itself."""
    if Path(path).is_file() and Path(path).suffix.lower() != '.zip':
        try:
            return to_mask(PIL.ImageOps.exif_transpose(_read_picture(Path(path), '--target_seg')))
        except LeftOut as error:
            raise UserError(f'--target_seg {path}: {error}') from error
    store = ImageStore(path)
    found = [other for other in store.names if name_stem(other) == name_stem(name)]
    if not found:
        raise UserError(f'--target_seg {path}: has no mask named like {name}; add it or leave the flag out')
    try:
        return to_mask(PIL.ImageOps.exif_transpose(store.read_image(found[0])))
    except LeftOut as error:
        raise UserError(f'{store.locate(found[0])}: {error}') from error


def _square(image, resolution):
    """The largest square in the middle of a PIL image, resized."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped before it is resized, as published: nothing beyond the square bleeds in.
    return image.crop((left, top, left + side, top + side)).resize((resolution, resolution), PIL.Image.Resampling.LANCZOS)


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
