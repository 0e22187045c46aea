"""When the training state is written, and the way back to it."""

import contextlib
import time

from tqdm import tqdm

import dnnlib
from torch_utils import distributed
from training.state import PREFIX, label, newest_state, prune_states, write_state

MAX_ROLLBACKS = 2          # times a run may go back without getting past the place where it failed
FAILING = 3                # skipped steps in a row after which nothing is kept: a state to go back to must be good
PATIENCE = 50              # states by the clock are at least so many times as far apart as one takes to write


@contextlib.contextmanager
def disk_trouble(problems, what):
    """Context in which files of the run of the kind `what` are written. A full or failing disk is reported, noted in the dict
    `problems` until writing this kind succeeds, and does not end the run; what was there before is still there."""
    try:
        yield
        problems.pop(what, None)
    except (OSError, dnnlib.UserError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        problems[what] = f'{what}: {error}'
        tqdm.write(f'NOT WRITTEN: {what} ({error}). What was there before is kept, and training goes on; free some space.')


class Keeper:
    """Writes the state of `trainer` when it is due: with every snapshot, every `ticks` ticks (0: never for that reason), and
    `minutes` after the last (0: never), but by the clock never so often that writing takes more than 1/50 of the time.
    The newest `keep` are kept. Rank 0 writes; every process must make the same calls."""

    def __init__(self, trainer, minutes, ticks, keep, clock=time.monotonic):
        self.trainer, self.minutes, self.ticks, self.keep = trainer, minutes, ticks, keep
        self._clock, self._last, self._seconds = clock, clock(), 0.0
        self._saved_nimg = None

    def due_by_clock(self):
        """Whether it is time, by this process's clock."""
        return self.minutes > 0 and self._clock() - self._last > max(self.minutes * 60, PATIENCE * self._seconds)

    def due_by_tick(self):
        """Whether the tick just ended asks for it."""
        return self.ticks > 0 and self.trainer.tick % self.ticks == 0

    def save(self, position, problems):
        """Write the state of this moment with the reports' `position`, unless there is one already or training is just
        failing."""
        trainer = self.trainer
        if trainer.nimg == self._saved_nimg or max(trainer.skipped_in_a_row.values(), default=0) >= FAILING:
            return
        start = self._clock()
        if trainer.nimg > trainer.failed_nimg:
            trainer.rollbacks = 0
        name = label(trainer.nimg, trainer.names['training-state'])
        state = trainer.state()
        with distributed.first_process('saving the training state') as first:
            if first:
                path = trainer.run_dir / f'{PREFIX}{name}.pt'
                with disk_trouble(problems, 'training state'):
                    write_state(path, {**state, 'position': position})
                    prune_states(trainer.run_dir, self.keep)
                    self._saved_nimg = trainer.nimg
        self._saved_nimg = distributed.broadcast_object(self._saved_nimg)
        self._last = self._clock()
        self._seconds = self._last - start

    def restore(self, passed_over=0):
        """Go on from the newest whole state of the run folder but `passed_over`, or the oldest if there are no more.
        Returns the reports' position in it, on rank 0, and whether there was one."""
        state, path = None, None
        with distributed.first_process('reading the training state') as first:
            if first:
                state, path = newest_state(self.trainer.run_dir, passed_over)
        if not distributed.broadcast_object(state is not None):
            return None, False
        self.trainer.restore(state)
        self._saved_nimg = self.trainer.nimg
        if self.trainer.rank == 0:
            tqdm.write(f'Going on from {path} at {self.trainer.nimg / 1000:g} kimg')
        return (state['position'] if self.trainer.rank == 0 else None), True

    def go_back(self, error):
        """After the trainer Diverged with `error`: go back to the newest state, and on with other random numbers. Returns the
        reports' position in it, on rank 0. Raises UserError, the report, if there is none or going back did not help before."""
        trainer = self.trainer
        failed, salt, rollbacks = trainer.nimg, trainer.salt, trainer.rollbacks
        remedy = 'resume from an earlier snapshot with a smaller --glr / --dlr or a larger --gamma'
        if rollbacks >= MAX_ROLLBACKS:
            raise dnnlib.UserError(f'{error}. Going back {rollbacks} times to {trainer.run_dir} did not help; {remedy}') from error
        if trainer.rank == 0:
            tqdm.write(f'{error}; going back')
        position, found = self.restore(passed_over=rollbacks)   # further back each time: the newest may be spoilt already
        if not found:
            raise dnnlib.UserError(f'{error}. There is no earlier training state to go back to; {remedy}') from error
        trainer.salt, trainer.rollbacks, trainer.failed_nimg = salt + 1, rollbacks + 1, failed
        trainer.reopen()
        return position
