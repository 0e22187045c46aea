"""A pickle reader that cannot call anything: an interpreter of the instructions that network files use, in plain Python.

The standard unpickler imports and calls what a file names; restricting its names leaves attributes to be set, memory to be
asked for by a number in the file, and recursion. This one builds dicts, lists, tuples, sets, numbers and strings itself.
A name in the file is looked up in a table given by the caller, whose entries are functions of ours that make stand-ins;
there is no import, no getattr and no setattr here. Decoding of the instructions is the standard library's pickletools.

Instructions: Python's pickletools module; protocols 2 to 5 of PEP 307, 3154 and 574.
"""

import io
import pickletools

from dnnlib import UserError

MAX_INSTRUCTIONS = 1_000_000     # a published 512 pixel file with three networks has some hundred thousand
MAX_LINE = 1000
MIN_PROTOCOL, MAX_PROTOCOL = 2, 5
PROTO, STOP = b'\x80', b'.'
SCALARS = (str, int, float, bool, bytes, type(None))


class Damaged(ValueError):
    """The bytes are not what the format says: not a pickle, or a spoilt one."""


class Truncated(Damaged):
    """The bytes end before the value does."""


class Stream:
    """Reading side of a seekable binary file that never asks for more than is there."""

    def __init__(self, file):
        self._file = file
        start = file.tell()
        self.size = file.seek(0, io.SEEK_END)
        file.seek(start)

    def tell(self):
        """Position in bytes."""
        return self._file.tell()

    def read(self, count):
        """Exactly `count` bytes; Truncated if there are fewer."""
        if count > self.size - self._file.tell():
            raise Truncated(f'{count} bytes wanted, {self.size - self._file.tell()} left')
        return self._file.read(count)

    def readline(self):
        """A line with its end, of at most MAX_LINE bytes."""
        line = self._file.readline(MAX_LINE)
        if not line.endswith(b'\n'):
            raise Truncated('a line has no end') if len(line) < MAX_LINE else Damaged(f'a line of more than {MAX_LINE} bytes')
        return line


class Name:
    """What stands for a global name of the file. `call(*args)` and `new(*args)` make stand-ins, None where the file may not."""
    __slots__ = ('label', 'call', 'new')

    def __init__(self, label, call=None, new=None):
        self.label, self.call, self.new = label, call, new


class Buildable:
    """Base of stand-ins that take a state from the file."""
    __slots__ = ()

    def build(self, state):
        """Take the state. Damaged if it is not one."""
        raise Damaged(f'{type(self).__name__} takes no state')


