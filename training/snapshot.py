"""Network snapshots: files that anybody's pickle can read, and a reader of our own that executes nothing from them.

`save_snapshot` writes network-snapshot-NNNNNN.pkl, a dict with G, D, G_ema, augment_pipe and training_set_kwargs whose
networks are portable (see torch_utils.persistence). `load_snapshot` and `load_network` read such a file, and those that EG3D
and PanoHead published, through the reader in legacy/: a network comes back as our own class with the parameters of the file
after a strict check. A path that ends in .safetensors is the networks' parameters, with their classes and arguments in a
.json file beside it.

    python -m training.snapshot show FILE                       what is in a file, and what of it is not used
    python -m training.snapshot convert A.pkl B.safetensors     and back; published files become ours on the way
"""

import contextlib
import json
import os
import pickle
import sys
from pathlib import Path

import click
import torch
from tqdm import tqdm

import dnnlib
from dnnlib.cli import TRUST_PICKLE, trust_pickle_option, user_errors
from legacy import reader
from torch_utils import persistence
from training import snapshot_build

NETWORK_KEYS = ('G', 'D', 'G_ema')
DEMO = 'demo'
DEMO_PATH = Path(__file__).resolve().parents[1] / 'pretrained' / 'demo.pkl'
SAFETENSORS = '.safetensors'
MAX_MESSAGE = 2000
MAX_DESCRIPTION = 2 ** 24         # bytes of the .json beside a .safetensors file


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
    {'neural_rendering_resolution': 48}. A path that ends in .safetensors is written by save_safetensors.
    The file appears whole or not at all. TypeError if a network is not a persistent class."""
    overrides = overrides or {}
    if str(path).endswith(SAFETENSORS):
        save_safetensors(path, networks, training_set_kwargs, overrides)
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
    """The network `key` of a snapshot file (.pkl of ours or published, .safetensors), http(s) address or 'demo', in evaluation
    mode without gradients on `device`. Nothing in the file is executed, unless the user gave --trust-pickle.
    Raises UserError naming the file and what is wrong with it."""
    network = load_snapshot(path, keys=[key])[key]
    if not isinstance(network, torch.nn.Module):
        raise dnnlib.UserError(f'{path}: {key} is empty in this snapshot; choose another of {", ".join(NETWORK_KEYS)}')
    return network.to(device)


def load_snapshot(path, keys=None):
    """Dict of a snapshot's entries: networks on the CPU as modules in evaluation mode, or None, and plain values.
    `keys` limits what is built and returned. Raises UserError as load_network does."""
    data, size = _read(path)
    absent = [key for key in keys or () if key not in data]
    if absent:
        raise dnnlib.UserError(f'{path}: has no {", ".join(absent)}; it has {", ".join(map(str, data))[:200]}')
    with _naming(path):
        return {key: _entry(path, key, data[key], size) for key in (data if keys is None else keys)}


def _read(path):
    """({name: entry}, bytes) of a file, networks not built yet unless the user trusts it."""
    if str(path).endswith(SAFETENSORS):
        return _read_safetensors(path)
    return _execute_pickle(path) if os.environ.get(TRUST_PICKLE) else _read_pickle(path)


def _entry(path, key, value, size):
    """What load_snapshot returns for an entry of a file of `size` bytes."""
    if isinstance(value, torch.nn.Module):
        return value
    if isinstance(value, reader.Module):
        if key not in NETWORK_KEYS:
            return None          # published files keep their augmentation too
        value, report = snapshot_build.from_published(value, key)
        tqdm.write(f'{path}: {key} is {report.describe()}', file=sys.stderr)
    if isinstance(value, reader.Record):
        value = snapshot_build.from_description(value.meta, size)
    return value.build(size) if isinstance(value, snapshot_build.Blueprint) else reader.plain(value, key)


def _read_pickle(path):
    with _open_snapshot(path) as file, _naming(path):
        if not file.read(1):
            raise dnnlib.UserError('the file is empty; copy or download it again')
        file.seek(0)
        try:
            data, size = reader.read(file)
        except reader.Truncated as error:
            raise dnnlib.UserError('the file ends too early; copy or download it again') from error
        except reader.Damaged as error:
            raise dnnlib.UserError(f'is not a network snapshot but another kind of file, or damaged ({error}); '
                                   f'give a network-snapshot-NNNNNN.pkl written by train.py, or copy this one again') from error
        if not isinstance(data, dict) or not any(isinstance(value, (reader.Record, reader.Module)) for value in data.values()):
            raise dnnlib.UserError('holds no networks; give a network-snapshot-NNNNNN.pkl written by train.py')
        return data, size


def _execute_pickle(path):
    """What the pickle says, executed as a program: --trust-pickle."""
    tqdm.write(f'{path}: executed as a program (--trust-pickle)', file=sys.stderr)
    with _open_snapshot(path) as file:
        try:
            data = pickle.load(file)
        except Exception as error:
            raise dnnlib.UserError(f'{path}: executing it failed ({type(error).__name__}: {error}); '
                                   f'leave out --trust-pickle and our own reader reads it') from error
        size = file.tell()
    if not isinstance(data, dict):
        raise dnnlib.UserError(f'{path}: holds a {type(data).__name__} and no dict of networks')
    for value in data.values():
        if isinstance(value, torch.nn.Module):
            value.eval().requires_grad_(False)
    return data, size


@contextlib.contextmanager
def _naming(path):
    """A UserError inside begins with the file's name; what of the file is in it cannot write on a terminal."""
    try:
        yield
    except dnnlib.UserError as error:
        raise dnnlib.UserError(f'{path}: {_printable(str(error))}') from error


