"""Lets the CUDA operators run on the CPU: their kernels compiled by g++ through cuda_emulation.h. For tests of their logic."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dnnlib.util import cache_folder
from torch_utils.ops import cuda_build

HEADER = Path(__file__).with_name('cuda_emulation.h')
COMPILER = shutil.which('g++') if sys.platform.startswith('linux') else None
FLAGS = ['-std=c++17', '-O1', '-shared', '-fPIC', '-Wall', '-Werror', '-Wno-unknown-pragmas', '-Wno-unused-function', '-DOMNI_EMULATE']
# A small GPU, so that blocks go through several rays and rows of sums have to be added up.
FACTS = cuda_build.Facts('emulated', 2, 99 << 10, 100 << 10)
RENDERER, PACKING = 'omni::RenderParams', 'omni::PackParams'
PARAMS = {'volume_render_forward': RENDERER, 'volume_render_backward': RENDERER, 'plane_query': RENDERER, 'pack_planes': PACKING,
          'unpack_planes': PACKING, 'bias_act': 'omni::BiasActParams', 'upfirdn2d': 'omni::UpFirDnParams'}


class EmulatedKernel:
    """What cuda_build.Kernel offers, on the CPU."""

    def __init__(self, function):
        self.function = function

    def launch(self, grid, threads, shared, params):
        """Run the kernel to its end."""
        self.function(ctypes.c_void_p(ctypes.addressof(params)), *(ctypes.c_int(n) for n in (*grid, threads)), ctypes.c_longlong(shared))


def use(monkeypatch):
    """Kernels are emulated until the end of the test; the operators' Python functions then take CPU tensors."""
    monkeypatch.setattr(cuda_build, 'kernel', emulated_kernel)
    monkeypatch.setattr(cuda_build, 'facts', lambda device: FACTS)


@functools.lru_cache(maxsize=None)
def emulated_kernel(source, name, defines, device):
    """Kernel `name` of csrc/`source` on the CPU; compiled once, and kept in the project's cache like any build."""
    text = (f'#include "{source}"\nstatic void body(const void* p) {{ {name}(*static_cast<const {PARAMS[name]}*>(p)); }}\n'
            'extern "C" void launch(const void* p, int x, int y, int z, int threads, i64 shared) {\n'
            '    emulation::run({x, y, z}, threads, shared, body, p);\n}\n')
    macros = [f'-D{key}={value}' for key, value in defines]
    digest = hashlib.sha256(repr((text, macros, FLAGS)).encode())
    for path in (HEADER, cuda_build.SOURCES / source, *sorted((cuda_build.SOURCES / 'shared').iterdir())):
        digest.update(path.read_bytes())
    library = cache_folder() / 'emulation' / f'{name}-{digest.hexdigest()[:20]}.so'
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            main = Path(folder) / 'main.cpp'
            main.write_text(text)
            command = [COMPILER, *FLAGS, *macros, f'-I{HEADER.parent}', f'-I{cuda_build.SOURCES}', str(main), '-o', f'{folder}/out.so']
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr[-3000:]
            os.replace(f'{folder}/out.so', library)
    return EmulatedKernel(ctypes.CDLL(str(library)).launch)

