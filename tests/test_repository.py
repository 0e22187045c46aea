"""The files around the code agree: pyproject.toml with the installed packages, environment.yml, constraints and scripts;
README's code blocks can be read."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import warnings

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from project_files import ROOT, project_files, relative, scripts
from readme_blocks import code_blocks, commands, readme_commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip('tomli', reason='tomllib came with Python 3.11')

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
EXTRAS = PROJECT['project']['optional-dependencies']


def requirements(lines):
    """{canonical name: Requirement} of requirement lines."""
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in parsed}


DEPENDENCIES = requirements(PROJECT['project']['dependencies'])


@pytest.mark.parametrize('name', sorted(DEPENDENCIES))
def test_installed_version_lies_in_the_range(name):
    installed = importlib.metadata.version(name)
    assert DEPENDENCIES[name].specifier.contains(installed, prereleases=True), installed


@pytest.mark.parametrize('extra', sorted(EXTRAS))
def test_versions_of_extras(extra):
    for name, requirement in requirements(EXTRAS[extra]).items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert requirement.specifier.contains(installed, prereleases=True), f'{name} {installed}'


@pytest.mark.parametrize('name', sorted(DEPENDENCIES))
def test_every_dependency_has_both_bounds(name):
    operators = {s.operator for s in DEPENDENCIES[name].specifier}
    # setuptools, which torch needs to build extensions, raises its major version monthly.
    assert '>=' in operators and ('<' in operators or name == 'setuptools')


def test_running_python_is_supported():
    assert '.'.join(map(str, sys.version_info[:2])) in ('3.10', '3.11', '3.12', '3.13')
    assert PROJECT['project']['requires-python'] == '>=3.10,<3.14'


def environment_lines(depth):
    """List items of environment.yml at an indentation of `depth` spaces."""
    text = (ROOT / 'environment.yml').read_text(encoding='utf-8')
    return [quoted or plain for quoted, plain in re.findall(rf'^ {{{depth}}}- (?:"([^"]+)"|([^\s:]+))$', text, re.MULTILINE)]


def test_conda_environment_is_pyproject():
    pip = requirements(environment_lines(6))
    expected = DEPENDENCIES | requirements(EXTRAS['dev'])
    assert {n: r.specifier for n, r in pip.items()} == {n: r.specifier for n, r in expected.items()}
    assert f"python{PROJECT['project']['requires-python']}" in environment_lines(2)


def test_constraints_pin_torch_within_the_range():
    text = (ROOT / 'constraints.txt').read_text(encoding='utf-8')
    pins = requirements(line for line in text.splitlines() if line and not line.startswith('#'))
    assert str(pins['torch'].specifier) == '==2.13.0'
    for name, pin in pins.items():
        assert DEPENDENCIES[name].specifier.contains(next(iter(pin.specifier)).version)


def test_imported_libraries_are_dependencies():
    """Every library that the code imports at a module's top is declared (extras are imported where they are used)."""
    names_of = {'PIL': 'pillow', 'skimage': 'scikit-image', 'imageio_ffmpeg': 'imageio-ffmpeg'}
    ours = {p.name for p in ROOT.iterdir() if p.is_dir()} | {p.stem for p in ROOT.glob('*.py')}
    undeclared = set()
    for path in project_files({'.py'}):
        if relative(path).startswith('tests/'):
            continue
        beside = {p.stem for p in path.parent.glob('*.py')}     # a script finds the modules of its own folder
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {m.split('.')[0] for m in modules} - set(sys.stdlib_module_names) - ours - beside:
                if canonicalize_name(names_of.get(top, top)) not in DEPENDENCIES:
                    undeclared.add((relative(path), top))
    assert undeclared == set()


def test_scripts_and_packages_are_packaged():
    """The top-level modules and the packages of the checkout are those an installation holds."""
    setuptools = PROJECT['tool']['setuptools']
    missing = (scripts() | {'camera_utils'}) - set(setuptools['py-modules'])
    assert missing == set(), 'add them to py-modules in pyproject.toml'
    packages = {pattern.rstrip('*') for pattern in setuptools['packages']['find']['include']}
    found = {p.parent.relative_to(ROOT).parts[0] for p in project_files({'.py'})
             if p.name == '__init__.py' and not relative(p).startswith('tests/')}
    assert found <= packages


