"""Writes image sets in the published format: numbered PNG files and dataset.json, in a folder or a stored zip.

Everything is written under a temporary name and takes its own name only when the set is complete, so what
carries the name asked for is always whole: an interruption or an error leaves nothing behind, and what a killed
process leaves goes when the set is made again. Of several processes that write to one place the first to finish wins.
"""

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image

from dnnlib import UserError

LABEL_SIZE = 25
PARTIAL = '.partial'
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so the same images give the same bytes


def _partial_name(prefix):
    """A temporary name that no other process uses and that _is_partial knows again."""
    return f'{prefix}{PARTIAL}-{secrets.token_hex(8)}'


def _is_partial(name, prefix):
    """Whether a file or folder of that name is a set with that `prefix` in the making, or what a killed process left of it."""
    return re.fullmatch(re.escape(prefix + PARTIAL) + '(-[0-9a-f]{16})?', name) is not None


def _remove_partials(folder, prefix):
    """Remove what killed processes left there; a process still at work on the same destination has lost to this one."""
    with contextlib.suppress(OSError):  # the set is complete: what cannot be tidied up is no reason to fail
        for path in [path for path in folder.iterdir() if _is_partial(path.name, prefix)]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class _Target:
    """What the two kinds of destinations share; `path` is the one asked for, refuse_used() says whether it is in use."""

    @contextlib.contextmanager
    def errors_named(self):
        """Turn an OSError into a UserError naming the destination: that it is in use by now, or what went wrong."""
        try:
            yield
        except OSError as error:
            self.refuse_used()
            raise UserError(f'{self.path}: cannot write there ({error.strerror or error}); choose another destination') from error


class _ZipTarget(_Target):
    """A zip file in the making; files are stored, not deflated, so that readers can seek to them."""

    def __init__(self, path):
        self.path = path
        self.partial = path.with_name(_partial_name(path.name))
        self.refuse_used()
        with self.errors_named():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._zip = zipfile.ZipFile(self.partial, 'w', zipfile.ZIP_STORED)

    def refuse_used(self):
        """Raise UserError if the destination is there."""
        if self.path.exists():
            raise UserError(f'{self.path}: exists already; delete it or choose another destination')

    def write(self, name, data):
        self._zip.writestr(zipfile.ZipInfo(name, ZIP_DATE), data)

    def finish(self):
        self._zip.close()

    def commit(self):
        os.replace(self.partial, self.path)
        _remove_partials(self.path.parent, self.path.name)

    def discard(self):
        # Closing writes the table of contents, which fails again on a full disk.
        with contextlib.suppress(OSError):
            self._zip.close()
        with contextlib.suppress(OSError):
            self.partial.unlink()


