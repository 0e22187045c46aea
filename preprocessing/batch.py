"""Many photographs at once: every input gets a line, one bad file stops nothing, and the result is an ordinary image set.

Written to the output folder: crops of 563 pixels with dataset.json (labels) and data_rotate.json (the same after a half turn
about the head, the pseudo label of PSO-HEAD), prepare.json (what became of every input) and report.html; masks go to a
sibling folder, and with `size` both again at that size, ready for a network.
"""

import dataclasses
import json
import pickle
import re
from pathlib import Path, PurePosixPath

import numpy as np
import PIL.Image
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import writable_folder
from dnnlib.util import written_whole
from preprocessing import report, sequences
from preprocessing.masks import find_matting
from preprocessing.photos import decode_mask, decode_photo, read_photo
from preprocessing.prepare import UNREADABLE, PhotoError, PhotoOptions, examine_photo
from training.dataset_store import META_NAME, ImageStore, name_stem

ROTATED_NAME, LINES_NAME, REPORT_NAME = 'data_rotate.json', 'prepare.json', 'report.html'
PASSED_OVER = ('.json', '.csv', '.txt', '.md', '.pkl', '.html', '.npz', '.zip', '.pt', '.pth', '.db', '.ini')
JPEG_QUALITY = 95
ALONE = 'no view with a face shows the whole head, so the mean relation decides'


@dataclasses.dataclass(frozen=True)
class Line:
    """What became of one face or input: `source` its name, `status` one of prepare.STATUSES, `name` of the crop written or
    None, `angles` (yaw, pitch, roll) in degrees or None, `messages`, `quality` numbers by name, `label_source`, `mask_source`."""
    source: str
    status: str
    name: str | None = None
    angles: tuple | None = None
    messages: tuple = ()
    quality: dict = dataclasses.field(default_factory=dict)
    label_source: str | None = None
    mask_source: str | None = None

    def __str__(self):
        # Adding 0 leaves no -0.0.
        angles = '' if self.angles is None else 'yaw {}, pitch {}, roll {}'.format(*(round(angle, 1) + 0.0 for angle in self.angles))
        parts = [f'-> {self.name}' if self.name else '', angles, '; '.join(self.messages)]
        return f'{self.source}: {self.status}' + ''.join(f', {part}' for part in parts if part)


def line_of_head(source, head, name):
    """The Line of a PreparedHead of the photograph `source`, written as `name`."""
    quality = {key: round(float(value), 4) for key, value in head.quality.items()}
    return Line(source, head.status, name, head.angles_deg, head.messages, quality, head.label_source, head.mask_source)


class Photos:
    """The photographs of a file, a folder or a zip by name, in sorted order, or those of a list of paths. Raises UserError if
    there are none."""

    def __init__(self, source):
        self._store, self._folder = None, Path()
        self._listed = isinstance(source, (list, tuple))
        if self._listed:
            self.names = [str(path) for path in source]
        elif Path(source).is_file() and Path(source).suffix.lower() != '.zip':
            self._folder, self.names = Path(source).parent, [Path(source).name]
        elif Path(source).is_dir():
            self._folder, self.names = Path(source), _files(Path(source))
        else:
            self._store = ImageStore(source)
            self.names = sorted(self._store.names, key=_in_sequence)
        if not self.names:
            raise UserError(f'{source}: holds no pictures; check the path')

    def path_of(self, name):
        """Path of a photograph that is a file of its own."""
        return self._folder / name

    def names_of(self, name):
        """What a photograph may be called in other files: by its name here, and of listed ones by the last part of their path."""
        return (name, Path(name).name) if self._listed else (name,)

    def read(self, name):
        """Photo of that name. Raises UserError naming it."""
        return read_photo(self.path_of(name)) if self._store is None else decode_photo(self._store.read(name), self._store.locate(name))


def output_stem(name):
    """What a photograph's crops are called: its path within the folder without extension, or its file name where the path
    would lead out of the output folder."""
    path = PurePosixPath(name.replace('\\', '/'))
    inside = not path.is_absolute() and '..' not in path.parts and ':' not in path.parts[0]
    return name_stem(str(path) if inside else path.name)


def _files(folder):
    """Names of the visible files that may be pictures: others are tried too, so that nothing is dropped in silence."""
    try:
        next(folder.iterdir(), None)
        found = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file() or path.is_symlink() and not path.is_dir()]
    except OSError as error:
        raise UserError(f'{folder}: cannot be listed ({error.strerror}); check its permissions') from error
    names = [path.as_posix() for path in found
             if not any(part.startswith(('.', '__MACOSX')) for part in path.parts) and path.suffix.lower() not in PASSED_OVER]
    return sorted(names, key=_in_sequence)


