"""What a configuration makes: networks, loss, phases with their optimisers; and the check that it makes them."""

import contextlib
import dataclasses

import torch

import dnnlib
from torch_utils import misc
from training.augment import AdaController, AugmentPipe
from training.losses.adversarial import AdversarialLoss, LossOptions
from training.losses.regularizers import density_regularizer
from training.schedules import ScheduleConfig, lazy_adam, schedule_at
from training.snapshot import load_snapshot


@dataclasses.dataclass
class Phase:
    """One kind of update: whose, how often, with which optimiser."""
    name: str
    owner: str
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


def build_phases(loss, networks, opt_configs):
    """Phase objects of the loss; a network's phases share one Adam, scaled for lazy regularisation."""
    listed = loss.phases()
    optimizers = {}
    for key, network in networks.items():
        lazy = [interval for _, owner, interval in listed if owner == key and interval > 1]
        lr, betas = lazy_adam(opt_configs[key]['lr'], opt_configs[key]['betas'], lazy[0] if lazy else None)
        parameters = list(network.parameters())
        fused = parameters[0].device.type in ('cpu', 'cuda')   # elsewhere PyTorch has no fused Adam
        optimizers[key] = torch.optim.Adam(parameters, lr=lr, betas=betas, eps=opt_configs[key]['eps'], fused=fused)
    return [Phase(name, owner, networks[owner], optimizers[owner], interval) for name, owner, interval in listed]


def load_resumed(path, networks):
    """Copy a snapshot's networks into `networks`, a dict of 'G', 'D' and optionally 'G_ema'. Of a snapshot with G_ema alone,
    as networks are shared, G starts as G_ema and D anew. Raises UserError if the snapshot lacks one, or if they are not of
    the same kind and size."""
    loaded = load_snapshot(path, keys=('G', 'D', 'G_ema'))
    if loaded['G'] is None and loaded['D'] is None:
        networks = {key: network for key, network in networks.items() if key != 'D'}
        loaded['G'] = loaded['G_ema']
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
