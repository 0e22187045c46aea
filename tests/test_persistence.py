"""torch_utils.persistence: a pickled network brings its own source, and loads beside anything else called the same."""

import ast
import copy
import importlib
import inspect
import io
import pickle
import pickletools
import pkgutil
import shutil
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest
import torch

import dnnlib
import training.discriminators
import training.generators
from torch_utils import persistence

ROOT = Path(persistence.__file__).resolve().parents[1]

LAYERS = '''
    from __future__ import annotations
    import dataclasses
    import torch

    @dataclasses.dataclass(frozen=True)
    class Options:
        gain: float = 1.0
        name: str | None = None

    class Scale(torch.nn.Module):
        def __init__(self, options: Options):
            super().__init__()
            self.options = options
            self.weight = torch.nn.Parameter(torch.randn(3))
            self.register_buffer('coarse', torch.randn(2, 2, dtype=torch.float64).to(torch.bfloat16))
            self.register_buffer('count', torch.tensor(7))
            self.register_buffer('scratch', torch.zeros(4), persistent=False)

        def forward(self, x):
            return x * self.weight * self.options.gain
'''
NET = '''
    import heads.parts.layers as L
    import heads.constants
    import torch
    from camera_utils import LABEL_DIM
    from heads.parts import extra
    from heads.parts.layers import Scale
    from torch_utils.persistence import persistent_class
    from ..parts import again

    @persistent_class
    class Net(torch.nn.Module):
        def __init__(self, width, *, options=None, depth=2, **more):
            super().__init__()
            options = options if options is not None else {}
            self.scale = Scale(L.Options(**options))
            self.inner = Inner(width)
            self.offset = heads.constants.OFFSET + extra.ZERO + again.ZERO
            options['changed'] = True

        def forward(self, x):
            from heads import lazy
            if x.shape[-1] != 3:
                raise ValueError(f'not {LABEL_DIM}')  # marked line
            return lazy.twice(self.scale(x)) + self.offset + self.inner.linear.bias.sum()

    @persistent_class
    class Inner(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear = torch.nn.Linear(width, width)

    @persistent_class
    class Wider(Net):
        def __init__(self, width):
            super().__init__(width + 1, options={'gain': 2.0})

    class Undecorated(Net):
        pass
'''
PACKAGE = {
    '__init__.py': "'''Heads.'''\n",
    'constants.py': 'OFFSET = 10.0\n',
    'lazy.py': 'def twice(x):\n    return 2 * x\n',
    'unrelated.py': 'raise RuntimeError\n',
    'parts/__init__.py': '',
    'parts/layers.py': LAYERS,
    'parts/extra.py': 'ZERO = 0\n',
    'parts/again.py': 'ZERO = 0\n',
    'nets/__init__.py': '',
    'nets/net.py': NET,
}


def forget(package):
    for name in [name for name in sys.modules if name.partition('.')[0] == package]:
        del sys.modules[name]
    persistence.import_closure.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def heads(tmp_path, monkeypatch):
    """Writes the package `heads` with some files replaced, imports it and returns heads.nets.net."""
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)

    def make(**replaced):
        folder = tmp_path / f'heads{len(list(tmp_path.iterdir()))}'
        for name, text in {**PACKAGE, **{f'{key}.py': text for key, text in replaced.items()}}.items():
            (folder / 'heads' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'heads' / name).write_text(textwrap.dedent(text))
        forget('heads')
        monkeypatch.syspath_prepend(str(folder))
        return importlib.import_module('heads.nets.net')

    yield make
    forget('heads')


@pytest.fixture
def net(heads):
    torch.manual_seed(1)
    return heads().Net(4, options={'gain': 3.0}, seed=5)


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def copied_by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def test_arguments_are_recorded_by_name_before_the_constructor_changes_them(net):
    assert net.init_kwargs == {'width': 4, 'options': {'gain': 3.0}, 'depth': 2, 'seed': 5}
    assert net.inner.init_kwargs == {'width': 4}


def test_subclass_records_its_own_arguments(net):
    wider = sys.modules['heads.nets.net'].Wider(3)
    assert wider.init_kwargs == {'width': 3}
    assert type(copied_by_pickle(wider)).__name__ == 'Wider'


def test_decorated_class_stays_itself(net):
    cls = type(net)
    assert cls.__name__ == 'Net' and isinstance(net, torch.nn.Module) and persistence.is_persistent(cls)
    assert list(inspect.signature(cls).parameters) == ['width', 'options', 'depth', 'more']
    assert not persistence.is_persistent(sys.modules['heads.nets.net'].Undecorated)


def test_sources_are_the_import_closure(net):
    assert set(persistence.class_sources(type(net))) == {
        'camera_utils', 'heads', 'heads.constants', 'heads.lazy', 'heads.nets', 'heads.nets.net', 'heads.parts',
        'heads.parts.again', 'heads.parts.extra', 'heads.parts.layers'}


def test_sources_are_those_that_run_not_those_edited_meanwhile(net):
    path = Path(sys.modules['heads.constants'].__file__)
    path.write_text('OFFSET = 99.0\n')
    assert copied_by_pickle(net).offset == 10.0


