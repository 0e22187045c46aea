"""The steps of an inversion: one bar with the time left, losses, early ends, the best state, and what an interruption keeps."""

import contextlib
import dataclasses
import functools
import io
import math
import pickle
import signal
import threading
import time
from typing import Callable, Optional

import torch
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.util import written_whole

SAVE_EVERY_SECONDS = 60.0
LEAST_GAIN = 0.01          # a stage whose loss falls by less over `patience` steps has ended


class Journal:
    """What an interrupted inversion goes on from, in the file `path` (None: nowhere): results of finished stages and the
    state of the running one. `digest` names the inversion; a file of another one is not used."""

    def __init__(self, path=None, digest='', every=SAVE_EVERY_SECONDS):
        self.path, self.digest, self.every = path, digest, every
        self._finished, self._running = {}, {}
        self._saved = time.monotonic()
        self._stop = False
        if path is not None and path.is_file():
            self._load()

    def _load(self):
        try:
            data = torch.load(io.BytesIO(self.path.read_bytes()), map_location='cpu', weights_only=True)
            if data['digest'] == self.digest:
                self._finished, self._running = dict(data['finished']), dict(data['running'])
        except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
            raise UserError(f'{self.path}: is not the state of an interrupted inversion ({error}); delete it and start anew') from error

    @property
    def resumed(self):
        """Whether an earlier run left something."""
        return bool(self._finished or self._running)

    def finished(self, stage):
        """The result that finish() was told, or None."""
        return self._finished.get(stage)

    def finish(self, stage, result):
        """Keep the result of a stage, a dict of tensors and plain values, and return it."""
        self._finished[stage], self._running = result, {}
        self._write()
        return result

    def running(self, stage):
        """The state of that stage where it was interrupted, or None."""
        return self._running.get(stage)

    def offer(self, stage, make_state):
        """Called between steps: keeps make_state() when it is time, or when the user asked for an end, which comes here."""
        if self._stop or time.monotonic() - self._saved > self.every:
            self._running = {stage: make_state()} if self.path is not None else {}
            self._write()
        if self._stop:
            raise KeyboardInterrupt

    def remove(self):
        """The inversion is complete: the file goes."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def interruptible(self):
        """Within, Ctrl-C ends the run between two steps, once its state is on the disk; a second one at once."""
        if self.path is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number, frame):
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _write(self):
        self._saved = time.monotonic()
        if self.path is None:
            return
        try:
            with written_whole(self.path) as temporary, open(temporary, 'wb') as file:
                torch.save({'digest': self.digest, 'finished': self._finished, 'running': self._running}, file)
        except OSError as error:
            raise UserError(f'cannot write {self.path}: {error}; free some space or choose another --outdir') from error


@dataclasses.dataclass
class Run:
    """What the stages of one inversion share: the journal, `observe(stage, step, image)` that is told every step's picture
    or None, and the bar."""
    journal: Journal = dataclasses.field(default_factory=Journal)
    observe: Optional[Callable] = None
    bar: Optional[tqdm] = None

    @classmethod
    def over(cls, num_steps, journal=None, observe=None, progress=False):
        """A run of `num_steps` in all its stages."""
        bar = tqdm(total=num_steps, unit='step', smoothing=0.05) if progress else None
        return cls(Journal() if journal is None else journal, observe, bar)

    def begin(self, stage, num_done):
        """Say on the bar which stage it is, `num_done` steps of which an earlier run has taken."""
        if self.bar is not None:
            self.bar.set_description(stage)
            if num_done:
                self.bar.initial += num_done       # the rate is that of this run's own steps
                self.bar.update(num_done)

    def note(self, stage, step, loss, image, counted=True):
        """The loss as a float; bar and observer are told. Raises UserError if it is not finite."""
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f'stage "{stage}": the loss is {value} at step {step}; the network renders no finite picture '
                            "at the target's camera: check the label, or choose another --network")
        if self.bar is not None and counted:
            self.bar.update()
            self.bar.set_postfix(loss=f'{value:.4f}', refresh=False)
        if self.observe is not None and image is not None:
            self.observe(stage, step, image.detach())
        return value

    def skip(self, num_steps):
        """These steps are not needed."""
        if self.bar is not None:
            self.bar.total -= num_steps
            self.bar.refresh()


@dataclasses.dataclass(frozen=True)
class Look:
    """One evaluation: the `objective` that is minimised, the `score` by which states are compared (both scalars), the first
    view's picture, and whether that is `enough`. `pull()` adds the gradient of what the objective leaves out."""
    objective: torch.Tensor
    score: torch.Tensor
    image: torch.Tensor
    enough: bool = False
    pull: Optional[Callable] = None


