"""Rules of the house that a reader of the source can check: sizes, docstrings, no private torch API, no literal device,
no machine's paths, no print in libraries. Each check is a function from source to a list of faults and has a planted case.
"""

import ast
import re

import pytest

from project_files import ROOT, is_script, module_name, project_files, python_files, relative, scripts, syntax_tree

MAX_FILE_LINES = 500
MAX_SCRIPT_LINES = 150
MAX_COLUMNS = int(re.search(r'^line-length = (\d+)', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'), re.MULTILINE)[1])
MAX_FUNCTION_LINES = {'training_loop': 150}
DEFAULT_FUNCTION_LINES = 60
LINES_WITHOUT_DOCSTRING = 8
PRINTING_MODULES = {'dnnlib.cli', 'training.reporting', 'torch_utils.distributed'}
# Methods whose meaning a library fixes: torch, click and Python's own protocols.
FRAMEWORK_METHODS = {'forward', 'backward', 'setup_context', 'convert', 'extra_repr', 'write', 'find_class', 'persistent_load'}
# Methods that a base class documents: the contracts of training.representations.base and training.generators.base.
CONTRACT_METHODS = {'query', 'render_fused', 'build_field'}
SOURCE_SUFFIXES = {'.py', '.cpp', '.cu', '.h', '.cuh', '.sh'}

FORBIDDEN = {
    'private torch API': re.compile(r'\btorch(\.\w+)*\._[A-Za-z]|\bfrom torch[\w.]* import _|\b_jit_'),
    'NumPy name removed in 1.24': re.compile(r'\bnp\.(float|int|bool|object|str|complex|long)\b'),
    'device with an index': re.compile(
        r'''['"]cuda:\d+['"] *[),\]]|= *['"]cuda:\d|--device[ =]cuda:\d'''),
    'path of one machine': re.compile(r'(?<![\w.:/$}])(/(home|root|work|tmp|mnt|opt|Users)/|[A-Z]:\\\\?\w)'),
    'unfinished work': re.compile(r'\b(TODO|FIXME|XXX)\b|\braise NotImplementedError\b'),
}


def forbidden_text(source):
    """Lines of a text that hold what no file may hold."""
    return [f'{number}: {rule}: {line.strip()}' for number, line in enumerate(source.splitlines(), 1)
            for rule, pattern in FORBIDDEN.items() if pattern.search(line)]


def long_functions(tree):
    """Functions that do not fit a screen."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES.get(node.name, DEFAULT_FUNCTION_LINES):
                yield f'{node.lineno}: {node.name} has {lines} lines'


def missing_docstrings(tree):
    """Public functions, classes' methods included, that are longer than a few lines and say nothing about themselves."""
    if tree.body and not ast.get_docstring(tree):
        yield '1: the file does not say what it is'
    owners = [tree] + [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith('_')]
    for owner in owners:
        for node in owner.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_') and not ast.get_docstring(node):
                yield f'{node.lineno}: class {node.name}'
            if not isinstance(node, ast.FunctionDef) or node.name.startswith('_'):
                continue
            documented_elsewhere = isinstance(owner, ast.ClassDef) and node.name in FRAMEWORK_METHODS | CONTRACT_METHODS
            long = node.end_lineno - node.lineno + 1 > LINES_WITHOUT_DOCSTRING
            if long and not documented_elsewhere and not ast.get_docstring(node):
                yield f'{node.lineno}: {node.name}'


def bare_excepts(tree):
    """`except:` that would swallow a keyboard interrupt."""
    return [f'{n.lineno}: bare except' for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]


def prints(tree):
    """Calls of print."""
    return [f'{n.lineno}: print' for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == 'print']


def version_comparisons(tree):
    """Comparisons of a library's version: features are probed, versions are the ranges in pyproject.toml."""
    return [f'{n.lineno}: comparison of __version__' for n in ast.walk(tree) if isinstance(n, ast.Compare)
            and any(isinstance(part, ast.Attribute) and part.attr == '__version__' for part in ast.walk(n))]


@pytest.mark.parametrize('path', project_files(), ids=relative)
def test_no_forbidden_text(path):
    if path.name == 'test_house_rules.py':   # its planted cases are what it looks for
        return
    faults = forbidden_text(path.read_text(encoding='utf-8'))
    if relative(path).startswith('tests/'):
        faults = [f for f in faults if 'device with an index' not in f]   # what --device accepts has tests
    assert faults == []


@pytest.mark.parametrize('path', project_files(SOURCE_SUFFIXES), ids=relative)
def test_file_fits(path):
    limit = MAX_SCRIPT_LINES if module_name(path) in scripts() else MAX_FILE_LINES
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= limit, f'{relative(path)} has {lines} lines; split it along what it does'


@pytest.mark.parametrize('path', python_files(), ids=relative)
def test_python_source(path):
    tree = syntax_tree(path)
    faults = [*long_functions(tree), *missing_docstrings(tree), *bare_excepts(tree), *version_comparisons(tree)]
    if module_name(path) not in PRINTING_MODULES and not is_script(path):
        faults += prints(tree)
    assert faults == []


@pytest.mark.parametrize('path', project_files({'.py'}), ids=relative)
def test_lines_fit(path):
    if path.name == 'presets.py':   # a table with one row per recipe
        return
    long = [number for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1) if len(line) > MAX_COLUMNS]
    assert long == [], f'lines longer than {MAX_COLUMNS}'


@pytest.mark.parametrize('source', [
    'x = torch._dynamo', 'y = torch.utils._pytree.tree_map', 'from torch.nn.modules import _functions',
    'torch.ops.profiler._jit_pass', 'a = np.float(1)', 'b = x.astype(np.bool)', "device = 'cuda:1'", "net.to('cuda:0')",
    'python train.py --device cuda:1', "p = '/home/me/data'",
    "open('/tmp/x')", r"p = 'C:\data'", '# TODO later', 'raise NotImplementedError',
])
def test_planted_text_is_caught(source):
    assert len(forbidden_text(f'ok = 1\n{source}\n')) == 1


@pytest.mark.parametrize('source', [
    "'''or one with an index such as 'cuda:1'.'''", 'x = torch.float32', 'y = np.float32(1) + np.bool_(1) + np.int64(2)',
    "device = torch.device('cuda', rank)",
    "url = 'https://example.org/home/x'", "p = root / 'tmp' / 'x'", 'raise NotImplementedByDesign', '#!/usr/bin/env bash',
])
def test_innocent_text_passes(source):
    assert forbidden_text(source) == []


LONG = '\n'.join(f'    x{i} = {i}' for i in range(70))


@pytest.mark.parametrize('check, source', [
    (long_functions, f'def f():\n{LONG}'),
    (missing_docstrings, 'import os'),
    (missing_docstrings, '"""Doc."""\nclass A:\n    x = 1'),
    (missing_docstrings, '"""Doc."""\ndef f():\n' + '    x = 1\n' * 9),
    (missing_docstrings, '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self):\n' + '        x = 1\n' * 9),
    (bare_excepts, 'try:\n    x = 1\nexcept:\n    pass'),
    (prints, 'def f():\n    print(1)'),
    (version_comparisons, "if torch.__version__ >= '2.6':\n    pass"),
    (version_comparisons, "new = parse(torch.__version__) > parse('2')"),
])
def test_planted_source_is_caught(check, source):
    assert len(list(check(ast.parse(source)))) == 1


@pytest.mark.parametrize('check, source', [
    (long_functions, f'def training_loop():\n{LONG}'),
    (missing_docstrings, '"""Doc."""\ndef _f():\n' + '    x = 1\n' * 9),
    (missing_docstrings, '"""Doc."""\ndef f():\n    return 1'),
    (bare_excepts, 'try:\n    x = 1\nexcept OSError:\n    pass'),
    (version_comparisons, "digest = [torch.__version__]"),
])
def test_innocent_source_passes(check, source):
    assert list(check(ast.parse(source))) == []


def test_the_walk_sees_more_than_python():
    assert {'Makefile', '.ci/run', 'pyproject.toml', 'tests/test_house_rules.py'} <= {relative(p) for p in project_files()}
    assert all(ROOT in p.parents for p in project_files())