def _printable(text):
    """Text of a file without its control characters, of a length that people read."""
    return ''.join(letter if letter.isprintable() else '?' for letter in text[:MAX_MESSAGE])


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


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors.

def _description_path(path):
    """The .json beside a .safetensors file; `path` may be an address."""
    return str(path).removesuffix(SAFETENSORS) + '.json'


def save_safetensors(path, networks, training_set_kwargs=None, overrides=None):
    """Write the parameters and buffers of persistent networks {'G_ema': network or None, ...} to `path` (.safetensors) under
    the names G_ema.PARAMETER, their classes, constructors' arguments and training_set_kwargs to the .json file beside it."""
    from safetensors.torch import save  # imported here: only those who share files this way need the package
    tensors, described = {}, {}
    for key, network in networks.items():
        if network is not None:
            meta = _evaluation_meta(network, (overrides or {}).get(key))
            described[key] = {name: meta[name] for name in ('class_name', 'init_kwargs')}
            tensors.update((f'{key}.{name}', tensor) for name, tensor in persistence.unpack_state(meta).items())
    description = {'format': persistence.FORMAT, 'version': persistence.VERSION, 'networks': described,
                   'training_set_kwargs': _plain_copy(training_set_kwargs)}
    with _written_whole(_description_path(path)) as file:
        file.write(json.dumps(description, indent=2).encode())
    with _written_whole(path) as file:
        file.write(save(tensors))


def _read_safetensors(path):
    from safetensors import SafetensorError
    from safetensors.torch import load
    with _open_snapshot(path) as file:
        octets = file.read()
    try:
        tensors = load(octets)
    except (SafetensorError, ValueError, LookupError, AttributeError, TypeError, RuntimeError) as error:
        raise dnnlib.UserError(f'{path}: is not a whole .safetensors file ({error}); copy or download it again') from error
    description = _read_description(_description_path(path))
    entries = dict.fromkeys((*NETWORK_KEYS, 'augment_pipe'))
    with _naming(path):
        for key, meta in description['networks'].items():
            cls, init_kwargs = snapshot_build.allowed_class(
                {**meta, **{name: description.get(name) for name in ('format', 'version')},
                 'state': [], 'sources': {}, 'training': False, 'requires_grad': False})
            own = {name.removeprefix(f'{key}.'): tensor for name, tensor in tensors.items() if name.startswith(f'{key}.')}
            entries[key] = snapshot_build.Blueprint(cls, init_kwargs, own, meta['class_name'])
        strangers = [name for name in tensors if name.partition('.')[0] not in description['networks']]
        if strangers:
            raise dnnlib.UserError(f'{len(strangers)} tensors belong to no network, such as {strangers[0][:100]}; convert the file again')
    return {**entries, 'training_set_kwargs': description.get('training_set_kwargs')}, len(octets)


