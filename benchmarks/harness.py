"""What the benchmarks share: variants in processes of their own, timed in turns, and one JSON line.

A benchmark is a function build(plain, options) -> {name of the work: callable}. It runs in two processes: as the user has
it, and, with --reference, as the plain published work: float32 in PyTorch's default layout, no operators of our own, the
operations that the published networks use (plain.py). Calls alternate, so that a busy machine slows both; figures are
medians. Memory is the peak above what the process held before the call.
"""

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import dnnlib  # noqa: E402
from dnnlib.cli import user_errors  # noqa: E402
from torch_utils import misc  # noqa: E402
from training.configure import generator_config, merge_options  # noqa: E402

LIBRARIES = ('numpy', 'imageio_ffmpeg', 'PIL')


@dataclasses.dataclass(frozen=True)
class Options:
    """What a benchmark is told."""
    device: str
    threads: int
    precision: str
    settings: dict      # what the one benchmark adds
    environ: dict = dataclasses.field(default_factory=dict)     # of the process, before it imports anything


def published_generator(**changes):
    """The published 512 configuration of PanoHead with random weights, in evaluation mode; `changes`: flags of train.py."""
    flags = merge_options({'preset': 'panohead-512', **changes})
    torch.manual_seed(0)
    return dnnlib.construct_class_by_name(c_dim=25, img_resolution=512, **generator_config(flags)).eval().requires_grad_(False)


def command(function):
    """Click command with the options of every benchmark, which `function` gets as keyword arguments."""
    for option in reversed([
            click.option('--device', default='auto', show_default=True, help='auto, cpu, cuda or mps'),
            click.option('--threads', type=click.IntRange(min=1), default=None, help='Of PyTorch  [default: its own]'),
            click.option('--precision', default='auto', show_default=True, help='Of the convolutions; the reference has float32.'),
            click.option('--repeats', type=click.IntRange(min=1), default=5, show_default=True,
                         help='Timed calls, after one that does not count'),
            click.option('--reference', is_flag=True, help='Time the plain published work in the same run.')]):
        function = option(function)
    return click.command()(user_errors(function))


def run(module, device, threads, precision, repeats, reference, settings=None, **details):
    """Time `module`.build in its variants and print the JSON line; `settings`, which build gets too, and `details` are written
    into it."""
    device = misc.resolve_device(device)
    options = Options(str(device), threads or torch.get_num_threads(), precision, settings or {})
    figures = measure(module, {'fast': (False, options), **({'reference': (True, options)} if reference else {})}, repeats)
    click.echo(json.dumps({'benchmark': module, **options.settings, **details, 'figures': figures, 'repeats': repeats,
                           'precision': precision, **environment(device, options.threads)}))


def measure(module, variants, repeats, keep_first=False):
    """{name of the work: {variant: medians}} of `module`.build(plain, options) for variants {name: (plain, options)};
    `keep_first` adds the times of the call that does not count, in which programs that it ran do count."""
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(module, *variant)) for name, variant in variants.items()}
        names = [worker.recv() for worker in workers.values()][0]
        return {name: _compare(workers, name, repeats, keep_first) for name in names}


def environment(device, threads):
    """What a figure depends on besides the code: commit, versions, device, date."""
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {name: getattr(importlib.import_module(name), '__version__', '?') for name in ('torch', *LIBRARIES)}
    return {'commit': commit, 'date': time.strftime('%Y-%m-%d'), 'device': device_name(device), 'threads': threads,
            'python': platform.python_version(), 'versions': versions}


