"""One process or many, behind the same few calls.

A script calls `init(device)` and goes on. Under torchrun it joins the group that the environment describes, started by
`spawn` the group that spawn made, and otherwise it is alone, where every function here does nothing or answers for one
process. Nothing waits for other processes except the collectives: sum_over_ranks, gather_objects,
all_reduce_mean_gradients and broadcast_params, which every process must call in the same order.
"""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from dnnlib.util import UserError

# Set by `spawn` for its processes: the address of a file through which they find each other, free of any port.
RENDEZVOUS = 'OMNIHEAD_RENDEZVOUS'
ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')


def init(device):
    """Join the processes of this run, if there are others. `device` is a torch.device; returns the one for this process:
    a CUDA device without an index becomes the one of the local rank.
    Raises UserError if this machine has fewer GPUs than processes."""
    device = torch.device(device)
    joined = all(name in os.environ for name in ENVIRONMENT) and int(os.environ['WORLD_SIZE']) > 1
    if device.type == 'cuda':
        if joined or device.index is None:
            device = _local_gpu(int(os.environ['LOCAL_RANK']) if joined else torch.cuda.current_device())
        torch.cuda.set_device(device)
    if joined and device.type == 'cpu':
        # Each process alone would take all cores, and their threads would wait for one another.
        torch.set_num_threads(max((os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', os.environ['WORLD_SIZE'])), 1))
    if joined and not _is_initialized():
        dist.init_process_group('nccl' if device.type == 'cuda' and dist.is_nccl_available() else 'gloo',
                                init_method=os.environ.get(RENDEZVOUS, 'env://'),
                                rank=int(os.environ['RANK']), world_size=int(os.environ['WORLD_SIZE']))
    return device


def _local_gpu(index):
    if index >= torch.cuda.device_count():
        raise UserError(f'--gpus: process {index + 1} of this machine has no GPU, there are {torch.cuda.device_count()}; '
                        f'start fewer processes')
    return torch.device('cuda', index)


def _is_initialized():
    return dist.is_available() and dist.is_initialized()


def rank():
    """Number of this process, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size():
    """Number of processes, 1 before init and when alone."""
    return dist.get_world_size() if _is_initialized() else 1


def print0(*args, **kwargs):
    """print, on process 0 only."""
    if rank() == 0:
        print(*args, **kwargs)


def cleanup():
    """Leave the group of processes, if there is one."""
    if _is_initialized():
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------------------
# Starting processes.

def spawn(fn, num_processes, *args):
    """Run fn(*args) in `num_processes` new processes of this machine, which find each other in `init`, and wait for them.
    `fn` and `args` must be picklable. One process means a plain call. A UserError in any of them is raised here."""
    if num_processes == 1:
        fn(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        interrupts = []
        try:
            with _interrupts_left_to_others(interrupts):
                torch.multiprocessing.spawn(_run_process, args=(fn, num_processes, folder, args), nprocs=num_processes)
        except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException) as error:
            messages = sorted(Path(folder).glob('error-*'))
            if messages:
                raise UserError(messages[0].read_text(encoding='utf-8')) from error
            if interrupts:
                raise KeyboardInterrupt from error
            raise


@contextlib.contextmanager
def _interrupts_left_to_others(noted):
    """Ctrl-C reaches every process of the terminal; the one that only waits for the others lets them end as they see fit,
    and adds to the list `noted`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A function, not SIG_IGN, which the new processes would inherit.
    former = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _run_process(local_rank, fn, num_processes, folder, args):
    os.environ.update(RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(num_processes))
    os.environ[RENDEZVOUS] = (Path(folder) / 'rendezvous').as_uri()
    try:
        fn(*args)
    except UserError as error:
        # Exceptions cross processes as text; the user's message is left where spawn finds it.
        (Path(folder) / f'error-{local_rank:06d}').write_text(str(error), encoding='utf-8')
        sys.exit(2)
    # Not after a failure: the others may be waiting in a collective that will never be complete.
    cleanup()


# ---------------------------------------------------------------------------------------------------------------------
# Collectives.

def sum_over_ranks(tensor):
    """Sum of a tensor over all processes, on its own device; the tensor itself when alone."""
    if world_size() == 1:
        return tensor
    # NCCL reduces GPU memory only, wherever the numbers were.
    summed = tensor.detach().to('cuda' if dist.get_backend() == 'nccl' else tensor.device, copy=True)
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def gather_objects(value):
    """List of the picklable `value` of every process, in the order of ranks."""
    values = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return values


def all_reduce_mean_gradients(params):
    """Average the gradients of `params` over all processes, in place. A parameter without a gradient here but with one
    elsewhere counts as zero here and gets the mean, so that all processes take the same step; where no process has one,
    it stays None. `params` must be the same everywhere."""
    if world_size() == 1:
        return
    by_kind = {}
    for param in params:
        by_kind.setdefault((param.device, param.dtype), []).append(param)
    for (device, dtype), bucket in by_kind.items():
        # One message: all gradients end to end, then who has one.
        parts = [(torch.zeros_like(param) if param.grad is None else param.grad).detach().flatten() for param in bucket]
        present = torch.tensor([param.grad is not None for param in bucket], dtype=dtype).to(device)
        summed = sum_over_ranks(torch.cat([*parts, present]))
        *gradients, counts = summed.split([*(part.numel() for part in parts), len(bucket)])
        for param, gradient, count in zip(bucket, gradients, counts.tolist()):
            if count > 0:
                param.grad = (gradient / world_size()).view_as(param)


def broadcast_params(module):
    """Give all processes the parameters and buffers of process 0."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            # Broadcast a copy: a parameter may be a view that is not contiguous.
            values = tensor.detach().contiguous()
            dist.broadcast(values, src=0)
            with torch.no_grad():
                tensor.copy_(values)
