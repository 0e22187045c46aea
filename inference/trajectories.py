"""Camera paths: the orbits of the family's videos, and paths of one's own from JSON files.

FILE_FORMATS below tells users what a trajectory file may be; angles are degrees, lengths world units. All functions
give labels c [F, 25], one a frame. `camera` is the CameraPrior of a network (see training.generators.base): radius,
pivot and fov_deg.
"""

import dataclasses
import json
import math

import numpy as np
import torch
from scipy.interpolate import CubicSpline

import camera_utils
from dnnlib import UserError

FILE_FORMATS = """\
--trajectory takes a JSON file of one of these forms:

\b
1. A 25-number label for every frame:
     [[...25 numbers...], ...]  or  {"labels": [[...], ...]}  or a dataset.json
2. Numbers for every frame, or one number for all:
     {"yaw": [0, 3, 6], "pitch": 10, "radius": 2.7, "lookat": [0, 0, 0], "fov": 18.837}
3. Keyframes, joined by a smooth path ("cubic") or straight lines ("linear"):
     {"frames": 120, "interpolation": "cubic",
      "keyframes": [{"time": 0, "yaw": 0}, {"time": 1, "yaw": 360, "pitch": 20}]}
4. NeRF's transforms.json: camera_angle_x (or fl_x and w) and frames with a
     transform_matrix (4x4 camera to world, camera looking along -z, y up)

yaw 0 is the front, 90 the camera on the world's +x side, 180 the back; pitch
90 is above the head. Left out: yaw 0, pitch 0, lookat the origin, radius and
fov of the network, times evenly spread, frames as --w-frames says.
"""

ORIGIN = (0.0, 0.0, 0.0)
MAX_PITCH_DEG = 89.0      # straight above or below the upright direction is undefined
ROTATION_TOLERANCE = 1e-2
MAX_FRAMES = 10 ** 6
FLOAT32_MAX = np.finfo(np.float32).max      # labels are float32
POSE_KEYS = ('yaw', 'pitch', 'radius', 'lookat', 'fov')


@dataclasses.dataclass(frozen=True)
class Orbit:
    """A closed path: at phase p (0 to 2 pi) the yaw is turns*p + swing*sin p and the vertical angle
    vertical + rise_sin*sin p + rise_cos*cos p, all in radians."""
    turns: int
    swing: float
    vertical: float
    rise_sin: float
    rise_cos: float


ORBITS = {
    'Head': Orbit(turns=1, swing=0, vertical=math.pi / 2 - 0.05, rise_sin=0.5, rise_cos=0),
    'FFHQ': Orbit(turns=0, swing=1.5, vertical=math.pi / 2 - 0.05, rise_sin=0, rise_cos=0.25),
    'AFHQ': Orbit(turns=0, swing=0.8, vertical=math.pi / 2 - 0.05, rise_sin=0, rise_cos=0.2),
    'Shapenet': Orbit(turns=1, swing=0, vertical=math.pi / 2 - 0.5, rise_sin=0.2, rise_cos=0),
}


def turned(camera, yaw_deg, vertical=math.pi / 2, pivot=None):
    """Labels [F, 25] of the network's camera turned to `yaw_deg` (0 front, 180 back; float or [F]) at the family's
    vertical angle in radians (pi/2 is level), looking at `pivot` or else the network's own."""
    pivot = camera.pivot if pivot is None else pivot
    return camera_utils.label_from_yaw(yaw_deg, vertical, pivot, camera.radius, camera.fov_deg)


def orbit(name, num_frames, camera):
    """Labels [F, 25] of the orbit `name` (a key of ORBITS). The frame after the last would be the first. Orbits all
    the way round look at the origin, so that the head stays in the middle; the others at the network's pivot."""
    path = ORBITS[name]
    phase = 2 * math.pi * torch.arange(num_frames, dtype=torch.float64) / num_frames
    yaw = path.turns * phase + path.swing * phase.sin()
    vertical = path.vertical + path.rise_sin * phase.sin() + path.rise_cos * phase.cos()
    return turned(camera, torch.rad2deg(yaw).float(), vertical.float(), ORIGIN if path.turns else None)


