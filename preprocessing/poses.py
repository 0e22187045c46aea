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


def rotation_of_angles(yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0):
    """Rotation [3, 3] with these angles in degrees as camera_utils.label_angles_deg measures them (yaw positive where the
    camera goes to the head's left side, +-180 behind; pitch positive where it stands above)."""
    yaw, pitch, roll = np.deg2rad([-yaw_deg, pitch_deg, roll_deg])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def label_of_angles(yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0):
    """Label float64 [25] of angles in degrees."""
    return label_of_rotation(rotation_of_angles(yaw_deg, pitch_deg, roll_deg))


def angles_of_label(label):
    """(yaw, pitch, roll) in degrees of a label [25]; |yaw| > 90 is the back."""
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
