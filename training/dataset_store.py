"""A folder or a zip of images with an optional dataset.json at its root, behind one reader."""

import io
import os
import posixpath
import struct
import zipfile
import zlib
from pathlib import Path

import PIL.Image

from dnnlib import UserError

IMAGE_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff')
META_NAME = 'dataset.json'

# What zipfile and Pillow are known to raise on damaged files.
_ZIP_ERRORS = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_IMAGE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, PIL.Image.DecompressionBombError)


def name_stem(name):
    """The name without its extension, by which masks find their images."""
    return posixpath.splitext(name)[0]


def decode_image(data, name):
    """The fully read PIL image in the bytes `data`. Raises UserError naming the file `name`."""
    try:
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
    except PIL.UnidentifiedImageError as error:
        raise UserError(f'{name}: not an image that can be read; replace or delete it') from error
    except _IMAGE_ERRORS as error:
        raise UserError(f'{name}: damaged or truncated image ({error}); replace or delete it') from error
    return image


class ImageStore:
    """Images by relative name out of the folder or zip `path`; read-only.

    `names` lists the images in sorted order (a name twice in a zip is listed twice); hidden files and folders are
    passed over. Safe to pickle and to share with forked workers: each process opens the zip for itself.
    Raises UserError when there is no such folder or zip, or the zip is damaged.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._zip = None
        self._zip_pid = None
        self._is_zip = self.path.suffix.lower() == '.zip' and not self.path.is_dir()
        if not self.path.exists():
            raise UserError(f'{self.path}: no such folder or zip; check the path')
        if not self._is_zip and not self.path.is_dir():
            raise UserError(f'{self.path}: neither a folder nor a .zip file; give one of these')
        files = self._list_zip() if self._is_zip else self._list_folder()
        self.has_meta = META_NAME in files
        self.names = sorted(name for name in files if _is_visible_image(name))

    def _list_zip(self):
        return [info.filename for info in self._open_zip().infolist() if not info.is_dir()]

    def _list_folder(self):
        names = []
        for folder, _, files in os.walk(self.path, followlinks=True):
            prefix = Path(folder).relative_to(self.path).as_posix()
            names.extend(posixpath.normpath(posixpath.join(prefix, file)) for file in files)
        return names

    def _open_zip(self):
        # A handle inherited over fork shares its file position with the parent: never use it.
        if self._zip is None or self._zip_pid != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except _ZIP_ERRORS as error:
                raise UserError(f'{self.path}: damaged or truncated zip ({error}); copy or make it again') from error
            self._zip_pid = os.getpid()
        return self._zip

    def locate(self, name):
        """The file `name` as users find it, for messages."""
        return f'{self.path}/{name}'

    def read(self, name):
        """Bytes of the file `name`. Raises UserError naming it."""
        try:
            return self._open_zip().read(name) if self._is_zip else (self.path / name).read_bytes()
        except KeyError as error:
            raise UserError(f'{self.locate(name)}: not in the zip') from error
        except _ZIP_ERRORS as error:
            raise UserError(f'{self.locate(name)}: cannot be read ({error}); replace it or make the set again') from error

    def read_image(self, name):
        """The fully read PIL image `name`. Raises UserError naming it."""
        return decode_image(self.read(name), self.locate(name))

    def checksum(self, name):
        """(bytes, CRC-32) of the file `name`; out of a zip's directory, without reading the file. UserError naming it."""
        if self._is_zip:
            try:
                info = self._open_zip().getinfo(name)
            except KeyError as error:
                raise UserError(f'{self.locate(name)}: not in the zip') from error
            return info.file_size, info.CRC
        data = self.read(name)
        return len(data), zlib.crc32(data)

    def close(self):
        """Close the zip, if any; a later read opens it again."""
        if self._zip is not None and self._zip_pid == os.getpid():
            self._zip.close()
        self._zip = None

    def __getstate__(self):
        return {**self.__dict__, '_zip': None, '_zip_pid': None}


def _is_visible_image(name):
    hidden = any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))
    return not hidden and name.lower().endswith(IMAGE_EXTENSIONS)
