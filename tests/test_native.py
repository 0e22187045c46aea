"""How the library of C++ operators is built, and what happens where it is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from project_files import run_python
from torch_utils.ops import native

needs_native = pytest.mark.skipif(not native.load_native(), reason='no C++ operators here: no compiler, or switched off')

LOADS = 'from torch_utils.ops import native\nprint(native.load_native(), native.load_native())\n'


def test_no_compiler(tmp_path):
    """One line of notice, and the plain path does the work."""
    run = run_python(LOADS, CXX=str(tmp_path / 'none'), OMNIHEAD_CACHE=str(tmp_path / 'cache'), OMNIHEAD_NATIVE='1')
    assert run.returncode == 0 and run.stdout.split() == ['False', 'False'], run.stderr
    assert len(run.stderr.splitlines()) == 1 and 'plain PyTorch is used' in run.stderr
    assert not list(tmp_path.rglob('*.so'))


def test_failed_build(tmp_path):
    """The same where there is a compiler that compiles nothing."""
    compiler = tmp_path / 'broken'
    compiler.write_text('#!/bin/sh\ncase "$*" in *-c*) ;; *) exec c++ "$@";; esac\n'
                        'echo "x.cpp:1: error: broken on purpose" >&2; exit 1\n')
    compiler.chmod(0o755)
    run = run_python(LOADS, CXX=str(compiler), OMNIHEAD_CACHE=str(tmp_path / 'cache'), OMNIHEAD_NATIVE='1')
    assert run.returncode == 0 and run.stdout.split() == ['False', 'False'], run.stderr
    assert 'broken on purpose' in run.stderr.splitlines()[-1] and 'plain PyTorch is used' in run.stderr.splitlines()[-1]
    assert list((tmp_path / 'cache' / 'native').iterdir()) == []


def test_switched_off(monkeypatch):
    monkeypatch.setenv('OMNIHEAD_NATIVE', '0')
    assert not native.load_native()


def test_every_source_is_compiled_once():
    """A unit takes in others by name, and what nobody takes in is a unit."""
    units = [Path(path).name for path in native.units()]
    text = (native.SOURCES / 'operators.cpp').read_text()
    assert units[0] == 'operators.cpp' and len(set(units)) == len(units)
    for path in native.SOURCES.glob('*.cpp'):
        assert (path.name in units) != (f'#include "{path.name}"' in text), path


def test_build_folder_tells_what_it_depends_on(monkeypatch):
    names = {native.build_folder().name}
    for change in (lambda: monkeypatch.setattr(native, 'FLAGS', ['-O1']), lambda: monkeypatch.setenv('CXX', 'another'),
                   lambda: monkeypatch.setattr(torch, '__version__', '0')):
        change()
        names.add(native.build_folder().name)
    assert len(names) == 4


@needs_native
@pytest.mark.slow
def test_builds_that_are_killed_or_start_together(tmp_path):
    """What a killed build leaves stops nobody, and two processes that start at once both get the library."""
    env = {**os.environ, 'OMNIHEAD_CACHE': str(tmp_path), 'PYTHONPATH': str(Path(__file__).parents[1]), 'OMP_NUM_THREADS': '1'}
    program = LOADS.replace('\n', '\nnative.FLAGS[0] = "-O0"\n', 1)      # what is built is not looked at, and sooner there

    def start():
        return subprocess.Popen([sys.executable, '-c', program], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)

    killed = start()
    while not list(tmp_path.glob('native/*/build.ninja')):
        assert killed.poll() is None, 'the build ended before it could be killed'
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    both = [start(), start()]
    assert [p.communicate()[0].split() for p in both] == [['True', 'True']] * 2
    assert len([p for p in tmp_path.glob('native/*') if '.' not in p.name]) == 1
