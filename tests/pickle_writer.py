"""Writes pickles instruction by instruction, so that a file may name classes that are not installed, or do harm if executed.

Values are plain ones, and `Call`, `New`, `Global`, `Raw` below. Nothing here knows how files are read.
"""

import pickle
import struct
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Global:
    """A name: module.name."""
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """function(*args), and, if given, a state set on the result."""
    module: str
    name: str
    args: tuple = ()
    state: object = None


@dataclass(frozen=True)
class New:
    """cls.__new__(cls), then dict entries, then a state."""
    module: str
    name: str
    items: dict = field(default_factory=dict)
    state: object = None


@dataclass(frozen=True)
class PersistentId:
    """A reference to something outside, as torch.save's headers have them."""
    value: object


@dataclass(frozen=True)
class Raw:
    """Instructions as they are, which leave one value on the stack."""
    octets: bytes


def call(module, name, *args):
    return Call(module, name, args)


def dumps(value, protocol=2):
    """The pickle of a value."""
    return pickle.PROTO + bytes([protocol]) + encode(value, protocol) + pickle.STOP


def _text(text):
    octets = text.encode('utf-8', 'surrogatepass')
    return pickle.BINUNICODE + struct.pack('<I', len(octets)) + octets


def _number(value):
    if -2 ** 31 <= value < 2 ** 31:
        return pickle.BININT + struct.pack('<i', value)
    octets = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(octets)]) + octets


def _name(module, name, protocol):
    if protocol >= 4:
        return _text(module) + _text(name) + pickle.STACK_GLOBAL
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _entries(items, protocol):
    if not items:
        return b''
    return pickle.MARK + b''.join(encode(part, protocol) for pair in items.items() for part in pair) + pickle.SETITEMS


def _state(state, protocol):
    return b'' if state is None else encode(state, protocol) + pickle.BUILD


def _octets(value, protocol):
    if protocol < 3:   # as Python 3 does it where the protocol has no bytes
        return encode(call('_codecs', 'encode', value.decode('latin-1'), 'latin1') if value else call('__builtin__', 'bytes'), protocol)
    return pickle.BINBYTES + struct.pack('<I', len(value)) + value


def encode(value, protocol):
    """Instructions that leave a value on the stack."""
    if isinstance(value, Raw):
        return value.octets
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack('>d', value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (bytes, bytearray)):
        return _octets(bytes(value), protocol)
    if isinstance(value, tuple):
        return pickle.MARK + b''.join(encode(item, protocol) for item in value) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b''.join(encode(item, protocol) for item in value) + pickle.APPENDS
    if isinstance(value, dict):
        return pickle.EMPTY_DICT + _entries(value, protocol)
    if isinstance(value, set):
        return encode(call('__builtin__' if protocol < 3 else 'builtins', 'set', sorted(value)), protocol)
    return _encode_object(value, protocol)


def _encode_object(value, protocol):
    if isinstance(value, Global):
        return _name(value.module, value.name, protocol)
    if isinstance(value, PersistentId):
        return encode(value.value, protocol) + pickle.BINPERSID
    name = _name(value.module, value.name, protocol)
    if isinstance(value, Call):
        return name + encode(value.args, protocol) + pickle.REDUCE + _state(value.state, protocol)
    return name + pickle.EMPTY_TUPLE + pickle.NEWOBJ + _entries(value.items, protocol) + _state(value.state, protocol)
