"""Network snapshots: files that anybody's pickle can read, and a reader of our own that executes nothing from them.

`save_snapshot` writes network-snapshot-NNNNNN.pkl, a dict with G, D, G_ema, augment_pipe and training_set_kwargs whose
networks are portable (see torch_utils.persistence). `load_snapshot` and `load_network` read such a file through an
unpickler that knows one name only: a network comes back as our own class, found by its name among the decorated classes
of training.generators and training.discriminators, with the parameters of the file after a strict check.
A path that ends in .safetensors is one network's parameters, with its class and arguments in a .json file beside it.
"""

import contextlib
import importlib
import json
import pickle
from pathlib import Path

import torch

import dnnlib
from torch_utils import persistence

NETWORK_KEYS = ('G', 'D', 'G_ema')
DEMO = 'demo'
DEMO_PATH = Path(__file__).resolve().parents[1] / 'pretrained' / 'demo.pkl'
ALLOWED_PACKAGES = ('training.generators', 'training.discriminators')
# What a damaged or foreign stream of bytes makes the unpickler raise.
UNPICKLING_ERRORS = (pickle.UnpicklingError, ValueError, IndexError, KeyError, TypeError, AttributeError, ImportError,
                     OverflowError, MemoryError, RecursionError)


# ---------------------------------------------------------------------------------------------------------------------
# Writing.

class _Portable:
    """Pickles as the network that the meta dict describes."""

    def __init__(self, meta):
        self.meta = meta

    def __reduce__(self):
        return persistence.rebuild, (self.meta,)


def save_snapshot(path, networks, training_set_kwargs=None, overrides=None):
    """Write {'G', 'D', 'G_ema': nn.Module or None} to `path`, as evaluation networks without gradients; the networks
    given are not changed. `overrides['G_ema']` replaces constructor arguments in the file, such as
    {'neural_rendering_resolution': 48}. A path that ends in .safetensors takes G_ema alone.
    The file appears whole or not at all. TypeError if a network is not a persistent class."""
    overrides = overrides or {}
    if str(path).endswith('.safetensors'):
        if networks.get('G_ema') is None:
            raise dnnlib.UserError(f'{path}: .safetensors holds G_ema, which was not given; use .pkl')
        save_safetensors(path, networks['G_ema'], overrides.get('G_ema'))
        return
    data = dict.fromkeys(NETWORK_KEYS)
    for key, network in networks.items():
        data[key] = None if network is None else _Portable(_evaluation_meta(network, overrides.get(key)))
    data['augment_pipe'] = None
    data['training_set_kwargs'] = _plain_copy(training_set_kwargs)
    with _written_whole(path) as file:
        pickle.dump(data, file, protocol=pickle.HIGHEST_PROTOCOL)


def _evaluation_meta(network, overrides):
    return persistence.describe(network, overrides, training=False, requires_grad=False)


def _plain_copy(kwargs):
    """A JSON value copied into plain dicts and lists, so that the pickle names no class."""
    return json.loads(json.dumps(kwargs))


@contextlib.contextmanager
def _written_whole(path):
    """Binary file that takes the name `path` once everything is on the disk. UserError if it cannot be written."""
    try:
        with dnnlib.util.written_whole(path) as temporary, open(temporary, 'wb') as file:
            yield file
    except OSError as error:
        raise dnnlib.UserError(f'{path}: cannot be written ({error}); choose another folder or free some space') from error


# ---------------------------------------------------------------------------------------------------------------------
# Reading.

def load_network(path, key='G_ema', device='cpu'):
    """The network `key` of a snapshot file, http(s) address or 'demo', in evaluation mode without gradients on `device`.
    Nothing in the file is executed. Raises UserError naming the file and what is wrong with it."""
    if str(path).endswith('.safetensors'):
        return load_safetensors(path).to(device)
    network = load_snapshot(path, keys=[key])[key]
    if network is None:
        raise dnnlib.UserError(f'{path}: {key} is empty in this snapshot; choose another of {", ".join(NETWORK_KEYS)}')
    return network.to(device)


def load_snapshot(path, keys=None):
    """Dict of a snapshot's entries: networks on the CPU as modules in evaluation mode, or None, and plain values.
    `keys` limits what is built and returned. Raises UserError as load_network does."""
    data = _read_pickle(path)
    if not isinstance(data, dict) or not any(isinstance(value, _Record) for value in data.values()):
        raise dnnlib.UserError(f'{path}: holds no networks; give a network-snapshot-NNNNNN.pkl written by train.py')
    absent = [key for key in keys or () if key not in data]
    if absent:
        raise dnnlib.UserError(f'{path}: has no {", ".join(absent)}; it has {", ".join(map(str, data))}')
    chosen = {key: data[key] for key in (data if keys is None else keys)}
    return {key: _construct(value.meta, path, persistence.unpack_state) if isinstance(value, _Record) else value
            for key, value in chosen.items()}


class _Record:
    """A network as read from a file: its description, not yet checked."""
    __slots__ = ('meta',)

    def __init__(self, meta):
        self.meta = meta