@dataclasses.dataclass(frozen=True)
class StageOptions:
    """`keep`: 'last' or 'best' state of the variables at the end; `patience`: see InversionOptions; `last_look`: the state
    that the last step leaves is evaluated too, without which it cannot be the best."""
    name: str
    num_steps: int
    keep: str = 'last'
    patience: int = 0
    last_look: bool = True


@functools.lru_cache(maxsize=None)
def _steps_in_one(kind):
    """Whether PyTorch has an Adam for this kind of device that takes its step in one operation."""
    variable = torch.zeros(1, device=kind, requires_grad=True)
    variable.grad = torch.ones_like(variable)
    try:
        torch.optim.Adam([variable], fused=True).step()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def new_adam(groups, lr, beta2):
    """Adam over tensors, or dicts of them as torch.optim takes them, that lie on one device; the step is one operation where
    PyTorch can."""
    groups = list(groups)
    first = groups[0]['params'] if isinstance(groups[0], dict) else groups[0]
    device = (first if isinstance(first, torch.Tensor) else first[0]).device
    return torch.optim.Adam(groups, lr=lr, betas=(0.9, beta2), fused=_steps_in_one(device.type))


def optimise(stage, variables, adam, evaluate, run, random=None, settle=None):
    """Losses of the steps of one stage, which moves `variables`, leaf tensors, in place.

    `evaluate(step) -> Look` builds the graph; it may set the optimizer's rates. Besides the variables one copy of them is
    held, the best so far. `random`: the torch.Generator that evaluate draws from; an interrupted stage goes on with its
    state, so that the result is the same. `settle()` is called after every step.
    """
    losses, best_loss, best, first = [], math.inf, None, 0
    state = run.journal.running(stage.name)
    if state is not None:
        first, losses, best_loss, best = state['step'], list(state['losses']), state['best_loss'], state['best']
        copied(state['variables'], variables)
        best = None if best is None else [b.to(v.device) for b, v in zip(best, variables, strict=True)]
        adam.load_state_dict(state['adam'])
        if random is not None:
            random.set_state(state['random'])
    run.begin(stage.name, first)

    def snapshot():
        return {'step': step, 'losses': losses, 'best_loss': best_loss, 'best': best, 'adam': adam.state_dict(),
                'variables': [v.detach() for v in variables], 'random': None if random is None else random.get_state()}

    step = first
    for step in range(first, stage.num_steps):
        run.journal.offer(stage.name, snapshot)
        look = evaluate(step)
        losses.append(run.note(stage.name, step, look.score, look.image))
        if stage.keep == 'best' and losses[-1] < best_loss:
            best_loss, best = losses[-1], copied(variables, best)
        if look.enough or _stands_still(losses, stage.patience):
            run.skip(stage.num_steps - step - 1)
            break
        adam.zero_grad(set_to_none=True)
        look.objective.backward()
        if look.pull is not None:
            look.pull()
        adam.step()
        if settle is not None:
            settle()
    else:
        if stage.last_look:
            with torch.no_grad():
                look = evaluate(stage.num_steps)
            losses.append(run.note(stage.name, stage.num_steps, look.score, look.image, counted=False))
            best_loss, best = (math.inf, None) if losses[-1] <= best_loss else (best_loss, best)
    if best is not None:
        copied(best, variables)
    return losses


def _stands_still(losses, patience):
    """Whether the least of the last `patience` losses is hardly less than the least before them."""
    if patience == 0 or len(losses) <= patience:
        return False
    return min(losses[-patience:]) > (1 - LEAST_GAIN) * min(losses[:-patience])


@torch.no_grad()
def copied(source, destination):
    """`destination` with the values of the tensors of `source`; new tensors where it is None."""
    if destination is None:
        return [tensor.detach().clone() for tensor in source]
    for to, tensor in zip(destination, source, strict=True):
        to.copy_(tensor)
    return destination
