"""Statistics of a training run: anything reports numbers under a name, a collector asks for mean and deviation.

`report` keeps three numbers per name and device, count, sum and sum of squares, and waits for nothing: on a GPU the
additions are queued like any other work. Only `Collector.update` fetches them and adds up what all processes reported.
"""

import re

import torch

from torch_utils import distributed

_pending = {}   # name -> {device: float tensor [3]} reported since the last fetch
_totals = {}    # name -> float64 CPU tensor [3] since the start, over all processes


@torch.no_grad()
def report(name, value):
    """Note every element of `value`, a number, a list of numbers or a tensor of any shape, under `name`.
    Returns `value` itself, so that the call can stand inside an expression. An empty value makes the name known."""
    tensor = torch.as_tensor(value).detach()
    # MPS has no float64; elsewhere sums over a whole tick deserve it.
    dtype = torch.float32 if tensor.device.type == 'mps' else torch.float64
    elements = tensor.flatten().to(dtype)
    moments = torch.stack([torch.full_like(elements.sum(), elements.numel()), elements.sum(), elements.square().sum()])
    by_device = _pending.setdefault(name, {})
    if tensor.device in by_device:
        by_device[tensor.device].add_(moments)
    else:
        by_device[tensor.device] = moments
    return value


def report0(name, value):
    """`report` of what process 0 has; the others make the name known. Returns `value`."""
    report(name, value if distributed.rank() == 0 else [])
    return value


def state_dict():
    """What goes on collecting elsewhere needs, as plain values and CPU tensors: `totals` of all processes, and `pending`,
    what this process has reported since the last collector looked."""
    return {'totals': {name: total.clone() for name, total in _totals.items()},
            'pending': {name: {device.type: moments.cpu() for device, moments in by_device.items()}
                        for name, by_device in _pending.items()}}


def load_state_dict(totals, pending, device):
    """Go on from `state_dict()`, in the place of everything reported so far; `device` is where training runs."""
    _totals.clear()
    _totals.update({name: total.clone() for name, total in totals.items()})
    _pending.clear()
    for name, by_device in pending.items():
        # Back to where they were added up: the order of additions shows in the last digit.
        for kind, moments in by_device.items():
            home = device if kind == device.type else torch.device('cpu')
            held = _pending.setdefault(name, {})
            held[home] = held[home] + moments.to(home) if home in held else moments.clone().to(home)


def _fetch():
    """Move what was reported into the totals. Every process must call it."""
    local = {name: sum(moments.cpu().double() for moments in by_device.values()) for name, by_device in _pending.items()}
    _pending.clear()
    # Processes may have reported different names, in different order.
    names = sorted(set().union(*distributed.gather_objects(list(local))))
    if not names:
        return
    nothing = torch.zeros(3, dtype=torch.float64)
    summed = distributed.sum_over_ranks(torch.stack([local.get(name, nothing) for name in names]))
    for name, moments in zip(names, summed):
        _totals[name] = _totals.get(name, nothing) + moments


class Collector:
    """Statistics of the names that match `regex` entirely, over the time between the last two updates. A name without
    new values keeps its former statistics, unless `keep_previous` is False. Collectors do not disturb each other.
    Every process makes one: what was reported before is fetched, and left out of its statistics."""

    def __init__(self, regex='.*', keep_previous=True):
        self._regex = re.compile(regex)
        self._keep_previous = keep_previous
        self._seen = {}     # name -> totals at the last update
        self._moments = {}  # name -> what came between the last two updates
        self.update()
        self._moments.clear()

    def names(self):
        """Names reported so far that match."""
        return [name for name in _totals if self._regex.fullmatch(name)]

    def update(self):
        """Take in what all processes reported since the last update. Every process must call it."""
        _fetch()
        for name in self.names():
            delta = _totals[name] - self._seen.get(name, torch.zeros_like(_totals[name]))
            self._seen[name] = _totals[name]
            if delta[0] > 0 or not self._keep_previous:
                self._moments[name] = delta

    def state_dict(self):
        """What a collector of the same names needs to go on, as plain values and tensors."""
        return {'seen': dict(self._seen), 'moments': dict(self._moments)}

    def load_state_dict(self, state):
        """Go on from `state_dict()`."""
        self._seen, self._moments = dict(state['seen']), dict(state['moments'])

    def _of(self, name):
        count, total, squares = self._moments.get(name, torch.zeros(3)).tolist()
        return int(count), total, squares

    def num(self, name):
        """Number of values."""
        return self._of(name)[0]

    def mean(self, name):
        """Mean of the values, NaN if there were none."""
        count, total, _ = self._of(name)
        return total / count if count else float('nan')

    def std(self, name):
        """Standard deviation of the values (of the population), NaN if there were none."""
        count, total, squares = self._of(name)
        if not count:
            return float('nan')
        variance = squares / count - (total / count) ** 2
        # Rounding may leave a constant slightly below zero; NaN must stay NaN.
        return 0.0 if variance < 0 else variance ** 0.5

    def as_dict(self):
        """{name: {'num', 'mean', 'std'}} of all names with values; plain numbers, ready for JSON."""
        return {name: {'num': self.num(name), 'mean': self.mean(name), 'std': self.std(name)}
                for name in self.names() if self.num(name)}