def device_name(device):
    """The GPU's name, or the processor's with what matters to speed among its instruction sets."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = next((line.partition(':')[2].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')), platform.machine())
    sets = sorted(misc.cpu_flags() & {'avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'asimd', 'bf16'})
    return f'{device.type}: {name}, {os.cpu_count()} cores, {" ".join(sets)}'


def _lines(path):
    try:
        return Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return []


def _compare(workers, name, repeats, keep_first=False):
    """Medians of every variant's calls of `name`, taken in turns, and their ratios."""
    first = {variant: _ask(variant, worker, name, 'first') for variant, worker in workers.items()}
    samples = {variant: [] for variant in workers}
    for _ in range(repeats):
        for variant, worker in workers.items():
            samples[variant].append(_ask(variant, worker, name, 'time'))
    result = {variant: {key: round(statistics.median(sample[key] for sample in rows), 4) for key in rows[0]}
              for variant, rows in samples.items()}
    for variant, sample in first.items() if keep_first else ():
        result[variant].update({f'first_{key}': round(value, 4) for key, value in sample.items()})
    for variant, worker in workers.items():
        result[variant].update(_ask(variant, worker, name, 'memory'))
    if 'reference' in result:
        result['ratio'] = {key: round(result['reference'][key] / max(value, 1e-9), 2) for key, value in result['fast'].items()}
    return result


def _ask(variant, worker, name, what):
    """What a worker measures of one call of `name`."""
    worker.send((name, what))
    sample = worker.recv()
    if isinstance(sample, str):
        raise dnnlib.UserError(f'{variant}, {name}: {sample}')
    return sample


@contextlib.contextmanager
def _worker(module, plain, options):
    """Connection to a process that has built `module`'s work and calls what it is told to."""
    context = multiprocessing.get_context('spawn')
    here, there = context.Pipe()
    changed = {'OMNIHEAD_NATIVE': '0' if plain else os.environ.get('OMNIHEAD_NATIVE', '1'), 'OMP_NUM_THREADS': str(options.threads),
               **({'THP_MEM_ALLOC_ENABLE': '0'} if plain else {}), **options.environ}   # PyTorch as it comes, see torch_utils
    former = {key: os.environ.get(key) for key in changed}
    os.environ.update(changed)
    process = context.Process(target=_serve, args=(there, module, plain, options), daemon=True)
    process.start()
    there.close()
    for key, value in former.items():
        os.environ.pop(key) if value is None else os.environ.update({key: value})
    try:
        yield here
    finally:
        here.close()
        process.join(timeout=5)
        process.terminate()


def _serve(pipe, module, plain, options):
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if plain:
        importlib.import_module('plain').use_published_operations()
    work = importlib.import_module(module).build(plain, options)
    pipe.send(list(work))
    with contextlib.suppress(EOFError):
        while True:
            name, what = pipe.recv()
            try:
                pipe.send(MEASURES[what](work[name], device))
            except (RuntimeError, ValueError, dnnlib.UserError) as error:
                pipe.send(f'{type(error).__name__}: {error}')


def time_call(function, device):
    """Seconds of the clock and of processor time of one call. A callable may return the number of units it did: seconds are
    then those of one unit."""
    wall, cpu = time.perf_counter(), time.process_time()
    units = function() or 1
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return {'wall_sec': (time.perf_counter() - wall) / units, 'cpu_sec': (time.process_time() - cpu) / units}


def time_first_call(function, device):
    """The same with the processor time of the programs that it ran and waited for: compilers."""
    before = os.times()
    sample = time_call(function, device)
    after = os.times()
    programs = after.children_user + after.children_system - before.children_user - before.children_system
    return {**sample, 'cpu_sec': sample['cpu_sec'] + programs}


def memory_of_call(function, device):
    """MB that one call needs above what the process held before."""
    before = _start_memory(device)
    function()
    return {'peak_mb': round((_peak_memory(device) - before) / 1e6, 1)}


MEASURES = {'first': time_first_call, 'time': time_call, 'memory': memory_of_call}


def _status(key):
    return next((int(line.split()[1]) * 1024 for line in _lines('/proc/self/status') if line.startswith(key)), 0)


def _start_memory(device):
    """Bytes in use; starts a new peak. Linux only on processors; elsewhere both are 0."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    misc.return_freed_memory()
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    return _status('VmRSS')


def _peak_memory(device):
    return torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else _status('VmHWM')
