"""Metrics of a network file against a data set, as train.py and calc_metrics.py both compute them."""

import contextlib
import dataclasses
import json
import time
import warnings
from pathlib import Path

import torch

from dnnlib import UserError
from metrics import cache, images
from metrics.evaluation import Evaluation
from metrics.features import open_features, weights_digest
from metrics.registry import MODES, metric_function
from torch_utils import distributed, misc
from training.dataset import HeadDataset
from training.snapshot import load_network


@dataclasses.dataclass(frozen=True)
class Job:
    """A metric as it is to be computed: how many fakes, and with which open feature network (None for none)."""
    metric: object
    num: int
    features: object

    @property
    def max_real(self):
        """Most real images."""
        return self.num if self.metric.max_real is None else self.metric.max_real

    @property
    def name(self):
        """What its figures are called."""
        return self.metric.figure_prefix(self.num, None if self.metric.fixed_features or self.features is None else self.features.name)

    @property
    def evaluation(self):
        """The settings that this job changes in an Evaluation."""
        return {'num': self.num, 'features': self.features}


def plan(names, num=None, features=None, device='cpu'):
    """Jobs of metrics by name; `num` and `features` replace the protocols' own. Raises UserError for an unknown metric or
    network; every network is opened once."""
    chosen = [metric_function(name) for name in names]
    opened, jobs = {}, []
    for metric in chosen:
        wanted = metric.features if metric.fixed_features or metric.features is None else features or metric.features
        if wanted is not None and wanted not in opened:
            opened[wanted] = open_features(wanted, device)
        jobs.append(Job(metric, num or metric.num, opened.get(wanted)))
    return jobs


@contextlib.contextmanager
def reproducible():
    """The same arithmetic whoever asks: training may have chosen faster kernels by trial, or lower precision."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed


class Evaluator:
    """Computes jobs of one evaluation. Images are made once for all metrics that want the same ones; what is collected of
    reals is kept in the cache where `data_key`, a JSON-ready description of them, is given."""

    def __init__(self, evaluation, jobs, data_key=None):
        self.evaluation, self.jobs, self.data_key = evaluation, jobs, data_key
        self._collected = {}       # by (source, number, network's digest, collector's class)
        self.counts = {}           # images by (source, number)
        self.seconds = {}

    def close(self):
        """Give back what the collectors hold."""
        for collector in self._collected.values():
            collector.close()
        self._collected = {}

    def compute(self, job):
        """{figure: number} of a job, the same in every process."""
        e = dataclasses.replace(self.evaluation, **job.evaluation)
        if job.metric.collects is None:
            results = job.metric.function(e)
        else:
            number = {'real': job.max_real, 'fake': job.num}
            for source in ('real', 'fake') if job.metric.real else ('fake',):
                if (source, number[source]) not in self.counts:
                    self._collect(source, number[source], e)
            results = {}
            if distributed.rank() == 0:
                keys = [(s, n, job.features.digest, job.metric.collects) for s, n in number.items() if job.metric.real or s == 'fake']
                results = job.metric.function(*(self._collected[key] for key in keys))
        results = distributed.gather_objects(results)[0]
        return {job.name + figure.removeprefix(job.metric.name): value for figure, value in results.items()}

    def _collect(self, source, number, evaluation):
        """Stream one source past the collectors of all jobs that want it."""
        if source == 'real':
            total, make = images.real_source(evaluation, number)
        else:
            total, make = images.fake_source(evaluation)
        if total < 2:
            raise UserError(f'--mode {evaluation.mode}: only {total} image of {source}s; a distance needs at least 2')
        start = time.monotonic()
        wanted = {(job.features.digest, job.metric.collects): job.features for job in self.jobs if job.metric.collects is not None
                  and (job.metric.real and number == job.max_real if source == 'real' else number == job.num)}
        paths = {} if source == 'fake' or self.data_key is None else {
            key: cache.entry_path(data=self.data_key, number=total, seed=evaluation.seed if total < len(evaluation.dataset) else None,
                                  background=evaluation.background, features=key[0], kind=key[1].__name__,
                                  device=evaluation.device.type, batch_size=evaluation.batch_size) for key in wanted}
        found = {}
        if distributed.rank() == 0:
            found = {key: cache.load(key[1], path, total) for key, path in paths.items()}
            found = {key: collector for key, collector in found.items() if collector is not None}
        missing = distributed.gather_objects([key for key in wanted if key not in found])[0]
        if missing:
            found.update(self._stream(evaluation, total, make, {key: wanted[key] for key in missing}, f'{source}s'))
        if distributed.rank() == 0:
            for key in paths:
                if key in missing:
                    cache.save(found[key], paths[key])
        self._collected.update({(source, number, *key): collector for key, collector in found.items()})
        self.counts[source, number], self.seconds[source, number] = total, time.monotonic() - start

    @staticmethod
    def _stream(evaluation, total, make, wanted, desc):
        """Collectors by (digest, class), filled on process 0."""
        networks = {(digest, kind.needs): network for (digest, kind), network in wanted.items()}

        def rows_of(start, stop):
            batch = make(start, stop)
            return [(network(batch) if needs == 'features' else network.class_probabilities(batch)).cpu().numpy()
                    for (_, needs), network in networks.items()]

        collectors = {key: key[1](total) for key in wanted} if distributed.rank() == 0 else {}
        for rows in evaluation.map(total, rows_of, desc):
            by_network = dict(zip(networks, rows))
            for (digest, kind), collector in collectors.items():
                collector.add(by_network[digest, kind.needs])
        return collectors


def open_dataset(data, seg, mode, mirror, flag='--data'):
    """The images of a mode's yaws. Raises UserError if there are none."""
    if mode not in MODES:
        raise UserError(f'--mode {mode}: unknown, choose one of {", ".join(MODES)}')
    min_yaw, max_yaw = MODES[mode]
    try:
        return HeadDataset(data, seg, min_yaw=min_yaw, max_yaw=max_yaw, xflip=mirror)
    except UserError as error:
        raise UserError(f'{flag}, --mode {mode}: {error}') from error