def _read_description(path):
    """The .json beside a .safetensors file: a dict with a dict of networks. UserError if it is not one."""
    with _open_snapshot(path) as file:
        text = file.read(MAX_DESCRIPTION + 1)
    try:
        if len(text) > MAX_DESCRIPTION:
            raise ValueError(f'more than {MAX_DESCRIPTION} bytes')
        description = dict(json.loads(text))
        if not all(isinstance(meta, dict) for meta in dict(description['networks']).values()):
            raise ValueError('a network without class and arguments')
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise dnnlib.UserError(f'{path}: does not describe networks ({error}); write them again') from error
    return description


# ---------------------------------------------------------------------------------------------------------------------
# python -m training.snapshot

def describe_file(path):
    """Lines on what a network file holds: class, arguments and tensors of every network, and what of it has no use here.
    Nothing is built. Raises UserError as load_snapshot does."""
    data, size = _read(path)
    lines = [f'{path}: {size} bytes']
    with _naming(path):
        for key, value in data.items():
            left_out = {}
            if isinstance(value, reader.Module) and key in NETWORK_KEYS:
                value, report = snapshot_build.from_published(value, key)
                lines.append(f'{key}: {report.describe()}')
                left_out = report.left_out
            elif isinstance(value, reader.Record):
                value = snapshot_build.from_description(value.meta, size)
            if isinstance(value, snapshot_build.Blueprint):
                lines.append(f'{key}: {value.cls.__name__}, {len(value.tensors)} tensors of '
                             f'{sum(tensor.nbytes for tensor in value.tensors.values())} bytes')
                lines += [f'    {name} = {argument!r}' for name, argument in value.init_kwargs.items()]
                lines += [f'    left out: {name} ({why})' for name, why in left_out.items()]
            else:
                lines.append(f'{key}: {"not used" if isinstance(value, reader.Module) else reader.plain(value, key)}')
    return [_printable(line) for line in lines]


def convert(source, destination, keys=None):
    """Write the networks of the file `source` as `destination`; either may end in .pkl or .safetensors, parameters stay the
    same to the bit. `keys`: the networks to keep, None for all. Raises UserError for other endings."""
    for path in (source, destination):
        if str(path) != DEMO and not str(path).endswith(('.pkl', SAFETENSORS)):
            raise dnnlib.UserError(f'{path}: ends in neither .pkl nor {SAFETENSORS}, which say what the file is; rename it')
    if keys is not None and not set(keys) <= set(NETWORK_KEYS):
        raise dnnlib.UserError(f'--keys {",".join(keys)}: networks are called {", ".join(NETWORK_KEYS)}')
    data = load_snapshot(source)
    networks = {key: data.get(key) for key in keys or NETWORK_KEYS}
    if all(network is None for network in networks.values()):
        raise dnnlib.UserError(f'{source}: has none of {", ".join(networks)}')
    save_snapshot(destination, networks, data.get('training_set_kwargs'))


@click.group()
def main():
    """Look into network files, and convert them."""


@main.command('show')
@click.argument('path')
@user_errors
def show_command(path):
    """What a network file holds; nothing in it is executed."""
    click.echo('\n'.join(describe_file(path)))


@main.command('convert')
@click.argument('source')
@click.argument('destination')
@click.option('--keys', help='Networks to keep, with commas, of G, D and G_ema.  [default: all]')
@trust_pickle_option()
@user_errors
def convert_command(source, destination, keys):
    """Write SOURCE as DESTINATION: .pkl or .safetensors with .json, ours or published (which become ours)."""
    convert(source, destination, None if keys is None else [key.strip() for key in keys.split(',')])
    click.echo(f'{source} -> {destination}')


if __name__ == '__main__':
    main()