def test_pickle_names_one_global_and_plain_types(net):
    strings, found = [], []
    for opcode, argument, _ in pickletools.genops(pickle.dumps({'G': net}, protocol=4)):
        if isinstance(argument, str) and opcode.name != 'GLOBAL':
            strings.append(argument)
        assert opcode.name not in ('GLOBAL', 'INST', 'OBJ', 'BUILD', 'NEWOBJ', 'NEWOBJ_EX', 'PERSID', 'BINPERSID')
        if opcode.name == 'STACK_GLOBAL':
            found.append(tuple(strings[-2:]))
    assert found == [('torch_utils.persistence', 'rebuild')]


def test_round_trip_is_bit_equal_and_runs(net):
    x = torch.randn(2, 3)
    net.scale.weight.requires_grad_(False)
    back = copied_by_pickle(net.eval())
    assert states_equal(net, back) and torch.equal(net(x), back(x))
    assert not back.training and back.scale.coarse.dtype == torch.bfloat16 and back.scale.count.shape == ()
    assert back.scale.scratch.shape == (4,)
    assert type(back).__module__.startswith('_omnihead_') and type(back) is not type(net)


@pytest.mark.parametrize('training, requires_grad', [(True, True), (False, False)])
def test_mode_and_gradients_are_kept(net, training, requires_grad):
    back = copied_by_pickle(net.train(training).requires_grad_(requires_grad))
    assert back.training == training == back.scale.training
    assert {p.requires_grad for p in back.parameters()} == {requires_grad}


def test_changed_types_are_kept(net):
    back = copied_by_pickle(net.to(torch.float16))
    assert states_equal(net, back) and back.scale.weight.dtype == torch.float16


def test_rebuilt_network_is_pickled_again_with_the_embedded_source(net):
    once = copied_by_pickle(net)
    forget('heads')
    sys.path[:] = [folder for folder in sys.path if not (Path(folder) / 'heads').is_dir()]
    twice = copied_by_pickle(once)
    assert type(twice) is type(once) and states_equal(net, twice)
    meta = persistence.describe(once)
    assert meta['class_name'] == 'heads.nets.net.Net' and meta['init_kwargs'] == net.init_kwargs
    assert 'heads' not in sys.modules


@pytest.mark.parametrize('rebuilt', [False, True])
def test_deepcopy_is_ordinary(net, rebuilt, monkeypatch):
    net = copied_by_pickle(net) if rebuilt else net
    calls = []
    net.scale.register_forward_hook(lambda *_: calls.append(1))
    net.extra = {'kept': [1]}
    for refused in ('rebuild', 'describe', 'instantiate'):
        monkeypatch.setattr(persistence, refused, None)
    clone = copy.deepcopy(net)
    assert type(clone) is type(net) and states_equal(net, clone) and clone.extra == net.extra
    assert clone.extra is not net.extra and clone.init_kwargs == net.init_kwargs
    assert clone.scale.weight.data_ptr() != net.scale.weight.data_ptr()
    clone(torch.ones(1, 3))
    assert calls == [1]
    assert copy.copy(net).scale is net.scale


def test_two_versions_live_side_by_side(heads):
    x = torch.ones(1, 3)
    old = heads().Net(1)
    old_file, old_result = pickle.dumps(old), old(x)
    new = heads(constants='OFFSET = 20.0\n').Net(1)
    new_file, new_result = pickle.dumps(new), new(x)
    old_back, new_back = pickle.loads(old_file), pickle.loads(new_file)
    assert torch.equal(old_back(x), old_result) and torch.equal(new_back(x), new_result)
    assert (old_back.offset, new_back.offset) == (10.0, 20.0)
    assert type(pickle.loads(old_file)) is type(old_back) is not type(new_back)


