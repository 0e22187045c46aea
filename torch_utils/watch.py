"""What each process of a run is doing, and the end of all when one fails.

A process names what it does with `phase`. When there are several, each posts its phase on a board that all can read, and
a thread of its own looks every second whether another has failed, whether the process that started it is gone, and
whether a collective has been waiting for too long: then the process ends, after saying which rank was in which phase.
Main threads may be deep in a collective that will never return, so nothing here waits for them.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

INTERVAL = 1.0        # seconds between two looks
GRACE = 5.0           # seconds in which a process may end by itself once another has failed
DEFAULT_TIMEOUT = 600.0

_phases = []          # (name, start, whether it waits for other processes), outermost first
_watch = None         # the _Watch of this process, if it is one of several


class PeerError(RuntimeError):
    """A collective did not come about. The cause is usually another process, which reports it."""


def timeout():
    """Seconds that a process waits in a collective for the others: $OMNIHEAD_TIMEOUT, else 600."""
    return float(os.environ.get('OMNIHEAD_TIMEOUT') or DEFAULT_TIMEOUT)


@contextlib.contextmanager
def phase(name, waits=False):
    """Context in which this process does `name`; phases may be nested. `waits`: for other processes, hence not for long.
    An exception that passes remembers the innermost phase, see `phase_of`."""
    _phases.append((name, time.monotonic(), waits))
    try:
        yield
    except BaseException as error:
        if not hasattr(error, 'in_phase'):
            error.in_phase = current_phase()
        raise
    finally:
        _phases.pop()


def current_phase():
    """The phases of this process, outermost first, as one text."""
    return ', '.join(name for name, _, _ in list(_phases)) or 'start-up'


def phase_of(error):
    """The phase in which an exception was raised."""
    return getattr(error, 'in_phase', current_phase())


# ---------------------------------------------------------------------------------------------------------------------
# The board: short texts under names, readable by all processes.

class FolderBoard:
    """A board of files in a folder of this machine."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def post(self, name, text):
        """Write `text` under `name`, in the place of what was there."""
        path = self.folder / name
        temporary = path.with_name(f'.{name}-{os.getpid()}')
        temporary.write_text(text, encoding='utf-8')
        os.replace(temporary, path)

    def read(self, name):
        """The text under `name`, or None."""
        try:
            return (self.folder / name).read_text(encoding='utf-8')
        except FileNotFoundError:
            return None


class StoreBoard:
    """A board in a torch.distributed store. One thread at a time: a store waits for its own answers."""

    def __init__(self, store):
        self.store, self._lock = store, threading.Lock()

    def post(self, name, text):
        """Write `text` under `name`, in the place of what was there."""
        with self._lock:
            self.store.set(name, text)
            self.store.add(f'{name}/posted', 1)

    def read(self, name):
        """The text under `name`, or None."""
        with self._lock:
            return self.store.get(name).decode() if self.store.add(f'{name}/posted', 0) else None


# ---------------------------------------------------------------------------------------------------------------------
# Failures.

def describe(rank, error):
    """What became of this process, as a dict of plain values."""
    where = phase_of(error)
    return {'rank': rank, 'phase': where, 'kind': type(error).__name__, 'message': str(error), 'time': time.time(),
            'host': socket.gethostname(), 'pid': os.getpid(), 'peer': isinstance(error, PeerError),
            'traceback': ''.join(traceback.format_exception(type(error), error, error.__traceback__))}


def sentence(failure):
    """One line that names rank, phase and cause of a failure as `describe` gives it."""
    lines = [line.strip() for line in failure['message'].splitlines() if line.strip()] or ['(no message)']
    return f'rank {failure["rank"]} failed in phase "{failure["phase"]}": {failure["kind"]}: {lines[0]}'


def tell_failure(rank, error):
    """Let all processes of the run know what ended this one; they end soon after. Returns the failure's description."""
    failure = describe(rank, error)
    if _watch is not None:
        with contextlib.suppress(Exception):   # the board may be gone with the process that kept it
            _watch.board.post(f'failure-{rank:06d}', json.dumps(failure))
            if not failure['peer']:
                _watch.board.post('failed', json.dumps(failure))
            _watch.own_failure = time.monotonic()
    return failure


class _Watch(threading.Thread):
    """Looks at this process and the others, once a second, and ends this one where there is no hope."""

    def __init__(self, board, rank, world_size, limit):
        super().__init__(name='watch', daemon=True)
        self.board, self.rank, self.world_size, self.limit = board, rank, world_size, limit
        self.own_failure = None
        self._ended = threading.Event()
        self._failed_since = None
        self._parent = os.getppid()
        self._posted = None

    def stop(self):
        """End the thread: one that is still at the board when the program ends would take it down."""
        self._ended.set()
        self.join(GRACE)

    def run(self):
        while not self._ended.wait(INTERVAL):
            try:
                self._look()
            except Exception as error:   # whatever the board's keeper died of: without it nobody can go on together
                self._end_soon(f'rank {self.rank}: the process that kept the others\' phases is gone ({type(error).__name__})')

    def _look(self):
        if os.getppid() != self._parent:
            self._end_now(f'rank {self.rank}: the process that started this one is gone')
        if self.own_failure is not None or self.board.read('failed') is not None:
            self._end_soon()
            return
        # A copy: the main thread goes on meanwhile.
        phases = list(_phases)
        text = json.dumps([current_phase(), time.time() - (time.monotonic() - phases[-1][1] if phases else 0)])
        if text != self._posted:
            self.board.post(f'phase-{self.rank:06d}', text)
            self._posted = text
        if phases and phases[-1][2] and time.monotonic() - phases[-1][1] > self.limit:
            error = TimeoutError(f'waited {self.limit:.0f} s for the other processes ({others(self.board, self.rank, self.world_size)})')
            failure = tell_failure(self.rank, error)
            self._end_now(sentence(failure))

    def _end_soon(self, text=None):
        """End in a while: the main thread may still end by itself and say more."""
        now = time.monotonic()
        self._failed_since = self._failed_since or now
        if now - self._failed_since > GRACE:
            self._end_now(text)

    @staticmethod
    def _end_now(text=None):
        if text is not None:
            sys.stderr.write(f'{text}\n')
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def others(board, rank, world_size):
    """What the other processes were last seen doing, the longest first, as one text."""
    seen = []
    for other in set(range(world_size)) - {rank}:
        text = board.read(f'phase-{other:06d}')
        where, since = json.loads(text) if text else ('start-up', time.time())
        seen.append((time.time() - since, f'rank {other} in "{where}" for {max(time.time() - since, 0):.0f} s'))
    return '; '.join(text for _, text in sorted(seen, reverse=True)[:8])


def start(board, rank, world_size):
    """Begin to watch this process, one of several, and the others through `board`."""
    global _watch
    _watch = _Watch(board, rank, world_size, timeout())
    _watch.start()


def stop():
    """Stop watching."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def board():
    """The board of this run, or None for a process that is alone."""
    return None if _watch is None else _watch.board
