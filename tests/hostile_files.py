"""Generates network files that do harm if executed, ask for absurd amounts, or are broken: {name: bytes}.

A file that would execute something creates the file `canary` by it.
"""

import io
import pickle
import struct
import warnings
import zipfile

import numpy as np
import torch

from pickle_writer import Call, Global, New, PersistentId, Raw, call, dumps, encode
from published_files import MAGIC, PROTOCOL, TENSOR_FUNCTIONS, Writer, archive, easy
from torch_utils import persistence

HUGE = 2 ** 60


def python(canary):
    """Source that leaves the canary."""
    return f'open({str(canary)!r}, "w").close()'


def shell(canary):
    """Command that leaves the canary."""
    return f'touch "{canary}"'


def functions(canary):
    """(module, name, arguments) of calls that run code, reach code, or do harm."""
    command, source = shell(canary), python(canary)
    harmful_pickle = dumps(call('builtins', 'exec', source), 4)
    return [
        ('os', 'system', command), ('posix', 'system', command), ('nt', 'system', command), ('os', 'popen', command),
        ('os', 'execvp', 'touch', ['touch', str(canary)]), ('os', 'remove', str(canary)), ('os', 'putenv', 'A', 'B'),
        ('os', 'kill', 1, 0), ('subprocess', 'Popen', command), ('subprocess', 'run', ['touch', str(canary)]),
        ('subprocess', 'check_output', ['touch', str(canary)]), ('subprocess', 'getoutput', command), ('commands', 'getoutput', command),
        ('pty', 'spawn', 'sh'), ('builtins', 'eval', source), ('builtins', 'exec', source), ('builtins', 'compile', source, 'x', 'exec'),
        ('__builtin__', 'eval', source), ('builtins', '__import__', 'antigravity'), ('builtins', 'open', str(canary), 'w'),
        ('builtins', 'getattr', 'x', '__class__'), ('builtins', 'setattr', 'x', 'y', 'z'), ('builtins', 'globals'),
        ('builtins', 'breakpoint'), ('builtins', 'map', Global('os', 'system'), [command]), ('builtins', 'exec.__call__', source),
        ('builtins', 'object.__subclasses__'), ('builtins', 'type', 'X', (), {}), ('builtins', 'bytearray', 2 ** 40),
        ('builtins', 'bytes', 2 ** 40), ('builtins', 'list', 'x'), ('builtins', 'print', 'x'), ('builtins', 'set', 'abc'),
        ('importlib', 'import_module', 'os'), ('runpy', 'run_path', str(canary)), ('runpy', '_run_code', source, {}),
        ('code', 'interact'), ('pickle', 'loads', harmful_pickle), ('_pickle', 'loads', harmful_pickle), ('marshal', 'loads', b'\xe3'),
        ('shelve', 'open', str(canary)), ('types', 'FunctionType', None, {}), ('types', 'CodeType', 0),
        ('functools', 'partial', Global('os', 'system'), command), ('functools', 'reduce', Global('os', 'system'), [command]),
        ('operator', 'attrgetter', 'system'), ('operator', 'methodcaller', 'system', command),
        ('copyreg', '_reconstructor', Global('builtins', 'object'), Global('builtins', 'object'), None),
        ('copyreg', '__newobj__', Global('os', 'system')), ('timeit', 'timeit', source), ('cProfile', 'run', source),
        ('pdb', 'run', source), ('trace', 'Trace'), ('ctypes', 'CDLL', 'libc.so.6'), ('socket', 'create_connection', ('localhost', 9)),
        ('urllib.request', 'urlopen', 'http://localhost:9'), ('webbrowser', 'open', 'http://localhost:9'),
        ('shutil', 'rmtree', str(canary)), ('shutil', 'copyfile', '/etc/hostname', str(canary)), ('pathlib', 'Path.touch', str(canary)),
        ('logging', 'FileHandler', str(canary)), ('tempfile', 'mkdtemp'), ('asyncio', 'run', None), ('multiprocessing', 'Process'),
        ('torch', 'load', str(canary)), ('torch', 'save', {}, str(canary)), ('torch.hub', 'load', 'x', 'y'),
        ('torch.jit', 'load', str(canary)), ('torch.serialization', 'load', str(canary)),
        ('torch.package', 'PackageImporter', str(canary)), ('torch.nn.modules.linear', 'Linear', 1, 1),
        ('torch.nn.modules.container', 'Sequential', 1), (TENSOR_FUNCTIONS, '_rebuild_wrapper_subclass'),
        (TENSOR_FUNCTIONS, '_import_dotted_name', 'os.system'), ('torch.ops', 'load_library', 'x.so'),
        ('torch.utils.cpp_extension', 'load_inline', 'x', source), ('numpy', 'load', str(canary)), ('numpy', 'memmap', str(canary)),
        ('numpy', 'fromfile', str(canary)), ('numpy.core.multiarray', 'fromstring', 'x'), ('dnnlib.util', 'get_obj_by_name', 'os.system'),
        ('dnnlib', 'construct_class_by_name'), ('dnnlib.util', 'open_url', 'http://localhost:9'), ('dnnlib.util', 'EasyDict.__init__'),
        ('dnnlib.util', 'os.system', command), ('torch_utils.persistence', 'exec_module'),
        ('torch_utils.persistence', 'importlib.import_module', 'os'), ('torch_utils.persistence', 'rebuild.__globals__'),
        ('torch_utils.persistence', 'instantiate', 1), ('training.generators.panohead', 'PanoHeadGenerator'),
        ('training.snapshot', 'load_snapshot', 'x'), ('training.generators.base', 'Generator', 1), ('training.x', 'os.system', command),
        ('train', 'main'), ('__main__', 'main'), ('', ''), ('_codecs', 'encode', 'x', 'punycode'),
        ('_codecs', 'encode', source, 'unicode_escape'), ('collections', 'namedtuple', 'X', source), ('collections', 'OrderedDict', 1),
        ('torch', 'Size', 7), ('numpy', 'dtype', 'O'), ('numpy', 'dtype', 'V1000000000'),
        ('numpy.core.multiarray', '_reconstruct', Global('os', 'system'), (0,), b'b'),
    ]


