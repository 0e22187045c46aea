"""The one reader of network files: our snapshots and the published pickles, through an allow-list, nothing executed.

`read(file)` returns what the pickle holds with stand-ins in the place of objects: `Record` for a network of ours (the
description that torch_utils.persistence writes), `Module` for a published one (its class's name and its attributes; the
source that such files carry is dropped unread), `Tensor` for numbers. What a stand-in becomes is decided elsewhere, by
training.snapshot and the key maps beside this file.
"""

import numpy as np

from dnnlib import UserError
from legacy.pickle_machine import Buildable, Damaged, Machine, Name, Stream, Truncated
from legacy.storages import DTYPES, Tensor, read_storage

PROTOCOL_MARK = b'\x80'
MAX_BYTES = 64 * 2 ** 30
MAX_DEPTH = 32                  # of values inside values in arguments and settings
MAX_VALUES = 100_000            # of such values in one file
MAX_TEXT = 100_000              # characters of one of them
# The package whose functions pickled tensors name; in two parts, because it is a name in files and nothing here calls it.
TENSOR_FUNCTIONS = 'torch' '._utils'
NUMPY = ('numpy.core.multiarray', 'numpy._core.multiarray', 'numpy.core.numeric', 'numpy._core.numeric')
BUILTINS = ('builtins', '__builtin__')
# Modules that published networks refer to by class, not by a persistent object.
PLAIN_MODULES = ('torch.nn.modules.container.Sequential', 'torch.nn.modules.container.ModuleList',
                 'torch.nn.modules.activation.Softplus')
# Classes of the published networks, wherever under training/ a fork keeps them.
PUBLISHED_CLASSES = frozenset((
    'TriPlaneGenerator', 'Generator', 'MappingNetwork', 'SynthesisNetwork', 'SynthesisBlock', 'SynthesisLayer', 'ToRGBLayer',
    'FullyConnectedLayer', 'OSGDecoder', 'SuperresolutionHybrid2X', 'SuperresolutionHybrid4X', 'SuperresolutionHybrid8X',
    'SuperresolutionHybrid8XDC', 'SynthesisBlockNoUp', 'ImportanceRenderer', 'MipRayMarcher2', 'RaySampler', 'DualDiscriminator',
    'MaskDualDiscriminator', 'MaskDualDiscriminatorV2', 'DiscriminatorBlock', 'Conv2dLayer', 'MinibatchStdLayer',
    'DiscriminatorEpilogue', 'AugmentPipe'))
REMEDY = ('give a network-snapshot-NNNNNN.pkl of train.py, or a network published with EG3D or PanoHead; only if you trust its '
          'author with this computer: --trust-pickle executes what the file says')


class Record:
    """A network of this project: its description, not yet checked."""
    __slots__ = ('meta',)

    def __init__(self, meta):
        self.meta = meta


class Module(Buildable):
    """A module of a published network: the name of its class, and its attributes."""
    __slots__ = ('class_name', 'state')

    def __init__(self, class_name, state=None):
        self.class_name, self.state = class_name, {}
        if state is not None:
            self.build(state)

    def build(self, state):
        if type(state) is not dict:
            raise Damaged(f'a {self.class_name} without attributes')
        self.state = state


class _Dtype(Buildable):
    """numpy.dtype of numbers, by its code such as f8; its state says the order of bytes."""
    __slots__ = ('code',)

    def __init__(self, code, *_):
        if type(code) is not str or code[-2:] not in ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8'):
            raise Damaged('a numpy type that is none of numbers')
        self.code = code

    def build(self, state):
        if type(state) is not tuple or len(state) < 2 or state[1] not in ('<', '|', '='):
            raise Damaged('a numpy type of a big-endian machine')

    def array(self, octets, shape):
        """Array of the bytes. Damaged if they do not fit the shape."""
        if type(octets) not in (bytes, bytearray) or type(shape) is not tuple or len(shape) > 8:
            raise Damaged('a numpy array without shape or numbers')
        return np.frombuffer(octets, dtype=self.code).reshape(shape)


class _Array(Buildable):
    """numpy.ndarray that its state fills."""
    __slots__ = ('values',)

    def __init__(self, *_):
        self.values = None

    def build(self, state):
        _, shape, dtype, _, octets = state
        self.values = _of_dtype(dtype).array(octets, shape)

    @classmethod
    def from_buffer(cls, octets, dtype, shape, order='C'):
        made = cls()
        made.values = _of_dtype(dtype).array(octets, shape)
        return made


def _of_dtype(dtype):
    if type(dtype) is not _Dtype:
        raise Damaged('numbers of no type')
    return dtype


def _scalar(dtype, octets):
    return _of_dtype(dtype).array(octets, ()).item()


def _ordered_dict(items=()):
    return dict(items)


def _easy_dict():
    return {}


def _rebuild_tensor(storage, offset, shape, stride, requires_grad, hooks, metadata=None):
    return Tensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor, requires_grad, hooks):
    if type(tensor) is not Tensor:
        raise Damaged('a parameter that is no tensor')
    return tensor


def _encode(text, encoding):
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise Damaged('bytes in an unknown encoding')
    return text.encode('latin-1')


def _bytes(*arguments):
    if arguments:
        raise Damaged('bytes made of something')
    return b''


