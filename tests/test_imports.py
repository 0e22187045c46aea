"""Who may import whom. Imports run one way, from the scripts down to dnnlib; the table below is that rule, and the tests
walk the syntax trees of all files to hold it. A new module under training/ belongs to the loop's layer unless named here.
"""

import ast

import pytest

from project_files import ROOT, imported_names, is_script, module_name, python_files, relative, scripts, syntax_tree

BOTTOM = {'dnnlib', 'torch_utils', 'camera_utils'}
CONTRACTS = {'generator contract', 'discriminator contract'}
NETWORKS = {'generators', 'discriminators'} | CONTRACTS
MODEL = {'networks', 'field contract', 'representations', 'volumetric_rendering'}
LOOP = {'schedules', 'data', 'losses', 'snapshot', 'loop'}

# Layer of a module: the longest dotted name that its own name starts with.
LAYER_OF = {
    'dnnlib': 'dnnlib',
    'torch_utils': 'torch_utils',
    'camera_utils': 'camera_utils',
    'training.networks': 'networks',
    'training.representations': 'representations',
    'training.representations.base': 'field contract',
    'training.volumetric_rendering': 'volumetric_rendering',
    'training.generators': 'generators',
    'training.generators.base': 'generator contract',
    'training.discriminators': 'discriminators',
    'training.discriminators.base': 'discriminator contract',
    'training.augment': 'data',
    'training.dataset': 'data',
    'training.dataset_check': 'data',
    'training.dataset_convert': 'data',
    'training.dataset_joined': 'data',
    'training.dataset_labels': 'data',
    'training.dataset_store': 'data',
    'training.dataset_writer': 'data',
    'training.synthetic': 'data',
    'training.schedules': 'schedules',
    'training.losses': 'losses',
    'training.snapshot': 'snapshot',
    'training.snapshot_build': 'snapshot',
    'training.configure': 'configure',
    'training.presets': 'configure',
    'training.plan': 'configure',
    'training': 'loop',
    'legacy': 'legacy',
    'inference': 'inference',
    'metrics': 'metrics',
    'preprocessing': 'preprocessing',
    '3DDFA_V2_cropping': 'script',
    'docs': 'script',
    'benchmarks': 'script',
}

# What each layer sees beside itself.
SEES = {
    'dnnlib': set(),
    'torch_utils': {'dnnlib'},
    'camera_utils': {'dnnlib'},
    'networks': BOTTOM,
    'field contract': BOTTOM,
    # A field's fused path takes the renderer's options and limits; the renderer in turn sees only the contract.
    'representations': BOTTOM | {'networks', 'field contract', 'volumetric_rendering'},
    'volumetric_rendering': BOTTOM | {'field contract'},
    'generator contract': BOTTOM | MODEL,
    'generators': BOTTOM | MODEL | {'generator contract'},
    'discriminator contract': BOTTOM | {'networks'},
    'discriminators': BOTTOM | {'networks', 'discriminator contract'},
    'schedules': {'dnnlib'},
    'data': BOTTOM,
    'losses': BOTTOM | CONTRACTS | {'schedules'},
    'legacy': BOTTOM | NETWORKS | MODEL,
    'snapshot': BOTTOM | NETWORKS | {'legacy'},
    'loop': BOTTOM | NETWORKS | LOOP | {'networks'},   # the type that networks compute in is the run's to choose
    'configure': BOTTOM | MODEL | NETWORKS | LOOP,
    'inference': BOTTOM | MODEL | NETWORKS | {'data', 'snapshot', 'configure'},
    'metrics': BOTTOM | MODEL | NETWORKS | {'data', 'snapshot', 'configure', 'inference'},
    'preprocessing': BOTTOM | {'data', 'inference'},
    'script': BOTTOM | MODEL | NETWORKS | LOOP | {'configure', 'inference', 'metrics', 'preprocessing'},
}


def layer_of(name):
    """Layer of a dotted name, or None for what is not ours (the standard library, torch, ...)."""
    if name.split('.')[0] in scripts():
        return 'script'
    parts = name.split('.')
    for length in range(len(parts), 0, -1):
        layer = LAYER_OF.get('.'.join(parts[:length]))
        if layer:
            return layer
    return None