class _FolderTarget(_Target):
    """A folder in the making; its files wait in a hidden folder inside and move up at the end."""

    def __init__(self, path):
        self.path = path
        self.partial = path / _partial_name('')
        self._existed = path.exists()
        self.refuse_used()
        with self.errors_named():
            self.partial.mkdir(parents=True)

    def refuse_used(self):
        """Raise UserError if the destination is a file or holds anything but files in the making."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f'{self.path}: is a file; a destination is a folder or a name ending in .zip')
        if self.path.exists() and not all(_is_partial(child.name, '') for child in self.path.iterdir()):
            raise UserError(f'{self.path}: the folder is not empty; empty it or choose another destination')

    def write(self, name, data):
        file = self.partial / name
        if '/' in name:
            file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)

    def finish(self):
        """Nothing to do: every file is closed once written."""

    def commit(self):
        # dataset.json sorts behind the numbered folders, so it comes last.
        for child in sorted(self.partial.iterdir()):
            os.replace(child, self.path / child.name)
        _remove_partials(self.path, '')

    def discard(self):
        shutil.rmtree(self.partial, ignore_errors=True)
        if not self._existed:
            with contextlib.suppress(OSError):  # another process may have put something in
                self.path.rmdir()


def _open_target(path):
    path = Path(path)
    return _ZipTarget(path) if path.suffix.lower() == '.zip' else _FolderTarget(path)


def _encode(array, ext):
    """Bytes of a uint8 image [H, W] or [H, W, C]: PNG without compression (fast to read) or JPEG."""
    buffer = io.BytesIO()
    options = dict(format='PNG', compress_level=0) if ext == 'png' else dict(format='JPEG', quality=95, subsampling=0)
    PIL.Image.fromarray(array).save(buffer, **options)
    return buffer.getvalue()


class DatasetWriter:
    """Writes images, masks and labels as NNNNN/imgNNNNNNNN.png and dataset.json.

    `img_dest`, `seg_dest`: folders (absent or empty) or names ending in .zip that do not exist; without
    `seg_dest` no masks are taken. `ext` 'png' or 'jpg' is the images' file type; masks are always PNG.
    A context manager: leaving it normally completes the set, leaving it by an exception removes it.
    Raises UserError when a destination is in use or not writable, ValueError when an image does not fit the set.
    """

    def __init__(self, img_dest, seg_dest=None, ext='png'):
        if ext not in ('png', 'jpg'):
            raise UserError(f"ext must be 'png' or 'jpg', got {ext!r}")
        if seg_dest is not None and Path(seg_dest).absolute() == Path(img_dest).absolute():
            raise UserError(f'{seg_dest}: images and masks need two destinations, not one')
        self._ext = ext
        self._labels = []
        self._fnames = []
        self._shape = None
        self._open = True
        self._targets = [_open_target(img_dest)]
        try:
            if seg_dest is not None:
                self._targets.append(_open_target(seg_dest))
        except UserError:
            self._discard()
            raise

    def __len__(self):
        return len(self._fnames)

    def add(self, image, mask, label, original_name):
        """Append one image and return its new name.

        `image` uint8 [H, W, C] or [H, W]; `mask` uint8 [H, W] (255 = head), None exactly when there is no
        `seg_dest`; `label` 25 numbers, or None for the whole set; `original_name` goes into "fnames".
        """
        self._validate(image, mask, label)
        index = len(self._fnames)
        stem = f'{index:08d}'
        stem = f'{stem[:5]}/img{stem}'
        name = f'{stem}.{self._ext}'
        self._write(self._targets[0], name, _encode(image, self._ext))
        if mask is not None:
            self._write(self._targets[1], f'{stem}.png', _encode(mask, 'png'))
        self._fnames.append([name, str(original_name)])
        if label is not None:
            self._labels.append([name, [float(value) for value in label]])
        return name

    @staticmethod
    def _write(target, name, data):
        with target.errors_named():
            target.write(name, data)

    def _validate(self, image, mask, label):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(f'image must be uint8 [H, W] or [H, W, C], got {image.dtype} {image.shape}')
        if self._shape is not None and image.shape != self._shape:
            raise ValueError(f'image has shape {image.shape}, the set has {self._shape}')
        if (mask is not None) != (len(self._targets) == 2):
            raise ValueError('masks are given exactly when there is a seg_dest')
        if mask is not None and (mask.dtype != np.uint8 or mask.shape != image.shape[:2]):
            raise ValueError(f'mask must be uint8 {image.shape[:2]}, got {mask.dtype} {mask.shape}')
        if self._fnames and (label is not None) != bool(self._labels):
            raise ValueError('labels are given for all images or for none')
        if label is not None and (len(label) != LABEL_SIZE or not np.isfinite(label).all()):
            raise ValueError(f'label must be {LABEL_SIZE} finite numbers, got {list(label)}')
        self._shape = image.shape

    def close(self):
        """Write dataset.json and give the destinations their names; the second call does nothing."""
        if not self._open:
            return
        meta = json.dumps({'labels': self._labels or None, 'fnames': self._fnames}).encode()
        try:
            for target in self._targets:
                with target.errors_named():
                    target.write('dataset.json', meta)
                    target.finish()
            # All are asked before the first is there: another process may have been faster.
            for target in self._targets:
                target.refuse_used()
            for target in self._targets:
                with target.errors_named():
                    target.commit()
        except UserError:
            self._discard()
            raise
        self._open = False

    def _discard(self):
        for target in self._targets:
            target.discard()
        self._open = False

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, trace):
        if exc_type is None:
            self.close()
        elif self._open:
            self._discard()
