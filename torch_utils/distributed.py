"""One process or many, behind the same few calls.

A script calls `run_processes(fn, --gpus, ...)` and `fn` calls `init(device)`. Under torchrun the processes are there
already and fn runs in this one; otherwise they are started; and with one process fn is simply called, where every
function here does nothing or answers for one process. Work is split with `shard` and put together with `gather_shards`.
Nothing waits for other processes except `first_process` and the collectives, which every process must call in the same
order; all of them name rank and phase when the others do not come (see torch_utils.watch).
"""

import contextlib
import datetime
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from dnnlib.util import UserError
from torch_utils import signals, watch
from torch_utils.watch import phase

# Set by `spawn` for its processes: the folder through which they find each other, free of any port.
FOLDER = 'OMNIHEAD_PROCESSES'
ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
EXIT_AGAIN = 75            # exit code of a process that was told to end early and has saved: run the command again
BUCKET_BYTES = 2 ** 25     # gradients travel in messages of about this size
STORE_MARGIN = 60.0        # seconds by which the watch, which names the phases, is ahead of the time-outs of torch.distributed
POLL = 0.05                # seconds between looks at the board for process 0 to be ready
END_GRACE = 10.0           # seconds until processes that outlive the failure of another are killed

_turns = 0                 # how often first_process was used: the same in all processes


def under_torchrun():
    """Whether this process was started by torchrun, or by another launcher that sets the same variables."""
    return all(name in os.environ for name in ENVIRONMENT) and FOLDER not in os.environ


