"""Compiles the CUDA kernels of csrc/*.cu at run time (NVRTC through cuda-core), keeps the machine code on disk, and launches it.

Neither a CUDA toolkit nor a host compiler is needed. A cubin's file is named by a digest of all it depends on and appears in
its place in one step, so that processes killed or started together do no harm. Launches go to PyTorch's current stream and
neither wait nor allocate; in a CUDA graph a kernel can be captured once it has run. OMNIHEAD_NATIVE=0 switches all off.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.metadata
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from dnnlib.util import cache_folder
from torch_utils.ops import native

SOURCES = Path(__file__).parent / 'csrc'
OLDEST_CAPABILITY = (8, 0)   # Ampere: the first with tf32 tensor cores
PACKAGES = ('cuda-core', 'cuda-bindings', 'nvidia-cuda-nvrtc', 'nvidia-cuda-nvrtc-cu12')
WITHOUT_DRIVER = (OSError, RuntimeError, ImportError, AttributeError)   # how libraries that lack a part of CUDA fail


class Facts(NamedTuple):
    """What a launch needs to know of a device."""
    arch: str                      # as sm_90
    multiprocessors: int
    shared_per_block: int          # bytes, at most
    shared_per_multiprocessor: int


class Kernel(NamedTuple):
    """A kernel on a device; its one parameter is a ctypes.Structure."""
    function: object
    device: torch.device

    def launch(self, grid, threads, shared, params):
        """Queue `grid` (x, y, z) blocks of `threads` threads with `shared` bytes of memory on the current stream."""
        driver = _driver()
        pointer = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        with torch.cuda.device(self.device):
            _use_primary_context(self.device.index)
            stream = torch.cuda.current_stream(self.device).cuda_stream
            _checked(driver.cuLaunchKernel(self.function, *grid, threads, 1, 1, shared, stream, ctypes.addressof(pointer), 0))


def status(device):
    """(whether the kernels run on a CUDA device, why in a few words)."""
    if not native.enabled():
        return False, 'OMNIHEAD_NATIVE=0'
    return _probe(_indexed(device))


def load_cuda(device):
    """Whether kernels can be compiled and loaded for `device`; the first time they cannot, stderr has one line with the reason."""
    usable, reason = status(device)
    if not usable:
        native.fallback(f'the CUDA operators on {device}', reason)
    if not usable and native.enabled():
        _say_once(reason)
    return usable


@functools.lru_cache(maxsize=None)
def kernel(source, name, defines, device):
    """Kernel `name` of csrc/`source`, compiled with `defines` (a tuple of pairs) and loaded on `device`. RuntimeError if that fails."""
    device = _indexed(device)
    code = cubin(source, defines, facts(device).arch)
    driver = _driver()
    with torch.cuda.device(device):
        _use_primary_context(device.index)
        module = _checked(driver.cuModuleLoadData(code))
        function = _checked(driver.cuModuleGetFunction(module, name.encode()))
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(function, limit, facts(device).shared_per_block))
    return Kernel(function, device)


@functools.lru_cache(maxsize=None)
def facts(device):
    """Facts of a CUDA device."""
    driver = _driver()
    names = driver.CUdevice_attribute
    torch.cuda.init()
    handle = _checked(driver.cuDeviceGet(_indexed(device).index))
    numbers = [_checked(driver.cuDeviceGetAttribute(a, handle)) for a in (
        names.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, names.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        names.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)]
    major, minor = torch.cuda.get_device_capability(device)
    return Facts(f'sm_{major}{minor}', *numbers)


def cubin(source, defines, arch):
    """Machine code (bytes) of csrc/`source` for `arch`, from the disk where it was compiled before."""
    path = cubin_path(source, defines, arch)
    with contextlib.suppress(OSError):
        return path.read_bytes()
    code, _ = compile_source(source, defines, arch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        native.remove_leftovers(path)
        handle, temporary = tempfile.mkstemp(prefix=path.name + '.', dir=path.parent)
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(code)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        pass   # a cache that cannot be written costs time only
    return code


def cubin_path(source, defines, arch):
    """File of the cache for that machine code; its name tells all that it depends on."""
    digest = hashlib.sha256()
    for path in [SOURCES / source, *sorted((SOURCES / 'shared').iterdir())]:
        digest.update(path.name.encode() + b'\0' + path.read_bytes() + b'\0')
    digest.update(repr((arch, defines, _options(defines, arch), _versions())).encode())
    return cache_folder() / 'cuda' / f'{Path(source).stem}-{arch}-{digest.hexdigest()[:20]}.cubin'


def compile_source(source, defines, arch):
    """(machine code, log of the assembler with registers and spills of every kernel); RuntimeError with what NVRTC says."""
    core = _cuda_core()
    log = io.StringIO()
    options = core.ProgramOptions(**_options(defines, arch))
    try:
        code = core.Program((SOURCES / source).read_text(encoding='utf-8'), 'c++', options).compile('cubin', logs=log)
    except RuntimeError:
        raise
    except Exception as error:   # cuda-core has exceptions of its own, whose place depends on its version
        raise RuntimeError(f'{source} for {arch}: {error}') from error
    return bytes(code.code), log.getvalue()


def _options(defines, arch):
    """Keyword arguments of cuda-core's ProgramOptions."""
    return dict(name='omnihead', arch=arch, std='c++17', include_path=str(SOURCES), ptxas_options=['-v'],
                define_macro=[(name, str(value)) for name, value in defines] or None)


@functools.lru_cache(maxsize=None)
def _versions():
    found = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((package, importlib.metadata.version(package)))
    return tuple(found)


def _cuda_core():
    """The module with Program, which moved when cuda-core left its experimental stage."""
    module = importlib.import_module('cuda.core')
    return module if hasattr(module, 'Program') else importlib.import_module('cuda.core.experimental')


@functools.lru_cache(maxsize=1)
def _driver():
    return importlib.import_module('cuda.bindings.driver')


def _checked(result):
    """What a driver's function returns after its status; RuntimeError for a bad one."""
    code, *values = result
    if int(code) != 0:
        raise RuntimeError(f'CUDA driver: {getattr(code, "name", code)}')
    return values[0] if len(values) == 1 else None


def _use_primary_context(index):
    """Threads that PyTorch has not yet used have no context, and a launch would fail."""
    driver = _driver()
    if int(_checked(driver.cuCtxGetCurrent())) == 0:
        _checked(driver.cuCtxSetCurrent(_checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(index))))))


def _indexed(device):
    device = torch.device(device)
    return torch.device(device.type, torch.cuda.current_device()) if device.index is None else device


@functools.lru_cache(maxsize=None)
def _probe(device):
    """The whole way once with a small kernel: what works for it works for the others."""
    if torch.version.cuda is None:
        return False, 'this PyTorch is not built for CUDA'
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return False, f'compute capability {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or newer is needed'
    try:
        kernel('pack_planes.cu', 'pack_planes', (('OMNI_PACKED', 0), ('OMNI_PLANAR', 0)), device)
    except WITHOUT_DRIVER as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return False, next((line for line in lines if 'error' in line), lines[0])[:200]
    return True, 'compiled by NVRTC for ' + facts(device).arch


@functools.lru_cache(maxsize=None)
def _say_once(reason):
    sys.stderr.write(f'omnihead: CUDA operators are not available ({reason}); plain PyTorch is used, slower. Install them with '
                     "pip install -e '.[cuda]', or set OMNIHEAD_NATIVE=0 to silence this.\n")
