"""Portable networks: a pickled network carries the source it needs, so that it loads where the project is not installed.

A class decorated with `persistent_class` pickles as one call, `torch_utils.persistence.rebuild(meta)`, where `meta` is a
dict of plain values: the class's public name, its constructor's arguments, the raw bytes of its parameters and buffers,
and the text of every module its own module imports, short of torch_utils and dnnlib (importable wherever the pickle is
read), the standard library and third parties (torch and NumPy).

`rebuild` runs that text in modules of its own, named `_omnihead_DIGEST.training...`, where DIGEST identifies the text:
snapshots written by different versions live side by side, and a package called `training` of somebody else is neither
used nor touched. Running it is running the code of whoever wrote the file, as with every pickle;
training.snapshot.load_network reads the same files without executing anything that they contain.

What is not embedded: modules reached only by a name built at run time, data files beside the sources, and Python
attributes changed after construction.
"""

import ast
import builtins
import copy
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import pickle
import sys

import torch

from dnnlib.util import UserError

FORMAT = 'omnihead'
VERSION = 1
PRIVATE_PREFIX = '_omnihead_'
# Importable by contract wherever a snapshot is read, hence never embedded.
CONTRACT_PACKAGES = ('torch_utils', 'dnnlib')
# Top-level names embedded besides the package of the class itself.
OWN_TOP_LEVEL = ('training', 'camera_utils')


# ---------------------------------------------------------------------------------------------------------------------
# The decorator.

def persistent_class(cls):
    """Class decorator for an nn.Module: instances remember their constructor's arguments as `init_kwargs` (by name,
    defaults included) and pickle portably. The class keeps its identity; deepcopy and copy stay those of nn.Module.
    The arguments must be JSON values (None, bool, int, float, str, lists, tuples, dicts) by the time of pickling;
    constructors take no *args. A subclass is decorated again."""
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording_init(self, *args, **kwargs):
        # Bound before the call, because a constructor may change a dict that it was given.
        recorded = _arguments_by_name(signature, self, args, kwargs) if type(self) is cls else None
        init(self, *args, **kwargs)
        if recorded is not None:
            self.init_kwargs = recorded
            # Read now rather than when pickling: by then somebody may have edited the files of a running program.
            class_sources(cls)

    cls.__init__ = recording_init
    cls.__reduce_ex__ = _reduce
    cls.__deepcopy__ = _deepcopy
    cls.__copy__ = _shallow_copy
    cls._persistent_owner = cls
    return cls


def is_persistent(cls):
    """Whether the class itself, not only a base of it, is decorated with persistent_class."""
    return isinstance(cls, type) and cls.__dict__.get('_persistent_owner') is cls


def _arguments_by_name(signature, self, args, kwargs):
    bound = signature.bind(self, *args, **kwargs)
    bound.apply_defaults()
    recorded = {}
    for index, (name, value) in enumerate(bound.arguments.items()):
        kind = signature.parameters[name].kind
        if index == 0 and kind is not inspect.Parameter.VAR_POSITIONAL:
            continue  # self
        if kind is inspect.Parameter.VAR_POSITIONAL:
            if len(value) > (index == 0):
                raise TypeError(f'{type(self).__name__}: arguments of a persistent class are named, *{name} is not')
        elif kind is inspect.Parameter.VAR_KEYWORD:
            recorded.update(value)
        else:
            recorded[name] = value
    return {name: plain_containers(value) for name, value in recorded.items()}


def plain_containers(value):
    """Dicts, lists and tuples copied as plain ones; everything else as it is."""
    if isinstance(value, dict):
        return {key: plain_containers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(plain_containers(item) for item in value)
    return value


def _plain(value, where):
    """`value` in plain types only, subclasses such as numpy.float64 turned into their base; TypeError naming `where`."""
    if value is None or isinstance(value, bool):
        return value
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, dict):
        return {str(key): _plain(item, f'{where}[{key!r}]') for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_plain(item, f'{where}[{i}]') for i, item in enumerate(value))
    raise TypeError(f'{where} is a {type(value).__name__}; a network that is saved is constructed from JSON values only')


def _reduce(self, protocol):
    return rebuild, (describe(self),)


def _ordinary_state(module):
    """Class and state as copying and pickling of a plain nn.Module would see them."""
    return type(module), object.__reduce_ex__(module, 4)[2]


def _deepcopy(self, memo):
    cls, state = _ordinary_state(self)
    clone = cls.__new__(cls)
    memo[id(self)] = clone
    clone.__setstate__(copy.deepcopy(state, memo))
    return clone


def _shallow_copy(self):
    cls, state = _ordinary_state(self)
    clone = cls.__new__(cls)
    clone.__setstate__(dict(state))
    return clone


# ---------------------------------------------------------------------------------------------------------------------
# Writing: a network as plain values.