def test_loading_leaves_modules_and_random_numbers_alone(net):
    data = pickle.dumps(net)
    forget('heads')
    before, state = set(sys.modules), torch.get_rng_state()
    pickle.loads(data)(torch.ones(1, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(name.startswith('_omnihead_') for name in set(sys.modules) - before)


def test_source_is_found_by_inspect_and_tracebacks(net):
    back = copied_by_pickle(net)
    assert inspect.getsource(type(back)) == inspect.getsource(type(net))
    with pytest.raises(ValueError) as caught:
        back(torch.ones(1, 2))
    assert '# marked line' in ''.join(traceback.format_exception(caught.type, caught.value, caught.tb))


def test_compiled_by_dynamo(net):
    back = copied_by_pickle(net.eval())
    x = torch.randn(2, 3)
    assert torch.allclose(torch.compile(back, backend='eager', fullgraph=True)(x), net(x))


def test_torch_save_takes_it(net):
    file = io.BytesIO()
    torch.save({'G': net}, file)
    file.seek(0)
    assert states_equal(net, torch.load(file, weights_only=False)['G'])


def test_undecorated_subclass_is_refused(net):
    undecorated = sys.modules['heads.nets.net'].Undecorated(1)
    assert not hasattr(undecorated, 'init_kwargs')
    with pytest.raises(pickle.PicklingError, match='Undecorated.*persistent_class'):
        pickle.dumps(undecorated)


def test_argument_that_is_no_json_value_is_refused(net):
    bad = type(net)(2, options={'gain': torch.ones(3)})
    with pytest.raises(TypeError, match=r"options\['gain'\] is a Tensor"):
        pickle.dumps(bad)


def test_numpy_float_becomes_a_float(net):
    numpy = pytest.importorskip('numpy')
    meta = persistence.describe(type(net)(2, options={'gain': numpy.float64(2.5)}))
    assert type(meta['init_kwargs']['options']['gain']) is float


def test_local_class_is_refused():
    @persistence.persistent_class
    class Local(torch.nn.Module):
        def __init__(self):
            super().__init__()

    with pytest.raises(pickle.PicklingError, match='top level'):
        pickle.dumps(Local())


@pytest.mark.parametrize('change, message', [
    ({'version': 2}, 'version 2'),
    ({'format': 'other'}, 'no Omnihead network'),
    ({'sources': {}}, 'source of heads.nets.net.Net'),
    ({'state': None}, 'lacks state'),
])
def test_descriptions_that_are_refused(net, change, message):
    with pytest.raises(dnnlib.UserError, match=message):
        persistence.rebuild({**persistence.describe(net), **change})


def test_parameters_that_do_not_fit_are_reported(net):
    meta = persistence.describe(net)
    meta['state'] = meta['state'][1:] + [('other.weight', 'float32', [1], bytes(4))]
    with pytest.raises(dnnlib.UserError, match=r'1 missing: scale.weight; 1 unexpected: other.weight'):
        persistence.rebuild(meta)
    with pytest.raises(dnnlib.UserError, match=r'inner.linear.weight \(4, 4\) instead of \(5, 5\)'):
        persistence.rebuild({**persistence.describe(net), 'init_kwargs': {'width': 5}})


def networks_of_the_project():
    for package in (training.generators, training.discriminators):
        for found in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
            module = importlib.import_module(found.name)
            yield from (cls for cls in vars(module).values()
                        if persistence.is_persistent(cls) and cls.__module__ == found.name)


@pytest.mark.parametrize('cls', list(networks_of_the_project()))
def test_networks_of_the_project_need_torch_and_numpy_only(cls):
    sources = persistence.class_sources(cls)
    imported = set()
    for node in (node for text in sources.values() for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Import):
            imported.update(alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.partition('.')[0])
    allowed = {'torch', 'numpy', *persistence.CONTRACT_PACKAGES, *persistence.OWN_TOP_LEVEL, *sys.stdlib_module_names}
    assert cls.__module__ in sources and not imported - allowed


ALONE = '''
    import pickle, sys, torch
    with open('x.pkl', 'rb') as file:
        G = pickle.load(file)['G_ema']
    foreign = [name for name in sys.modules if name.partition('.')[0] in ('training', 'camera_utils', 'click', 'scipy')]
    assert not foreign or FOREIGN, foreign
    saved = torch.load('parameters.pt')
    assert all(torch.equal(value, saved.pop(name)) for name, value in G.state_dict().items()) and not saved
    torch.testing.assert_close(G(torch.load('z.pt'), torch.load('c.pt'))['image'], torch.load('image.pt'), rtol=0, atol=1e-5)
    if FOREIGN:
        import training
        assert training.MINE
    print(type(G).__name__)
'''


@pytest.mark.parametrize('foreign', [False, True], ids=['empty folder', 'foreign training package'])
def test_generator_loads_with_torch_utils_and_dnnlib_alone(tmp_path, foreign, monkeypatch):
    # The other process has no compiler on its path: both take the plain operators. The weights must be equal bit for bit;
    # images of two processes may differ by rounding, for the libraries below PyTorch choose their kernels by themselves.
    monkeypatch.setenv('OMNIHEAD_NATIVE', '0')
    from camera_utils import front_label
    from training.generators.eg3d import EG3DGenerator
    torch.manual_seed(0)
    G = EG3DGenerator(z_dim=8, w_dim=8, img_resolution=64, channel_base=64, channel_max=8, plane_resolution=16,
                      neural_rendering_resolution=8, rendering={'depth_resolution': 4, 'depth_resolution_importance': 4})
    G.eval().requires_grad_(False)
    z, c = torch.randn(1, 8), front_label()
    for name, value in {'z': z, 'c': c, 'image': G(z, c)['image'], 'parameters': G.state_dict()}.items():
        torch.save(value, tmp_path / f'{name}.pt')
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'G_ema': G}))
    for package in persistence.CONTRACT_PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns('__pycache__'))
    if foreign:
        (tmp_path / 'training').mkdir()
        (tmp_path / 'training' / '__init__.py').write_text('MINE = True\n')
    script = textwrap.dedent(ALONE).replace('FOREIGN', str(foreign))
    done = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True,
                          env={'PATH': '', 'OMP_NUM_THREADS': str(torch.get_num_threads()), 'OMNIHEAD_NATIVE': '0'})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'EG3DGenerator'
