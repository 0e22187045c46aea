"""One process's share of a training run: data, networks, the step, and everything that going on later needs.

A step is a function of its number: what is drawn for a sample comes from a stream of its own (torch_utils.streams), and
the order of images from the sampler. So a step is the same however many processes share the batch, and whether or not
the run was interrupted before it.
"""

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import camera_utils
import dnnlib
from torch_utils import distributed, streams, training_stats
from torch_utils.watch import phase as doing
from training.build import build_loss, build_networks, build_phases, load_resumed
from training.dataset import InfiniteSampler, iterate_batches
from training.ema import Ema
from training.losses.adversarial import Batch
from training.monitors import Stopwatch
from training.previews import Previews
from training.networks.precision import set_half_type
from training.schedules import ScheduleConfig, schedule_at
from training.snapshot import save_snapshot
from training.state import label

MAX_SKIPPED_STEPS = 50       # steps in a row without finite loss and gradients before a run goes back to its last state
SUBSTITUTES = 16             # images tried in the place of one that cannot be read
MAX_DAMAGED = 0.01           # part of the images that may be unreadable
PRIOR_POSES = 2 ** 14        # cameras that stand for the prior where images have no labels
COUNTERS = ('nimg', 'drawn', 'batch_index', 'tick', 'tick_start', 'salt', 'rollbacks', 'failed_nimg')


class Diverged(dnnlib.UserError):
    """Too many steps in a row were not finite."""