def load_trajectory(path, camera, num_frames):
    """Labels [F, 25] of the trajectory file `path`; see FILE_FORMATS. `camera` and `num_frames` fill in what the file
    leaves out. Raises UserError naming the file and the entry that makes no sense."""
    try:
        with open(path, encoding='utf-8') as file:
            data = json.load(file)
    except OSError as error:
        raise UserError(f'--trajectory {path}: cannot be read ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'--trajectory {path}: not JSON ({error}); see --help for the forms it may have') from error
    try:
        labels = _parse(data, camera, num_frames)
        _check_labels(labels)
    except UserError as error:
        raise UserError(f'--trajectory {path}: {error}') from error
    return labels


def _parse(data, camera, num_frames):
    if isinstance(data, list):
        return _from_labels(data)
    if isinstance(data, dict) and 'labels' in data:
        return _from_labels(data['labels'])
    if isinstance(data, dict) and 'keyframes' in data:
        return _from_keyframes(data, camera, num_frames)
    if isinstance(data, dict) and isinstance(data.get('frames'), list):
        return _from_transforms(data)
    if isinstance(data, dict) and set(data) & set(POSE_KEYS):
        return _from_lists(data, camera)
    raise UserError('none of the known forms (labels, keyframes, yaw and pitch lists, frames with transform_matrix); see --help')


def _numbers(value, shape, what):
    """float64 array of `value`, of `shape` where that is given; None in the shape fits any length from 1 on."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f'{what} must be numbers, got {str(value)[:80]}') from error
    fits = array.ndim == len(shape) and all(want in (None, have) and have > 0 for want, have in zip(shape, array.shape))
    if not fits:
        raise UserError(f'{what} must have shape {shape}, got {array.shape}')
    if not (np.abs(array) <= FLOAT32_MAX).all():
        raise UserError(f'{what} holds a number that is not finite or beyond {FLOAT32_MAX:.2g}')
    return array


def _from_labels(rows):
    if not isinstance(rows, list) or not rows:
        raise UserError('the list of labels is empty')
    labels = []
    for i, row in enumerate(rows):
        named = isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list)
        labels.append(_numbers(row[1] if named else row, (camera_utils.LABEL_DIM,), f'label {i}'))
    return torch.from_numpy(np.stack(labels).astype(np.float32))


def _pose_numbers(entry, camera, what):
    """[7] yaw, pitch, radius, fov, look-at point (3) of one keyframe or frame."""
    unknown = set(entry) - set(POSE_KEYS) - {'time'}
    if unknown:
        raise UserError(f'{what}: unknown {sorted(unknown)}; known are {", ".join(POSE_KEYS)}')
    scalars = [_numbers(entry.get(key, default), (), f'{what}: {key}')
               for key, default in (('yaw', 0), ('pitch', 0), ('radius', camera.radius), ('fov', camera.fov_deg))]
    return np.array([*scalars, *_numbers(entry.get('lookat', ORIGIN), (3,), f'{what}: lookat')])


def _poses_to_labels(poses):
    """Labels [F, 25] of rows (yaw, pitch, radius, fov, look-at x, y, z) [F, 7], after checking their ranges."""
    yaw, pitch, radius, fov = poses[:, :4].T
    if np.abs(pitch).max() > MAX_PITCH_DEG:
        raise UserError(f'pitch reaches {pitch[np.abs(pitch).argmax()]:g} degrees; stay within +-{MAX_PITCH_DEG:g}')
    if radius.min() <= 0:
        raise UserError(f'radius {radius.min():g} must be positive')
    if fov.min() <= 0 or fov.max() >= 180:
        raise UserError(f'fov must lie in (0, 180) degrees, got {fov.min():g} to {fov.max():g}')
    # The family's vertical angle v is area-uniform: cos(polar angle) = 1 - 2 v / pi, and pitch is 90 - polar angle.
    vertical = math.pi / 2 * (1 - np.sin(np.deg2rad(pitch)))
    labels = [camera_utils.label_from_yaw(float(yaw[i]), float(vertical[i]), tuple(poses[i, 4:]), float(radius[i]), float(fov[i]))
              for i in range(len(poses))]
    return torch.cat(labels)


def _from_lists(data, camera):
    lengths = {key: len(value) for key, value in data.items() if isinstance(value, list) and key != 'lookat'}
    if isinstance(data.get('lookat'), list) and data['lookat'] and isinstance(data['lookat'][0], list):
        lengths['lookat'] = len(data['lookat'])
    if len(set(lengths.values())) != 1:
        raise UserError(f'at least one of {POSE_KEYS} must be a list, and all lists equally long; got lengths {lengths}')
    num_frames = next(iter(lengths.values()))
    if num_frames == 0:
        raise UserError('the lists are empty')
    frames = [{key: value[i] if key in lengths else value for key, value in data.items()} for i in range(num_frames)]
    return _poses_to_labels(np.stack([_pose_numbers(frame, camera, f'frame {i}') for i, frame in enumerate(frames)]))


def _from_keyframes(data, camera, num_frames):
    keyframes, kind, frames = data['keyframes'], data.get('interpolation', 'cubic'), data.get('frames', num_frames)
    if not isinstance(keyframes, list) or len(keyframes) < 2 or not all(isinstance(entry, dict) for entry in keyframes):
        raise UserError('"keyframes" must be a list of at least two {"yaw": ...} entries')
    if kind not in ('cubic', 'linear'):
        raise UserError(f'"interpolation" must be "cubic" or "linear", got {kind!r}')
    if not isinstance(frames, int) or isinstance(frames, bool) or not 1 <= frames <= MAX_FRAMES:
        raise UserError(f'"frames" must be a whole number from 1 to {MAX_FRAMES}, got {frames!r}')
    poses = np.stack([_pose_numbers(entry, camera, f'keyframe {i}') for i, entry in enumerate(keyframes)])
    times = np.array([_numbers(entry.get('time', i), (), f'keyframe {i}: time') for i, entry in enumerate(keyframes)])
    if (np.diff(times) <= 0).any():
        raise UserError(f'the times of the keyframes must rise, got {times.tolist()}')
    at = np.linspace(times[0], times[-1], frames)
    if kind == 'linear' or len(keyframes) == 2:
        path = np.stack([np.interp(at, times, column) for column in poses.T], axis=1)
    else:
        path = CubicSpline(times, poses, bc_type='natural')(at)
    return _poses_to_labels(path)


def _from_transforms(data):
    if not data['frames'] or not all(isinstance(frame, dict) and 'transform_matrix' in frame for frame in data['frames']):
        raise UserError('"frames" must be a list of entries with a "transform_matrix"')
    if 'camera_angle_x' in data:
        angle = float(_numbers(data['camera_angle_x'], (), 'camera_angle_x'))
        if not 0 < angle < math.pi:
            raise UserError(f'camera_angle_x must lie in (0, pi) radians, got {angle:g}')
        focal = 0.5 / math.tan(angle / 2)
    elif 'fl_x' in data and 'w' in data:
        width = _numbers(data['w'], (), 'w')
        if width <= 0:
            raise UserError(f'w must be positive, got {width:g}')
        focal = float(_numbers(data['fl_x'], (), 'fl_x') / width)
    else:
        raise UserError('needs "camera_angle_x" (radians) or "fl_x" and "w" (pixels)')
    matrices = np.stack([_numbers(frame['transform_matrix'], (4, 4), f'frame {i}: transform_matrix')
                         for i, frame in enumerate(data['frames'])])
    # OpenGL cameras look along -z with y up; ours look along z with y down.
    cam2world = torch.from_numpy((matrices @ np.diag([1, -1, -1, 1])).astype(np.float32))
    return camera_utils.make_label(cam2world, torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]]))


def _check_labels(labels):
    """Refuse cameras that are none: rotations that are not, focal lengths that are not positive, numbers not finite."""
    if not labels.isfinite().all():
        raise UserError('gives cameras with numbers that are not finite; use smaller ones')
    cam2world, intrinsics = camera_utils.split_label(labels.double())
    rotation = cam2world[:, :3, :3]
    error = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().amax(dim=(1, 2))
    for i in range(len(labels)):
        if error[i] > ROTATION_TOLERANCE:
            raise UserError(f'camera {i}: its rotation is not orthonormal (off by {error[i]:.3g})')
        if torch.linalg.det(rotation[i]) < 0:
            raise UserError(f'camera {i}: its rotation is left-handed (a mirror image)')
        if (cam2world[i, 3] - torch.tensor([0.0, 0, 0, 1])).abs().max() > ROTATION_TOLERANCE:
            raise UserError(f'camera {i}: the last row of its matrix is not 0 0 0 1')
        if intrinsics[i, 0, 0] <= 0 or intrinsics[i, 1, 1] <= 0:
            raise UserError(f'camera {i}: its focal length must be positive, got {intrinsics[i, 0, 0]:g}')
