"""Reads whatever users call a photograph into 8-bit RGB, upright, with bounded memory."""

import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from dnnlib import UserError
from training.dataset_convert import LeftOut, to_mask, to_rgb
from training.dataset_store import decode_image

MAX_MEGAPIXELS = 100
MAX_FILE_BYTES = 10 ** 9
MIN_SIDE = 16                 # pixels; nothing smaller shows a head


@dataclasses.dataclass(frozen=True)
class Photo:
    """`image` uint8 [H, W, 3] RGB; `alpha` uint8 [H, W], None where all is opaque; `name`: file name; `messages`: what was
    done to it."""
    image: np.ndarray
    alpha: np.ndarray | None
    name: str
    messages: tuple = ()


def _checked_size(data, where):
    """The PIL image of the bytes `data`, not decoded yet. Raises UserError if it is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
        try:
            image = PIL.Image.open(io.BytesIO(data))
        except PIL.Image.DecompressionBombError as error:
            raise UserError(f'{where}: too large; make it smaller than {MAX_MEGAPIXELS} megapixels') from error
        except PIL.UnidentifiedImageError as error:
            raise UserError(f'{where}: not an image that can be read; save it as JPEG or PNG') from error
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f'{where}: damaged or truncated image ({error}); replace it') from error
    width, height = image.size
    if width * height > MAX_MEGAPIXELS * 10 ** 6:
        raise UserError(f'{where}: {width}x{height} pixels; make it smaller than {MAX_MEGAPIXELS} megapixels')
    return image


def decode_photo(data, where):
    """Photo of the bytes `data`; `where` names them in messages. Raises UserError."""
    messages = []
    header = _checked_size(data, where)
    if getattr(header, 'n_frames', 1) > 1:
        messages.append(f'{header.n_frames} frames, took the first')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', PIL.Image.DecompressionBombWarning)
        image = decode_image(data, where)
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.size != image.size or upright.getexif().get(0x112, 1) != image.getexif().get(0x112, 1):
        messages.append('turned upright as its EXIF orientation says')
    if image.mode not in ('RGB', 'RGBA', 'L'):
        messages.append(f'converted from mode {image.mode}')
    try:
        rgb, alpha = to_rgb(upright)
    except LeftOut as error:
        raise UserError(f'{where}: {error}') from error
    alpha = None if alpha is None else np.array(alpha)
    if alpha is not None and alpha.min() == 255:
        alpha = None
    if alpha is not None:
        messages.append('transparent pixels laid over white')
    return Photo(np.array(rgb), alpha, Path(where).name, tuple(messages))


def read_photo(path):
    """Photo of a file. Raises UserError naming it: absent, no image, damaged, too large."""
    path = Path(path)
    return decode_photo(_read(path), str(path))


def _read(path):
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f'{path}: {path.stat().st_size} bytes; make it smaller than {MAX_FILE_BYTES}')
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); check the path') from error


def read_mask(path):
    """Mask uint8 [H, W], 255 = head, of a file, upright like its photograph. Raises UserError naming it."""
    return decode_mask(_read(Path(path)), str(path))


def decode_mask(data, where):
    """Mask uint8 [H, W], 255 = head, of the bytes `data`; `where` names them in messages. Raises UserError."""
    _checked_size(data, where)
    try:
        return np.array(to_mask(PIL.ImageOps.exif_transpose(decode_image(data, where))))
    except LeftOut as error:
        raise UserError(f'{where}: {error}') from error
