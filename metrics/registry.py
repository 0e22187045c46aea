"""The metrics by name. A metric is a function from an `Evaluation` to a dict of figures, registered by a decorator."""

import time
from dataclasses import dataclass

import torch
from torch import nn

import dnnlib

# |yaw| bounds in degrees of the images that count (PanoHead, 2303.13071, section 4).
MODES = {'all': (0, 180), 'front': (0, 90), 'back': (90, 180)}

_METRICS = {}


@dataclass(frozen=True)
class Evaluation:
    """What is measured: `generator` on `device` against `dataset` (training.dataset.HeadDataset, already filtered to the
    yaws of `mode`), with `num` fakes and as many reals as there are up to `num`. Results depend on `seed`, not on
    `batch_size`. Raises UserError if the parts do not fit together."""
    generator: nn.Module
    dataset: object
    num: int
    mode: str = 'all'
    device: torch.device = torch.device('cpu')
    batch_size: int = 16
    seed: int = 0
    progress: bool = False        # show bars

    def __post_init__(self):
        if self.mode not in MODES:
            raise dnnlib.UserError(f'--mode {self.mode}: unknown, choose one of {", ".join(MODES)}')
        if self.num < 2 or self.batch_size < 1:
            raise dnnlib.UserError(f'--num {self.num}, --batch {self.batch_size}: a metric needs --num of at least 2 and --batch '
                                   'of at least 1')
        if self.dataset.label_dim != self.generator.c_dim:
            raise dnnlib.UserError(f'--data: labels have {self.dataset.label_dim} numbers, the network takes '
                                   f'{self.generator.c_dim}; give images with a dataset.json')
        if self.dataset.resolution != self.generator.img_resolution:
            raise dnnlib.UserError(f'--data: images are {self.dataset.resolution} pixels wide, the network\'s are '
                                   f'{self.generator.img_resolution}; convert them with dataset_tool_seg.py --resolution')


def register_metric(name):
    """Decorator: enter a function Evaluation -> {figure: number} under `name`."""
    def decorator(function):
        if name in _METRICS:
            raise ValueError(f'metric {name!r} is registered twice')
        _METRICS[name] = function
        return function
    return decorator


def list_metrics():
    """The known names, sorted."""
    return sorted(_METRICS)


def metric_function(name):
    """The metric of that name. Raises UserError listing the known ones."""
    if name not in _METRICS:
        raise dnnlib.UserError(f'--metrics {name}: unknown, choose from {", ".join(list_metrics())}')
    return _METRICS[name]


def compute_metric(name, evaluation):
    """JSON-ready record of one metric: {'metric', 'results': {figure: number}, 'mode', 'num', 'num_real', 'seed',
    'total_sec'}."""
    start = time.time()
    results = metric_function(name)(evaluation)
    return {'metric': name, 'results': results, 'mode': evaluation.mode, 'num': evaluation.num,
            'num_real': min(evaluation.num, len(evaluation.dataset)), 'seed': evaluation.seed,
            'total_sec': round(time.time() - start, 3)}