def describe(module, overrides=None, **flags):
    """The meta dict of a decorated module, as pickled: format, version, class_name, init_kwargs, state, training,
    requires_grad (whether any parameter does), sources. `overrides` replaces constructor arguments in what is written,
    `flags` the entries training or requires_grad. TypeError or pickle.PicklingError if it cannot be written."""
    cls = type(module)
    if not is_persistent(cls):
        raise pickle.PicklingError(f'{cls.__qualname__} cannot be saved: decorate it with persistent_class')
    class_name, sources = public_name(cls), class_sources(cls)
    init_kwargs = {**module.init_kwargs, **(overrides or {})}
    unknown = sorted(set(init_kwargs) - set(module.init_kwargs))
    if unknown:
        raise TypeError(f'{class_name} has no argument {", ".join(unknown)}; it has {", ".join(sorted(module.init_kwargs))}')
    if not sources or '<locals>' in cls.__qualname__:
        raise pickle.PicklingError(f'{class_name} cannot be saved: define it at the top level of a module that is imported')
    return {
        'format': FORMAT, 'version': VERSION, 'class_name': class_name,
        'init_kwargs': {name: _plain(value, f'{class_name}: {name}') for name, value in init_kwargs.items()},
        'state': [_pack(name, tensor) for name, tensor in module.state_dict().items()],
        'training': bool(flags.get('training', module.training)),
        'requires_grad': bool(flags.get('requires_grad', any(p.requires_grad for p in module.parameters()))),
        'sources': dict(sources),
    }


def public_name(cls):
    """Dotted name of a class as its author knows it, also for a class rebuilt from a snapshot."""
    digest, module_name = _split_private(cls.__module__)
    return f'{module_name if digest else cls.__module__}.{cls.__qualname__}'


def class_sources(cls):
    """{module name: source text} that `cls` needs, the embedded text for a rebuilt class; {} where there is no source."""
    digest, _ = _split_private(cls.__module__)
    return _embedded[digest] if digest else import_closure(cls.__module__)


@functools.lru_cache(maxsize=None)
def import_closure(module_name):
    """{module name: source text} of the module and all it imports, anywhere in its text, from its own top-level package
    and from OWN_TOP_LEVEL, with the packages on the way. Empty if the module has no source (an interactive session)."""
    own = {module_name.partition('.')[0], *OWN_TOP_LEVEL} - set(CONTRACT_PACKAGES)
    sources, waiting = {}, [module_name]
    while waiting:
        name = waiting.pop()
        spec = _find_spec(name) if name not in sources and name.partition('.')[0] in own else None
        text = spec.loader.get_source(name) if isinstance(spec and spec.loader, importlib.abc.InspectLoader) else None
        if text is None:
            continue
        sources[name] = text
        package = name if spec.submodule_search_locations is not None else name.rpartition('.')[0]
        waiting.extend(_imported_names(text, package))
        waiting.append(name.rpartition('.')[0])
    return dict(sorted(sources.items())) if module_name in sources else {}


def _find_spec(name):
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None  # `from module import something` asks for module.something, which need not be a module


def _imported_names(text, package):
    """Absolute names that may be modules among the imports in the text of a module of `package`."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name('.' * node.level + (node.module or ''), package or None)
            names.append(base)
            names.extend(f'{base}.{alias.name}' for alias in node.names)
    return names


def _pack(name, tensor):
    """(name, dtype, shape, little-endian bytes) of a tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f'{name} is a {type(tensor).__name__}; only parameters and buffers are saved')
    octets = _little_endian(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8), tensor.element_size())
    return name, str(tensor.dtype).removeprefix('torch.'), list(tensor.shape), octets.numpy().tobytes()


def unpack_state(meta):
    """{name: tensor} of meta's `state`; ValueError if the parts of an entry do not fit each other."""
    return dict(_unpack(entry) for entry in meta['state'])


def _unpack(entry):
    name, dtype_name, shape, octets = entry
    dtype = getattr(torch, str(dtype_name), None)
    if not isinstance(dtype, torch.dtype) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f'{name}: {dtype_name!r} {shape!r} is not the type and shape of a tensor')
    tensor = torch.empty(0, dtype=dtype)
    numel = functools.reduce(lambda a, b: a * b, shape, 1)
    if len(octets) != numel * tensor.element_size():
        raise ValueError(f'{name}: {len(octets)} bytes for shape {tuple(shape)} of {dtype_name}')
    if numel:
        # The copy makes the memory writable and our own.
        tensor = _little_endian(torch.frombuffer(bytearray(octets), dtype=torch.uint8), tensor.element_size()).view(dtype)
    return str(name), tensor.reshape(tuple(shape))