def _set(items=()):
    if type(items) is not list:
        raise Damaged('a set that is none')
    made = set()
    for item in items:
        if type(item) is not str:
            raise Damaged('a set of something else than texts')
        made.add(item)
    return made


def _size(items=()):
    return tuple(items)


def _device(kind, index=None):
    return str(kind)[:20]


def _persistent_object(meta):
    """A published network's object: its class and attributes; `module_src`, the source it carries, is not looked at."""
    if type(meta) is not dict or meta.get('type') != 'class' or type(meta.get('class_name')) is not str:
        raise Damaged('a persistent object without class')
    if meta.get('version') not in range(1, 7):
        raise UserError(f'its networks are of persistence version {meta.get("version")!r}, known are 1 to 6; ask its author for an export')
    name = meta['class_name'].rpartition('.')[2]
    if name not in PUBLISHED_CLASSES:
        raise UserError(f'it holds a {name[:100]!r}, which is no class of the published EG3D and PanoHead networks; {REMEDY}')
    return Module(name, meta.get('state'))


_CALLS = {
    # A function made for this one use each: a stream may set no attribute of it, but nothing is shared either way.
    'torch_utils.persistence.rebuild': Record,
    # The name is published files'; the object is never looked up.
    'torch_utils.persistence._reconstruct_persistent_obj': _persistent_object,
    'collections.OrderedDict': _ordered_dict,
    f'{TENSOR_FUNCTIONS}._rebuild_tensor_v2': _rebuild_tensor,
    f'{TENSOR_FUNCTIONS}._rebuild_parameter': _rebuild_parameter,
    'torch.Size': _size,
    'torch.device': _device,
    '_codecs.encode': _encode,
    'numpy.dtype': _Dtype,
    **{f'{module}.{name}': function for module in NUMPY
       for name, function in (('scalar', _scalar), ('_reconstruct', _Array), ('_frombuffer', _Array.from_buffer))},
    **{f'{module}.{name}': function for module in BUILTINS for name, function in (('set', _set), ('bytes', _bytes))},
}
# The function that pickled storages name, likewise.
_CALLS['.'.join(('torch.storage', '_load_from_bytes'))] = read_storage
_PLAIN_NAMES = {'numpy.ndarray', *(f'torch.{str(dtype).removeprefix("torch.")}' for dtype in DTYPES.values())}
_EASY_DICTS = ('dnnlib.util.EasyDict', 'dnnlib.EasyDict')


def find_name(module, name):
    """The Name that stands for module.name. Raises UserError for everything off the list."""
    label = f'{module}.{name}'
    if label in _CALLS:
        return Name(label, call=_CALLS[label])
    if label in _EASY_DICTS:
        return Name(label, call=_easy_dict, new=_easy_dict)
    if label in PLAIN_MODULES or (module.partition('.')[0] == 'training' and name in PUBLISHED_CLASSES):
        return Name(label, new=lambda: Module(name))
    if label in _PLAIN_NAMES:
        return Name(label)
    raise UserError(f'it asks for {label[:200]}, which no network file needs, so it was not read; {REMEDY}')


def read(file):
    """(value, bytes of the file) of a pickle that is a whole binary file, which can seek. Raises UserError, whose message continues the
    file's name, for what is not allowed, Truncated or Damaged (legacy.pickle_machine) for what is broken."""
    stream = Stream(file)
    if stream.size > MAX_BYTES:
        raise UserError(f'has {stream.size / 2 ** 30:.0f} GiB; network files have at most {MAX_BYTES >> 30}')
    if file.read(1) != PROTOCOL_MARK:    # any other first byte may look like an instruction that wants more than there is
        raise Damaged('no pickle of protocol 2 to 5')
    file.seek(0)
    return Machine(stream, find_name).run(), stream.size


def plain(value, where='the file'):
    """`value` in fresh dicts, lists, tuples, numbers and texts, whose stand-ins for numpy arrays and sets are lists.
    UserError if there is anything else in it, or if it is deeper or larger than settings ever are."""
    budget = [MAX_VALUES]

    def copy(item, depth):
        budget[0] -= 1
        if depth > MAX_DEPTH or budget[0] < 0:
            raise UserError(f'{where}: values are nested too deeply, or too many; the file is damaged or malicious')
        if type(item) in (bool, type(None), float) or (type(item) is int and abs(item) < 2 ** 64):
            return item
        if type(item) is str and len(item) <= MAX_TEXT:
            return item
        if type(item) is dict:
            return {str(copy(key, depth + 1)): copy(entry, depth + 1) for key, entry in item.items()}
        if type(item) in (list, tuple):
            return type(item)(copy(entry, depth + 1) for entry in item)
        if type(item) is _Array and item.values is not None and item.values.size < MAX_VALUES:
            return copy(item.values.tolist(), depth)
        if type(item) in (set, frozenset):
            return copy(sorted(map(str, item)), depth)
        raise UserError(f'{where}: holds a {type(item).__name__} where a setting belongs; the file is damaged or malicious')

    return copy(value, 0)


__all__ = ['Damaged', 'Module', 'Record', 'REMEDY', 'Tensor', 'Truncated', 'find_name', 'plain', 'read']
