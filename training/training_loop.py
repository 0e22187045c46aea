"""The training loop: steps, ticks, snapshots, metrics, states; and how a run ends."""

import contextlib
import json
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

import dnnlib
from torch_utils import distributed
from training import monitors, reporting
from training.dataset import reader_died
from training.keeper import Keeper, disk_trouble
from training.state import FINISHED, OPTIONS, only_writer
from training.trainer import Diverged, Trainer

SAME_KEY_SECONDS = 1.5     # a launcher may pass on a Ctrl-C that the terminal has sent to all


class _StopRequest:
    """Ctrl-C and SIGTERM as wishes, while the context lasts: start-up or the step in progress ends first, and all processes end
    with the same one. A second Ctrl-C interrupts at once."""

    def __enter__(self):
        self._interrupted = self._terminated = False
        self._first, self._former = None, {}
        if threading.current_thread() is threading.main_thread():
            self._former = {signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt),
                            signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_terminate)}
        return self

    def _on_interrupt(self, *_):
        now = time.monotonic()
        if self._interrupted and now - self._first > SAME_KEY_SECONDS:
            raise KeyboardInterrupt
        self._interrupted, self._first = True, self._first or now

    def _on_terminate(self, *_):
        self._terminated = True

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def heard(self, state_due):
        """(interrupted, terminated, state_due) as any process has it. Every process must ask."""
        wishes = torch.tensor([self._interrupted, self._terminated, state_due], dtype=torch.float32)
        return tuple(wish > 0 for wish in distributed.sum_over_ranks(wishes).tolist())