def measure(network, data, seg=None, metrics=('frechet_seeded',), num=None, mode='all', batch_size=16, seed=0, device='auto',
            progress=False, features=None, mirror=False, truncation_psi=1.0, background='keep', fakes=None, use_cache=True):
    """Yield the record of each metric named in `metrics` as soon as it is there. All arguments are checked, and UserError
    raised, before anything is computed. Arguments as the options of the script; `num` and `features` None take each
    metric's own. Under several processes all of them call this and get the same records."""
    for name in metrics:
        metric_function(name)
    device = misc.resolve_device(device)
    dataset = open_dataset(data, seg, mode, mirror)
    others = None if fakes is None else open_dataset(fakes, None, mode, False, '--fakes')
    generator = None if network is None else load_network(network, device=device)
    evaluation = Evaluation(generator, dataset, num or 2, mode, device, batch_size, seed, progress, truncation_psi, background,
                            fakes=others)
    jobs = plan(metrics, num, features, device)
    for job in jobs:
        if job.num < job.metric.num and not job.metric.fixed_features:
            warnings.warn(f'{job.metric.name} with {job.num} samples instead of {job.metric.num}: reported as {job.name}; '
                          'distances from few samples come out too large and compare only at equal counts', stacklevel=2)
    data_digest = dataset.content_digest()
    evaluator = Evaluator(evaluation, jobs, {'digest': data_digest, 'mode': mode, 'mirror': mirror} if use_cache else None)
    common = {'mode': mode, 'seed': seed, 'data': dataset.name, 'data_digest': data_digest, 'mirror': mirror,
              'filter': dict(zip(('min_yaw', 'max_yaw'), MODES[mode])), 'background': background, 'resolution': dataset.resolution,
              'truncation_psi': truncation_psi, 'batch_size': batch_size, 'device': device.type,
              'num_processes': distributed.world_size(), **_measured(network, generator, fakes, others, evaluation)}
    try:
        for job in jobs:
            start = time.monotonic()
            with reproducible():
                results = evaluator.compute(job)
            yield {'metric': job.metric.name, 'results': results, **_counts(job, evaluator), **common,
                   'features': job.features and job.features.name, 'features_digest': job.features and job.features.digest,
                   'total_sec': round(time.monotonic() - start, 3), 'timestamp': time.time()}
    finally:
        evaluator.close()


def _measured(network, generator, fakes, others, evaluation):
    """The record's part on what is measured."""
    if generator is None:
        return {'fakes': others.name, 'fakes_digest': others.content_digest()}
    return {'network': Path(network).name, 'network_digest': weights_digest(generator), 'conditioning': evaluation.conditioning,
            'neural_rendering_resolution': getattr(generator, 'neural_rendering_resolution', None)}


def _counts(job, evaluator):
    """The record's part on how many images there were, and how fast the fakes came."""
    counts = {'num': evaluator.counts.get(('fake', job.num), job.num)}
    if job.metric.collects is not None:
        if job.metric.real:
            counts['num_real'] = evaluator.counts['real', job.max_real]
        counts['fakes_per_sec'] = round(counts['num'] / max(evaluator.seconds['fake', job.num], 1e-9), 2)
    return counts


def append_record(network, record):
    """Append a record to metric-NAME.jsonl beside the network file; addresses and built-in networks have no such place."""
    if network is not None and Path(network).is_file():
        path = Path(network).with_name(f'metric-{record["metric"]}.jsonl')
        try:
            with open(path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
        except OSError as error:
            raise UserError(f'--network {network}: cannot write {path.name} beside it ({error.strerror})') from error
