"""The metrics by name. A metric is a short function under a decorator that fixes its protocol.

Two kinds, told apart by `collects`:

- With a collector (metrics.collectors), the function takes what was collected: `function(real, fake)`, or `function(fake)`
  where the protocol has `real=False`. The evaluator makes the images, shares them among the processes and among all
  metrics that want the same ones, and calls the function once, on process 0.
- Without, it takes the `Evaluation` (metrics.evaluation) and runs in every process; `Evaluation.map` shares the work and
  gives all results to all.

Both return {figure: number}; the figure's names start with the metric's.
"""

import math
from dataclasses import dataclass
from typing import Callable, Optional

import dnnlib

# |yaw| bounds in degrees of the images that count (PanoHead, 2303.13071, section 4).
MODES = {'all': (0, 180), 'front': (0, 90), 'back': (90, 180)}
ALL = math.inf

_METRICS = {}


@dataclass(frozen=True)
class Metric:
    """A metric and its protocol.

    `num`: generated samples; `max_real`: reals at most, None as many as `num`; `features`: name of its feature network in
    metrics.features, None for a metric without; `collects`: class of collector or None; `real`: whether reals are
    collected; `fixed_features`: the network is part of the metric, --features does not change it; `conditioning`: how it
    conditions heads whatever the mode (Evaluation.conditioning), None if by the mode.
    """
    name: str
    function: Callable
    num: int = 50_000
    max_real: Optional[float] = None
    features: Optional[str] = None
    collects: Optional[type] = None
    real: bool = True
    fixed_features: bool = False
    conditioning: Optional[str] = None

    def figure_prefix(self, num, features):
        """What the figures of this metric are called at `num` samples of the feature network named `features`: the
        metric's own name under its own protocol, and otherwise one that says what is different, such as fid2k_full or
        fid50k_full-builtin, so that nobody takes it for the figure of the literature."""
        own, count = f'{self.num / 1000:g}k', f'{num / 1000:g}k'
        if num == self.num or self.fixed_features:       # the latter are figures of nobody else's
            name = self.name
        else:
            name = self.name.replace(own, count, 1) if own in self.name else f'{self.name}_{count}'
        return name if features in (None, self.features) else f'{name}-{features}'


def register_metric(name, **protocol):
    """Decorator: enter a function under `name` with its `protocol`, the fields of Metric. Its docstring says what a good
    value is."""
    def decorator(function):
        if name in _METRICS:
            raise ValueError(f'metric {name!r} is registered twice')
        _METRICS[name] = Metric(name, function, **protocol)
        return function
    return decorator


def list_metrics():
    """The known names, sorted."""
    return sorted(_METRICS)


def metric_function(name):
    """The Metric of that name. Raises UserError listing the known ones."""
    if name not in _METRICS:
        raise dnnlib.UserError(f'--metrics {name}: unknown, choose from {", ".join(list_metrics())}')
    return _METRICS[name]