class Trainer:
    """Everything a run holds. One instance per process; rank 0 writes into `run_dir`."""

    def __init__(self, config, run_dir, device):
        self.config, self.run_dir, self.device = config, Path(run_dir or '.'), device
        self.run = dnnlib.EasyDict(config['run'])
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        torch.backends.cudnn.benchmark = self.run.cudnn_benchmark
        self.nimg = self.tick_start = int(self.run.resume_kimg * 1000)
        self.drawn = self.batch_index = self.tick = 0
        self.salt = self.rollbacks = self.failed_nimg = 0      # how often the run went back, and from where last
        self.skipped_in_a_row = Counter()      # by phase: one network may fail while the other goes on
        self.names = {'network-snapshot': {}, 'training-state': {}}      # who has the plain name of a kimg, see state.label
        self.metrics = {}                      # figure -> last, lowest and highest value with their snapshots
        self.damaged, self.stopwatch = set(), Stopwatch()
        self._build_data()
        torch.manual_seed(self.run.seed)       # the same weights whoever is rank 0, and however many there are
        self._build_networks()
        self._build_loss()
        seed = streams.seed_of(self.run.seed, self.rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2 ** 32)
        random.seed(seed)
        self.previews = Previews(self.run_dir, self.dataset, self.cameras, self.G, self.run.batch_gpu, self.run.seed)

    def _build_data(self):
        self.dataset = dnnlib.construct_class_by_name(**self.config['training_set'])
        self.labels = torch.as_tensor(self.dataset.get_labels(), device=self.device)
        self.cameras = self.labels if self.dataset.has_labels else self._prior_cameras()
        self._open_batches()

    def _prior_cameras(self):
        """Labels [K, 25] for fakes where the images have none: drawn from the prior."""
        prior, camera = self.config['camera_prior'], self.config['G']['camera']
        poses = camera_utils.sample_poses(
            PRIOR_POSES, horizontal_spread=math.radians(prior['yaw']), vertical_spread=math.radians(prior['pitch']),
            lookat=tuple(camera['pivot']), radius=camera['radius'], generator=torch.Generator().manual_seed(self.run.seed))
        return camera_utils.make_label(poses).to(self.device)

    def _open_batches(self):
        """Read on from the images already drawn; after the run went back, in another order."""
        seed = streams.seed_of(self.run.seed, self.salt) if self.salt else self.run.seed
        sampler = InfiniteSampler(len(self.dataset), self.rank, self.world_size, seed=seed, position=self.drawn)
        self.batches = iterate_batches(self.dataset, self.run.batch_size // self.world_size, sampler, self.run.workers,
                                       pin_memory=self.device.type == 'cuda', substitutes=SUBSTITUTES)

    def reopen(self):
        """Read on from where the counters stand now."""
        self.batches.close()
        self._open_batches()

    def _build_networks(self):
        self.G, self.D = build_networks(self.config, self.dataset)
        for network in (self.G, self.D):
            network.to(self.device).train().requires_grad_(False)
            set_half_type(network, self.run.precision, self.device)
            distributed.broadcast_params(network)
        self.ema = Ema(self.G, **self.config['ema'])
        if self.run.resume is not None:
            load_resumed(self.run.resume, {'G': self.G, 'D': self.D, 'G_ema': self.ema.average})

    def _build_loss(self):
        self.loss, self.augment, self.ada = build_loss(self.config, self.G, self.D)
        if self.augment is not None:
            self.augment.to(self.device)
        self.phases = build_phases(self.loss, {'G': self.G, 'D': self.D}, {'G': self.config['G_opt'], 'D': self.config['D_opt']})
        self.schedule_config = ScheduleConfig(**self.config['schedule'])
        self.signs, self.collector = training_stats.Collector('Loss/signs/real'), training_stats.Collector('.*')

    # -----------------------------------------------------------------------------------------------------------------

    def schedule(self):
        """The step's values."""
        return schedule_at(self.nimg, self.schedule_config)

    def real_batch(self):
        """Next real images of this rank: ({'image', 'image_mask'}, labels), on the device, in their working ranges. Entry n
        is number rank + n * world_size of the whole batch."""
        with doing('reading images'), self.stopwatch.time('data'):
            item = next(self.batches)
        self.drawn += self.run.batch_size
        self._note_damaged(item['damaged'], len(item['image']))
        images = {'image': item['image'].to(self.device, non_blocking=True).float() / 127.5 - 1}
        if 'mask' in item:
            images['image_mask'] = item['mask'].to(self.device, non_blocking=True).float() / 255
        return images, item['label'].to(self.device, non_blocking=True)

    def _note_damaged(self, messages, num):
        """Name the images that were passed over, once each, and count them. UserError when they are too many."""
        training_stats.report('Progress/damaged_images', [1.0] * len(messages) + [0.0] * num)
        for message in sorted(set(messages) - self.damaged):
            self.damaged.add(message)
            tqdm.write(f'{f"rank {self.rank}: " if self.world_size > 1 else ""}passed over {message}')
        if len(self.damaged) > max(SUBSTITUTES, MAX_DAMAGED * len(self.dataset)):
            raise dnnlib.UserError(f'{len(self.damaged)} of {len(self.dataset)} images cannot be read, the last: {messages[-1]}')

    def step(self):
        """One step: every phase that is due, then the moving average and the augmentation's strength."""
        with doing(f'step {self.batch_index}'), self.stopwatch.time('step'):
            schedule = self.schedule()
            images, labels = self.real_batch()
            for phase in self.phases:
                if self.batch_index % phase.interval == 0:
                    with doing(phase.name):
                        self.run_phase(phase, images, labels, schedule)
            self.nimg += self.run.batch_size
            self.batch_index += 1
            self.ema.update(self.G, self.nimg, self.run.batch_size)
            if self.ada is not None and self.ada.due(self.batch_index):
                self.signs.update()
                self.augment.set_p(self.ada.update(self.signs.mean('Loss/signs/real'), self.ada.interval * self.run.batch_size))

    def run_phase(self, phase, images, labels, schedule):
        """One update of `phase`'s network from real `images` with their `labels`, under the step's `schedule`."""
        phase.optimizer.zero_grad(set_to_none=True)
        phase.network.requires_grad_(True)
        before, made = [mean.clone() for mean in self._mean_latents()], []
        num_rounds = labels.shape[0] // self.run.batch_gpu
        for first in range(num_rounds):
            # Every so-manieth sample, as between processes: so groups of samples stay together however the batch is split.
            part = slice(first, None, num_rounds)
            numbers = range(self.rank + first * self.world_size, self.run.batch_size, num_rounds * self.world_size)
            for mean, value in zip(self._mean_latents(), before):
                mean.copy_(value)
            with streams.per_sample((self.run.seed, self.salt, self.batch_index, phase.name), numbers):
                batch = self._batch({name: x[part] for name, x in images.items()}, labels[part])
                loss = self.loss.accumulate(phase.name, batch, schedule, gain=phase.interval / num_rounds)
            made.append(torch.cat([loss.reshape(1).float(), *self._mean_latents()]))
        phase.network.requires_grad_(False)
        # All parameters, in the same order in every process; some have no part in a phase. The loss, and the running means
        # as if all rounds and processes had been one batch, travel along.
        averages = distributed.all_reduce_mean_gradients(list(phase.network.parameters()), torch.stack(made).mean(dim=0))
        finite = self._finite(phase, averages[:1])
        means = averages[1:].split([mean.numel() for mean in before]) if finite else before
        for mean, value in zip(self._mean_latents(), means):
            mean.copy_(value)
        if finite:
            phase.optimizer.step()

    def _batch(self, images, labels):
        """Real images with latents and labels for as many fakes, from the samples' streams."""
        num = labels.shape[0]
        z = streams.normal([num, self.G.z_dim], self.device)
        index = streams.integers(len(self.cameras), [num]).to(self.device)
        return Batch({name: x.contiguous() for name, x in images.items()}, labels.contiguous(), z, self.cameras[index])

    def _mean_latents(self):
        """The running means of w: what the forward pass itself changes in G."""
        return [module.w_avg for module in self.G.modules() if hasattr(module, 'w_avg')]

    def _finite(self, phase, loss):
        """Whether loss and gradients are; a step without is skipped and counted, and too many in a row are Diverged."""
        names = [name for name, p in phase.network.named_parameters() if p.grad is not None]
        norms = torch.stack([p.grad.norm() for p in phase.network.parameters() if p.grad is not None])
        norm = norms.norm()
        finite = bool(torch.isfinite(torch.cat([norm.reshape(1), loss.to(norm)])).all())   # the one place that waits for a GPU
        if finite:
            training_stats.report(f'Gradients/{phase.name}', norm)
        training_stats.report('Progress/skipped_steps', 0.0 if finite else 1.0)
        self.skipped_in_a_row[phase.name] = 0 if finite else self.skipped_in_a_row[phase.name] + 1
        if self.skipped_in_a_row[phase.name] > MAX_SKIPPED_STEPS:
            bad = [name for name, good in zip(names, norms.isfinite().tolist()) if not good]
            raise Diverged(f'{MAX_SKIPPED_STEPS} steps in a row of phase {phase.name} were not finite, up to {self.nimg / 1000:g} kimg: '
                           f'loss {loss.item():g}, gradients of {len(bad)} parameters{": " if bad else ""}{", ".join(bad[:4])}')
        return finite

    # -----------------------------------------------------------------------------------------------------------------

    def save_network(self):
        """Write network-snapshot-NNNNNN.pkl and pictures of this moment; its networks render at the resolution of now.
        Returns the snapshot's path."""
        name = label(self.nimg, self.names['network-snapshot'])
        path = self.run_dir / f'network-snapshot-{name}.pkl'
        resolution = {'neural_rendering_resolution': self.schedule().neural_rendering_resolution}
        save_snapshot(path, {'G': self.G, 'D': self.D, 'G_ema': self.ema.average}, training_set_kwargs=self.config['training_set'],
                      overrides={'G': resolution, 'G_ema': resolution})
        self.previews.save_fakes(self.ema.average, name, self.schedule().neural_rendering_resolution)
        return path

    def note_metric(self, figure, value, snapshot):
        """Remember a metric's figure of a snapshot: the last, and the lowest and highest so far."""
        entry = {'value': float(value), 'kimg': self.nimg / 1000, 'snapshot': Path(snapshot).name}
        held = self.metrics.setdefault(figure, {'lowest': entry, 'highest': entry})
        held['last'] = entry
        if value < held['lowest']['value']:
            held['lowest'] = entry
        if value > held['highest']['value']:
            held['highest'] = entry

    def state(self):
        """Everything to go on from, a dict of tensors and plain values; on rank 0 only, but every process must call it. The
        tensors are the trainer's own: write them before the next step."""
        stats = training_stats.state_dict()
        ranks = distributed.gather_objects({'random': random_state(self.device), 'pending': stats['pending']})
        if self.rank > 0:
            return None
        return {
            'config': self.config, 'counters': {name: getattr(self, name) for name in COUNTERS},
            'world_size': self.world_size, 'ranks': ranks, 'names': self.names, 'metrics': self.metrics,
            'damaged': sorted(self.damaged), 'skipped_in_a_row': dict(self.skipped_in_a_row),
            'ada': None if self.ada is None else self.ada.state_dict(), 'schedule': vars(self.schedule()),
            'stats': {'totals': stats['totals'], 'signs': self.signs.state_dict(), 'collector': self.collector.state_dict()},
            'networks': {key: network.state_dict() for key, network in self._networks().items()},
            'optimizers': {key: optimizer.state_dict() for key, optimizer in self._optimizers().items()}}

    def restore(self, state):
        """Go on from a state that rank 0 has; the others give None. Every process must call it. Random numbers of PyTorch,
        NumPy and Python continue where each process stood, if there are as many processes as there were."""
        heavy = ('networks', 'optimizers')
        light = distributed.broadcast_object(None if state is None else {key: state[key] for key in state if key not in heavy})
        for key, network in self._networks().items():
            if self.rank == 0:
                network.load_state_dict(state['networks'][key])
            distributed.broadcast_params(network)
        for key, optimizer in self._optimizers().items():
            restore_optimizer(optimizer, None if state is None else state['optimizers'][key])
        for name in COUNTERS:
            setattr(self, name, light['counters'][name])
        self.names, self.metrics, self.damaged = light['names'], light['metrics'], set(light['damaged'])
        self.skipped_in_a_row = Counter(light['skipped_in_a_row'])
        if self.ada is not None and light['ada'] is not None:
            self.ada.load_state_dict(light['ada'])
            self.augment.set_p(self.ada.p)
        self._restore_statistics(light)
        self.reopen()
        if light['world_size'] == self.world_size:
            set_random_state(light['ranks'][self.rank]['random'], self.device)

    def _restore_statistics(self, light):
        pending = [rank['pending'] for rank in light['ranks']]
        if light['world_size'] == self.world_size:
            pending = pending[self.rank:self.rank + 1]
        else:   # rank 0 takes what all had
            pending = pending if self.rank == 0 else []
        training_stats.load_state_dict(light['stats']['totals'], _added_up(pending), self.device)
        self.signs.load_state_dict(light['stats']['signs'])
        self.collector.load_state_dict(light['stats']['collector'])

    def _networks(self):
        return {'G': self.G, 'D': self.D, 'G_ema': self.ema.average}

    def _optimizers(self):
        return {phase.owner: phase.optimizer for phase in self.phases}


