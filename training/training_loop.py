"""The training loop: data, phases, moving average, ticks, snapshots."""

import contextlib
import dataclasses
import json
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import camera_utils
import dnnlib
from torch_utils import distributed, misc, training_stats
from training import reporting
from training.augment import AdaController, AugmentPipe
from training.dataset import InfiniteSampler, iterate_batches
from training.ema import Ema
from training.losses.adversarial import AdversarialLoss, Batch, LossOptions
from training.losses.regularizers import density_regularizer
from training.schedules import ScheduleConfig, lazy_adam, schedule_at
from training.snapshot import load_snapshot, save_snapshot

GRID_IMAGES = 24             # pictures in the grids of reals and fakes
TURNTABLE_YAWS = tuple(range(0, -360, -45))
TURNTABLE_IDENTITIES = 3
MAX_SKIPPED_STEPS = 50       # steps in a row without finite gradients before a run gives up


@dataclasses.dataclass
class Phase:
    """One kind of update: whose, how often, with which optimiser."""
    name: str
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    interval: int


@contextlib.contextmanager
def _from_settings():
    """What constructors find wrong with arguments that come from the configuration becomes a UserError."""
    try:
        yield
    except dnnlib.UserError:
        raise
    except (TypeError, ValueError) as error:
        raise dnnlib.UserError(f'these settings make no network or no run: {error}') from error


def build_networks(config, dataset):
    """(G, D) of a configuration for a dataset."""
    shape = dict(c_dim=dataset.label_dim, img_resolution=dataset.resolution)
    with _from_settings():
        return tuple(dnnlib.construct_class_by_name(**config[key], **shape) for key in ('G', 'D'))


def build_loss(config, G, D):
    """(loss, its AugmentPipe or None, that one's AdaController or None) of a configuration for these networks."""
    augment = ada = None
    with _from_settings():
        if config['augment'] is not None:
            augment = AugmentPipe(**config['augment']['strengths'])
            ada = AdaController(target=config['augment']['target'], p=config['augment']['p'])
            augment.set_p(ada.p)
        regularizer = density_regularizer(**config['density_reg'])
        return AdversarialLoss(G, D, LossOptions(**config['loss']), [regularizer] if regularizer else [], augment), augment, ada


def load_resumed(path, networks):
    """Copy a snapshot's networks into `networks`, a dict of 'G', 'D' and optionally 'G_ema'. Raises UserError if the
    snapshot lacks one, or if they are not of the same kind and size."""
    if str(path).endswith('.safetensors'):
        raise dnnlib.UserError(f'--resume {path}: .safetensors holds one network; training goes on from a .pkl with G, D and G_ema')
    loaded = load_snapshot(path, keys=('G', 'D', 'G_ema'))
    for key, network in networks.items():
        if loaded[key] is None:
            raise dnnlib.UserError(f'--resume {path}: the snapshot has no {key}; training goes on from one that train.py wrote')
        try:
            misc.copy_params_and_buffers(loaded[key], network, require_all=True)
        except dnnlib.UserError as error:
            raise dnnlib.UserError(f'--resume {path}: {key} does not fit these settings: {error}') from error


def check_run(config):
    """Try the whole configuration without the weight of its networks. Raises UserError if it makes no run, or if the
    snapshot to resume from does not fit."""
    dataset = dnnlib.construct_class_by_name(**config['training_set'])
    if config['run']['metrics'] and not dataset.has_labels:
        raise dnnlib.UserError(f'--metrics {",".join(config["run"]["metrics"])}: needs labels; give images with a dataset.json and '
                               '--cond=True, or --metrics none')
    if config['ema']['halfkimg'] < 0:
        raise dnnlib.UserError(f'--set ema.halfkimg={config["ema"]["halfkimg"]}: must not be negative')
    with torch.device('meta'):
        networks = dict(zip(('G', 'D'), build_networks(config, dataset)))
        loss, _, _ = build_loss(config, **networks)
    with _from_settings():
        build_phases(loss, networks, {'G': config['G_opt'], 'D': config['D_opt']})
        schedule_at(int(config['run']['resume_kimg'] * 1000), ScheduleConfig(**config['schedule']))
    if config['run']['resume'] is not None:
        load_resumed(config['run']['resume'], {**networks, 'G_ema': networks['G']})
    dataset.close()


