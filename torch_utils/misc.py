"""Small things several parts of the project need of modules and devices."""

import contextlib
import ctypes
import functools
import hashlib
from pathlib import Path

import torch
import torch.distributed as dist

from dnnlib.util import UserError
from torch_utils import distributed
from torch_utils.ops import cuda_build, native


def resolve_device(name):
    """torch.device of 'auto' (CUDA, else MPS, else CPU), 'cpu', 'cuda', 'mps' or one with an index such as 'cuda:1'.
    Raises UserError if there is no such device here."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    available = {'cpu': 1, 'cuda': torch.cuda.device_count() if torch.cuda.is_available() else 0,
                 'mps': int(torch.backends.mps.is_available())}
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f'--device {name}: no such kind of device; use auto, cpu, cuda, cuda:N or mps') from error
    if (device.index or 0) >= available.get(device.type, 0):
        kinds = ', '.join(f'{kind} ({count})' for kind, count in available.items() if count)
        raise UserError(f'--device {name}: not available here; use auto or one of {kinds}')
    if native.required():
        _check_fast(device)
    return device


def _check_fast(device):
    """UserError where our operators do not run on `device`."""
    if device.type == 'cpu':
        native.load_native()
    elif device.type == 'cuda':
        cuda_build.load_cuda(device)
    else:
        native.fallback('operators of our own', f'there are none for {device.type}')


@functools.lru_cache(maxsize=None)
def cpu_flags():
    """Names of the instruction sets of this processor, as Linux calls them; empty where they cannot be read."""
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith(('flags', 'Features'))]
    return frozenset(lines[0].partition(':')[2].split() if lines else ())


def cpu_multiplies_bfloat16():
    """Whether this processor has instructions for bfloat16 products; elsewhere they are slower than float32."""
    return not cpu_flags().isdisjoint(('amx_bf16', 'avx512_bf16'))


def half_dtype(device):
    """The 16-bit type in which convolutions pay on `device`: float16 on CUDA, bfloat16 on processors that multiply it;
    float32 where none does."""
    if device.type == 'cuda':
        return torch.float16
    return torch.bfloat16 if device.type == 'cpu' and cpu_multiplies_bfloat16() else torch.float32


@functools.lru_cache(maxsize=1)
def reuse_freed_memory():
    """Let the C library keep the memory that tensors free, for the next ones, instead of giving each back to the system and
    having new pages cleared: a fifth of the time of a large image on processors. Does nothing but where that library is glibc."""
    trim_threshold, mmap_threshold = -1, -3   # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        if not hasattr(library, 'gnu_get_libc_version'):   # other libraries have other numbers
            return
        for option in (trim_threshold, mmap_threshold):
            library.mallopt(option, 2 ** 31 - 1)


def return_freed_memory():
    """Give memory that was freed back to the system now, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def working_dtype(block, device, force_fp32=False):
    """The type a network's block computes in: its compute_dtype where one was set, else half_dtype if it has use_fp16."""
    if force_fp32:
        return torch.float32
    if block.compute_dtype is not None:
        return block.compute_dtype
    return half_dtype(device) if block.use_fp16 else torch.float32


def to_working_format(x, dtype):
    """x [N, C, H, W] in the type a block works in, channels last where that is one of 16 bits or our C++ convolves.
    True and False stand for half_dtype and float32: so says the code that travels in snapshots of version 0.1."""
    if isinstance(dtype, bool):
        dtype = half_dtype(x.device) if dtype else torch.float32
    if dtype == torch.float32 and not (x.device.type == 'cpu' and native.load_native()):
        return x.float()
    return x.to(dtype, memory_format=torch.channels_last)


def grouped(x, size=None):
    """View [G, N/G, ...] of x [N, ...] as groups of G = `size` samples (None or more than N: all of them); group k holds
    the samples k, k + N/G, k + 2 N/G, ... A batch split between processes by every so-manieth sample keeps its groups.
    Raises ValueError if N is no multiple of the size."""
    num = x.shape[0]
    size = num if size is None else min(size, num)
    if num % size:
        raise ValueError(f'the batch of {num} images is no multiple of the minibatch-std group of {size} (--mbstd-group)')
    return x.reshape(size, num // size, *x.shape[1:])


def deviation_within_groups(x, size=None):
    """Standard deviation of each entry of x [N, C] over the samples of the same group (see `grouped`), [N, C]."""
    groups = grouped(x, size)
    return groups.std(dim=0).repeat(groups.shape[0], 1)


def named_params_and_buffers(module):
    """List of (name, tensor) of all parameters and buffers, persistent or not."""
    return [*module.named_parameters(), *module.named_buffers()]


@torch.no_grad()
def copy_params_and_buffers(src, dst, require_all=False):
    """Copy parameters and buffers of one module into those of the same name in another, in place. Names of `src` that
    `dst` lacks are ignored; returns the list of names of `dst` that `src` lacks, which keep their values.
    Raises UserError if there are some and `require_all`, or if shapes differ."""
    source = dict(named_params_and_buffers(src))
    target = named_params_and_buffers(dst)
    absent = [name for name, _ in target if name not in source]
    if absent and require_all:
        raise UserError(f'{len(absent)} parameters are missing: {", ".join(absent[:8])}; use a network of the same kind')
    misshapen = [f'{name} {tuple(source[name].shape)} instead of {tuple(tensor.shape)}'
                 for name, tensor in target if name in source and source[name].shape != tensor.shape]
    if misshapen:
        raise UserError(f'{len(misshapen)} parameters have other shapes: {", ".join(misshapen[:8])}; '
                        f'use a network of the same kind and size')
    for name, tensor in target:
        if name in source:
            tensor.copy_(source[name].detach())
    return absent


@torch.no_grad()
def check_ddp_consistency(module):
    """RuntimeError naming the tensors in which this process differs from process 0; NaN equals NaN. Every process must
    call it, and all of them raise together."""
    if distributed.world_size() == 1:
        return
    differing = []
    for name, tensor in named_params_and_buffers(module):
        own = tensor.detach().contiguous()
        first = own.clone()
        dist.broadcast(first, src=0)
        same = (own == first) | ((own != own) & (first != first))
        if not same.all():
            differing.append(name)
    differing = sorted(set().union(*distributed.gather_objects(differing)))
    if differing:
        raise RuntimeError(f'{type(module).__name__}: processes disagree in {", ".join(differing[:8])}'
                           f'{", ..." if len(differing) > 8 else ""}')


@torch.no_grad()
def module_summary(module, inputs, max_depth=2):
    """Text table of a call module(*inputs): for each submodule down to `max_depth` that was called, its name, number of
    parameters, of elements in buffers, and the shape of its (first) output."""
    rows, hooks = [], []

    def note(name, submodule):
        def hook(_, __, output):
            counts = [sum(t.numel() for t in tensors) for tensors in (submodule.parameters(), submodule.buffers())]
            rows.append((name, *(str(count) for count in counts), _first_shape(output)))
        return submodule.register_forward_hook(hook)

    try:
        for name, submodule in module.named_modules():
            if name.count('.') < max_depth:
                hooks.append(note(name or type(module).__name__, submodule))
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    table = [('module', 'parameters', 'buffers', 'output'), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table)


def _first_shape(output):
    while not isinstance(output, torch.Tensor):
        if isinstance(output, dict):
            output = list(output.values())
        if not isinstance(output, (list, tuple)) or not output:
            return type(output).__name__
        output = output[0]
    return str(list(output.shape))


def weights_digest(module):
    """sha256 over names, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