def _little_endian(octets, size):
    """Bytes [N * size] between this machine's order and little-endian."""
    return octets if sys.byteorder == 'little' else octets.reshape(-1, size).flip(1).reshape(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Reading: a network from plain values.

def rebuild(meta):
    """The network that `describe` wrote, on the CPU, made by the code embedded in `meta`, which is executed.
    Raises UserError if the description is not one that this version reads."""
    check_format(meta)
    sources = {str(name): str(text) for name, text in meta['sources'].items()}
    digest = hashlib.sha256(json.dumps(sorted(sources.items())).encode()).hexdigest()[:16]
    _embedded.setdefault(digest, sources)
    module_name = class_module(meta['class_name'], sources)
    owner = importlib.import_module(f'{PRIVATE_PREFIX}{digest}.{module_name}')
    for attribute in meta['class_name'][len(module_name) + 1:].split('.'):
        owner = getattr(owner, attribute)
    return instantiate(owner, meta, unpack_state(meta))


def check_format(meta):
    """UserError unless `meta` is a description of the format and version that this code reads."""
    keys = {'class_name': str, 'init_kwargs': dict, 'state': list, 'training': bool, 'requires_grad': bool, 'sources': dict}
    if not isinstance(meta, dict) or meta.get('format') != FORMAT:
        raise UserError('the file holds no Omnihead network; use a snapshot written by train.py')
    if meta.get('version') != VERSION:
        raise UserError(f'the network is of format version {meta.get("version")!r}, this code reads {VERSION}; '
                        f'update torch_utils')
    broken = [key for key, kind in keys.items() if not isinstance(meta.get(key), kind)]
    if broken:
        raise UserError(f'the network\'s description lacks {", ".join(broken)}; the file is damaged, write it again')


def class_module(class_name, modules):
    """The longest of the module names that the dotted class name begins with. UserError if there is none."""
    parts = class_name.split('.')
    for length in range(len(parts) - 1, 0, -1):
        if '.'.join(parts[:length]) in modules:
            return '.'.join(parts[:length])
    raise UserError(f'the file does not hold the source of {class_name}; it is damaged, write it again')


def instantiate(cls, meta, state):
    """`cls` constructed from meta's init_kwargs, with `state` {name: tensor} and meta's mode and requires_grad. The
    global random state is left as it was. Raises UserError naming missing, unexpected and misshapen entries."""
    with torch.random.fork_rng(devices=[]):
        network = cls(**plain_containers(meta['init_kwargs']))
    load_state(network, state, meta['class_name'])
    if not meta['requires_grad']:
        network.requires_grad_(False)
    return network.train(meta['training'])


def check_state(own, state, what):
    """UserError naming `what` unless names and shapes of two {name: tensor} agree exactly; `own` are the network's."""
    report = {
        'missing': [name for name in own if name not in state],
        'unexpected': [name for name in state if name not in own],
        'of another shape': [f'{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}'
                             for name, tensor in own.items() if name in state and state[name].shape != tensor.shape],
    }
    lines = [f'{len(names)} {kind}: {", ".join(names[:8])}{", ..." if len(names) > 8 else ""}'
             for kind, names in report.items() if names]
    if lines:
        raise UserError(f'{what}: the parameters in the file are not those of the network ({"; ".join(lines)}); '
                        f'the file was written by other code, use the version that wrote it')


def load_state(network, state, what):
    """Put {name: tensor} into the network, types included. UserError naming `what` unless names and shapes agree exactly."""
    check_state(network.state_dict(), state, what)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        # In place, as Module.to does, so that tied parameters stay tied.
        if name in state and state[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    network.load_state_dict(state)


# ---------------------------------------------------------------------------------------------------------------------
# The private modules.

_embedded = {}  # digest -> {module name: source text}


def _split_private(name):
    """('DIGEST', 'training.x') of '_omnihead_DIGEST.training.x'; (None, name) of every other name."""
    head, _, rest = name.partition('.')
    digest = head.removeprefix(PRIVATE_PREFIX)
    return (digest, rest) if digest != head and digest in _embedded else (None, name)


class _EmbeddedImporter(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads modules under the private prefix. Being a loader with get_source, it also serves tracebacks,
    inspect.getsource and torch.compile."""

    def find_spec(self, fullname, path=None, target=None):
        digest, name = _split_private(fullname)
        if digest is None or (name and name not in _embedded[digest]):
            return None
        is_package = not name or any(other.startswith(name + '.') for other in _embedded[digest])
        origin = fullname.replace('.', '/') + ('/__init__.py' if is_package else '.py')
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=origin, is_package=is_package)
        spec.has_location = True
        return spec

    def get_source(self, fullname):
        digest, name = _split_private(fullname)
        return _embedded[digest][name] if name else ''

    def exec_module(self, module):
        digest, _ = _split_private(module.__name__)
        # The interpreter takes a module's import function from its __builtins__, in functions called later, too.
        module.__dict__['__builtins__'] = {**vars(builtins), '__import__': _private_import(digest)}
        code = compile(self.get_source(module.__name__), module.__spec__.origin, 'exec', dont_inherit=True)
        exec(code, module.__dict__)


def _private_import(digest):
    """The __import__ of the modules of one digest: names of an embedded package mean the embedded package."""
    top_level = {name.partition('.')[0] for name in _embedded[digest]}
    root = PRIVATE_PREFIX + digest

    def import_embedded(name, globals=None, locals=None, fromlist=(), level=0):
        top = name.partition('.')[0]
        if level or top not in top_level:
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = importlib.import_module(f'{root}.{name}')
        if not fromlist:
            return sys.modules[f'{root}.{top}']
        # Asked again by the ordinary way, which imports submodules named in the list.
        return builtins.__import__(module.__name__, globals, locals, fromlist, 0)

    return import_embedded


sys.meta_path.append(_EmbeddedImporter())