class _RestrictedUnpickler(pickle.Unpickler):
    """Makes plain values, and records of networks; every other name in the stream is refused."""

    def find_class(self, module, name):
        if (module, name) == ('torch_utils.persistence', 'rebuild'):
            # A function made for this one use: a stream may set attributes of what it is handed, and what it sets on
            # the class itself would be there when the next file is read.
            return lambda meta: _Record(meta)
        if (module, name) == ('dnnlib.util', 'EasyDict'):
            return dict
        raise dnnlib.UserError(f'the file asks for {module}.{name}, which a snapshot of this project never does, so it '
                               f'was not read; give a network-snapshot-NNNNNN.pkl written by train.py')


def _read_pickle(path):
    with _open_snapshot(path) as file:
        if not file.read(1):
            raise dnnlib.UserError(f'{path}: the file is empty; copy or download it again')
        file.seek(0)
        try:
            return _RestrictedUnpickler(file).load()
        except EOFError as error:
            raise _truncated(path) from error
        except dnnlib.UserError as error:
            raise dnnlib.UserError(f'{path}: {error}') from error
        except UNPICKLING_ERRORS as error:
            if 'truncated' in str(error):
                raise _truncated(path) from error
            raise dnnlib.UserError(f'{path}: is not a network snapshot but another kind of file; '
                                   f'give a network-snapshot-NNNNNN.pkl written by train.py') from error


def _truncated(path):
    return dnnlib.UserError(f'{path}: the file ends too early; copy or download it again')


def _open_snapshot(path):
    if str(path) == DEMO:
        if not DEMO_PATH.is_file():
            raise dnnlib.UserError(f'--network demo: {DEMO_PATH} is absent; take the whole repository, or train a network '
                                   f'with train.py --preset synthetic-64')
        path = DEMO_PATH
    elif not dnnlib.util.is_url(path) and Path(path).is_dir():
        raise dnnlib.UserError(f'{path}: is a folder; give a network snapshot in it (.pkl, .safetensors)')
    elif not dnnlib.util.is_url(path) and not Path(path).is_file():
        raise dnnlib.UserError(f'{path}: no such file; give a network snapshot (.pkl, .safetensors), its address, or {DEMO!r}')
    return dnnlib.open_url(path)


def _construct(meta, path, read_state):
    """Our own class with the description's arguments, and the state that read_state(meta) gives."""
    try:
        persistence.check_format(meta)
        _check_nested_names(meta['init_kwargs'])
        cls = _allowed_class(meta['class_name'])
        # What a snapshot says of mode and gradients does not matter here.
        return persistence.instantiate(cls, {**meta, 'training': False, 'requires_grad': False}, read_state(meta))
    except dnnlib.UserError as error:
        raise dnnlib.UserError(f'{path}: {error}') from error
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise dnnlib.UserError(f'{path}: {meta["class_name"]} cannot be made from the arguments in the file ({error}); '
                               f'the file was written by other code, use the version that wrote it') from error


def _allowed_class(class_name):
    """The decorated class of that name; UserError for anything that is not one of our networks."""
    module_name, _, attribute = class_name.rpartition('.')
    refusal = dnnlib.UserError(f'{class_name} is not a network of this project; use the code that wrote the file')
    if not module_name.startswith(tuple(f'{package}.' for package in ALLOWED_PACKAGES)):
        raise refusal
    try:
        cls = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise refusal from error
    if not persistence.is_persistent(cls) or not issubclass(cls, torch.nn.Module):
        raise refusal
    return cls


def _check_nested_names(value):
    """A network's arguments may name classes to build parts with: only those of this project's own networks."""
    if isinstance(value, dict):
        name = value.get('class_name')
        if name is not None and not str(name).startswith('training.'):
            raise dnnlib.UserError(f'the network\'s arguments name {name!r}, which is not a class of this project')
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_nested_names(item)


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors.

def _description_path(path):
    """The .json beside a .safetensors file; `path` may be an address."""
    return str(path).removesuffix('.safetensors') + '.json'


def save_safetensors(path, network, overrides=None):
    """Write a persistent network's parameters and buffers to `path` (.safetensors), and its class and constructor's
    arguments to the .json file beside it."""
    from safetensors.torch import save  # imported here: only those who share files this way need the package
    meta = _evaluation_meta(network, overrides)
    description = {key: meta[key] for key in ('format', 'version', 'class_name', 'init_kwargs')}
    with _written_whole(_description_path(path)) as file:
        file.write(json.dumps(description, indent=2).encode())
    with _written_whole(path) as file:
        file.write(save(persistence.unpack_state(meta)))


def load_safetensors(path):
    """The network of a .safetensors file and its .json, on the CPU, in evaluation mode without gradients.
    Raises UserError if one of them is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load
    with _open_snapshot(path) as file:
        try:
            tensors = load(file.read())
        except (SafetensorError, ValueError, KeyError) as error:
            raise dnnlib.UserError(f'{path}: is not a whole .safetensors file ({error}); copy or download it again') from error
    with _open_snapshot(_description_path(path)) as file:
        try:
            description = dict(json.loads(file.read()))
        except (ValueError, TypeError, RecursionError) as error:
            raise dnnlib.UserError(f'{_description_path(path)}: does not describe a network ({error}); '
                                   f'write the network again') from error
    meta = {**description, 'state': [], 'sources': {}, 'training': False, 'requires_grad': False}
    return _construct(meta, path, lambda _: tensors)