def _in_sequence(name):
    """Sorting key of names in which numbers count as numbers: 2.png comes before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


class CropSet:
    """Writes heads as an image set: `folder` for crops and labels, `masks` for masks (None: none are written), `ext` 'jpg'
    as published or 'png', `size` pixels a side or None for the published 563. Raises UserError."""

    def __init__(self, folder, masks=None, ext='jpg', size=None):
        self.folder = writable_folder(folder, '--out_dir')
        self.masks = None if masks is None else writable_folder(masks, '--mask_dir')
        self.ext, self.size = ext, size
        self.labels, self.rotated, self.quads = [], [], {}

    def add(self, head, stem):
        """Write a PreparedHead under the name `stem`, which may have folders, and the set's extension; returns both together."""
        name = f'{stem}.{self.ext}'
        image, mask = (head.image, head.mask) if self.size is None else head.resized(self.size)
        try:
            _save_image(self.folder / name, image)
            if self.masks is not None and mask is not None:
                _save_image(self.masks / Path(name).with_suffix('.png'), mask)
        except OSError as error:
            raise UserError(f'{self.folder / name}: cannot be written ({error.strerror}); choose another --out_dir') from error
        self.quads[name] = head.quad.astype(np.float32)
        self.labels.append([name, [f'{value:.6f}' for value in head.label]])
        self.rotated.append([name, [f'{value:.6f}' for value in head.back_label]])
        return name

    def close(self, json_name=META_NAME):
        """Write the labels, as published: text of six decimals. Those of an earlier run whose pictures are still there stay."""
        for name, labels in ((json_name, self.labels), (ROTATED_NAME, self.rotated)):
            write_json(self.folder / name, {'labels': self._earlier(name) + labels})

    def _earlier(self, name):
        """Labels in the folder's file `name` that are not this run's."""
        try:
            labels = json.loads((self.folder / name).read_text(encoding='utf-8'))['labels']
            return [[image, label] for image, label in labels if image not in self.quads and (self.folder / image).is_file()]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _save_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        PIL.Image.fromarray(array).save(temporary, quality=JPEG_QUALITY, subsampling=0)


def write_json(path, data):
    """Write JSON with tabs, whole or not at all. Raises UserError."""
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(data, indent='\t'), encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from error


def sibling(folder, word):
    """Where what belongs to an image folder goes: 'crops/img' -> 'crops/seg', 'heads' -> 'heads_seg'."""
    folder = Path(folder)
    if folder.name.endswith('img'):
        return folder.with_name(folder.name[:-3] + word)
    return folder.with_name(f'{folder.name}_{word}')


def free_name(stem, taken):
    """`stem`, or with a number where a.png and a.jpg would both become a.jpg; added to the set `taken`."""
    number, free = 1, stem
    while free.lower() in taken:
        number += 1
        free = f'{stem}-{number}'
    taken.add(free.lower())
    return free


class GivenMasks:
    """Masks of photographs by name, out of a folder or zip; None: there are none. Raises UserError."""

    def __init__(self, path):
        try:
            self._store = None if path is None else ImageStore(path)
        except UserError as error:
            raise UserError(f'masks of the photographs: {error}') from error
        self._by_stem = {} if path is None else {name_stem(name): name for name in self._store.names}

    def find(self, *names):
        """Mask uint8 [H, W] of the photograph of these names, or None; the head is then cut out as if none were given."""
        found = sequences.by_name(self._by_stem, *names)
        return None if found is None else decode_mask(self._store.read(found), self._store.locate(found))


