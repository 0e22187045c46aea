"""The project's own files, for the tests that read source: which there are, their syntax trees, who imports whom; and Python
processes that see them."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED_FOLDERS = {'__pycache__', 'build', 'demo', 'out', 'training-runs', 'venv', 'env'}
LIBRARIES_AT_TOP = {'camera_utils.py'}
# A file without a suffix has '' for one: Makefile, LICENSE, .ci/run.
TEXT_SUFFIXES = {'', '.py', '.md', '.sh', '.toml', '.txt', '.yml', '.yaml', '.cfg', '.cpp', '.cu', '.h', '.cuh'}


def project_files(suffixes=TEXT_SUFFIXES, root=ROOT):
    """Sorted paths of the project's files with one of the suffixes; hidden (but .ci) and generated folders are left out."""
    found = []
    for path in root.rglob('*'):
        folders = path.relative_to(root).parts[:-1]
        left_out = any(f in SKIPPED_FOLDERS or f.endswith('.egg-info') or (f[0] == '.' and f != '.ci') for f in folders)
        if not left_out and path.suffix in suffixes and not path.name.startswith('.') and path.is_file():
            found.append(path)
    return sorted(found)


def python_files(root=ROOT):
    """The project's Python files without the tests."""
    return [p for p in project_files({'.py'}, root) if p.relative_to(root).parts[0] != 'tests']


def relative(path):
    """Path from the project's root with forward slashes, as messages show it."""
    return path.relative_to(ROOT).as_posix()


@functools.lru_cache(maxsize=None)
def syntax_tree(path):
    """Parsed file."""
    return ast.parse(path.read_text(encoding='utf-8'), filename=str(path))


def module_name(path):
    """Dotted name of a Python file of the project: training/losses/__init__.py -> training.losses."""
    parts = list(path.relative_to(ROOT).with_suffix('').parts)
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def scripts():
    """Names of the modules at the top that are run, not imported."""
    return {p.stem for p in ROOT.glob('*.py') if p.name not in LIBRARIES_AT_TOP}


def is_script(path):
    """Whether the file is run by somebody: it stands at the top, or has a main part."""
    main_part = re.search(r'^if __name__ == .__main__.:', path.read_text(encoding='utf-8'), re.MULTILINE)
    return bool(main_part) or module_name(path) in scripts()


def imported_names(tree, module, is_package=False):
    """(line, dotted name) of everything a syntax tree imports, wherever it stands; `from a import b` gives a.b, and
    relative imports are resolved against `module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                package = module.split('.') if is_package else module.split('.')[:-1]
                package = package[:len(package) - node.level + 1]
                base = '.'.join(package + ([node.module] if node.module else []))
            yield from ((node.lineno, f'{base}.{alias.name}') for alias in node.names)


def run_python(code, **variables):
    """Run code in another Python that sees the tests and the project."""
    folders = [str(Path(__file__).parent), str(ROOT)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **variables, 'PYTHONPATH': os.pathsep.join(folders)}
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
