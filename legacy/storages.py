"""The numbers of tensors inside network files: torch.save'd storages, in the legacy and the zip format, and views of them.

Read by our own code from end to end: pickled headers by legacy.pickle_machine, archives only if their entries are stored
uncompressed under plain names. A storage is as large as its bytes in the file, and a tensor shows no number twice, so that
nothing can grow beyond the file it came from.

Formats: torch.save's documentation ("Serialization semantics"), protocol 1001 of the legacy format.
"""

import io
import math
import re
import zipfile

import torch

from legacy.pickle_machine import Damaged, Machine, Name, Stream, Truncated

DTYPES = {'Double': torch.float64, 'Float': torch.float32, 'Half': torch.float16, 'BFloat16': torch.bfloat16, 'Long': torch.int64,
          'Int': torch.int32, 'Short': torch.int16, 'Char': torch.int8, 'Byte': torch.uint8, 'Bool': torch.bool}
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_HEADER = 10_000             # instructions of a storage's header
MAX_ENTRIES = 16                # of the archive of one storage
MAX_DIMENSIONS = 8


class Storage:
    """Numbers in a row: `dtype` and the bytes of them, little-endian."""
    __slots__ = ('dtype', 'octets')

    def __init__(self, dtype, octets):
        self.dtype, self.octets = dtype, octets

    @property
    def numel(self):
        """How many numbers."""
        return len(self.octets) // self.dtype.itemsize


class Tensor:
    """A view of a Storage: offset, size and stride in numbers. Damaged if it reaches beyond the storage or repeats parts of it."""
    __slots__ = ('storage', 'offset', 'shape', 'stride', '_last')

    def __init__(self, storage, offset, shape, stride):
        whole = type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) <= MAX_DIMENSIONS
        if type(storage) is not Storage or not whole or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)):
            raise Damaged('a tensor without storage, or with a shape that is none')
        numel = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride)) if numel else offset
        if numel > storage.numel or last >= max(storage.numel, 1):
            raise Damaged(f'a tensor of shape {shape} in a storage of {storage.numel} numbers')
        self.storage, self.offset, self.shape, self.stride, self._last = storage, offset, shape, stride, last

    @property
    def dtype(self):
        """torch.dtype of the numbers."""
        return self.storage.dtype

    @property
    def nbytes(self):
        """Bytes of the numbers shown."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_torch(self):
        """A torch.Tensor with memory of its own."""
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        # Only the part that is shown: many small tensors may lie in one large storage.
        first, last = (place * self.dtype.itemsize for place in (self.offset, self._last + 1))
        flat = torch.frombuffer(bytearray(memoryview(self.storage.octets)[first:last]), dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride, 0).contiguous()


class _Reference:
    """A storage as a header names it: type, key, number of elements."""
    __slots__ = ('dtype', 'key', 'numel')

    def __init__(self, value):
        kind, *rest = value if type(value) is tuple and value else (None,)
        whole = kind == 'storage' and len(rest) in (4, 5) and rest[4:] in ([], [None])
        if not whole or type(rest[0]) is not Name or type(rest[1]) is not str or type(rest[3]) is not int or rest[3] < 0:
            raise Damaged('a storage without type, key and size')
        self.dtype, self.key, self.numel = DTYPES[rest[0].label], rest[1], rest[3]


def _find_storage_type(module, name):
    kind = name.removesuffix('Storage')
    if module not in ('torch', 'torch.cuda') or not name.endswith('Storage') or kind not in DTYPES:
        raise Damaged(f'a storage of the unknown type {module}.{name}'[:200])
    return Name(kind)


def _header(stream, persistent=None):
    return Machine(stream, _find_storage_type, persistent, MAX_HEADER).run()


def read_storage(data):
    """The Storage in `data`, bytes that torch.save wrote of one storage. Raises Damaged if they are anything else."""
    if type(data) not in (bytes, bytearray):
        raise Damaged('a storage that is no bytes')
    return _read_archive(data) if data[:2] == b'PK' else _read_legacy(data)


def _sized(reference, octets):
    if len(octets) != reference.numel * reference.dtype.itemsize:
        raise Damaged(f'a storage of {reference.numel} numbers in {len(octets)} bytes')
    return Storage(reference.dtype, octets)


def _read_legacy(data):
    stream = Stream(io.BytesIO(data))
    if _header(stream) != MAGIC_NUMBER or _header(stream) != PROTOCOL:
        raise Damaged('a storage in an unknown format')
    system = _header(stream)
    if type(system) is not dict or system.get('little_endian') is not True:
        raise Damaged('a storage of a big-endian machine')
    reference = _header(stream, _Reference)
    keys = _header(stream)
    if type(reference) is not _Reference or keys != [reference.key]:
        raise Damaged('a storage with other keys than its own')
    numel = int.from_bytes(stream.read(8), 'little')
    if numel != reference.numel:
        raise Damaged(f'a storage of {reference.numel} numbers that begins with {numel}')
    return _sized(reference, memoryview(data)[stream.tell():])


def _read_archive(data):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _checked_entries(archive, len(data))
            stream = Stream(io.BytesIO(archive.read(entries['data.pkl'])))
            if 'byteorder' in entries and archive.read(entries['byteorder']) != b'little':
                raise Damaged('a storage of a big-endian machine')
            reference = _header(stream, _Reference)
            if type(reference) is not _Reference:
                raise Damaged('an archive of something else than a storage')
            return _sized(reference, archive.read(entries[f'data/{reference.key}']))
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise Damaged(f'an archive that cannot be read ({error})'[:200]) from error


def _checked_entries(archive, size):
    """{name inside the archive's one folder: entry}. Damaged for archives that torch.save does not write: compressed or
    encrypted entries, paths that lead elsewhere, entries larger than the archive."""
    entries, folders = {}, set()
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise Damaged(f'an archive of {len(infos)} entries')
    for info in infos:
        folder, _, name = info.filename.partition('/')
        if not re.fullmatch(r'[\w.-]+', folder) or folder.strip('.') == '' or not re.fullmatch(r'\.?\w+(\.\w+)?(/\w+)?', name):
            raise Damaged(f'an archive with the entry {info.filename!r}'[:200])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Damaged('a compressed archive')
        folders.add(folder)
        entries[name] = info
    if len(folders) != 1 or len(entries) != len(infos) or sum(info.file_size for info in infos) > size:
        raise Damaged('an archive with doubled or overlapping entries')
    return entries


__all__ = ['Storage', 'Tensor', 'Truncated', 'read_storage']
