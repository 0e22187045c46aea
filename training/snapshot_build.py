"""From what a file says of a network to the network: class, arguments and tensors, checked before memory is taken.

Names and shapes are compared with an outline of the network that has no numbers, and together the tensors are never larger
than the file they come from, so that a file of a few kilobytes cannot ask for more than that.
"""

import dataclasses
import importlib

import torch

import dnnlib
from legacy import families, published, reader
from torch_utils import persistence

ALLOWED_PACKAGES = ('training.generators', 'training.discriminators')
# Largest sensible arguments of a constructor, by the end of an argument's name; any other number stays below MAX_ARGUMENT.
MAX_ARGUMENTS = {'layers': 64, 'plane_depth': 64, 'num_fp16_res': 16, 'neural_rendering_resolution': 2048, 'plane_resolution': 4096,
                 'img_resolution': 4096, 'depth_resolution': 4096, 'depth_resolution_importance': 4096, 'features': 4096}
MAX_ARGUMENT = 2 ** 20
# What wrong arguments and wrong tensors make constructors raise.
BUILDING_ERRORS = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A network not yet built: `cls(**init_kwargs)` with `tensors` {name: torch.Tensor or legacy.reader.Tensor}; `what` names
    it in messages. `is_published`: resampling filters may be missing or lie in other places."""
    cls: type
    init_kwargs: dict
    tensors: dict
    what: str
    is_published: bool = False

    def __post_init__(self):
        _check_arguments(self.init_kwargs)

    def build(self, size):
        """The network on the CPU, in evaluation mode without gradients, from a file of `size` bytes. UserError if class,
        arguments and tensors do not fit each other exactly, or are larger than the file."""
        try:
            with torch.device('meta'):
                outline = self.cls(**persistence.plain_containers(self.init_kwargs)).state_dict()
            tensors = published.settle_filters(self.tensors, outline) if self.is_published else self.tensors
            persistence.check_state(outline, tensors, self.what)
            _check_numbers(outline, tensors, size)
            state = {name: tensor.to_torch() if isinstance(tensor, reader.Tensor) else tensor for name, tensor in tensors.items()}
            meta = {'class_name': self.what, 'init_kwargs': self.init_kwargs, 'training': False, 'requires_grad': False}
            return persistence.instantiate(self.cls, meta, state)
        except dnnlib.UserError:
            raise
        except BUILDING_ERRORS as error:
            raise _cannot_be_made(self.what, error) from error


def _cannot_be_made(what, error):
    return dnnlib.UserError(f'{what} cannot be made from the arguments in the file ({str(error)[:300]}); the file was written by '
                            f'other code, use the version that wrote it')


def from_description(meta, size):
    """Blueprint of a description that torch_utils.persistence wrote, in a file of `size` bytes; its mode, its wish for
    gradients and the source it carries do not matter here."""
    cls, init_kwargs = allowed_class(meta)
    try:
        total = sum(len(octets) for _, _, _, octets in meta['state'])
        if total > size:
            raise _larger_than_file(total, size)
        return Blueprint(cls, init_kwargs, persistence.unpack_state(meta), meta['class_name'])
    except dnnlib.UserError:
        raise
    except BUILDING_ERRORS as error:
        raise _cannot_be_made(meta['class_name'], error) from error


def from_published(module, key):
    """(Blueprint, report) of entry `key` of a published file; the report is a legacy.published.Translation."""
    try:
        report = families.translate(module)
    except dnnlib.UserError:
        raise
    except BUILDING_ERRORS as error:
        raise _cannot_be_made(f'published {module.class_name}', error) from error
    return Blueprint(report.cls, report.init_kwargs, report.tensors, f'published {report.family} {key}', is_published=True), report


def allowed_class(meta):
    """(class, arguments) of a description {'class_name', 'init_kwargs', ...}: a decorated network of ALLOWED_PACKAGES.
    UserError for anything else."""
    persistence.check_format(meta)
    class_name = meta['class_name']
    module_name, _, attribute = class_name.rpartition('.')
    refusal = dnnlib.UserError(f'{class_name[:200]} is not a network of this project; use the code that wrote the file')
    if not module_name.startswith(tuple(f'{package}.' for package in ALLOWED_PACKAGES)):
        raise refusal
    try:
        cls = getattr(importlib.import_module(module_name), attribute, None)
    except (ImportError, ValueError) as error:
        raise refusal from error
    if not persistence.is_persistent(cls) or not issubclass(cls, torch.nn.Module):
        raise refusal
    return cls, reader.plain(meta['init_kwargs'], 'the arguments')


def _check_arguments(value, name=''):
    """UserError for a constructor's arguments that name foreign classes, or sizes beyond all measure."""
    if isinstance(value, dict):
        class_name = value.get('class_name')
        if class_name is not None and not str(class_name).startswith('training.'):
            raise dnnlib.UserError(f'the network\'s arguments name {str(class_name)[:100]!r}, which is not a class of this project')
        for key, item in value.items():
            _check_arguments(item, key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_arguments(item, name)
    elif isinstance(value, (int, float)):
        limit = next((limit for ending, limit in MAX_ARGUMENTS.items() if name.endswith(ending)), MAX_ARGUMENT)
        if not abs(value) <= limit:
            raise dnnlib.UserError(f'the network\'s argument {name[:100]} is {value!r}, of which at most {limit} makes sense; '
                                   'the file is damaged or malicious')


def _check_numbers(outline, tensors, size):
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > size:
        raise _larger_than_file(total, size)
    for name, own in outline.items():
        if tensors[name].dtype.is_floating_point != own.dtype.is_floating_point:
            raise dnnlib.UserError(f'{name} is of type {tensors[name].dtype}, the network\'s is {own.dtype}; the file is damaged')


def _larger_than_file(total, size):
    return dnnlib.UserError(f'its tensors claim {total} bytes, the file has {size}; the file is damaged or malicious')
