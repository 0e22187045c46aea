"""EasyDict, construction by name, files that appear whole, cached downloads, log files and the one error users see."""

import contextlib
import hashlib
import http.client
import importlib
import io
import os
import re
import sys
import tempfile
import urllib.request
from pathlib import Path


REQUIRE_FAST = 'OMNIHEAD_REQUIRE_FAST'   # set while a command runs that was given --require-fast


class UserError(ValueError):
    """Something the user gave is wrong: the message names the flag or file, the value seen, and the remedy.
    Scripts print it without a traceback and exit with code 2 (see dnnlib.cli)."""


class EasyDict(dict):
    """A dict whose keys can also be read and written as attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self[name] = value

    def __delattr__(self, name):
        del self[name]


def get_obj_by_name(name):
    """The Python object with the dotted `name`, for instance 'training.dataset.HeadDataset'.
    Raises ImportError if no module on the way holds it."""
    module_name, _, attribute = name.rpartition('.')
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (AttributeError, ValueError) as error:
        raise ImportError(f'no object named {name!r}: {error}') from error


def construct_class_by_name(*args, class_name, **kwargs):
    """Call the class with the dotted name `class_name`; unknown keyword arguments are the class's TypeError."""
    return get_obj_by_name(class_name)(*args, **kwargs)


def format_time(seconds):
    """'3s', '2m 05s', '1h 02m 03s' or '2d 01h 02m' of a duration in seconds."""
    s = int(round(seconds))
    if s < 60:
        return f'{s}s'
    if s < 3600:
        return f'{s // 60}m {s % 60:02d}s'
    if s < 86400:
        return f'{s // 3600}h {s // 60 % 60:02d}m {s % 60:02d}s'
    return f'{s // 86400}d {s // 3600 % 24:02d}h {s // 60 % 60:02d}m'


def counted(number, noun):
    """'1 head', '2 heads'."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


@contextlib.contextmanager
def written_whole(path):
    """Context giving a temporary Path beside `path`, with the same suffix, that takes the name `path` at the end, once
    everything is on the disk. If the block is left by an exception or an interrupt it is removed, and what stood at
    `path` before stays. OSErrors are the caller's to explain."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix='.partial-', suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, 'r+b') as file:
            os.fsync(file.fileno())
        # A temporary file is its owner's alone; what is written for users is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder):
    """Let the new name of a file survive a loss of power too, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_folder():
    """Where downloads are kept: $OMNIHEAD_CACHE, else ~/.cache/omnihead."""
    return Path(os.environ.get('OMNIHEAD_CACHE') or os.path.expanduser('~/.cache/omnihead'))


def is_url(path):
    """Whether `path` is meant as an http(s) address, be it a good one or not."""
    return re.match('https?://', str(path), re.IGNORECASE) is not None


def open_url(path, timeout=60):
    """Binary file object of a local path or an http(s) address; a download is kept and reused where the cache can be
    written. Raises UserError naming the path if it cannot be read."""
    path = str(path)
    if not is_url(path):
        try:
            return open(path, 'rb')
        except OSError as error:
            raise UserError(f'cannot read {path}: {error.strerror}') from error
    cached = _cached(path)
    try:
        return io.BytesIO(cached.read_bytes())
    except OSError:
        data = _download(path, timeout)
    # A cache that cannot be written costs the next download, no more.
    with contextlib.suppress(OSError):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(cached) as temporary:
            temporary.write_bytes(data)
    return io.BytesIO(data)


def _cached(address):
    """Where the download of an address is kept."""
    # File names have 255 bytes at most, and a letter up to four.
    name = re.sub(r'[^\w.-]', '_', re.split('[?#]', address)[0].rpartition('/')[2])[-40:]
    return cache_folder() / f'{hashlib.sha256(address.encode()).hexdigest()[:24]}_{name}'


def _download(address, timeout):
    """The bytes at an address. Raises UserError if they do not all arrive."""
    try:
        with urllib.request.urlopen(address, timeout=timeout) as response:
            return response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f'cannot download {address}: {error}; download it by hand and give the file instead') from error


class Logger:
    """Copies everything printed to a file while it is open: `with Logger('run/log.txt'): ...`. A full disk costs the copy,
    not the program; a killed program costs no line."""

    def __init__(self, path):
        self.file = open(path, 'a', encoding='utf-8')

    def __enter__(self):
        self.stdout = sys.stdout
        sys.stdout = self
        return self

    def __exit__(self, *_):
        sys.stdout = self.stdout
        with contextlib.suppress(OSError):
            self.file.close()

    def write(self, text):
        self.stdout.write(text)
        with contextlib.suppress(OSError):
            self.file.write(text)
            self.file.flush()

    def flush(self):
        self.stdout.flush()
        self.file.flush()

    def isatty(self):
        return self.stdout.isatty()

    def fileno(self):
        return self.stdout.fileno()
