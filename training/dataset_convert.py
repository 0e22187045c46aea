"""Turns folders or zips of pictures, masks and labels into an image set of the published format.

Pictures are turned upright by their EXIF orientation and brought to 8-bit RGB: grey is repeated in three channels,
16-bit grey is scaled, transparent pixels are laid over white. Without a source of masks but with a destination for
them, the alpha channel becomes the mask. Masks are brought to one 8-bit channel, 255 = head; a mask of 0 and 1 is
scaled to 0 and 255. Pictures are resized by Lanczos, masks by area average.
"""

import posixpath
from collections import Counter

import numpy as np
import PIL.Image
import PIL.ImageOps
from tqdm import tqdm

from dnnlib import UserError
from training.dataset_check import MIN_RESOLUTION, faults_error, is_power_of_two
from training.dataset_labels import Fault, parse_labels, read_labels
from training.dataset_store import META_NAME, ImageStore, name_stem
from training.dataset_writer import DatasetWriter

TRANSFORMS = ('center-crop', 'center-crop-wide')


class LeftOut(UserError):
    """Why one picture is left out of the set; `kind` as in Fault."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def convert_dataset(img_source, img_dest, seg_source=None, seg_dest=None, resolution=None, transform=None, max_images=None,
                    use_basename=False, ext='png', progress=False):
    """Convert and return (number written, faults), with a Fault for each picture that is left out.

    Sources and destinations are folders or zips. `resolution` (width, height); None keeps the sizes,
    which must then be those of the first picture.
    `transform`: None (pictures must be square), 'center-crop' (the largest square in the middle) or 'center-crop-wide' (the
    largest part of the aspect of `resolution` in the middle, then black bars up to the square). Labels are kept as they
    are: they must describe the square that results. `use_basename` pairs pictures, labels and masks by file name without
    folders. `max_images` stops after that many were written. Raises UserError if an option does not fit or nothing is left.
    """
    _check_options(seg_source, seg_dest, resolution, transform, max_images)
    source = _Source(img_source, seg_source, use_basename, alpha_masks=seg_dest is not None and seg_source is None)
    faults = source.faults + list(source.rejected.values())
    names = [name for name in source.names if name not in source.rejected]
    size = None
    with DatasetWriter(img_dest, seg_dest, ext) as writer:
        for name in tqdm(names, desc='converting', unit='img', disable=not progress):
            if max_images is not None and len(writer) >= max_images:
                break
            try:
                image, mask = fit(*source.load(name), resolution, transform)
                if resolution is None and size not in (None, image.size):
                    raise LeftOut('image-mixed', f'is {image.size[0]}x{image.size[1]}, the first was {size[0]}x{size[1]}; '
                                                 'use --resolution')
            except LeftOut as error:
                faults.append(Fault(error.kind, name, f'{source.locate(name)}: {error}'))
                continue
            size = image.size
            writer.add(np.asarray(image), None if mask is None else np.asarray(mask), source.label(name), name)
        if not len(writer):
            raise faults_error(faults, f'{img_source}: no picture can be converted')
    return len(writer), faults


def _check_options(seg_source, seg_dest, resolution, transform, max_images):
    """Raise UserError naming the first flag that does not fit the others."""
    if seg_source is not None and seg_dest is None:
        raise UserError('--seg_source is given without --seg_dest; say where the masks go')
    if transform is not None and transform not in TRANSFORMS:
        raise UserError(f'--transform must be one of {", ".join(TRANSFORMS)}, got {transform!r}')
    if transform is not None and resolution is None:
        raise UserError(f'--transform {transform} needs --resolution WxH')
    if max_images is not None and max_images < 1:
        raise UserError(f'--max-images must be at least 1, got {max_images}')
    if resolution is None:
        return
    text = f'--resolution {resolution[0]}x{resolution[1]}'
    if not is_power_of_two(max(resolution)):
        raise UserError(f'{text}: the longer side must be a power of two, at least {MIN_RESOLUTION}')
    if transform != 'center-crop-wide' and resolution[0] != resolution[1]:
        raise UserError(f'{text}: must be square, or use --transform center-crop-wide')


class _Source:
    """Pictures paired with masks and labels by name. `names` are all pictures, `rejected` the Fault of each that the names
    and labels alone rule out, `faults` what concerns no single picture."""

    def __init__(self, img_source, seg_source, use_basename, alpha_masks):
        self._key = posixpath.basename if use_basename else str
        self._alpha_masks = alpha_masks
        self._images = ImageStore(img_source)
        self.names = self._images.names
        if not self.names:
            raise UserError(f'{img_source}: holds no images; check the path')
        self.faults, self.rejected, self._labels = [], {}, None
        self._read_labels()
        self._masks = None if seg_source is None else ImageStore(seg_source)
        self._mask_names = {} if seg_source is None else {self._stem(name): name for name in self._masks.names}
        self._match_names()

    def _stem(self, name):
        return name_stem(self._key(name))

    def _read_labels(self):
        raw, faults = read_labels(self._images)
        if any(fault.kind == 'json' for fault in faults):
            raise faults_error(faults, str(self._images.path))
        if raw is None:
            return
        array, names, bad = parse_labels(self._images, raw)
        self._labels = {self._key(name): row for name, row in zip(names, array)}
        by_key = {self._key(name): name for name in self.names}
        for fault in faults + bad:
            if self._key(fault.name) in by_key:
                self.rejected[by_key[self._key(fault.name)]] = fault
        self.faults += [Fault('label-absent-file', name, f'{self.locate(META_NAME)}: names {name}, which is not there')
                        for name in raw if self._key(name) not in by_key]

    def _match_names(self):
        count = Counter(self._stem(name) for name in self.names)
        mask_count = Counter(self._stem(name) for name in self._masks.names) if self._masks else {}
        for name in self.names:
            stem = self._stem(name)
            if count[stem] > 1:
                fault = 'name-duplicate', 'another image has the same name; rename one'
            elif self._labels is not None and self._key(name) not in self._labels:
                fault = 'label-missing', f'has no label in {META_NAME}'
            elif self._masks is not None and mask_count[stem] != 1:
                fault = (('mask-duplicate', f'has {mask_count[stem]} masks in {self._masks.path}') if mask_count[stem]
                         else ('mask-missing', f'has no mask in {self._masks.path}'))
            else:
                continue
            self.rejected.setdefault(name, Fault(fault[0], name, f'{self.locate(name)}: {fault[1]}'))

    def locate(self, name):
        return self._images.locate(name)

    def label(self, name):
        """float32 [25], or None when the set has no labels."""
        return None if self._labels is None else self._labels[self._key(name)]

    def load(self, name):
        """(image, mask) as PIL images of modes RGB and L; mask None without masks. Raises LeftOut."""
        image, alpha = to_rgb(self._upright(self._images, name, 'image-damaged'))
        if self._masks is not None:
            mask = to_mask(self._upright(self._masks, self._mask_names[self._stem(name)], 'mask-damaged'))
        elif self._alpha_masks:
            if alpha is None:
                raise LeftOut('mask-missing', 'has no alpha channel to make a mask of; give --seg_source or leave out --seg_dest')
            mask = to_mask(alpha)
        else:
            return image, None
        if mask.size != image.size:
            raise LeftOut('mask-size', f'is {image.size[0]}x{image.size[1]}, its mask {mask.size[0]}x{mask.size[1]}')
        return image, mask

    def _upright(self, store, name, kind):
        try:
            return PIL.ImageOps.exif_transpose(store.read_image(name))
        except UserError as error:
            # The caller puts the picture's name before the reason: once is enough.
            raise LeftOut(kind, str(error).removeprefix(f'{self.locate(name)}: ')) from error


def _to_8bit(image):
    """The PIL image itself, or its 16-bit grey scaled to mode L. Raises LeftOut for what has other than 8 or 16 bits."""
    if image.mode == 'F':
        raise LeftOut('image-channels', 'holds floating-point numbers; save it with 8 bits')
    if not image.mode.startswith('I'):
        return image
    array = np.asarray(image)
    if array.min() < 0 or array.max() > 65535:
        raise LeftOut('image-channels', 'has values outside 16 bits; save it with 8 bits')
    return PIL.Image.fromarray((array / 257).round().astype(np.uint8))


def to_rgb(image):
    """(RGB image, alpha as an L image or None) of a PIL image of any 8- or 16-bit mode. Raises LeftOut."""
    image = _to_8bit(image)
    if 'A' not in image.getbands() and 'transparency' not in image.info:
        return image.convert('RGB'), None
    image = image.convert('RGBA')
    white = PIL.Image.new('RGBA', image.size, (255, 255, 255, 255))
    return PIL.Image.alpha_composite(white, image).convert('RGB'), image.getchannel('A')


def to_mask(image):
    """L image, 255 = head, of a mask of any mode whose colour channels agree. Raises LeftOut."""
    image = _to_8bit(image)
    channels = (image if image.mode == 'L' else image.convert('RGB')).split()
    if any(channel.tobytes() != channels[0].tobytes() for channel in channels[1:]):
        raise LeftOut('mask-channels', 'has a mask of several different channels, wanted one (255 = head)')
    brightest = channels[0].getextrema()[1]
    if brightest == 0:
        raise LeftOut('mask-empty', 'has an empty mask')
    return channels[0].point(lambda value: value * 255) if brightest == 1 else channels[0]


def fit(image, mask, resolution, transform):
    """(image, mask or None), both square: cropped, resized and padded as convert_dataset says. Raises LeftOut."""
    width, height = image.size
    if transform is None and width != height:
        raise LeftOut('image-square', f'is {width}x{height}, not square; use --transform center-crop or crop it')
    if resolution is None and not is_power_of_two(width):
        raise LeftOut('image-power', f'is {width}x{height}, not a power of two (at least {MIN_RESOLUTION}); use --resolution')
    target_width, target_height = resolution or image.size
    scale = min(width / target_width, height / target_height)
    crop = round(target_width * scale), round(target_height * scale)
    left, top = (width - crop[0]) // 2, (height - crop[1]) // 2
    box = (left, top, left + crop[0], top + crop[1])
    # Area average is exact when shrinking; when growing it would make blocks.
    mask_filter = PIL.Image.Resampling.BOX if scale > 1 else PIL.Image.Resampling.BILINEAR

    def place(picture, resample):
        resized = picture.resize((target_width, target_height), resample, box=box)
        side = max(resized.size)
        square = PIL.Image.new(picture.mode, (side, side))
        square.paste(resized, ((side - target_width) // 2, (side - target_height) // 2))
        return square

    return place(image, PIL.Image.Resampling.LANCZOS), None if mask is None else place(mask, mask_filter)
