"""What the scripts' command lines share: parameter types and the one way errors reach the user."""

import functools
import os
import re
import tempfile
from pathlib import Path

import click

from dnnlib.util import REQUIRE_FAST, UserError

TRUST_PICKLE = 'OMNIHEAD_TRUST_PICKLE'   # set while a command runs that was given --trust-pickle


def user_errors(command):
    """Decorator of a click callback: a UserError inside becomes a message on stderr and exit code 2, no traceback."""
    @functools.wraps(command)
    def wrapper(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except UserError as error:
            exception = click.ClickException(str(error))
            exception.exit_code = 2
            raise exception from error
    return wrapper


def _environment_flag(flag, variable, text):
    """A flag without a value of its own: while the command runs, `variable` is '1' in the environment, so that the processes
    it starts know as well."""
    def note(context, _, wished):
        if wished:
            former = os.environ.get(variable)
            os.environ[variable] = '1'
            context.call_on_close(lambda: os.environ.pop(variable) if former is None else os.environ.update({variable: former}))
    return click.option(flag, is_flag=True, expose_value=False, callback=note, help=text)


def trust_pickle_option():
    """--trust-pickle: network files are executed as Python's own pickle does it, instead of being read by our reader."""
    return _environment_flag('--trust-pickle', TRUST_PICKLE,
                             'Execute everything that a network file says, as Python\'s pickle does: only for files of your own.')


def require_fast_option():
    """--require-fast: an error where plain PyTorch would silently take the place of an operator of our own."""
    return _environment_flag('--require-fast', REQUIRE_FAST, 'Fail where our fast operators cannot run, instead of running slowly.')


class SeedRange(click.ParamType):
    """'0-3,7' -> [0, 1, 2, 3, 7]; seeds are whole numbers from 0 to 2^32 - 1."""
    name = 'seeds'

    def convert(self, value, param, ctx):
        if isinstance(value, list):
            return value
        seeds = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
            if not match:
                self.fail(f'{value!r} is not a list of seeds such as 0-3 or 1,5,9', param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first or last >= 2 ** 32:
                self.fail(f'{part!r}: seeds run upwards and stay below 2^32', param, ctx)
            if last - first > 10 ** 6:
                self.fail(f'{part!r}: more than a million seeds', param, ctx)
            seeds.extend(range(first, last + 1))
        return seeds


class Size(click.ParamType):
    """'4x2' -> (4, 2): columns x rows, or width x height; both positive."""
    name = 'WxH'

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r'(\d+)x(\d+)', value)
        if not match or int(match[1]) < 1 or int(match[2]) < 1:
            self.fail(f'{value!r} is not of the form 4x2, both at least 1', param, ctx)
        return int(match[1]), int(match[2])


class ByteSize(click.ParamType):
    """'2GB', '512MB' or a plain number of bytes -> int."""
    name = 'size'
    units = {'': 1, 'K': 10 ** 3, 'M': 10 ** 6, 'G': 10 ** 9, 'T': 10 ** 12}

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*', value, flags=re.IGNORECASE)
        if not match or float(match[1]) == 0:
            self.fail(f'{value!r} is not a size such as 2GB or 512MB', param, ctx)
        return int(float(match[1]) * self.units[match[2].upper()])


class FiniteFloat(click.ParamType):
    """A number; NaN, infinities and values outside [min, max] are refused."""
    name = 'number'

    def __init__(self, min=-float('inf'), max=float('inf')):
        self.min, self.max = min, max

    def convert(self, value, param, ctx):
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f'{value!r} is not a number', param, ctx)
        if not (self.min <= number <= self.max) or number in (float('inf'), -float('inf')):
            self.fail(f'{value!r} is not a finite number{self._range()}', param, ctx)
        return number

    def _range(self):
        lower, upper = self.min > -float('inf'), self.max < float('inf')
        if lower and upper:
            return f' from {self.min:g} to {self.max:g}'
        return f' of at least {self.min:g}' if lower else f' of at most {self.max:g}' if upper else ''


def writable_folder(path, flag='--outdir'):
    """Create the folder `path` if need be and make sure files can be written there, before any work is done.
    Raises UserError naming the flag."""
    if not str(path):
        raise UserError(f'{flag} is empty; name a folder')
    path = Path(path)
    if path.is_file():
        raise UserError(f'{flag} {path}: is a file; choose a folder')
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f'{flag} {path}: cannot write there ({error.strerror}); choose another folder') from error
    if os.name == 'posix' and not os.access(path, os.W_OK):
        raise UserError(f'{flag} {path}: the folder is read-only; choose another')
    return path