def test_folders_with_modules_are_packages():
    """A folder without __init__.py imports from a checkout and is missing from an installation."""
    packages = {pattern.rstrip('*') for pattern in PROJECT['tool']['setuptools']['packages']['find']['include']}
    folders = {p.parent for p in project_files({'.py'}) if p.relative_to(ROOT).parts[0] in packages}
    assert [relative(f) for f in sorted(folders) if not (f / '__init__.py').is_file()] == []


def test_licence_is_apache():
    text = (ROOT / 'LICENSE').read_text(encoding='utf-8')
    assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text
    assert PROJECT['project']['license'] == 'Apache-2.0'


def test_ci_runs_make_test():
    assert re.search(r'^exec make test\b', (ROOT / '.ci' / 'run').read_text(encoding='utf-8'), re.MULTILINE)
    result = subprocess.run(['bash', '-n', ROOT / '.ci' / 'run'], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('category', [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize('module', ['training.generators.panohead', 'camera_utils', 'torch_utils.ops.bias_act'])
def test_deprecations_of_our_modules_are_errors(category, module):
    with pytest.raises(category):
        warnings.warn_explicit('old', category, filename='x.py', lineno=1, module=module)


README = textwrap.dedent('''
    # One
    ```bash
    # a comment
    python train.py --outdir out \\
        --cfg=ffhq      # the rest
    $ ls "a b"
    ```
    text with ``` in it
    ## Two
    1. in a list
       ```python
       if x:
           y = 1
       ```
    ~~~~bash
    echo '```'
    ~~~~
''')


def test_readme_blocks(tmp_path):
    blocks = code_blocks(README)
    assert [(b.language, b.heading) for b in blocks] == [('bash', 'One'), ('python', 'Two'), ('bash', 'Two')]
    assert blocks[1].text == 'if x:\n    y = 1'
    assert README.splitlines()[blocks[0].line - 1] == '# a comment'
    assert commands(blocks[0]) == [['python', 'train.py', '--outdir', 'out', '--cfg=ffhq'], ['ls', 'a b']]
    (tmp_path / 'README.md').write_text(README, encoding='utf-8')
    found = readme_commands(tmp_path / 'README.md')
    assert found[0] == ('One', 4, ['python', 'train.py', '--outdir', 'out', '--cfg=ffhq'])
    assert found[-1][2] == ['echo', '```']


def test_open_code_block_is_an_error():
    with pytest.raises(ValueError, match='before line 2 is never closed'):
        code_blocks('```bash\necho\n')


@pytest.mark.parametrize('path', project_files({'.md'}), ids=relative)
def test_markdown_code_blocks_and_links(path):
    """Fences are closed, bash parses as shell words, and relative links and pictures exist."""
    text = path.read_text(encoding='utf-8')
    for block in code_blocks(text, 'bash'):
        assert commands(block), f'empty bash block at line {block.line}'
    prose = re.sub(r'(?ms)^ *```.*?^ *```', '', text)
    for target in re.findall(r'\]\(([^)#\s]+)[^)]*\)|<img [^>]*src="([^"]+)"', prose):
        target = target[0] or target[1]
        if not re.match(r'[a-z]+:', target):
            assert (path.parent / target).exists(), f'{relative(path)} points to {target}, which is not there'


@pytest.mark.slow
def test_conventions_can_be_drawn(tmp_path):
    """The committed picture is what the code draws, as far as its size tells; how it looks is for a person."""
    path = tmp_path / 'conventions.png'
    subprocess.run([sys.executable, ROOT / 'docs' / 'draw_conventions.py', '--out', path], check=True, cwd=tmp_path)
    with Image.open(path) as drawn, Image.open(ROOT / 'docs' / 'images' / 'conventions.png') as committed:
        assert drawn.size == committed.size