class _Loop:
    """A run from its start, or from its last state, to its end. Rank 0 reports and writes."""

    def __init__(self, config, run_dir, device, evaluate):
        self.trainer = Trainer(config, run_dir, device)
        self.run, self.main, self.evaluate = self.trainer.run, self.trainer.rank == 0, evaluate
        self.keeper = Keeper(self.trainer, self.run.state_minutes, self.run.state_ticks, self.run.keep_states)
        self.total = int(self.run.total_kimg * 1000)
        self.snapshot, self.problems = None, {}       # what a full or failing disk has cost, by kind, see keeper.disk_trouble
        position, self.resumed = self.keeper.restore()
        self.reporter = None
        if self.main:
            (self.trainer.run_dir / OPTIONS).write_text(json.dumps(config, indent=2), encoding='utf-8')
            self.reporter = self._reporter(position)
            self.monitors = monitors.Monitors(self.trainer.G, self.trainer.cameras, self.run.seed)

    def _reporter(self, position):
        """The reports, from where they stood."""
        return reporting.Reporter(self.trainer.run_dir, self.trainer.device, self.trainer.nimg,
                                  reporting.BRIEF_STATS + monitors.BRIEF, position=position)

    def begin(self):
        """Pictures and snapshot before the first step of a new run."""
        if not self.resumed:
            with distributed.first_process('writing the first pictures and snapshot') as first:
                if first:
                    self.trainer.previews.save_reals()
            self.save_network()
        if self.main:
            self.reporter.start_tick()

    def train(self, stop):
        """Step until the end, or until `stop` is heard. Returns how it ended: 'interrupted' by Ctrl-C, 'terminated' by SIGTERM or
        'finished'."""
        trainer = self.trainer
        progress = tqdm(total=self.total, initial=trainer.nimg, unit='img', desc='training', disable=not self.main, mininterval=1.0)
        with progress:
            while trainer.nimg < self.total:
                try:
                    trainer.step()
                except Diverged as error:
                    position = self.keeper.go_back(error)
                    if self.main:
                        self.reporter.close()
                        self.reporter = self._reporter(position)
                    progress.reset()
                except RuntimeError as error:
                    raise reader_died(error) or error from error
                progress.update(trainer.nimg - progress.n)
                interrupted, terminated, state_due = stop.heard(self.main and self.keeper.due_by_clock())
                if interrupted or terminated:
                    self.save_state()      # before the tick is cut short: who goes on finishes it
                    if interrupted:
                        self.end_tick(stopped=True)
                    return 'interrupted' if interrupted else 'terminated'
                if trainer.nimg >= min(trainer.tick_start + self.run.kimg_per_tick * 1000, self.total):
                    self.end_tick(state_due=state_due)
                elif state_due:
                    self.save_state()
        return 'finished'

    def end_tick(self, stopped=False, state_due=False):
        """Report the tick that ends here; write what is due."""
        trainer = self.trainer
        trainer.tick, trainer.tick_start = trainer.tick + 1, trainer.nimg
        trainer.collector.update()
        if self.main:
            stats = self.monitors.tick(trainer.collector.as_dict(), trainer.stopwatch.take(), trainer.ema.average,
                                       trainer.schedule().neural_rendering_resolution)
            with disk_trouble(self.problems, 'statistics'):
                self.reporter.end_tick(trainer.tick, trainer.nimg, stats, None if trainer.ada is None else trainer.ada.p)
            self.monitors.warn(stats)
        ended = trainer.nimg >= self.total
        snapshot_due = stopped or ended or (self.run.snapshot_ticks and trainer.tick % self.run.snapshot_ticks == 0)
        if snapshot_due:
            self.save_network()
            if not stopped:
                self.measure()
        if not stopped and (ended or snapshot_due or state_due or self.keeper.due_by_tick()):
            self.save_state()
        if self.main:
            self.reporter.start_tick()

    def save_network(self):
        """Write snapshot and pictures."""
        with distributed.first_process('writing pictures and snapshot') as first:
            if first:
                with disk_trouble(self.problems, 'network snapshot and pictures'):
                    self.snapshot = self.trainer.save_network()

    def save_state(self):
        """Write the training state."""
        self.keeper.save(self.reporter.position() if self.main else None, self.problems)

    def measure(self):
        """Metrics of the snapshot just written; all processes share the work."""
        snapshot = distributed.broadcast_object(self.snapshot)
        if self.evaluate is None or snapshot is None:
            return
        for record in self.evaluate(snapshot):
            for figure, value in record['results'].items():
                self.trainer.note_metric(figure, value, snapshot)
                if self.main:
                    self.reporter.add_metric(figure, value, self.trainer.nimg)

    def end(self, how):
        """Close the files, say how it ended. UserError if the last state or snapshot could not be written."""
        if not self.main:
            return
        self.reporter.close()
        kimg = self.trainer.nimg / 1000
        if how in ('interrupted', 'terminated'):
            learned = f'; everything learned is in {self.snapshot}' if how == 'interrupted' and self.snapshot is not None else ''
            tqdm.write(f'{how.capitalize()}{learned}. The same command goes on from {kimg:g} kimg')
        else:
            text = json.dumps({'kimg': kimg, 'metrics': self.trainer.metrics}, indent=2)
            with disk_trouble(self.problems, FINISHED):
                (self.trainer.run_dir / FINISHED).write_text(text, encoding='utf-8')
        if self.problems:
            raise dnnlib.UserError(f'{self.trainer.run_dir}: not everything could be written: ' + '; '.join(self.problems.values()))


def training_loop(config, run_dir, device, evaluate=None):
    """Train as `config` says (see configure.training_config), writing into `run_dir`; returns the last snapshot's path.

    A folder that holds a training state is gone on with from there. `evaluate(snapshot path)` yields records of metrics;
    every process calls it, with the snapshot of process 0. Ctrl-C ends the run after saving what it has learned, a second one at
    once, by KeyboardInterrupt. SIGTERM ends it after writing the training state only, with exit code distributed.EXIT_AGAIN.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_StopRequest())
        if distributed.rank() == 0:
            stack.enter_context(only_writer(Path(run_dir)))
        loop = _Loop(config, run_dir, device, evaluate)
        interrupted, terminated, _ = stop.heard(False)
        how = 'interrupted' if interrupted else 'terminated' if terminated else None
        if how is None:
            loop.begin()
            how = loop.train(stop)
        loop.end(how)
    if how == 'terminated':
        sys.exit(distributed.EXIT_AGAIN)
    return loop.snapshot