def num_processes(asked=1):
    """How many processes there will be when --gpus asks for so many: torchrun has decided already."""
    return int(os.environ['WORLD_SIZE']) if under_torchrun() else asked


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
        local = int(os.environ.get('LOCAL_WORLD_SIZE', os.environ['WORLD_SIZE']))
        torch.set_num_threads(max(min(torch.get_num_threads(), (os.cpu_count() or 1) // local), 1))
    if joined and not _is_initialized():
        with phase('start-up: waiting for all processes'):
            _join_group(device)
    return device


def _join_group(device):
    world = {'rank': int(os.environ['RANK']), 'world_size': int(os.environ['WORLD_SIZE'])}
    # Tensors travel by the backend of their device, so what is in main memory never takes the way over a GPU.
    backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' and dist.is_nccl_available() else 'gloo'
    limit = datetime.timedelta(seconds=watch.timeout() + STORE_MARGIN)
    folder = os.environ.get(FOLDER)
    if folder is not None:
        dist.init_process_group(backend, init_method=(Path(folder) / 'rendezvous').as_uri(), timeout=limit, **world)
        board = watch.FolderBoard(folder)
    else:
        store = _torchrun_store(world['rank'] == 0, limit)
        meeting = _meet(watch.StoreBoard(dist.PrefixStore('omnihead', store)), store, **world)
        dist.init_process_group(backend, store=dist.PrefixStore(f'{meeting}/group', store), timeout=limit, **world)
        # A connection of its own, so that the watch is heard while the main thread waits.
        board = watch.StoreBoard(dist.PrefixStore(f'{meeting}/board', _torchrun_store(False, limit)))
    watch.start(board, **world)


def _torchrun_store(keep, limit):
    """A connection to the store of this run, which torchrun keeps, or the process that may `keep` it."""
    kept_by_torchrun = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    return dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=keep and not kept_by_torchrun,
                         timeout=limit, wait_for_workers=False)


def _meet(board, store, rank, world_size):
    """A name that the processes of this start, and no others, have in common. torchrun's store outlives the processes that
    it restarts: what those before have left in it must not be taken for the words of their successors. Every process says
    hello with a token of its own, and rank 0 answers each new token with the name until all have heard it."""
    token, deadline = uuid.uuid4().hex, time.monotonic() + watch.timeout()
    if rank > 0:
        board.post(f'hello-{rank}', token)
        while not (answer := board.read(f'welcome-{rank}') or '').startswith(token):
            _not_later_than(deadline, f'rank {rank} waited for rank 0')
        name = answer.removeprefix(token)
        store.add(f'{name}/met', 1)
        return name
    answered = {}
    while store.add(f'{token}/met', 0) < world_size - 1:
        for other in range(1, world_size):
            hello = board.read(f'hello-{other}')
            if hello is not None and hello != answered.get(other):
                board.post(f'welcome-{other}', hello + token)
                answered[other] = hello
        _not_later_than(deadline, f'rank 0 waited for {world_size - 1} other processes and heard of {len(answered)}')
    return token


def _not_later_than(deadline, what):
    time.sleep(POLL)
    if time.monotonic() > deadline:
        raise TimeoutError(f'{what}, for {watch.timeout():.0f} s')


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
    """Leave the group of processes, if there is one, together with all the others."""
    if _is_initialized():
        board = watch.board()
        # Not by a barrier: who is through it and closes its connections fails those that have not yet noticed that they are.
        with _collective('leaving together'):
            _meet_at_end(board)
        watch.stop()
        _let_go(board)
        dist.destroy_process_group()


def _meet_at_end(board):
    """Wait until no process is in a collective any more."""
    if rank() > 0:
        board.post(f'done-{rank()}', '')
    for word in ['all-done'] if rank() > 0 else [f'done-{other}' for other in range(1, world_size())]:
        while board.read(word) is None:
            time.sleep(POLL)
    if rank() == 0:
        board.post('all-done', '')


def _let_go(board):
    """The board may be kept by process 0, which goes last, or after END_GRACE."""
    if rank() > 0:
        board.post(f'gone-{rank()}', '')
        return
    deadline = time.monotonic() + END_GRACE
    for other in range(1, world_size()):
        while board.read(f'gone-{other}') is None and time.monotonic() < deadline:
            time.sleep(POLL)


# ---------------------------------------------------------------------------------------------------------------------
# Starting processes.

def run_processes(fn, num, *args):
    """fn(*args) in every process: in this one under torchrun, which has started the others; else as `spawn`."""
    if not under_torchrun():
        spawn(fn, num, *args)
        return
    try:
        with _told_to_all():
            fn(*args)
    except SystemExit as error:
        if error.code == EXIT_AGAIN:
            cleanup()
        raise
    cleanup()


@contextlib.contextmanager
def _told_to_all():
    """What ends this process is told to the others and to torchrun, which ends its output with the first cause."""
    try:
        yield
    except Exception as error:
        failure = watch.tell_failure(int(os.environ['RANK']), error)
        if failure['peer']:
            _leave_the_word_to_others()
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler
        told = RuntimeError(watch.sentence(failure))
        try:
            raise told from error
        except RuntimeError:
            if int(os.environ['WORLD_SIZE']) > 1:
                get_error_handler().record_exception(told)
        if isinstance(error, UserError):
            raise
        raise told from error


def _leave_the_word_to_others():
    """Wait a little before reporting that another process is gone: whoever started us may have seen why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3 * watch.GRACE)


class ProcessError(RuntimeError):
    """One of several processes failed; the message ends with the first cause."""


def spawn(fn, num, *args):
    """Run fn(*args) in `num` new processes of this machine, which find each other in `init`, and wait for them. `fn` and
    `args` must be picklable. One process means a plain call. A UserError in any of them is raised here, and of another
    failure ProcessError; then all processes have ended. SIGTERM is passed on to them; where it ended them before they could
    answer, SystemExit of EXIT_AGAIN. KeyboardInterrupt if Ctrl-C ended one that did not handle it."""
    if num == 1:
        fn(*args)
        return
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        with signals.left_to_others(processes) as noted:
            try:
                with signals.held():
                    for local_rank in range(num):
                        process = context.Process(target=_run_process, args=(local_rank, fn, num, folder, args))
                        process.start()
                        processes.append(process)
                if signal.SIGINT in noted:   # before some of them were there
                    signals.pass_on(processes, signal.SIGINT)
                failed = _wait_for(processes)
            finally:
                _end(processes)
        if failed is not None:
            _raise_first_cause(Path(folder), processes, failed, noted)
        if any(process.exitcode == EXIT_AGAIN for process in processes):
            sys.exit(EXIT_AGAIN)


def _wait_for(processes):
    """Wait until all processes have ended well (None) or one has not (its rank)."""
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            rank = running.pop(sentinel)
            processes[rank].join()
            if processes[rank].exitcode not in (0, EXIT_AGAIN):
                return rank
    return None


def _end(processes):
    """End the processes that are left: they are waiting for one that is gone. Killed, not asked: a process deep in a
    collective does not hear."""
    deadline = time.monotonic() + END_GRACE
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
            process.join()


def _raise_first_cause(folder, processes, failed, noted):
    """Raise what the first of the failed processes died of. `noted`: the signals that came meanwhile."""
    failures = [json.loads(path.read_text(encoding='utf-8')) for path in folder.glob('failure-*')]
    causes = sorted((f for f in failures if not f['peer']), key=lambda f: f['time'])
    if causes:
        if causes[0]['kind'] == UserError.__name__:
            raise UserError(causes[0]['message'])
        if causes[0]['kind'] == KeyboardInterrupt.__name__:
            raise KeyboardInterrupt
        raise ProcessError(f'{causes[0]["traceback"]}\n{watch.sentence(causes[0])}')
    killed = [(rank, -process.exitcode) for rank, process in enumerate(processes) if process.exitcode < 0]
    if signal.SIGINT in noted and not killed:
        raise KeyboardInterrupt
    if signal.SIGTERM in noted and (failed, signal.SIGTERM) in killed:
        sys.exit(EXIT_AGAIN)
    rank, number = next((pair for pair in killed if pair[0] == failed), (failed, 0))
    seen = watch.FolderBoard(folder).read(f'phase-{rank:06d}')
    where = json.loads(seen)[0] if seen else 'start-up'
    end = (f'was killed by signal {number} ({signal.Signals(number).name})' if number else
           f'ended with code {processes[failed].exitcode}')
    text = f'rank {rank} {end} in phase "{where}"'
    if number == signal.SIGKILL:
        text += '; the system does so when memory runs out'
    raise ProcessError(text)


def _run_process(local_rank, fn, num, folder, args):
    os.environ.update(RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(num), LOCAL_WORLD_SIZE=str(num))
    os.environ[FOLDER] = folder
    tqdm.set_lock(threading.RLock())   # not one between processes, which would be reported as left behind when they are killed
    try:
        signals.let_in()
        fn(*args)
        signals.ignore()
        cleanup()
    except SystemExit as error:
        if error.code == EXIT_AGAIN:
            signals.ignore()
            cleanup()
        raise
    except BaseException as error:
        signals.ignore()
        failure = watch.describe(local_rank, error)
        watch.tell_failure(local_rank, error)
        # Where init was not reached there is no board yet; the process that waits for us reads the file in any case.
        watch.FolderBoard(folder).post(f'failure-{local_rank:06d}', json.dumps(failure))
        sys.stdout.flush()
        # Not by the way of cleanup: the others may be waiting in a collective that will never be complete.
        os._exit(2 if isinstance(error, UserError) else 1)


# ---------------------------------------------------------------------------------------------------------------------
# Splitting work.

def shard(items):
    """The part of a sequence that falls to this process: every so-manieth item, beginning with its rank."""
    return items[rank()::world_size()]


def gather_shards(results):
    """What all processes made of their `shard`, lists of picklable values, as one list in the order of the items; on
    process 0 only, None elsewhere. Every process must call it. ValueError if they are not parts of one list."""
    parts = [list(results)]
    if world_size() > 1:
        parts = [None] * world_size() if rank() == 0 else None
        with _collective('gathering results'):
            dist.gather_object(list(results), parts, dst=0)
        if rank() > 0:
            return None
    total = sum(map(len, parts))
    if [len(part) for part in parts] != [len(range(first, total, len(parts))) for first in range(len(parts))]:
        raise ValueError(f'parts of {[len(part) for part in parts]} items are not what `shard` makes of one list')
    whole = [None] * total
    for first, part in enumerate(parts):
        whole[first::len(parts)] = part
    return whole


@contextlib.contextmanager
def first_process(work):
    """Context for what process 0 alone does, named `work` for messages: gives whether this is process 0. The others wait
    at its end, outside any collective, as long as it takes; if process 0 fails, they end. Every process must enter it."""
    global _turns
    board = watch.board()
    _turns += 1
    if rank() == 0 or board is None:
        with phase(work):
            yield True
        if board is not None:
            board.post(f'turn-{_turns}', 'done')
        return
    yield False
    with phase(f'waiting while process 0 is at {work}'):
        while board.read(f'turn-{_turns}') is None:
            time.sleep(POLL)


# ---------------------------------------------------------------------------------------------------------------------
# Collectives.

@contextlib.contextmanager
def _collective(name):
    """Context of one collective of torch.distributed, which nothing else may stand in. PeerError if it fails."""
    with phase(name, waits=True):
        try:
            yield
        except RuntimeError as error:
            board = watch.board()
            seen = ''
            if board is not None:
                with contextlib.suppress(Exception):
                    seen = f'; {watch.others(board, rank(), world_size())}'
            raise watch.PeerError(f'another process is gone{seen} ({str(error).splitlines()[0]})') from error


def sum_over_ranks(tensor):
    """Sum of a tensor over all processes, on its own device; the tensor itself when alone."""
    if world_size() == 1:
        return tensor
    summed = tensor.detach().clone()
    with _collective('sum over ranks'):
        dist.all_reduce(summed)
    return summed


def gather_objects(value):
    """List of the picklable `value` of every process, in the order of ranks."""
    values = [value]
    if world_size() > 1:
        values = [None] * world_size()
        with _collective('gathering values'):
            dist.all_gather_object(values, value)
    return values


def broadcast_object(value):
    """The picklable `value` of process 0, in all processes."""
    values = [value]
    if world_size() > 1:
        with _collective('broadcasting values'):
            dist.broadcast_object_list(values, src=0)
    return values[0]


def all_reduce_mean_gradients(params, extra=None):
    """Average the gradients of `params` over all processes, in place. A parameter without a gradient here but with one
    elsewhere counts as zero here and gets the mean, so that all processes take the same step; where no process has one,
    it stays None. `params` must be the same everywhere. `extra`: a flat float tensor that is averaged on the way and
    returned; what is not finite in one process is not finite in the mean.

    Gradients travel in buckets, and a bucket is on its way while the next one is packed."""
    if world_size() == 1:
        return extra
    on_the_way = []
    with _collective('averaging gradients'):
        for bucket in _buckets(params):
            first = bucket[0]
            # All gradients end to end, then who has one.
            parts = [(torch.zeros_like(param) if param.grad is None else param.grad).detach().flatten() for param in bucket]
            present = torch.tensor([param.grad is not None for param in bucket], dtype=first.dtype).to(first.device)
            message = torch.cat([*parts, present])
            on_the_way.append((bucket, message, dist.all_reduce(message, async_op=True)))
        if extra is not None:
            extra = extra.detach().clone()
            dist.all_reduce(extra)
            extra = extra / world_size()
        for _, _, work in on_the_way:
            work.wait()
    # Fetched at once: on a GPU every fetch waits for all that was queued.
    counts = torch.cat([message[-len(bucket):].float() for bucket, message, _ in on_the_way]).tolist()
    for bucket, message, _ in on_the_way:
        *gradients, _ = message.div_(world_size()).split([*(param.numel() for param in bucket), len(bucket)])
        for param, gradient in zip(bucket, gradients):
            if counts.pop(0) > 0:
                param.grad = gradient.view_as(param)
    return extra


def _buckets(params):
    """Lists of parameters of one device and type, each of about BUCKET_BYTES."""
    by_kind = {}
    for param in params:
        by_kind.setdefault((param.device, param.dtype), []).append(param)
    for group in by_kind.values():
        bucket, size = [], 0
        for param in group:
            bucket.append(param)
            size += param.numel() * param.element_size()
            if size >= BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


def broadcast_params(module):
    """Give all processes the parameters and buffers of process 0."""
    broadcast_tensors([*module.parameters(), *module.buffers()])


def broadcast_tensors(tensors):
    """Give all processes the values that process 0 has in these tensors, in place. Their list must be the same everywhere."""
    if world_size() > 1:
        for tensor in tensors:
            # Broadcast a copy: a parameter may be a view that is not contiguous.
            values = tensor.detach().contiguous()
            with _collective('broadcasting parameters'):
                dist.broadcast(values, src=0)
            with torch.no_grad():
                tensor.copy_(values)
