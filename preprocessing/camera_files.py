"""Cameras of other programs: NeRF's transforms.json and COLMAP's models (text and binary), read and written.

A View holds an OpenCV camera (x right, y down, z forward) with intrinsics in pixels, the first pixel's centre at (0.5, 0.5), in
whatever world the file has. NeRF's cameras look along -z with y up; COLMAP writes world to camera as quaternion and shift.
"""

import dataclasses
import json
import math
import struct
from pathlib import Path, PurePosixPath

import numpy as np

from dnnlib import UserError
from dnnlib.util import written_whole

NERF_NAME = 'transforms.json'
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])       # OpenGL camera <-> OpenCV camera
# COLMAP's camera models without distortion, and those that are one if their last numbers are 0: number, parameters.
MODELS = {'SIMPLE_PINHOLE': (0, 3), 'PINHOLE': (1, 4), 'SIMPLE_RADIAL': (2, 4), 'RADIAL': (3, 5), 'OPENCV': (4, 8),
          'OPENCV_FISHEYE': (5, 8), 'FULL_OPENCV': (6, 12), 'FOV': (7, 5), 'SIMPLE_RADIAL_FISHEYE': (8, 4), 'RADIAL_FISHEYE': (9, 5),
          'THIN_PRISM_FISHEYE': (10, 12)}
_ONE_FOCAL = ('SIMPLE_PINHOLE', 'SIMPLE_RADIAL', 'RADIAL')
_READABLE = (*_ONE_FOCAL, 'PINHOLE', 'OPENCV', 'FULL_OPENCV')


@dataclasses.dataclass(frozen=True)
class View:
    """One photograph's camera: `name` of its file, `cam2world` [4, 4], `focal` and `centre` (x, y) and `size` (width, height)
    in pixels."""
    name: str
    cam2world: np.ndarray
    focal: tuple
    centre: tuple
    size: tuple

    @property
    def matrix(self):
        """Intrinsics [3, 3] in pixels."""
        return np.array([[self.focal[0], 0, self.centre[0]], [0, self.focal[1], self.centre[1]], [0, 0, 1.0]])


def read_views(path):
    """List of View of a transforms.json, or of a folder that holds one or a COLMAP model (cameras and images, .txt or .bin,
    there or in sparse/0). Raises UserError naming file and entry."""
    path = Path(path)
    if path.is_file():
        return read_nerf(path)
    for folder in (path, path / 'sparse' / '0', path / 'sparse'):
        for suffix in ('.bin', '.txt'):
            if (folder / f'images{suffix}').is_file():
                return read_colmap(folder, suffix)
    if (path / NERF_NAME).is_file():
        return read_nerf(path / NERF_NAME)
    raise UserError(f'{path}: holds neither {NERF_NAME} nor a COLMAP model (images.txt or images.bin)')


def _rigid(matrix, where):
    """float64 [4, 4] of nested lists, a rotation and a shift. Raises UserError."""
    try:
        matrix = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise UserError(f'{where}: wanted a matrix of 4x4 finite numbers')
    scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
    if not scale > 0 or np.abs(matrix[:3, :3] @ matrix[:3, :3].T / scale ** 2 - np.eye(3)).max() > 0.02:
        raise UserError(f'{where}: its camera is mirrored or not a rotation')
    matrix[:3, :3] /= scale
    return matrix