def executing(canary):
    """{name: bytes} of files that call something, in every place that a value can stand."""
    files = {}
    for module, name, *args in functions(canary):
        for protocol in (2, 4):
            files[f'call-{protocol}-{module}.{name}-{len(files)}'] = dumps({'G_ema': Call(module, name, tuple(args))}, protocol)
    system = call('os', 'system', shell(canary))
    chain = call('builtins', 'getattr', call('builtins', '__import__', 'os'), 'system')
    reach = call('builtins', 'getattr', call('builtins', 'getattr', '', '__class__'), '__mro__')
    writer = Writer()
    places = {
        'top': system, 'list': [system], 'key': {system: 1}, 'setting': {'G_ema': None, 'training_set_kwargs': {'a': system}},
        'getattr': {'G_ema': chain}, 'getattr-mro': {'G_ema': reach},
        'state-of-name': {'G_ema': Raw(_name('os', 'system') + pickle.EMPTY_DICT + pickle.BUILD)},
        'called-result': {'G_ema': Raw(_name('torch.nn.modules.activation', 'Softplus') + b')\x81' + b'(' + _text('x') + b'tR')},
        'new-object': {'G_ema': New('subprocess', 'Popen')}, 'new-eval': {'G_ema': New('builtins', 'eval')},
        'state': {'G_ema': writer.persistent('TriPlaneGenerator', {'_parameters': {'a': system}})},
        'attribute': {'G_ema': writer.persistent('TriPlaneGenerator', {'a': system})},
        'class-name': {'G_ema': writer.persistent(system, {})},
        'hook': {'G_ema': writer.persistent('TriPlaneGenerator', {'_forward_hooks': {0: Global('os', 'system')}})},
        'meta': {'G_ema': call('torch_utils.persistence', 'rebuild', system)},
        'no-meta': {'G_ema': call('torch_utils.persistence', 'rebuild', 1, 2)},
        'nested-persistence': {'G_ema': nested_persistence(writer, system)}, 'persistent-id': {'G_ema': PersistentId(system)},
        'numpy-objects': {
            'G_ema': Call(
                'numpy.core.multiarray', '_reconstruct', (Global('numpy', 'ndarray'), (0,), b'b'),
                (1, (1,), call('numpy', 'dtype', 'O8', False, True), False, [system]),
            )
        },
        'storage': {'G_ema': call('torch.storage', '_load_from_bytes', dumps(call('os', 'system', shell(canary))))},
        'storage-header': {'G_ema': call('torch.storage', '_load_from_bytes', dumps(MAGIC) + dumps(PROTOCOL) + dumps(system))},
        'storage-archive': {'G_ema': call('torch.storage', '_load_from_bytes', archive({'data.pkl': dumps(system), 'data/0': b''}))},
        'storage-code': {
            'G_ema': call('torch.storage', '_load_from_bytes', archive({'data.pkl': dumps(1), 'code/x.py': python(canary).encode()}))
        },
        'extension': {'G_ema': Raw(pickle.EXT1 + b'\x01')}, 'inst': Raw(b'(i' + b'os\nsystem\n'),
        'obj': Raw(b'(' + _name('os', 'system') + b'o'), 'text-id': Raw(b'Pos.system\n'),
    }
    files.update({f'place-{name}': dumps(value, 4) for name, value in places.items()})
    return files