@dataclasses.dataclass
class Batch:
    """How a run is done: `tools` of load_tools, PhotoOptions, what is known of single photographs (`angles`: dict of name ->
    (yaw, pitch, roll), `landmarks`: dict of name -> [68, 2] arrays), `masks`: folder of given masks, `same_person`: views
    with a face tell how those without are cropped, and with `in_order` their yaw."""
    tools: object
    options: PhotoOptions = PhotoOptions()
    angles: dict = dataclasses.field(default_factory=dict)
    landmarks: dict = dataclasses.field(default_factory=dict)
    masks: str | None = None
    same_person: bool = False
    in_order: bool = False
    lines: list = dataclasses.field(default_factory=list)
    tiles: list = dataclasses.field(default_factory=list)
    _taken: set = dataclasses.field(default_factory=set)

    def __post_init__(self):
        if self.same_person and self.options.face == 'all':
            raise UserError('--face all: several people, but all photographs are to show one (--same_person, --together); '
                            'give largest or a number')

    def run(self, photos, sets, say, progress=False):
        """(`lines`, `tiles`): a Line of every head and failure in `photos` (Photos), and each with its small picture, heads
        written to the CropSets; `say` is given every line as it comes. After an interrupt both hold what is done so far."""
        for name, found in self.examined(photos, progress):
            for line, tile in self._results(name, found, sets):
                self.lines.append(line)
                self.tiles.append((line, tile))
                say(line)
        return self.lines, self.tiles

    def examined(self, photos, progress=False):
        """(name, Found) of each photograph in `photos`. Those without a face wait until the end where others may tell their
        yaw or their crop."""
        options = dataclasses.replace(self.options, matting=find_matting(self.options.matting))
        masks = GivenMasks(self.masks)
        later, known, views = [], {}, []
        for index, name in enumerate(tqdm(photos.names, desc='preparing', unit='photo', disable=not progress)):
            found = self._examine(photos, name, options, masks)
            if (self.same_person or self.in_order) and not found.has_face and found.photo is not None:
                later.append(name)
                given = (sequences.by_name(self.angles, *photos.names_of(name)) or (None,))[0]
                known.update({} if given is None else {index: given})
                continue
            for head in found.heads:
                known[index] = head.angles_deg[0]
                if self.same_person:
                    views.append(sequences.view_of(found.photo, head, options.matting, masks.find(*photos.names_of(name))))
            yield name, found
        if not later:
            return
        between = sequences.fill_yaws(known, len(photos.names)) if self.in_order and options.yaw is None else {}
        between = {photos.names[index]: yaw for index, yaw in between.items() if index not in known}
        options = sequences.of_person(options, views)
        note = () if options.person is not None or not self.same_person else (ALONE,)
        for name in tqdm(later, desc='without a face', unit='photo', disable=not progress):
            found = self._examine(photos, name, options, masks, between.get(name))
            said = {'label_source': 'interpolated'} if name in between else {}
            heads = tuple(dataclasses.replace(head, messages=head.messages + note, **said) for head in found.heads)
            yield name, dataclasses.replace(found, heads=heads)

    def _examine(self, photos, name, options, masks, yaw=None):
        """Found of one photograph; `yaw`: of the sequence, where no other is given."""
        try:
            photo = photos.read(name)
        except UserError as error:
            return Found((), (PhotoError(UNREADABLE, str(error)),), None)
        try:
            known = dict(zip(('yaw', 'pitch', 'roll'), sequences.by_name(self.angles, *photos.names_of(name)) or ()))
            options = dataclasses.replace(options, **{key: value for key, value in known.items() if value is not None})
            if yaw is not None:
                options = dataclasses.replace(options, yaw=yaw)
            found = examine_photo(photo, options, self.tools, masks.find(*photos.names_of(name)), self.landmarks.get(name))
            return Found(found.heads, found.failures, photo, found.has_face)
        except UserError as error:
            return Found((), (PhotoError(getattr(error, 'status', UNREADABLE), str(error)),), photo, True)

    def _results(self, name, found, sets):
        """(Line, small picture) of each head and failure of one photograph, heads written."""
        for head in found.heads:
            stem = output_stem(name) + (f'_{head.face}' if len(found.heads) > 1 else '')
            stem = free_name(stem, self._taken)
            written = [crop_set.add(head, stem) for crop_set in sets]
            yield line_of_head(name, head, written[0] if written else None), report.tile_of_head(head)
        for failure in found.failures:
            tile = None if found.photo is None else report.tile_of_photo(found.photo.image)
            yield Line(name, failure.status, messages=(str(failure),)), tile



@dataclasses.dataclass(frozen=True)
class Found:
    """Heads and failures of one photograph, the Photo where it could be read, and whether they are of a face."""
    heads: tuple
    failures: tuple
    photo: object
    has_face: bool = True


def write_lines(folder, lines):
    """prepare.json: every line of a run, after those of earlier runs for other photographs."""
    path, done = Path(folder) / LINES_NAME, {line.source for line in lines}
    try:
        earlier = [line for line in json.loads(path.read_text(encoding='utf-8'))['photos'] if line['source'] not in done]
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    write_json(path, {'photos': earlier + [dataclasses.asdict(line) for line in lines]})


def summary(lines):
    """'5 photographs or faces: 3 ok, 1 no face, 1 unreadable'."""
    counts = {}
    for line in lines:
        counts[line.status] = counts.get(line.status, 0) + 1
    return f'{len(lines)} photographs or faces: ' + ', '.join(f'{count} {status}' for status, count in counts.items())


def write_pickle(path, data):
    """A pickle of plain numbers, as the published tools exchange them (numpy_pickle.load_numbers reads it). Raises UserError."""
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(pickle.dumps(data, protocol=4))
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from error
