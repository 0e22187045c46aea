"""Cameras of other programs brought into the head's world, and photographs cut as those cameras see the head.

A reconstruction has any origin, axes and unit. Views whose head is measured, by its face or its silhouette, tell them: the
rotation is the mean of theirs; the head lies on the rays through the crops' centres, at distances that the crops' sizes
give up to the unit, which is a linear problem (least squares).
"""

import dataclasses

import numpy as np

from dnnlib import UserError
from preprocessing import crops, poses, silhouette
from preprocessing.camera_files import View

SPAN = poses.DISTANCE / poses.FOCAL       # world units that a crop shows at the head's centre
OUTLIER_DEG = 20.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """A head seen in the photograph of a View: head-to-camera `rotation` [3, 3] (OpenCV axes), None if not known; unit
    `direction` [3] to the head's centre and its `distance` in world units of the head, both for the camera."""
    view: View
    rotation: np.ndarray | None
    direction: np.ndarray
    distance: float


def measured_by_crop(view, quad, label=None):
    """Measured of a View whose photograph has the head in `quad` [4, 2]; `label` [25] is that crop's, None if not known."""
    centre, half = silhouette.crop_centre(quad)
    inverse = np.linalg.inv(view.matrix)
    ray = inverse @ [centre[0] + 0.5, centre[1] + 0.5, 1.0]
    forward = ray / np.linalg.norm(ray)
    distance = np.mean(view.focal) * SPAN / (2 * half) * np.linalg.norm(ray)
    rotation = None
    if label is not None:
        _, right, _ = crops.axes_of_quad(quad)
        x = inverse @ [*right, 0.0]
        x -= forward * (x @ forward)
        x /= np.linalg.norm(x)
        crop_axes = np.stack([x, np.cross(forward, x), forward])
        cam2world = np.asarray(label, dtype=np.float64)[:16].reshape(4, 4)
        rotation = crop_axes.T @ poses.nearest_rotation(cam2world[:3, :3]).T
    return Measured(view, rotation, forward, float(distance))


def head_from_world(measured, front=None):
    """Similarity [4, 4] from the file's world to the head's, of a list of Measured.

    The axes come from views whose rotation is known; without any, y is the mean of the cameras' upward axes and z points to
    the View named `front`. Raises UserError where there is too little to go by.
    """
    rotations = [m.rotation.T @ m.view.cam2world[:3, :3].T for m in measured if m.rotation is not None]
    if rotations:
        rotation = _mean_rotation(rotations)
    elif front is not None:
        rotation = _rotation_from_front(measured, front)
    else:
        raise UserError('no face was found, so where the head looks is not known; name a front photograph with --front')
    origin, unit = _centre_and_unit(measured)
    similarity = np.eye(4)
    similarity[:3, :3] = rotation / unit
    similarity[:3, 3] = -similarity[:3, :3] @ origin
    return similarity


def _mean_rotation(rotations):
    """The mean of rotations, without those far from the median one."""
    def degrees(a, b):
        return np.rad2deg(np.arccos(np.clip((np.trace(a @ b.T) - 1) / 2, -1, 1)))

    middle = min(rotations, key=lambda r: np.median([degrees(r, other) for other in rotations]))
    return poses.nearest_rotation(sum(r for r in rotations if degrees(r, middle) <= OUTLIER_DEG))


def _rotation_from_front(measured, front):
    found = [m.view for m in measured if front in (m.view.name, m.view.name.rsplit('/')[-1])]
    if not found:
        raise UserError(f'--front {front}: no camera of that name')
    up = -sum(m.view.cam2world[:3, 1] for m in measured)
    origin, _ = _centre_and_unit(measured)
    towards = found[0].cam2world[:3, 3] - origin
    up /= np.linalg.norm(up)
    towards -= up * (towards @ up)
    if np.linalg.norm(towards) < 1e-6:
        raise UserError(f'--front {front}: that camera stands above or below the head')
    z = towards / np.linalg.norm(towards)
    return np.stack([np.cross(up, z), up, z])


def _centre_and_unit(measured):
    """(the head's centre [3] in the file's world, the file's length of one world unit of the head)."""
    rows, values = [], []
    for m in measured:
        ray = m.view.cam2world[:3, :3] @ m.direction
        # centre - unit * distance * ray = where the camera stands
        rows.append(np.concatenate([np.eye(3), -(m.distance * ray)[:, None]], axis=1))
        values.append(m.view.cam2world[:3, 3])
    solution, _, rank, _ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(values), rcond=1e-4)
    if rank < 4 or solution[3] <= 0:
        raise UserError(f'{len(measured)} photographs with a measured head do not tell where it is; at least two from different '
                        'sides are needed')
    return solution[:3], float(solution[3])


def moved(view, similarity):
    """The View in the head's world."""
    scale = np.cbrt(np.linalg.det(similarity[:3, :3]))
    cam2world = similarity @ view.cam2world
    cam2world[:3, :3] /= scale
    return dataclasses.replace(view, cam2world=cam2world)


def crop_camera(view, exact=False):
    """(label [25], map [3, 3] from the crop's pixels to the photograph's) of a View in the head's world: a camera at the same
    place that looks at the head's centre, upright, and sees as much of it as the published crops.

    The label has the published distance and focal length, or with `exact` the camera's own.
    """
    position = view.cam2world[:3, 3]
    distance = np.linalg.norm(position)
    forward = -position / distance
    # Upright in the picture as photographed: the camera's own right, made orthogonal, keeps views from above defined.
    right = np.cross(forward, [0.0, 1.0, 0.0])
    if np.linalg.norm(right) < 0.05:
        right = view.cam2world[:3, 0] - forward * (view.cam2world[:3, 0] @ forward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    focal = distance / SPAN
    to_ray = np.linalg.inv([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]]) @ np.diag([1 / crops.CROP_SIZE, 1 / crops.CROP_SIZE, 1])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    to_source = np.linalg.inv(half) @ view.matrix @ view.cam2world[:3, :3].T @ axes @ to_ray @ half
    cam2world = np.eye(4)
    cam2world[:3, :3], cam2world[:3, 3] = axes, position
    intrinsics = [focal, 0, 0.5, 0, focal, 0.5, 0, 0, 1]
    if not exact:
        cam2world[:3, 3] *= poses.DISTANCE / distance
        intrinsics = poses.INTRINSICS
    return np.concatenate([cam2world.ravel(), intrinsics]), to_source