def wrong_imports(module, tree, is_package=False):
    """Lines saying which imports of the module named `module` go against the table."""
    layer = layer_of(module)
    faults = []
    for line, name in imported_names(tree, module, is_package):
        target = layer_of(name)
        if target is None:
            if layer == 'dnnlib' and name.split('.')[0] == 'torch':
                faults.append(f'{module}:{line} imports {name}: dnnlib knows nothing of torch')
        elif target == 'script':
            faults.append(f'{module}:{line} imports {name}: nothing imports a script')
        elif target != layer and target not in SEES[layer]:
            faults.append(f'{module}:{line} ({layer}) imports {name} ({target}); {layer} may see {sorted(SEES[layer])}')
    return faults


@pytest.mark.parametrize('path', python_files(), ids=relative)
def test_imports_run_one_way(path):
    module = module_name(path)
    assert layer_of(module), f'{relative(path)} belongs to no layer: name it in LAYER_OF'
    assert wrong_imports(module, syntax_tree(path), path.name == '__init__.py') == []


@pytest.mark.parametrize('module, source', [
    ('dnnlib.util', 'import torch'),
    ('dnnlib.util', 'def f():\n    from torch import nn'),
    ('dnnlib.util', 'import torch_utils.misc'),
    ('torch_utils.misc', 'import camera_utils'),
    ('camera_utils', 'from training.volumetric_rendering import rays'),
    ('training.networks.layers', 'from training.generators.base import Generator'),
    ('training.volumetric_rendering.renderer', 'from training.representations.planes import PlaneField'),
    ('training.volumetric_rendering.renderer', 'from training.representations import planes'),
    ('training.volumetric_rendering.renderer', 'from ..representations import planes'),
    ('training.generators.panohead', 'import training.discriminators.multi_input'),
    ('training.losses.adversarial', 'from training.generators.panohead import PanoHeadGenerator'),
    ('training.losses.regularizers', 'from training.volumetric_rendering.renderer import RenderOptions'),
    ('training.losses.adversarial', 'import training.training_loop'),
    ('training.dataset', 'from training import losses'),
    ('training.training_loop', 'import training.configure'),
    ('training.training_loop', 'from metrics import fid'),
    ('training.training_loop', 'import legacy'),
    ('inference.session', 'from training.losses import adversarial'),
    ('metrics.fid', 'import training.losses.regularizers'),
    ('inference.session', 'from legacy import reader'),
    ('legacy.reader', 'import training.snapshot'),
    ('metrics.fid', 'import train'),
])
def test_planted_wrong_import_is_caught(module, source, monkeypatch):
    monkeypatch.setattr('test_imports.scripts', lambda: {'train', 'gen_samples'})
    assert len(wrong_imports(module, ast.parse(source))) == 1


@pytest.mark.parametrize('module, source', [
    ('dnnlib.util', 'import numpy'),
    ('training.representations.planes', 'from training.volumetric_rendering.renderer import ray_limits'),
    ('training.volumetric_rendering.renderer', 'from training.representations.base import Field'),
    ('training.losses.adversarial', 'from training.generators.base import GeneratorOutput'),
    ('training.snapshot', 'import legacy.reader'),
    ('train', 'from training import configure'),
])
def test_right_import_passes(module, source, monkeypatch):
    monkeypatch.setattr('test_imports.scripts', lambda: {'train', 'gen_samples'})
    assert wrong_imports(module, ast.parse(source)) == []


def test_every_layer_of_the_table_has_a_rule():
    assert set(LAYER_OF.values()) == set(SEES)


def dotted_class_names(tree):
    """(line, text) of strings that name a class of ours by its dotted path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split('.')
            ours = layer_of(node.value) and all(p.isidentifier() for p in parts)
            if ours and len(parts) > 1 and parts[-1][0].isupper():
                yield node.lineno, node.value


@pytest.mark.parametrize('path', python_files(), ids=relative)
def test_class_names_are_written_in_configure_only(path):
    """A class named by a string is an import that no import statement shows; legacy/ maps published names."""
    if layer_of(module_name(path)) in ('configure', 'legacy'):
        return
    assert list(dotted_class_names(syntax_tree(path))) == []


def test_planted_class_name_is_caught():
    tree = ast.parse("c = dict(class_name='training.generators.panohead.PanoHeadGenerator', other='training.dataset', dim='a.B')")
    assert [text for _, text in dotted_class_names(tree)] == ['training.generators.panohead.PanoHeadGenerator']


def test_the_walk_finds_files():
    names = {relative(p) for p in python_files()}
    assert {'camera_utils.py', 'dnnlib/util.py', 'training/__init__.py'} <= names
    assert not any(is_script(ROOT / name) for name in ('camera_utils.py', 'dnnlib/util.py'))