class Machine:
    """Runs one pickle. `find(module, name)` returns the Name for a global name, or raises UserError; `persistent(value)` what stands
    for a persistent id, None if the file may not have any."""

    def __init__(self, stream, find, persistent=None, max_instructions=MAX_INSTRUCTIONS):
        self._stream, self._find, self._persistent, self._max = stream, find, persistent, max_instructions
        self._stack, self._outer, self._memo = [], [], {}

    def run(self):
        """The value of the pickle that begins here; the stream is left behind it. Raises Damaged, or what `find` raises."""
        try:
            for count in range(self._max):
                code = self._stream.read(1)
                if count == 0 and code != PROTO:
                    raise Damaged('no pickle of protocol 2 to 5')
                if code == STOP:
                    return self._last()
                if code not in INSTRUCTIONS:     # nothing of an instruction off the list is even decoded
                    raise Damaged(f'instruction {code!r} at byte {self._stream.tell() - 1}')
                decode, action = INSTRUCTIONS[code]
                action(self, None if decode is None else decode(self._stream))
        except (Damaged, UserError):
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise Damaged(f'{type(error).__name__}: {error}'[:200]) from error
        raise Damaged(f'more than {self._max} instructions')

    def _last(self):
        if self._outer or len(self._stack) != 1:
            raise Damaged('the value is not complete')
        return self._stack[0]

    def _to_mark(self):
        items, self._stack = self._stack, self._outer.pop()
        return items

    def push(self, value):
        """Put a value on the stack."""
        self._stack.append(value)

    def proto(self, version):
        if not MIN_PROTOCOL <= version <= MAX_PROTOCOL:
            raise Damaged(f'pickle protocol {version}')

    def mark(self, _):
        self._outer.append(self._stack)
        self._stack = []

    def pop(self, _):
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._outer.pop()

    def pop_mark(self, _):
        self._to_mark()

    def dup(self, _):
        self.push(self._stack[-1])

    def put(self, index):
        self._memo[index] = self._stack[-1]

    def memoize(self, _):
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index):
        self.push(self._memo[index])

    def tuple_of(self, count):
        start = len(self._stack) - count
        if start < 0:
            raise Damaged('a tuple of more than there is')
        self._stack[start:] = [tuple(self._stack[start:])]

    def extend(self, items):
        target = self._stack[-1]
        if type(target) is not list:
            raise Damaged('items for something that is no list')
        target.extend(items)

    def add(self, items):
        target = self._stack[-1]
        if type(target) is not set:
            raise Damaged('members for something that is no set')
        target.update(map(scalar, items))

    def set_items(self, items):
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Damaged('entries for something that is no dict')
        for key, value in zip(items[::2], items[1::2]):
            target[scalar(key)] = value

    def set_item(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        self.set_items([key, value])

    def global_name(self, argument):
        module, _, name = argument.partition(' ')
        self.push(self._find(module, name))

    def stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Damaged('a name that is no text')
        self.push(self._find(module, name))

    def reduce(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        self.push(apply(function, 'call', arguments))

    def new_object(self, _):
        arguments, cls = self._stack.pop(), self._stack.pop()
        self.push(apply(cls, 'new', arguments))

    def build(self, _):
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        elif type(target) is not dict or (type(state) is dict and state) or not isinstance(state, (dict, type(None))):
            raise Damaged('a state for something that has none')

    def persistent_id(self, _):
        if self._persistent is None:
            raise Damaged('a reference to something outside the file')
        self.push(self._persistent(self._stack.pop()))


def scalar(value):
    """The value, if it may be a key. Hashing a tuple recurses as deep as the file pleases, so tuples are none."""
    if type(value) not in SCALARS:
        raise Damaged(f'a key that is a {type(value).__name__}')
    return value


def apply(name, how, arguments):
    """What a Name makes of the arguments in the file."""
    function = (name.call if how == 'call' else name.new) if type(name) is Name else None
    if function is None:
        raise Damaged(f'{name.label if type(name) is Name else type(name).__name__} is not to be called')
    if type(arguments) is not tuple:
        raise Damaged('arguments that are no tuple')
    return function(*arguments)


def _constant(value):
    return lambda machine, _: machine.push(value)


ACTIONS = {
    'PROTO': Machine.proto, 'FRAME': lambda machine, _: None, 'MARK': Machine.mark, 'POP': Machine.pop, 'POP_MARK': Machine.pop_mark,
    'DUP': Machine.dup, 'NONE': _constant(None), 'NEWTRUE': _constant(True), 'NEWFALSE': _constant(False),
    **dict.fromkeys(('BININT', 'BININT1', 'BININT2', 'LONG1', 'LONG4', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
                     'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'), Machine.push),
    **dict.fromkeys(('BINPUT', 'LONG_BINPUT'), Machine.put), **dict.fromkeys(('BINGET', 'LONG_BINGET'), Machine.get),
    'MEMOIZE': Machine.memoize,
    'EMPTY_LIST': lambda machine, _: machine.push([]), 'EMPTY_DICT': lambda machine, _: machine.push({}),
    'EMPTY_SET': lambda machine, _: machine.push(set()), 'EMPTY_TUPLE': _constant(()),
    'LIST': lambda machine, _: machine.push(machine._to_mark()), 'TUPLE': lambda machine, _: machine.push(tuple(machine._to_mark())),
    'TUPLE1': lambda machine, _: machine.tuple_of(1), 'TUPLE2': lambda machine, _: machine.tuple_of(2),
    'TUPLE3': lambda machine, _: machine.tuple_of(3),
    'FROZENSET': lambda machine, _: machine.push(frozenset(map(scalar, machine._to_mark()))),
    'APPEND': lambda machine, _: machine.extend([machine._stack.pop()]), 'APPENDS': lambda machine, _: machine.extend(machine._to_mark()),
    'ADDITEMS': lambda machine, _: machine.add(machine._to_mark()), 'SETITEM': Machine.set_item,
    'SETITEMS': lambda machine, _: machine.set_items(machine._to_mark()),
    'GLOBAL': Machine.global_name, 'STACK_GLOBAL': Machine.stack_global, 'REDUCE': Machine.reduce, 'NEWOBJ': Machine.new_object,
    'BUILD': Machine.build, 'BINPERSID': Machine.persistent_id,
}

# {byte: (decoder of its argument or None, action)}.
INSTRUCTIONS = {opcode.code.encode('latin-1'): (None if opcode.arg is None else opcode.arg.reader, ACTIONS[opcode.name])
                for opcode in pickletools.opcodes if opcode.name in ACTIONS}
