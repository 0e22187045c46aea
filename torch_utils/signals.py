"""Ctrl-C and SIGTERM where one process starts others and waits for them.

Ctrl-C of a terminal reaches every process of it; SIGTERM usually comes to the first alone. None may be lost while processes
start, and none may end in a traceback of one that only imports what it needs.
"""

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def left_to_others(processes):
    """Context in which this process only waits for `processes`, a list that may still grow: they end as they see fit. The
    signals that come are added to the list that the context gives; SIGTERM is passed on."""
    noted = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note_and_pass_on(number, _):
        noted.append(number)
        pass_on(processes, number)
    # Functions, not SIG_IGN, which the new processes would inherit.
    former = {signal.SIGINT: signal.signal(signal.SIGINT, lambda number, _: noted.append(number)),
              signal.SIGTERM: signal.signal(signal.SIGTERM, note_and_pass_on)}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def pass_on(processes, number):
    """Send the signal to those that live."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


@contextlib.contextmanager
def held():
    """Context in which signals wait. Processes started in it are born like that, and call `let_in` when they can answer."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    multiprocessing.resource_tracker.ensure_running()   # which would let them in again, if it were started later
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def let_in():
    """End what `held` began in the process that started this one."""
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore():
    """From here on this process has nothing left to be interrupted."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
