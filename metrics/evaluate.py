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
from metrics.faults import is_reference, open_reference
from metrics.features import open_features
from torch_utils.misc import weights_digest
from metrics.registry import MODES, metric_function
from torch_utils import distributed, misc
from training.dataset import HeadDataset
from training.snapshot import load_network, load_snapshot


GAUSSIAN = ('fid', 'frechet')       # how the names of metrics begin whose figures grow as counts fall


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
    def settings(self):
        """What this job changes in an Evaluation."""
        return {'num': self.num, 'features': self.features}

    @property
    def sources(self):
        """Whose images are collected."""
        if self.metric.collects is None:
            return ()
        return ('real', 'fake') if self.metric.real else ('fake',)

    @property
    def wants(self):
        """(digest of the feature network, class of collector)."""
        return self.features.digest, self.metric.collects


def plan(names, num=None, features=None, device='cpu'):
    """Jobs of metrics by name; `num` and `features`, a list, replace the protocols' own. Of several feature networks a metric
    takes the one it is known by, else the first. Raises UserError for an unknown metric or network, or one that does not fit
    the metric; every network is opened once."""
    chosen = [metric_function(name) for name in names]
    given = [open_features(name, device) for name in features or ()]
    opened, jobs = {network.name: network for network in reversed(given)}, []
    for metric in chosen:
        network = None
        if metric.features is not None:
            if metric.features not in opened and (metric.fixed_features or not given):
                opened[metric.features] = open_features(metric.features, device)
            network = opened[metric.features] if metric.features in opened else given[0]
            if getattr(metric.collects, 'needs', None) == 'probabilities' and network.classes is None:
                raise UserError(f'--metrics {metric.name}: needs a network that tells classes, which --features {network.name} does '
                                'not; use inception')
        jobs.append(Job(metric, num or metric.num, network))
    return jobs


@contextlib.contextmanager
def reproducible(device):
    """The same arithmetic whoever asks: training may have chosen faster kernels by trial, or lower precision. What is drawn
    inside leaves the random numbers outside alone."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with torch.random.fork_rng([device] if device.type == 'cuda' else [], device_type='cuda'):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed


class Evaluator:
    """Computes jobs of one evaluation. Images are made once for all metrics that want the same ones; what is collected of
    reals is kept in the cache where `data_key`, a JSON-ready description of them, is given."""

    def __init__(self, evaluation, jobs, data_key=None):
        self.evaluation, self.jobs, self.data_key = evaluation, jobs, data_key
        self._collected = {}       # by (source, number, network's digest, collector's class)
        self.seconds = {}          # taken, by (source, number)

    def close(self):
        """Give back what the collectors hold."""
        for collector in self._collected.values():
            collector.close()
        self._collected = {}

    def number(self, source, job):
        """Images of a source that a job wants."""
        e = self.evaluation
        return min(job.max_real, len(e.dataset)) if source == 'real' else job.num

    def compute(self, job):
        """{figure: number} of a job, the same in every process."""
        evaluation = dataclasses.replace(self.evaluation, **job.settings)
        if job.metric.collects is None:
            results = job.metric.function(evaluation)
        else:
            for source in job.sources:
                if (source, self.number(source, job)) not in self.seconds:
                    self._collect(source, self.number(source, job), evaluation)
            results = {}
            with distributed.first_process(f'computing {job.name}') as first:
                if first:
                    keys = [(source, self.number(source, job), *job.wants) for source in job.sources]
                    results = job.metric.function(*(self._collected[key] for key in keys))
        results = distributed.broadcast_object(results)
        return {job.name + figure.removeprefix(job.metric.name): value for figure, value in results.items()}

    def _collect(self, source, number, evaluation):
        """Stream `number` images of a source past the collectors of all jobs that want them."""
        if number < 2:
            raise UserError(f'--mode {evaluation.mode}: {number} {source} image; a metric needs at least 2')
        start = time.monotonic()
        wanted = {job.wants: job.features for job in self.jobs if source in job.sources and self.number(source, job) == number}
        paths = self._cache_paths(number, wanted) if source == 'real' else {}
        found = {}
        with distributed.first_process('reading kept statistics') as first:
            if first:
                loaded = {key: cache.load(key[1], path, number) for key, path in paths.items()}
                found = {key: collector for key, collector in loaded.items() if collector is not None}
        missing = distributed.broadcast_object([key for key in wanted if key not in found])
        if missing:
            make = images.real_source(evaluation, number) if source == 'real' else images.fake_source(evaluation)
            found.update(self._stream(evaluation, number, make, {key: wanted[key] for key in missing}, f'{source}s'))
        with distributed.first_process('keeping statistics') as first:
            for key in set(paths).intersection(missing) if first else ():
                cache.save(found[key], paths[key])
        self._collected.update({(source, number, *key): collector for key, collector in found.items()})
        self.seconds[source, number] = time.monotonic() - start

    def _cache_paths(self, number, wanted):
        """Where the collectors (digest, class) of real images are kept."""
        if self.data_key is None:
            return {}
        e = self.evaluation
        drawn = {'number': number, 'seed': e.seed if number < len(e.dataset) else None, 'background': e.background}
        machine = {'device': e.device.type, 'batch_size': e.batch_size}       # rounding differs
        return {(digest, kind): cache.entry_path(data=self.data_key, **drawn, **machine, features=digest, kind=kind.__name__)
                for digest, kind in wanted if kind.keeps}

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


def _trained_on(network):
    """(images, masks) a snapshot was trained on. Raises UserError if it does not say."""
    kwargs = load_snapshot(network, keys=['training_set_kwargs'])['training_set_kwargs'] if network is not None else None
    if not kwargs:
        raise UserError('--data is missing, and nothing says what was trained on; give a folder or zip of real images')
    return kwargs['path'], kwargs.get('seg_path')


def open_generator(network, resolution, device):
    """The generator of a network file, address or known name; 'synthetic' and 'synthetic:FAULT' (metrics.faults) are perfect
    heads of the data's `resolution`, and those with one thing wrong."""
    return open_reference(network, resolution, device) if is_reference(network) else load_network(network, device=device)


