"""Builds and loads the C++ operators, once a machine; without a compiler the plain PyTorch code does the work.

The library is built in a folder of its own and renamed into place when it is whole: a build that is killed leaves
nothing that later ones could mistake for it or wait for, and of two that start together the first to end is kept.
OMNIHEAD_NATIVE=0 switches the operators off; OMNIHEAD_REQUIRE_FAST=1 (--require-fast) makes their absence an error.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dnnlib.util import REQUIRE_FAST, UserError, cache_folder

SOURCES = Path(__file__).parent / 'csrc'
LIBRARY = 'omnihead_cpu'
# Fast-math is not among them: the kernels say themselves where an approximation will do.
FLAGS = ['-O3', '-fno-math-errno', '-ffp-contract=fast', '-Wno-psabi']
LEFTOVER_AGE = 3600   # seconds


def enabled():
    """Whether the operators are wanted: OMNIHEAD_NATIVE is not 0."""
    return os.environ.get('OMNIHEAD_NATIVE', '1') != '0'


def load_native():
    """Whether torch.ops.omnihead is ready, building it first where that was never done. After a failure, whose reason
    goes to stderr in one line, the answer stays no for the process. UserError instead under --require-fast."""
    if enabled() and not _load_once():
        return True
    fallback('the C++ operators', status()[1])
    return False


def status():
    """(whether the C++ operators run here, why not in a few words or which instructions they use)."""
    if not enabled():
        return False, 'OMNIHEAD_NATIVE=0'
    reason = _load_once()
    return not reason, reason or f'compiled C++, {torch.ops.omnihead.instruction_set()}'


def required():
    """Whether plain PyTorch may not take the place of our operators: --require-fast, or OMNIHEAD_REQUIRE_FAST=1."""
    return os.environ.get(REQUIRE_FAST, '0') not in ('', '0')


def fallback(what, reason):
    """Note that plain PyTorch does the work of `what`: nothing, or under --require-fast a UserError."""
    if required():
        raise UserError(f'--require-fast: plain PyTorch would take the place of {what} ({reason}); '
                        'python -m torch_utils.doctor says what to do, or leave out --require-fast')


def compile_flags():
    """Flags of the C++ compiler on this machine; with them at::parallel_for uses PyTorch's own OpenMP threads."""
    return FLAGS + (['-fopenmp'] if sys.platform.startswith('linux') else [])


def units():
    """Files to compile, those of csrc that no other of them includes; first the operators, which take longest."""
    files = sorted(SOURCES.glob('*.cpp'))
    included = {name for path in files for name in re.findall(r'#include "(\w+\.cpp)"', path.read_text(encoding='utf-8'))}
    return sorted((str(path) for path in files if path.name not in included), key=lambda path: Path(path).name != 'operators.cpp')


def build_folder():
    """Folder of the built library; its name tells all that the library depends on."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob('*')):
        if path.suffix in ('.cpp', '.h'):
            digest.update(path.name.encode() + b'\0' + path.read_bytes() + b'\0')
    machine = (torch.__version__, platform.machine(), sys.platform, os.environ.get('CXX', ''), *compile_flags())
    digest.update('\0'.join(machine).encode())
    return cache_folder() / 'native' / f'{LIBRARY}-{digest.hexdigest()[:20]}'


@functools.lru_cache(maxsize=1)
def _load_once():
    """What is wrong with the library, or nothing."""
    try:
        folder = build_folder()
        library = folder / f'{LIBRARY}.so'
        if library.is_file():
            torch.ops.load_library(str(library))
        else:
            _build(folder)
        return ''
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = next((line for line in lines if 'error:' in line), lines[0]).strip()[:200]
        sys.stderr.write(f'omnihead: C++ operators are not available ({reason}); plain PyTorch is used, slower. Install a C++ '
                         'compiler and ninja, or set OMNIHEAD_NATIVE=0 to silence this.\n')
        return reason


def _build(folder):
    """Compile into a temporary folder, load the library from there, then rename the folder to its place."""
    compiler = shlex.split(os.environ.get('CXX') or 'c++')[0]
    if shutil.which(compiler) is None:
        raise OSError(f'no C++ compiler {compiler}')
    from torch.utils import cpp_extension   # imports setuptools; only those who build pay for it
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    temporary = Path(tempfile.mkdtemp(prefix=folder.name + '.', dir=folder.parent))
    try:
        with _ninja_on_path():
            cpp_extension.load(LIBRARY, units(), extra_cflags=compile_flags(),
                               build_directory=str(temporary), with_cuda=False, is_python_module=False)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        os.rename(temporary, folder)
    except OSError:
        # Another process was faster; the library loaded here stays usable without its file.
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(target):
    """Delete what builds of `target`, a file or folder, left beside it when they were killed, if that is long ago."""
    for path in target.parent.glob(target.name + '.*'):
        with contextlib.suppress(OSError):   # another process may be at it too
            if time.time() - path.stat().st_mtime <= LEFTOVER_AGE:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


@contextlib.contextmanager
def _ninja_on_path():
    """Lets torch find the ninja of the Python package where that of the system is missing."""
    path = os.environ.get('PATH', '')
    if shutil.which('ninja') is None and importlib.util.find_spec('ninja') is not None:
        os.environ['PATH'] = os.pathsep.join([importlib.import_module('ninja').BIN_DIR, path])
    try:
        yield
    finally:
        os.environ['PATH'] = path
