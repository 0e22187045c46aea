"""CUDA kernels compiled by NVRTC without a GPU, for every architecture; and how their machine code is kept."""

import importlib
import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torch_utils.ops import cuda_build, cuda_images, cuda_render

ARCHITECTURES = ('sm_80', 'sm_86', 'sm_89', 'sm_90', 'sm_100', 'sm_120')
PUBLISHED = dict(channels=32, hidden=64, colours=32, activation=0, grid=0, layers=2)
EG3D = {**PUBLISHED, 'activation': 1, 'layers': 1}


def nvrtc_missing():
    """Why nothing can be compiled here, or None."""
    if importlib.util.find_spec('cuda') is None or importlib.util.find_spec('cuda.core') is None:
        return 'cuda-core is not installed'
    try:
        cuda_build.compile_source('pack_planes.cu', (('OMNI_PACKED', 0), ('OMNI_PLANAR', 0)), 'sm_90')
    except (OSError, RuntimeError, ImportError, AttributeError) as error:
        return f'NVRTC does not compile here: {str(error).splitlines()[0][:150] if str(error) else type(error).__name__}'
    return None


MISSING = nvrtc_missing()
needs_nvrtc = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def render_kernel(name, warps=4, **sizes):
    return f'{name}.cu', cuda_render.Sizes(**sizes).defines(warps)


def image_kernel(name, **macros):
    return f'{name}.cu', tuple((f'OMNI_{key}', value) for key, value in macros.items())


# Kernels that make up nearly all of the time: no register may go to memory.
MAIN = {
    'forward': render_kernel('volume_render_forward', **PUBLISHED),
    'backward': render_kernel('volume_render_backward', **PUBLISHED),
    'query': render_kernel('plane_query', **PUBLISHED),
    'bias_act': image_kernel('bias_act', ACT=2, COUNT=4, INDEX='u32', ORDER=0, TYPE=0),
    'upfirdn2d': image_kernel('upfirdn2d', COUNT=4, DOWN_X=1, DOWN_Y=1, INDEX='u32', TAPS_X=4, TAPS_Y=4, TYPE=0, UP_X=2, UP_Y=2),
}
# What else is asked for, on one architecture each.
OTHERS = {
    'forward, EG3D in half precision': render_kernel('volume_render_forward', **{**EG3D, 'grid': 1}),
    'backward, EG3D': render_kernel('volume_render_backward', **EG3D),
    'backward, odd sizes': render_kernel('volume_render_backward', 3, channels=5, hidden=19, colours=7, activation=2, grid=2, layers=2),
    'forward, wide': render_kernel('volume_render_forward', 2, channels=80, hidden=48, colours=40, activation=1, grid=0, layers=2),
    'bias_act, second order in float16': image_kernel('bias_act', ACT=8, COUNT=8, INDEX='i64', ORDER=2, TYPE=1),
    'upfirdn2d, bfloat16': image_kernel('upfirdn2d', COUNT=1, DOWN_X=2, DOWN_Y=1, INDEX='i64', TAPS_X=12, TAPS_Y=3, TYPE=2, UP_X=1, UP_Y=3),
}


def resources(log):
    """(registers, bytes spilled) of each kernel in an assembler's log."""
    registers = [int(n) for n in re.findall(r'Used (\d+) registers', log)]
    spills = [int(a) + int(b) for a, b in re.findall(r'(\d+) bytes spill stores, (\d+) bytes spill loads', log)]
    return list(zip(registers, spills, strict=True))


@needs_nvrtc
@pytest.mark.parametrize('arch, name', [*itertools.product(ARCHITECTURES, MAIN), *(('sm_90', name) for name in OTHERS)])
def test_compiles(arch, name, record_property):
    """Every kernel compiles; registers and spills are reported (pytest --junit-xml, or -rP) and those that matter do not spill."""
    code, log = cuda_build.compile_source(*{**MAIN, **OTHERS}[name], arch)
    assert code[:4] == b'\x7fELF'
    ((registers, spilled),) = resources(log)
    record_property('registers', registers)
    record_property('spilled_bytes', spilled)
    sys.stdout.write(f'{name} for {arch}: {registers} registers, {spilled} bytes spilled\n')
    assert 0 < registers <= 255
    assert spilled == 0 or name in OTHERS, log


@needs_nvrtc
def test_tensor_cores_and_vector_additions_are_used():
    """The text for the assembler holds the instructions that the kernels are built around."""
    nvrtc = importlib.import_module('cuda.bindings.nvrtc')
    source, defines = MAIN['backward']

    def assembly(arch):
        options = [f'--gpu-architecture={arch}', '--std=c++17', f'-I{cuda_build.SOURCES}', *(f'-D{k}={v}' for k, v in defines)]
        program = cuda_build._checked(nvrtc.nvrtcCreateProgram((cuda_build.SOURCES / source).read_bytes(), b'x.cu', 0, [], []))
        cuda_build._checked(nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options]))
        text = b' ' * cuda_build._checked(nvrtc.nvrtcGetPTXSize(program))
        cuda_build._checked(nvrtc.nvrtcGetPTX(program, text))
        return text.decode()

    hopper, ampere = assembly('compute_90'), assembly('compute_80')
    assert 'mma.sync.aligned.m16n8k8' in hopper and 'mma.sync.aligned.m16n8k8' in ampere
    assert 'red.global.add.v4.f32' in hopper and 'red.global.add.v4.f32' not in ampere