def _name(module, name):
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _text(text):
    return pickle.BINUNICODE + struct.pack('<I', len(text)) + text.encode()


def nested_persistence(writer, inner, depth=30):
    """Persistent objects within one another's modules, with `inner` in the last."""
    value = writer.persistent('SynthesisLayer', {'_parameters': {'weight': inner}})
    for _ in range(depth):
        # Encoded at once: the writer itself shall not recurse.
        value = Raw(encode(writer.persistent('SynthesisBlock', {'_modules': {'x': value}}), 4))
    return writer.persistent('TriPlaneGenerator', {'_modules': {'x': value}})


def archives():
    """{name: bytes} of storages in archives that torch.save does not write."""
    header = dumps(PersistentId(('storage', Global('torch', 'FloatStorage'), '0', 'cpu', 4)))
    data = bytes(16)
    good = {'data.pkl': header, 'data/0': data}
    bomb = dumps(PersistentId(('storage', Global('torch', 'FloatStorage'), '0', 'cpu', 2 ** 23)))
    duplicated = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(duplicated, 'w') as file:
        warnings.simplefilter('ignore')
        for _ in range(8):
            file.writestr('a/data.pkl', header)
    plain = archive(good)
    central = plain.index(b'PK\x01\x02')
    lying = bytearray(plain)
    for place in (central + 20, central + 24):  # compressed and uncompressed size of the first entry
        lying[place : place + 4] = struct.pack('<I', 2 ** 31)
    encrypted = bytearray(plain)
    encrypted[central + 8] |= 1
    return {
        'bomb': archive({'data.pkl': bomb, 'data/0': bytes(2 ** 25)}, zipfile.ZIP_DEFLATED),
        'bomb-bz2': archive({'data.pkl': bomb, 'data/0': bytes(2 ** 25)}, zipfile.ZIP_BZIP2),
        'deflated': archive(good, zipfile.ZIP_DEFLATED), 'parent': archive({**good, '../../../canary': b'x'}),
        'parent-folder': archive(good, folder='..'), 'root': archive({'/canary': b'', **good}, folder=None),
        'drive': archive({'C:' '\\canary': b'', **good}), 'backslash': archive({'..\\canary': b'', **good}),
        'tilde': archive({'~/canary': b'', **good}), 'zero': archive({'a\x00b': b'', **good}), 'empty-name': archive({'': b'', **good}),
        'deep-path': archive({'data/' * 50: b'', **good}), 'many': archive({**good, **{f'data/{i}': b'' for i in range(1, 1000)}}),
        'two-folders': archive({**{f'x/{k}': v for k, v in good.items()}, 'y/data.pkl': b''}, folder=None),
        'doubled': duplicated.getvalue(), 'lying': bytes(lying), 'encrypted': bytes(encrypted), 'no-header': archive({'data/0': data}),
        'no-data': archive({'data.pkl': header}), 'short-data': archive({'data.pkl': header, 'data/0': data[:-1]}), 'cut': plain[:-30],
        'only-magic': b'PK\x03\x04', 'big-endian': archive({**good, 'byteorder': b'big'}),
        'archive-in-archive': archive({'data.pkl': plain, 'data/0': data}),
        'tensor-dict': archive({'data.pkl': dumps({'a': 1}), 'data/0': data}),
    }