def build_phases(loss, networks, opt_configs):
    """Phase objects of the loss; a network's phases share one Adam, scaled for lazy regularisation."""
    listed = loss.phases()
    optimizers = {}
    for key, network in networks.items():
        lazy = [interval for _, owner, interval in listed if owner == key and interval > 1]
        lr, betas = lazy_adam(opt_configs[key]['lr'], opt_configs[key]['betas'], lazy[0] if lazy else None)
        parameters = [p for p in network.parameters()]
        fused = parameters[0].device.type in ('cpu', 'cuda')   # elsewhere PyTorch has no fused Adam
        optimizers[key] = torch.optim.Adam(parameters, lr=lr, betas=betas, eps=opt_configs[key]['eps'], fused=fused)
    return [Phase(name, networks[owner], optimizers[owner], interval) for name, owner, interval in listed]


class Trainer:
    """Everything a run holds. One instance per process; rank 0 writes."""

    def __init__(self, config, run_dir, device):
        self.config, self.run_dir, self.device = config, Path(run_dir), device
        self.run = dnnlib.EasyDict(config['run'])
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        torch.manual_seed(self.run.seed * self.world_size + self.rank)
        np.random.seed((self.run.seed * self.world_size + self.rank) % 2 ** 32)
        torch.backends.cudnn.benchmark = self.run.cudnn_benchmark
        self.nimg = int(self.run.resume_kimg * 1000)
        self.batch_index = 0
        self.skipped_in_a_row = Counter()      # by phase: one network may fail while the other goes on
        self._build_data()
        self._build_networks()
        self._build_loss()
        self._pick_grid()

    def _build_data(self):
        self.dataset = dnnlib.construct_class_by_name(**self.config['training_set'])
        sampler = InfiniteSampler(len(self.dataset), self.rank, self.world_size, seed=self.run.seed)
        per_rank = self.run.batch_size // self.world_size
        self.batches = iterate_batches(self.dataset, per_rank, sampler, self.run.workers, pin_memory=self.device.type == 'cuda')
        self.labels = torch.as_tensor(self.dataset.get_labels(), device=self.device)
        # Without labels cameras are still needed: the network learns from the front.
        self.cameras = self.labels if self.dataset.has_labels else camera_utils.front_label(device=self.device)

    def _build_networks(self):
        self.G, self.D = build_networks(self.config, self.dataset)
        for network in (self.G, self.D):
            network.to(self.device).train().requires_grad_(False)
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
        self.signs = training_stats.Collector('Loss/signs/real')

    def _pick_grid(self):
        """Fixed reals, latents and labels of the picture grids."""
        rng = np.random.RandomState(self.run.seed)
        index = rng.randint(len(self.dataset), size=GRID_IMAGES)
        items = [self.dataset[int(i)] for i in index]
        self.grid_reals = {key: np.stack([item[key] for item in items]) for key in items[0] if key != 'label'}
        self.grid_z = torch.from_numpy(rng.randn(GRID_IMAGES, self.G.z_dim).astype(np.float32)).to(self.device)
        self.grid_c = self.cameras[torch.as_tensor(index % len(self.cameras), device=self.device)]

    # -----------------------------------------------------------------------------------------------------------------

    def schedule(self):
        """The step's values."""
        return schedule_at(self.nimg, self.schedule_config)

    def real_batch(self):
        """Next real images of this rank: ({'image', 'image_mask'}, labels), on the device, in their working ranges."""
        item = next(self.batches)
        images = {'image': item['image'].to(self.device, non_blocking=True).float() / 127.5 - 1}
        if 'mask' in item:
            images['image_mask'] = item['mask'].to(self.device, non_blocking=True).float() / 255
        return images, item['label'].to(self.device, non_blocking=True)

    def _fake_inputs(self, num):
        index = torch.randint(len(self.cameras), [num], device=self.device)
        return torch.randn([num, self.G.z_dim], device=self.device), self.cameras[index]

    def step(self):
        """One step: every phase that is due, then the moving average and the augmentation's strength."""
        schedule = self.schedule()
        images, labels = self.real_batch()
        for phase in self.phases:
            if self.batch_index % phase.interval == 0:
                self.run_phase(phase, images, labels, schedule)
        self.nimg += self.run.batch_size
        self.batch_index += 1
        self.ema.update(self.G, self.nimg, self.run.batch_size)
        if self.ada is not None and self.ada.due(self.batch_index):
            self.signs.update()
            self.augment.set_p(self.ada.update(self.signs.mean('Loss/signs/real'), self.ada.interval * self.run.batch_size))

    def run_phase(self, phase, images, labels, schedule):
        """One update of `phase`'s network from real `images` with their `labels`, under the step's `schedule`."""
        gen_z, gen_c = self._fake_inputs(labels.shape[0])
        phase.optimizer.zero_grad(set_to_none=True)
        phase.network.requires_grad_(True)
        rounds = range(0, labels.shape[0], self.run.batch_gpu)
        for start in rounds:
            part = slice(start, start + self.run.batch_gpu)
            batch = Batch({k: v[part] for k, v in images.items()}, labels[part], gen_z[part], gen_c[part])
            self.loss.accumulate(phase.name, batch, schedule, gain=phase.interval / len(rounds))
        phase.network.requires_grad_(False)
        # All of them, in the same order in every process; some have no part in a phase.
        distributed.all_reduce_mean_gradients(list(phase.network.parameters()))
        if self._finite(phase.network, phase.name):
            phase.optimizer.step()

    def _finite(self, network, name):
        """Whether all gradients are; a step without is skipped and counted, and too many in a row end the run."""
        finite = all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)
        training_stats.report('Progress/skipped_steps', 0.0 if finite else 1.0)
        self.skipped_in_a_row[name] = 0 if finite else self.skipped_in_a_row[name] + 1
        if self.skipped_in_a_row[name] > MAX_SKIPPED_STEPS:
            raise dnnlib.UserError(f'{MAX_SKIPPED_STEPS} steps in a row of phase {name} had gradients that are not finite; '
                                   'resume from an earlier snapshot with a smaller --glr / --dlr or a larger --gamma')
        return finite

    # -----------------------------------------------------------------------------------------------------------------

    def _generate(self, z, camera, ws):
        """Images of the moving average, one batch after another, as a dict of CPU tensors."""
        parts = []
        for start in range(0, z.shape[0], self.run.batch_gpu):
            part = slice(start, start + self.run.batch_gpu)
            out = self.ema.average.synthesis(ws[part], camera[part], self.schedule().neural_rendering_resolution)
            parts.append({name: out[name].cpu() for name in ('image', 'image_raw', 'image_depth', 'image_mask')})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def save_images(self):
        """Write the grids of fakes and the turntable sheet of this moment."""
        number = f'{self.nimg // 1000:06d}'
        g, size = self.ema.average, (6, GRID_IMAGES // 6)
        offset = g.camera_offset(self.grid_z, self.grid_c)
        cameras = self.grid_c if offset is None else g.move_camera(self.grid_c, offset)
        fakes = self._generate(self.grid_z, cameras, g.mapping(self.grid_z, self.grid_c[:, :g.c_dim]))
        ranges = {'image': ('', (-1, 1)), 'image_raw': ('_raw', (-1, 1)), 'image_depth': ('_depth', None), 'image_mask': ('_alpha', (0, 1))}
        for name, (suffix, drange) in ranges.items():
            values = -fakes[name] if name == 'image_depth' else fakes[name]
            reporting.save_image_grid(values, self.run_dir / f'fakes{number}{suffix}.png', drange, size)
        reporting.save_turntable_sheet(self.turntable(self.grid_z[:TURNTABLE_IDENTITIES]), self.run_dir / f'views{number}.png')

    def turntable(self, z):
        """Images [N, 3, H, W] of latents z [N, z_dim] from every side, one entry a side, front first."""
        g = self.ema.average
        prior = g.camera
        front = camera_utils.front_label(prior.pivot, prior.radius, prior.fov_deg, self.device).expand(z.shape[0], -1)
        ws = g.mapping(z, front[:, :g.c_dim])
        field = g.build_field(ws)
        sides = camera_utils.label_from_yaw(TURNTABLE_YAWS, lookat=(0, 0, 0), radius=prior.radius, fov_deg=prior.fov_deg,
                                            device=self.device)
        size = self.schedule().neural_rendering_resolution
        return [g.render(field, ws, side.expand(z.shape[0], -1), size).image.cpu() for side in sides]

    def save_reals(self):
        """Write the grid of reals and of their masks."""
        size = (6, GRID_IMAGES // 6)
        reporting.save_image_grid(self.grid_reals['image'], self.run_dir / 'reals.png', (0, 255), size)
        if 'mask' in self.grid_reals:
            reporting.save_image_grid(self.grid_reals['mask'], self.run_dir / 'segs.png', (0, 255), size)

    def save_network(self):
        """Write network-snapshot-NNNNNN.pkl; its networks render at the resolution of this moment."""
        path = self.run_dir / f'network-snapshot-{self.nimg // 1000:06d}.pkl'
        resolution = {'neural_rendering_resolution': self.schedule().neural_rendering_resolution}
        save_snapshot(path, {'G': self.G, 'D': self.D, 'G_ema': self.ema.average}, training_set_kwargs=self.config['training_set'],
                      overrides={'G': resolution, 'G_ema': resolution})
        return path


class _StopRequest:
    """Ctrl-C as a wish, while the context lasts: the step in progress ends first, and all processes end with the same one.
    A second Ctrl-C interrupts at once."""

    def __enter__(self):
        self._wished, self._former = False, None
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_):
        if self._wished:
            raise KeyboardInterrupt
        self._wished = True

    def __exit__(self, *_):
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def heard(self):
        """Whether Ctrl-C was pressed in any process. Every process must ask."""
        return distributed.sum_over_ranks(torch.tensor(float(self._wished))).item() > 0


def training_loop(config, run_dir, device, evaluate=None):
    """Train as `config` says (see configure.training_config), writing into `run_dir`; returns the last snapshot's path.

    `evaluate(snapshot path)` yields records of metrics; every process calls it, with the snapshot of process 0.
    Ctrl-C ends the run after saving what it has learned.
    """
    trainer = Trainer(config, run_dir, device)
    run, main = trainer.run, trainer.rank == 0
    collector = training_stats.Collector('.*')
    reporter = reporting.Reporter(run_dir, device, trainer.nimg) if main else None
    if main:
        (trainer.run_dir / 'training_options.json').write_text(json.dumps(config, indent=2))
        trainer.save_reals()
    total, tick, tick_start, snapshot = int(run.total_kimg * 1000), 0, trainer.nimg, None
    progress = tqdm(total=total, initial=trainer.nimg, unit='img', desc='training', disable=not main, mininterval=1.0)
    interrupted = False
    if main:
        trainer.save_images()
        snapshot = trainer.save_network()
        reporter.start_tick()
    with _StopRequest() as stop:
        while trainer.nimg < total and not interrupted:
            trainer.step()
            progress.update(run.batch_size)
            interrupted = stop.heard()
            done = trainer.nimg >= total or interrupted
            if not done and trainer.nimg < tick_start + run.kimg_per_tick * 1000:
                continue
            tick, tick_start = tick + 1, trainer.nimg
            collector.update()
            if main:
                reporter.end_tick(tick, trainer.nimg, collector.as_dict(), None if trainer.ada is None else trainer.ada.p)
            if done or (run.snapshot_ticks and tick % run.snapshot_ticks == 0):
                if main:
                    trainer.save_images()
                    snapshot = trainer.save_network()
                for record in () if interrupted or evaluate is None else evaluate(distributed.broadcast_object(snapshot)):
                    for figure, value in record['results'].items() if main else ():
                        reporter.add_metric(figure, value, trainer.nimg)
            if main:
                reporter.start_tick()
    progress.close()
    if main:
        reporter.close()
        if interrupted:
            tqdm.write(f'Interrupted; everything learned is in {snapshot}')
    return snapshot
