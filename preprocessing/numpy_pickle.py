"""Reads pickles that hold nothing but numbers: dicts, lists, strings and NumPy arrays; anything else is refused."""

import pickle

import numpy as np

from dnnlib import UserError

# The functions NumPy itself names in a pickle, found without naming its private modules.
_RECONSTRUCT, _SCALAR, _FROM_BUFFER = (np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0])
_ALLOWED = {'ndarray': np.ndarray, 'dtype': np.dtype, '_reconstruct': _RECONSTRUCT, 'scalar': _SCALAR, '_frombuffer': _FROM_BUFFER}
_MODULES = ('numpy', 'numpy.core.multiarray', 'numpy._core.multiarray', 'numpy.core.numeric', 'numpy._core.numeric')


def _encode(text, encoding='latin1'):
    """What _codecs.encode is in pickles of Python 2 and protocol 2: bytes written as text."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'text encoded as {encoding!r}')
    return text.encode('latin1')


class _NumbersOnly(pickle.Unpickler):
    """Knows NumPy's arrays and nothing else."""

    def find_class(self, module, name):
        if (module, name) == ('_codecs', 'encode'):
            return _encode
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(f'{module}.{name} is not a number, list, dict or array')


def load_numbers(path):
    """What the pickle `path` holds, without running anything in it. Raises UserError naming it if it cannot be read or
    holds more than numbers, strings, lists, dicts and arrays."""
    try:
        with open(path, 'rb') as file:
            return _NumbersOnly(file, encoding='latin1').load()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror}); check the path') from error
    except Exception as error:   # what a damaged pickle can raise has no end
        raise UserError(f'{path}: not a pickle of plain numbers and arrays ({error}); make it again') from error
