"""From head rotations to camera labels and back: the family's 25 numbers, angles by hand, and the half turn.

Source: PanoHead (2303.13071) and its published dataset.json; PSO-HEAD's data_rotate.json for the half turn.
"""

import numpy as np
import torch

import camera_utils

FOCAL = 4.2647                 # of labels of photographs
DISTANCE = camera_utils.HEAD_RADIUS
_CAMERA_AXES = np.diag([1.0, -1.0, -1.0, 1.0])    # y up, looking along -z -> y down, looking along +z
_HALF_TURN = np.diag([-1.0, 1.0, -1.0, 1.0])
INTRINSICS = (FOCAL, 0.0, 0.5, 0.0, FOCAL, 0.5, 0.0, 0.0, 1.0)


def nearest_rotation(matrix):
    """The rotation [3, 3] nearest to a matrix, by its singular vectors."""
    u, _, v = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    return u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v


def label_of_rotation(rotation):
    """Label float64 [25] of the head's rotation [3, 3] (world to camera, y up, the camera looking along -z): the camera
    2.7 from the head's centre, which it looks at."""
    world2camera = np.eye(4)
    world2camera[:3, :3] = nearest_rotation(rotation)
    shift = np.eye(4)
    shift[2, 3] = -DISTANCE
    cam2world = np.linalg.inv(_CAMERA_AXES @ shift @ world2camera)
    return np.concatenate([cam2world.ravel(), INTRINSICS])


def rotation_of_label(label):
    """The head's rotation float64 [3, 3] of a label [25], the reverse of label_of_rotation."""
    cam2world = np.asarray(label, dtype=np.float64)[:16].reshape(4, 4)
    return (_CAMERA_AXES @ np.linalg.inv(cam2world))[:3, :3]


def _upright_axes(direction):
    """Camera axes (right, down, forward) as columns [3, 3] of an upright camera in that unit direction [3] from the origin,
    which it looks at; straight above or below the head's right stays the camera's."""
    forward = -np.asarray(direction, dtype=np.float64)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    length = np.linalg.norm(right)
    right = right / length if length > 1e-6 else np.array([1.0, 0.0, 0.0])
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def label_of_camera(yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0):
    """Label float64 [25] of the camera standing at these angles: yaw round the head (0 front, 90 at its left, +-180 behind),
    pitch above (positive) or below it, on every side, roll clockwise about its view axis.

    In front these are the angles that camera_utils.label_angles_deg reads from the rotation; round the head that reading
    trades pitch for roll and changes its sign, and nobody could give such angles by hand.
    """
    yaw, pitch, roll = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    direction = np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    cam2world = np.eye(4)
    cam2world[:3, :3], cam2world[:3, 3] = _upright_axes(direction) @ turn, DISTANCE * direction
    return np.concatenate([cam2world.ravel(), INTRINSICS])


def camera_angles(label):
    """(yaw, pitch, roll) in degrees of the camera of a label [25], the reverse of label_of_camera; yaw in (-180, 180]."""
    cam2world = np.asarray(label, dtype=np.float64)[:16].reshape(4, 4)
    direction = -nearest_rotation(cam2world[:3, :3])[:, 2]
    upright = _upright_axes(direction)
    yaw, pitch = np.arctan2(direction[0], direction[2]), np.arcsin(np.clip(direction[1], -1, 1))
    roll = np.arctan2(cam2world[:3, 0] @ upright[:, 1], cam2world[:3, 0] @ upright[:, 0])
    return tuple(float(value) for value in np.rad2deg([yaw, pitch, roll]))


def angles_of_label(label):
    """(yaw, pitch, roll) in degrees of a label [25] as the family reads them from the rotation; |yaw| > 90 is the back."""
    angles = camera_utils.label_angles_deg(torch.as_tensor(np.asarray(label, dtype=np.float64)).reshape(1, -1))
    return tuple(float(value) for value in angles[0])


def rotation_difference_deg(label_a, label_b):
    """Angle in degrees between the rotations of two labels [25]."""
    turn = nearest_rotation(rotation_of_label(label_a)) @ nearest_rotation(rotation_of_label(label_b)).T
    return float(np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))


def half_turn(label):
    """Label float64 [25] of the camera on the other side of the head: turned by 180 degrees about the world's y axis."""
    label = np.array(label, dtype=np.float64)
    label[:16] = (_HALF_TURN @ label[:16].reshape(4, 4)).ravel()
    return label