def measure(network, data=None, seg=None, metrics=('frechet_seeded',), num=None, mode='all', batch_size=16, seed=0, device='auto',
            progress=False, features=None, mirror=False, truncation_psi=1.0, background='keep', fakes=None, use_cache=True):
    """Yield the record of each metric named in `metrics` as soon as it is there. All arguments are checked, and UserError
    raised, before anything is computed. Arguments as the options of the script; `num` and `features` None take each
    metric's own. Under several processes all of them call this and get the same records."""
    for name in metrics:
        metric_function(name)
    device = misc.resolve_device(device)
    if data is None:
        data, seg = _trained_on(network)
    dataset = open_dataset(data, seg, mode, mirror)
    others = None if fakes is None else open_dataset(fakes, None, mode, False, '--fakes')
    generator = None if network is None else open_generator(network, dataset.resolution, device)
    evaluation = Evaluation(generator, dataset, num or 2, mode, device, batch_size, seed, progress, truncation_psi, background,
                            fakes=others)
    jobs = plan(metrics, num, features, device)
    if others is not None:
        jobs = [dataclasses.replace(job, num=min(job.num, len(others))) for job in jobs]
    for job in jobs:
        if job.num < job.metric.num:
            named = '' if job.name == job.metric.name else f'reported as {job.name}; '
            bias = ('distances from few samples come out too large' if job.metric.name.startswith(GAUSSIAN) else
                    'figures of few samples are rough')
            warnings.warn(f'{job.metric.name} with {job.num} samples instead of {job.metric.num}: {named}{bias} and compare only at '
                          'equal counts', stacklevel=2)
    data_digest = dataset.content_digest()
    evaluator = Evaluator(evaluation, jobs, {'digest': data_digest, 'mode': mode, 'mirror': mirror} if use_cache else None)
    common = {'mode': mode, 'seed': seed, 'data': dataset.name, 'data_digest': data_digest, 'mirror': mirror,
              'filter': dict(zip(('min_yaw', 'max_yaw'), MODES[mode])), 'background': background, 'resolution': dataset.resolution,
              'truncation_psi': truncation_psi, 'batch_size': batch_size, 'device': device.type,
              'num_processes': distributed.world_size(), **_measured(network, generator, fakes, others, evaluation)}
    try:
        for job in jobs:
            start = time.monotonic()
            with reproducible(device):
                results = evaluator.compute(job)
            conditioning = {'conditioning': job.metric.conditioning} if generator is not None and job.metric.conditioning else {}
            yield {'metric': job.metric.name, 'results': results, **_counts(job, evaluator), **common, **conditioning,
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
    counts = {'num': evaluator.number('fake', job)}
    if 'real' in job.sources:
        counts['num_real'] = evaluator.number('real', job)
    if job.sources:
        counts['fakes_per_sec'] = round(counts['num'] / max(evaluator.seconds['fake', counts['num']], 1e-9), 2)
    return counts


def check_metrics(names, num=None, features=None):
    """Raise UserError, before hours of training, for metrics or feature networks that could not be computed later."""
    plan(names, num, features)


def snapshot_evaluator(config, device):
    """Function snapshot path -> iterator of the records of a training configuration's metrics, as calc_metrics.py gives them
    for that file and the whole training set; each is appended beside the snapshot. All processes must iterate to the end."""
    run, data = config['run'], config['training_set']

    def evaluate(snapshot):
        if not run['metrics']:
            return
        for record in measure(snapshot, data['path'], data['seg_path'], run['metrics'], num=run['metrics_num'],
                              features=run['metrics_features'], device=device):
            if distributed.rank() == 0:
                append_record(snapshot, record)
            yield record
    return evaluate


def append_record(network, record):
    """Append a record to metric-NAME.jsonl beside the network file; addresses and built-in networks have no such place."""
    if network is not None and Path(network).is_file():
        path = Path(network).with_name(f'metric-{record["metric"]}.jsonl')
        try:
            with open(path, 'a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
        except OSError as error:
            raise UserError(f'--network {network}: cannot write {path.name} beside it ({error.strerror}); make the folder writable, or '
                            'copy the network to one that is') from error