def legacy_storages():
    """{name: bytes} of storages in the legacy format whose parts do not fit each other."""
    system = {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}

    def legacy(
        numel=4, stated=4, octets=bytes(16), kind='FloatStorage', key='0', keys=('0',), magic=MAGIC, protocol=PROTOCOL, system=system,
        view=None, module='torch',
    ):
        identity = ('storage', Global(module, kind), key, 'cpu', numel, view)
        header = [dumps(value) for value in (magic, protocol, system, PersistentId(identity), list(keys))]
        return b''.join(header) + struct.pack('<Q', stated % 2 ** 64) + octets

    return {
        'more': legacy(numel=5, stated=5), 'fewer': legacy(numel=3, stated=3), 'disagree': legacy(stated=5),
        'huge': legacy(numel=HUGE, stated=HUGE), 'negative': legacy(numel=-1, stated=-1), 'no-octets': legacy(octets=b''),
        'rest': legacy(octets=bytes(17)), 'type': legacy(kind='QUInt8Storage'), 'foreign-type': legacy(module='os', kind='FloatStorage'),
        'untyped': legacy(module='torch.storage', kind='UntypedStorage'), 'float-size': legacy(numel=4.0),
        'other-key': legacy(keys=('1',)), 'keys': legacy(keys=('0', '1')), 'no-keys': legacy(keys=()), 'magic': legacy(magic=1),
        'protocol': legacy(protocol=7), 'system': legacy(system=1), 'big-endian': legacy(system={**system, 'little_endian': False}),
        'view': legacy(view=('0', 0, 2)), 'cut': legacy()[:-60], 'empty': b'', 'text': b'hello', 'half': legacy(kind='DoubleStorage'),
    }


def tensors(writer):
    """{name: value} of tensors that their storage cannot hold."""
    four = torch.zeros(4)
    storage = call('torch.storage', '_load_from_bytes', writer.storage_bytes(four))

    def rebuilt(*args):
        return call(TENSOR_FUNCTIONS, '_rebuild_tensor_v2', *args)

    return {
        'too-long': writer.tensor(four, shape=(5,)), 'far': writer.tensor(four, offset=1), 'very-far': writer.tensor(four, offset=2 ** 62),
        'negative-offset': writer.tensor(four, offset=-1), 'stride': writer.tensor(four, stride=(2,)),
        'negative-stride': writer.tensor(four, stride=(-1,)), 'expanded': writer.tensor(four, shape=(2 ** 20, 2 ** 20), stride=(0, 0)),
        'expanded-a-little': writer.tensor(four, shape=(5,), stride=(0,)),
        'huge': writer.tensor(four, shape=(2 ** 62, 2 ** 62), stride=(1, 1)), 'negative': writer.tensor(four, shape=(-4,)),
        'floats': writer.tensor(four, shape=(4.0,)), 'text': writer.tensor(four, shape='four'),
        'dimensions': writer.tensor(four, shape=(1,) * 1000, stride=(1,) * 1000), 'ranks': writer.tensor(four, shape=(2, 2), stride=(1,)),
        'no-storage': rebuilt(1, 0, (4,), (1,), False, {}), 'few-arguments': rebuilt(storage), 'many-arguments': rebuilt(*range(20)),
        'tensor-of-tensor': rebuilt(writer.tensor(four), 0, (4,), (1,), False, {}),
        'parameter-of-nothing': call(TENSOR_FUNCTIONS, '_rebuild_parameter', None, True, {}),
        'storage-of-number': call('torch.storage', '_load_from_bytes', 7), 'bool-shape': writer.tensor(four, shape=(True,)),
        'numpy-size': call('numpy.core.multiarray', 'scalar', call('numpy', 'dtype', 'f8', False, True), b'123'),
        'numpy-shape': Call(
            'numpy.core.multiarray', '_reconstruct', (Global('numpy', 'ndarray'), (0,), b'b'),
            (1, (2 ** 40,), call('numpy', 'dtype', 'f8', False, True), False, b'12345678'),
        ),
    }


