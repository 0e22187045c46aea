"""Metrics of a network file against a data set, as train.py and calc_metrics.py both compute them."""

import json
import time
from pathlib import Path

from dnnlib import UserError
from metrics.registry import MODES, Evaluation, compute_metric, metric_function
from torch_utils import misc
from training.dataset import HeadDataset
from training.snapshot import load_network


def measure(network, data, seg=None, metrics=('frechet_seeded',), num=2000, mode='all', batch_size=16, seed=0, device='auto',
            progress=False):
    """Yield the record of each metric named in `metrics` as soon as it is there. All arguments are checked, and UserError
    raised, before anything is computed. Arguments as the options of the script."""
    for name in metrics:
        metric_function(name)
    device = misc.resolve_device(device)
    min_yaw, max_yaw = MODES[mode]
    dataset = HeadDataset(data, seg, min_yaw=min_yaw, max_yaw=max_yaw)
    evaluation = Evaluation(load_network(network, device=device), dataset, num, mode, device, batch_size, seed, progress)
    for name in metrics:
        yield {**compute_metric(name, evaluation), 'network': Path(network).name, 'data': dataset.name, 'timestamp': time.time()}


def append_record(network, record):
    """Append a record to metric-NAME.jsonl beside the network file; addresses and built-in networks have no such place."""
    if Path(network).is_file():
        path = Path(network).with_name(f'metric-{record["metric"]}.jsonl')
        try:
            with open(path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
        except OSError as error:
            raise UserError(f'--network {network}: cannot write {path.name} beside it ({error.strerror})') from error