@needs_nvrtc
def test_errors_name_source_and_line(tmp_path, monkeypatch):
    (tmp_path / 'broken.cu').write_text('int f( {')
    monkeypatch.setattr(cuda_build, 'SOURCES', tmp_path)
    with pytest.raises(RuntimeError, match=r'broken.cu for sm_90(.|\n)*error'):
        cuda_build.compile_source('broken.cu', (), 'sm_90')


SMALL = ('pack_planes.cu', (('OMNI_PACKED', 0), ('OMNI_PLANAR', 1)), 'sm_90')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path))
    return tmp_path / 'cuda'


@needs_nvrtc
def test_machine_code_is_kept(cache, monkeypatch):
    code = cuda_build.cubin(*SMALL)
    assert [p.read_bytes() for p in cache.iterdir()] == [code]
    monkeypatch.setattr(cuda_build, 'compile_source', None)
    assert cuda_build.cubin(*SMALL) == code


@needs_nvrtc
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path / 'file'))
    assert cuda_build.cubin(*SMALL)[:4] == b'\x7fELF'


def test_leftovers_of_killed_processes_go(cache, monkeypatch):
    """What a process left that was killed while it wrote is never read, and removed once it is old."""
    path = cuda_build.cubin_path(*SMALL)
    path.parent.mkdir(parents=True)
    old, fresh = (path.with_name(path.name + suffix) for suffix in ('.old', '.fresh'))
    for leftover in (old, fresh):
        leftover.write_bytes(b'half')
    os.utime(old, (time.time() - 10000,) * 2)
    monkeypatch.setattr(cuda_build, 'compile_source', lambda *_: (b'whole', ''))
    assert cuda_build.cubin(*SMALL) == b'whole' == path.read_bytes()
    assert not old.exists() and fresh.exists()


def test_file_names_tell_what_code_depends_on(monkeypatch):
    names = {cuda_build.cubin_path(*SMALL).name, cuda_build.cubin_path(*SMALL[:2], 'sm_80').name,
             cuda_build.cubin_path(SMALL[0], (('OMNI_PACKED', 0), ('OMNI_PLANAR', 2)), 'sm_90').name}
    monkeypatch.setattr(cuda_build, '_versions', lambda: (('cuda-core', '0'),))
    assert len(names | {cuda_build.cubin_path(*SMALL).name}) == 4


WRITES = ('import time\nfrom torch_utils.ops import cuda_build\n'
          'cuda_build.compile_source = lambda *_: (time.sleep({sleep}), (b"whole" * 1000, ""))[1]\n'
          'print("ready", flush=True)\n'
          'print(len(cuda_build.cubin("pack_planes.cu", (("OMNI_PACKED", 0),), "sm_90")))\n')


def start(code, cache):
    env = {**os.environ, 'OMNIHEAD_CACHE': str(cache), 'PYTHONPATH': str(Path(__file__).parents[1]), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([sys.executable, '-c', code], env=env, stdout=subprocess.PIPE, text=True)


def test_processes_that_are_killed_or_start_together(tmp_path):
    killed, first, second = start(WRITES.format(sleep=600), tmp_path), *(start(WRITES.format(sleep=0.2), tmp_path) for _ in range(2))
    assert killed.stdout.readline() == 'ready\n'
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [p.communicate()[0].split() for p in (first, second)] == [['ready', '5000']] * 2
    (only,) = (tmp_path / 'cuda').iterdir()
    assert only.read_bytes() == b'whole' * 1000


def test_absence_is_said_once(monkeypatch, capsys):
    """Without cuda-core: one line with reason and remedy, and plain PyTorch does the work."""
    def missing(*_):
        raise ImportError("No module named 'cuda.core'")
    monkeypatch.setenv('OMNIHEAD_NATIVE', '1')
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (9, 0))
    monkeypatch.setattr(cuda_build, 'kernel', missing)
    cuda_build._probe.cache_clear(), cuda_build._say_once.cache_clear()
    device = torch.device('cuda', 0)
    try:
        assert not cuda_build.load_cuda(device) and not cuda_build.load_cuda(device)
        (line,) = capsys.readouterr().err.splitlines()
        assert "No module named 'cuda.core'" in line and "pip install -e '.[cuda]'" in line
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (7, 5))
        cuda_build._probe.cache_clear()
        assert cuda_build.status(device) == (False, 'compute capability 8.0 or newer is needed')
        monkeypatch.setenv('OMNIHEAD_NATIVE', '0')
        assert cuda_build.status(device) == (False, 'OMNIHEAD_NATIVE=0') and not cuda_build.load_cuda(device)
        assert capsys.readouterr().err == ''
    finally:
        cuda_build._probe.cache_clear(), cuda_build._say_once.cache_clear()


def test_macros_of_the_operators_are_those_of_the_sources():
    """A macro that Python gives and no source asks for, or the other way round, is a mistake."""
    def asked(*names):
        return {m for name in names for m in re.findall(r'OMNI_[A-Z_]+', (cuda_build.SOURCES / name).read_text(encoding='utf-8'))}
    own = asked('shared/gpu.h', 'shared/math.h') | {'OMNI_MATH'}
    render = asked('volume_render_backward.cu', 'shared/render.h', 'shared/decoder.h', 'shared/marching.h') - own
    assert render == {name for name, _ in MAIN['backward'][1]}
    assert asked('bias_act.cu') - own == {name for name, _ in MAIN['bias_act'][1]}
    assert asked('upfirdn2d.cu') - own == {name for name, _ in MAIN['upfirdn2d'][1]}
    assert cuda_images.TYPES == cuda_render.GRID_TYPES