def structures():
    """{name: bytes} of pickles that are too deep, too long, or refer to what is not there."""
    deep = 30_000

    def raw(octets, protocol=4):
        return pickle.PROTO + bytes([protocol]) + octets + pickle.STOP

    entry = _text('G_ema')
    laughs = pickle.EMPTY_LIST + b'q\x00' + b''.join(b'](h' + bytes([i]) + b'h' + bytes([i]) + b'eq' + bytes([i + 1]) for i in range(100))
    record = _name('torch_utils.persistence', 'rebuild')
    return {
        'deep-lists': raw(b'}' + entry + b'](' * deep + b'e' * deep + b's'),
        'deep-tuples': raw(b'}' + entry + b')' + b'\x85' * deep + b's'), 'deep-key': raw(b'})' + b'\x85' * deep + b'Ns'),
        'deep-dicts': raw(b'}' + (entry + b'}') * deep + b's' * deep),
        'deep-settings': raw(b'}(' + entry + record + b'N\x85R' + _text('training_set_kwargs') + b'](' * deep + b'e' * deep + b'u'),
        'itself': raw(b'}q\x00(' + entry + record + b'N\x85R' + _text('training_set_kwargs') + b'h\x00u'),
        'laughs': raw(b'}(' + entry + record + b'N\x85R' + _text('training_set_kwargs') + laughs + b'u'),
        'memo': raw(b'Nr\xff\xff\xff\x7f'), 'memo-absent': raw(b'h\x07'), 'long-memo-absent': raw(b'j\xff\xff\xff\x7f'),
        'frame': raw(b'\x95' + struct.pack('<Q', HUGE) + b'N'), 'bytes': raw(b'B\xff\xff\xff\xffx'),
        'bytes8': raw(b'\x8e' + struct.pack('<Q', HUGE)), 'bytearray8': raw(b'\x96' + struct.pack('<Q', HUGE), 5),
        'text8': raw(b'\x8d' + struct.pack('<Q', HUGE)), 'text': raw(b'X\xff\xff\xff\x7f'), 'long': raw(b'\x8b\xff\xff\xff\x7f'),
        'negative-long': raw(b'\x8b\xff\xff\xff\xff'), 'digits': raw(b'L' + b'9' * 100_000 + b'L\n'),
        'line': raw(b'c' + b'x' * 1_000_000 + b'\n'), 'lists': raw(b']0' * 600_000 + b'N'), 'buffer': raw(b'\x97', 5),
        'read-only': raw(b'N\x98', 5), 'marks': raw(b'(' * deep), 'underflow': raw(b'0'), 'nothing': raw(b''), 'too-much': raw(b'NN'),
        'no-stop': pickle.PROTO + b'\x04N', 'tuple-of-nothing': raw(b'\x87'), 'append': raw(b'Na'), 'set-item': raw(b']NNs'),
        'odd-items': raw(b'}(Nu'), 'unhashable': raw(b'}]Ns'), 'build-nothing': raw(b'Nb'), 'build-list': raw(b'}](Neb'),
        'reduce-number': raw(b'K\x01)R'), 'reduce-list': raw(_name('collections', 'OrderedDict') + b']R'),
        'new-number': raw(b'K\x01)\x81'), 'new-ex': raw(_name('dnnlib.util', 'EasyDict') + b')}\x92'),
        'name-of-numbers': raw(b'K\x01K\x02\x93'), 'utf8': raw(b'X\x02\x00\x00\x00\xff\xfe'), 'protocol-0': b'(dp0\n.',
        'protocol-1': b'}q\x00.', 'protocol-6': raw(b'N', 6), 'protocol-twice': raw(b'\x80\x09N'), 'unknown': raw(b'\xff'),
        'number-alone': raw(b'K\x01'), 'a-name': raw(_name('numpy', 'ndarray')),
        'name-entry': dumps({'G_ema': Global('numpy', 'ndarray')}),
    }


def own_descriptions(network):
    """{name: bytes} of our own format with a description that is wrong or absurd."""
    meta = persistence.describe(network)
    first = meta['state'][0]

    def file(**changes):
        return dumps({'G_ema': call('torch_utils.persistence', 'rebuild', {**meta, 'sources': {}, **changes})}, 4)

    def arguments(**changes):
        return file(init_kwargs={**meta['init_kwargs'], **changes})

    loud = [*meta['state'][1:]]
    return {
        'w_dim': arguments(w_dim=2 ** 40), 'layers': arguments(mapping_layers=10 ** 9), 'resolution': arguments(img_resolution=2 ** 30),
        'planes': arguments(plane_resolution=2 ** 20), 'channels': arguments(channel_base=2 ** 20, channel_max=2 ** 20),
        'negative': arguments(z_dim=-5), 'nan': arguments(decoder_lr_mul=float('nan')),
        'infinite': arguments(decoder_lr_mul=float('inf')), 'text': arguments(z_dim='x' * 10 ** 6), 'list': arguments(z_dim=[1] * 150_000),
        'unknown': arguments(banana=1), 'class': arguments(rendering={'class_name': 'os.system'}),
        'rays': arguments(rendering={'depth_resolution': 10 ** 9}), 'bytes': arguments(z_dim=b'4'),
        'raw': arguments(neural_rendering_resolution=10 ** 6), 'class-name': file(class_name='os.system'),
        'class-path': file(class_name='training.generators.eg3d.dnnlib'), 'class-dots': file(class_name='training.generators.'),
        'escape-name': file(state=[*meta['state'], ('x\n\x1b[2J', 'float32', [1], bytes(4))]),
        'class-number': file(class_name=7), 'version': file(version=10 ** 6), 'format': file(format='other'),
        'state-number': file(state=[1, 2]), 'state-text': file(state='abcd'), 'state-short': file(state=meta['state'][:-1]),
        'state-long': file(state=[*meta['state'], ('x', 'float32', [1], bytes(4))]),
        'octets': file(state=[(first[0], first[1], first[2], first[3][:-1]), *loud]),
        'shape': file(state=[(first[0], first[1], [2 ** 60], first[3]), *loud]),
        'negative-shape': file(state=[(first[0], first[1], [-1], first[3]), *loud]),
        'type': file(state=[(first[0], 'os', first[2], first[3]), *loud]),
        'integer-weights': file(
            state=[(name, 'int32' if kind == 'float32' else kind, shape, octets) for name, kind, shape, octets in meta['state']]
        ),
        'one-block': _one_block(meta),
    }


