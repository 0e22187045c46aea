"""A published network's attributes -> our class, its arguments and its tensors, with a report of what was left over.

Shared by the key maps beside this file: collecting tensors by their dotted names, reading arguments strictly, the report.
"""

import dataclasses
import re

import torch

from dnnlib import UserError
from legacy.reader import Module, Tensor, plain
from torch_utils.ops.upfirdn2d import setup_filter
from training.networks.layers import RESAMPLE_TAPS

FILTER = 'resample_filter'

MAX_ENTRIES = 50_000             # of all tables of a network's modules
MAX_DEPTH = 16
# Attributes of every torch module and of every persistent object, which say nothing about the network's function.
MODULE_TABLES = ('_parameters', '_buffers', '_modules', 'training', '_is_full_backward_hook', 'call_super_init', '_init_args',
                 '_init_kwargs', '_non_persistent_buffers_set')


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a published network is in our terms: `cls(**init_kwargs)` with `tensors` {name: legacy.storages.Tensor} under
    our names. `left_out` {what: why} holds everything in the file that has no place in it; never a parameter."""
    family: str
    cls: type
    init_kwargs: dict
    tensors: dict
    left_out: dict

    def describe(self):
        """One line for people."""
        total = len(self.tensors)
        text = f'a published {self.family} network, {total} of {total} tensors mapped'
        return text + (f', {len(self.left_out)} settings not needed' if self.left_out else '')


class Settings:
    """A dict of the file that must be used up: what nobody took is named in the report."""

    def __init__(self, values, where):
        if type(values) is not dict:
            raise UserError(f'{where} is missing; the file is no published network')
        self._values, self._where = dict(values), where

    def take(self, name, *default):
        """The value called `name`, no longer in the rest. UserError if it is absent and has no default."""
        if name not in self._values and not default:
            raise UserError(f'{self._where} has no {name}; the file was written by a fork that is not known here')
        return self._values.pop(name, *default)

    def require(self, name, *allowed):
        """Take a setting that may only have the `allowed` values, the first of which is its default."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise UserError(f'{self._where}: {name} is {value!r}, networks of this project have '
                            f'{" or ".join(map(repr, allowed))}; use the code that wrote the file')

    def rest(self):
        """{'where.name': why} of what was not taken."""
        return {f'{self._where}.{name}'[:100]: 'not needed' for name in self._values}


def tensors_of(module):
    """{dotted name: Tensor} of a Module's parameters and persistent buffers, its submodules' included. UserError if the
    modules hold one another, or are too many."""
    found, budget = {}, [MAX_ENTRIES]

    def walk(node, prefix, depth):
        budget[0] -= 1 + sum(len(_table(node, name)) for name in ('_parameters', '_buffers', '_modules'))
        if depth > MAX_DEPTH or budget[0] < 0:
            raise UserError(f'{module.class_name}: modules are nested too deeply, or too many; the file is damaged or malicious')
        hidden = node.state.get('_non_persistent_buffers_set') or ()
        for table in ('_parameters', '_buffers'):
            for name, tensor in _table(node, table).items():
                if type(tensor) is Tensor:
                    if table == '_parameters' or name not in hidden:
                        found[f'{prefix}{name}'] = tensor
                elif tensor is not None:
                    raise UserError(f'{prefix}{name} is a {type(tensor).__name__} and no tensor; the file is damaged')
        for name, child in _table(node, '_modules').items():
            if type(child) is Module:
                walk(child, f'{prefix}{name}.', depth + 1)
            elif child is not None:
                raise UserError(f'{prefix}{name} is a {type(child).__name__} and no module; the file is damaged')

    walk(module, '', 0)
    return found


def _table(node, name):
    table = node.state.get(name, {})
    is_table = type(table) is dict and len(table) <= MAX_ENTRIES
    if not is_table or not all(type(key) is str and re.fullmatch(r'\w{1,200}', key) for key in table):
        raise UserError(f'{node.class_name}: {name} is no table; the file is damaged')
    return table


def submodule(module, name):
    """The Module `name` of a Module, or one without attributes."""
    child = _table(module, '_modules').get(name)
    return child if type(child) is Module else Module('', {})


def arguments(module):
    """The constructor's arguments of a Module, as Settings. UserError if it keeps none by name."""
    state = module.state
    if type(state.get('_init_args', ())) not in (tuple, list) or state.get('_init_args', ()):
        raise UserError(f'{module.class_name} was made with unnamed arguments; the file was written by a fork that is not known here')
    return Settings(plain(state.get('_init_kwargs'), f'arguments of {module.class_name}'), 'init_kwargs')


def other_attributes(module, used):
    """{'attribute name': why} of a Module's own attributes that are neither torch's nor in `used`."""
    left = [name for name in module.state if type(name) is str and name not in MODULE_TABLES and name not in used
            and not (name.startswith('_') and name.endswith(('_hooks', '_hook', '_with_kwargs', '_always_called')))]
    return {f'attribute {name}'[:100]: 'not part of the network' for name in left}


def settle_filters(tensors, outline):
    """`tensors` with the resampling filters of the names in `outline`: where the file lacks one it is the family's, and one
    that has no place must be the family's, or else UserError. Published modules hold these constants in varying places."""
    usual = setup_filter(RESAMPLE_TAPS)
    settled = dict(tensors)
    for name in [name for name in tensors if name.rpartition('.')[2] == FILTER and name not in outline]:
        stray = settled.pop(name)
        if stray.shape != tuple(usual.shape) or not torch.allclose(stray.to_torch().float(), usual):
            raise UserError(f'{name} is another filter than the family\'s, and has no place here; use the code that wrote the file')
    settled.update({name: usual.clone() for name in outline if name.rpartition('.')[2] == FILTER and name not in tensors})
    return settled