def _added_up(pending):
    """One {name: {device type: moments}} of several."""
    total = {}
    for part in pending:
        for name, by_device in part.items():
            for kind, moments in by_device.items():
                held = total.setdefault(name, {})
                held[kind] = held[kind] + moments if kind in held else moments
    return total


def restore_optimizer(optimizer, state):
    """Load the state_dict that rank 0 gives into the optimiser of every process; others give None. Learning rate and the
    like stay those of the optimiser, which the configuration made."""
    settings = [{key: value for key, value in group.items() if key != 'params'} for group in optimizer.param_groups]
    spec = None if state is None else {
        'param_groups': state['param_groups'],
        'state': {index: {name: (tuple(x.shape), x.dtype) for name, x in entries.items()} for index, entries in state['state'].items()}}
    spec = distributed.broadcast_object(spec)
    if state is None:
        empty = {index: {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in entries.items()}
                 for index, entries in spec['state'].items()}
        state = {'param_groups': spec['param_groups'], 'state': empty}
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)
    params = [p for group in optimizer.param_groups for p in group['params']]
    distributed.broadcast_tensors([optimizer.state[p][name] for p in params for name in sorted(optimizer.state.get(p, {}))])


def random_state(device):
    """State of the random number generators of PyTorch, NumPy and Python, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, normal = random.getstate()
    return {'torch': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state(device) if device.type == 'cuda' else None,
            'numpy': {'kind': kind, 'keys': [int(key) for key in keys], 'position': position, 'has_gauss': has_gauss, 'gauss': gauss},
            'python': {'version': version, 'words': list(words), 'normal': normal}}


def set_random_state(state, device):
    """Go on from `random_state`; that of a GPU only where there is one again."""
    torch.set_rng_state(state['torch'])
    if device.type == 'cuda' and state['cuda'] is not None:
        torch.cuda.set_rng_state(state['cuda'], device)
    own = state['numpy']
    np.random.set_state((own['kind'], np.array(own['keys'], dtype=np.uint32), own['position'], own['has_gauss'], own['gauss']))
    own = state['python']
    random.setstate((own['version'], tuple(own['words']), own['normal']))