def _one_block(meta):
    """A description whose tensors all show one block of bytes: far more than the file has."""
    block = Raw(pickle.BINBYTES + struct.pack('<I', 2 ** 20) + bytes(2 ** 20) + b'q\x00')
    again = Raw(b'h\x00')
    state = [('a', 'uint8', [2 ** 20], block), *((f'a{i}', 'uint8', [2 ** 20], again) for i in range(2000))]
    return dumps({'G_ema': call('torch_utils.persistence', 'rebuild', {**meta, 'sources': {}, 'state': state})}, 4)


def broken_modules(writer):
    """{name: bytes} of published objects that are no modules."""

    def file(state):
        return dumps({'G_ema': writer.persistent('TriPlaneGenerator', state)}, 4)

    module = pickle.EMPTY_DICT + b'q\x00'  # attributes that hold the module itself
    meta = (
        b'}('
        + _text('type')
        + _text('class')
        + _text('version')
        + b'K\x06'
        + _text('class_name')
        + _text('TriPlaneGenerator')
        + _text('state')
    )
    cycle = (
        b'}'
        + _text('G_ema')
        + _name('torch_utils.persistence', '_reconstruct_persistent_obj')
        + meta
        + module
        + b'u\x85Rq\x01'
        + b'h\x00'
        + _text('_modules')
        + b'}'
        + _text('x')
        + b'h\x01ss0'
        + b's'
    )
    return {
        'no-state': file(None), 'state-number': file(7), 'state-list': file([1]), 'parameters': file({'_parameters': 7}),
        'modules': file({'_modules': [1]}), 'module-text': file({'_modules': {'x': 'y'}, 'rendering_kwargs': {}, '_init_kwargs': {}}),
        'number-key': file({'_parameters': {7: None}}), 'escape-key': file({'_parameters': {'x\n\x1b[2J': None}}),
        'many-names': many_names(writer),
        'long-key': file({'_parameters': {'x' * 1000: None}}),
        'arguments': file({'_init_kwargs': 7}), 'rendering': file({'_init_kwargs': {}, 'rendering_kwargs': 7}),
        'nested': dumps({'G_ema': nested_persistence(writer, None, 300)}, 4), 'cycle': pickle.PROTO + b'\x04' + cycle + pickle.STOP,
        'kwargs-tensor': file({'_init_kwargs': easy(z_dim=writer.tensor(torch.zeros(1)))}),
        'kwargs-array': file({'_init_kwargs': easy(z_dim=writer.number(np.float64(1)))}),
    }


def many_names(writer):
    """A table of many names, shared by many modules of modules."""
    shared = Raw(encode({f'p{i}': None for i in range(3000)}, 4) + b'q\x00')
    children = {f'm{i}': writer.persistent('SynthesisLayer', {'_parameters': Raw(b'h\x00')}) for i in range(200)}
    return dumps({'G_ema': writer.persistent('TriPlaneGenerator', {'_parameters': shared, '_modules': children})}, 4)


def all_files(canary, network):
    """{name: bytes} of all of the above, less truncations."""
    writer = Writer()
    groups = {
        'storage-archive': {name: _with_storage(octets) for name, octets in archives().items()},
        'storage-legacy': {name: _with_storage(octets) for name, octets in legacy_storages().items()},
        'tensor': {name: dumps({'G_ema': value}, 4) for name, value in tensors(writer).items()}, 'structure': structures(),
        'own': own_descriptions(network), 'module': broken_modules(writer),
    }
    named = {f'{group}-{name}': octets for group, files in groups.items() for name, octets in files.items()}
    return {**executing(canary), **named}


def _with_storage(octets):
    return dumps({'G_ema': call('torch.storage', '_load_from_bytes', octets)}, 4)