def read_nerf(path):
    """List of View of a transforms.json. Raises UserError."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
        frames = data['frames']
        if not frames:
            raise ValueError('no frames')
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: not a transforms.json ({error})') from error
    views = []
    for number, frame in enumerate(frames):
        where = f'{path}, frame {number}'
        try:
            known = {**data, **frame}
            name = str(frame['file_path'])
            size = tuple(float(known[key]) if key in known else None for key in ('w', 'h'))
            if None in size:
                size = _picture_size(path.parent / name)
            focal_x = known['fl_x'] if 'fl_x' in known else size[0] / 2 / math.tan(known['camera_angle_x'] / 2)
            focal_y = known['fl_y'] if 'fl_y' in known else (
                size[1] / 2 / math.tan(known['camera_angle_y'] / 2) if 'camera_angle_y' in known else focal_x)
            centre = known.get('cx', size[0] / 2), known.get('cy', size[1] / 2)
            distortion = max(abs(float(known.get(key, 0))) for key in ('k1', 'k2', 'k3', 'k4', 'p1', 'p2'))
            numbers = [float(v) for v in (focal_x, focal_y, *centre)]
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f'{where}: {type(error).__name__} {error}; wanted file_path, transform_matrix and '
                            'camera_angle_x or fl_x') from error
        _no_distortion(distortion, where)
        pose = _rigid(frame.get('transform_matrix'), where) @ _FLIP
        views.append(View(name, pose, tuple(numbers[:2]), tuple(numbers[2:]), tuple(int(v) for v in size)))
    return views


def _picture_size(path):
    """(width, height) of a picture that the file names, perhaps without its extension."""
    import PIL.Image  # only files that leave the size out need it
    for candidate in (path, *(path.with_name(path.name + ext) for ext in ('.png', '.jpg', '.jpeg'))):
        if candidate.is_file():
            with PIL.Image.open(candidate) as image:
                return image.size
    raise ValueError(f'neither w and h nor the picture {path} are there')


def _no_distortion(value, where):
    if value > 1e-6:
        raise UserError(f'{where}: its lens is distorted; undistort the pictures first (colmap image_undistorter)')


def write_nerf(path, views):
    """Write a transforms.json of Views. Raises UserError."""
    frames = [{'file_path': view.name, 'fl_x': view.focal[0], 'fl_y': view.focal[1], 'cx': view.centre[0], 'cy': view.centre[1],
               'w': view.size[0], 'h': view.size[1], 'transform_matrix': (view.cam2world @ _FLIP).tolist()} for view in views]
    first = views[0]
    _write(path, json.dumps({'camera_model': 'OPENCV', 'camera_angle_x': 2 * math.atan(first.size[0] / 2 / first.focal[0]),
                             'frames': frames}, indent=1))


def _write(path, text):
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from error


def rotation_of_quaternion(q):
    """Rotation [3, 3] of a quaternion (w, x, y, z), which need not be of unit length."""
    w, x, y, z = np.asarray(q, dtype=np.float64) / np.linalg.norm(q)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


def quaternion_of_rotation(r):
    """Quaternion (w, x, y, z) with w >= 0 of a rotation [3, 3]: the eigenvector of Bar-Itzhack's matrix."""
    k = np.array([[r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0], [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
                  [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
                  [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)]]) / 3
    vector = np.linalg.eigh(k)[1][:, -1]
    q = vector[[3, 0, 1, 2]]
    return q if q[0] >= 0 else -q


def read_colmap(folder, suffix='.txt'):
    """List of View of a COLMAP model, `suffix` '.txt' or '.bin'. Raises UserError."""
    folder = Path(folder)
    reader = (_text_cameras, _text_images) if suffix == '.txt' else (_binary_cameras, _binary_images)
    found = []
    for read, name in zip(reader, ('cameras', 'images')):
        path = folder / f'{name}{suffix}'
        try:
            found.append(list(read(path)))
        except OSError as error:
            raise UserError(f'{path}: cannot be read ({error.strerror})') from error
        except (ValueError, IndexError, struct.error, KeyError) as error:
            raise UserError(f'{path}: not a file of COLMAP ({type(error).__name__} {error})') from error
    cameras = {number: _pinhole(model, size, values, f'{folder}, camera {number}') for number, model, size, values in found[0]}
    views = []
    for name, quaternion, shift, number in found[1]:
        if number not in cameras:
            raise UserError(f'{folder}: {name} names camera {number}, which is not there')
        world2cam = np.eye(4)
        world2cam[:3, :3], world2cam[:3, 3] = rotation_of_quaternion(quaternion), shift
        focal, centre, size = cameras[number]
        views.append(View(name, np.linalg.inv(world2cam), focal, centre, size))
    if not views:
        raise UserError(f'{folder}: the model holds no images')
    return sorted(views, key=lambda view: view.name)


def _pinhole(model, size, values, where):
    if model not in _READABLE:
        raise UserError(f'{where}: model {model}; undistort the pictures first (colmap image_undistorter)')
    single = model in _ONE_FOCAL
    focal = (values[0], values[0]) if single else (values[0], values[1])
    rest = values[1:] if single else values[2:]
    _no_distortion(max([abs(v) for v in rest[2:]], default=0.0), where)
    return tuple(focal), tuple(rest[:2]), size


def _rows(path):
    with open(path, encoding='utf-8') as file:
        return [line.rstrip('\n') for line in file if not line.startswith('#')]


def _text_cameras(path):
    for row in filter(str.strip, _rows(path)):
        number, model, width, height, *values = row.split()
        yield int(number), model, (int(width), int(height)), [float(v) for v in values]


def _text_images(path):
    # Every second row lists points, and may be empty.
    for row in _rows(path)[::2]:
        if row.strip():
            parts = row.split(maxsplit=9)
            values = [float(v) for v in parts[1:8]]
            yield parts[9], values[:4], values[4:], int(parts[8])


def _binary_cameras(path):
    data = Path(path).read_bytes()
    names = {number: (name, count) for name, (number, count) in MODELS.items()}
    position = 8
    for _ in range(struct.unpack_from('<Q', data)[0]):
        number, model, width, height = struct.unpack_from('<iiQQ', data, position)
        name, count = names[model]
        yield number, name, (width, height), list(struct.unpack_from(f'<{count}d', data, position + 24))
        position += 24 + 8 * count


def _binary_images(path):
    data = Path(path).read_bytes()
    position = 8
    for _ in range(struct.unpack_from('<Q', data)[0]):
        values = struct.unpack_from('<i7di', data, position)
        end = data.index(b'\0', position + 64)
        name = data[position + 64:end].decode('utf-8')
        points = struct.unpack_from('<Q', data, end + 1)[0]
        position = end + 9 + 24 * points
        yield name, values[1:5], values[5:8], values[8]


def write_colmap(folder, views):
    """Write cameras.txt, images.txt and an empty points3D.txt of Views, one camera each. Raises UserError."""
    cameras, images = ['# CAMERA_ID MODEL WIDTH HEIGHT PARAMS'], ['# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME']
    for number, view in enumerate(views, 1):
        cameras.append(f'{number} PINHOLE {view.size[0]} {view.size[1]} ' + ' '.join(repr(float(v)) for v in (*view.focal, *view.centre)))
        world2cam = np.linalg.inv(view.cam2world)
        values = [*quaternion_of_rotation(world2cam[:3, :3]), *world2cam[:3, 3]]
        images += [f'{number} ' + ' '.join(repr(float(v)) for v in values) + f' {number} {view.name}', '']
    for name, rows in (('cameras', cameras), ('images', images), ('points3D', ['# no points'])):
        _write(Path(folder) / f'{name}.txt', '\n'.join(rows) + '\n')


def views_of_labels(labels, size):
    """List of View of a dataset's labels: (name, label [25]) each, pictures of size x size pixels, in the head's world."""
    views = []
    for name, label in labels:
        label = np.asarray(label, dtype=np.float64)
        intrinsics = label[16:].reshape(3, 3) * size
        views.append(View(str(PurePosixPath(name)), label[:16].reshape(4, 4), (intrinsics[0, 0], intrinsics[1, 1]),
                          (intrinsics[0, 2], intrinsics[1, 2]), (size, size)))
    return views
