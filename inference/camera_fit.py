"""A camera that moves while a head is looked for: six numbers turn it about the head and shift it."""

import math

import torch

# A step of 1 in these units is a likely error of an estimated camera: radians of turning, world units of shift across and
# along the line of sight.
CAMERA_SCALES = (0.2, 0.2, 0.1, 0.05, 0.05, 0.15)


def _rotations(axis_angles):
    """Rotation matrices [N, 3, 3] of axes times angles [N, 3] in radians."""
    x, y, z = axis_angles.unbind(dim=1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    return torch.linalg.matrix_exp(cross)


def moved_cameras(labels, moves):
    """Labels [N, 25] of cameras moved by [N, 6], differentiable in both: turned about the world's origin by the first three
    numbers (radians, about the camera's right, down and forward axes), then shifted by the last three (world units, along
    the turned axes). The intrinsics stay."""
    pose = labels[:, :16].reshape(-1, 4, 4)
    axes, position = pose[:, :3, :3], pose[:, :3, 3:]
    turn = axes @ _rotations(moves[:, :3]) @ axes.transpose(1, 2)
    axes = turn @ axes
    position = turn @ position + axes @ moves[:, 3:, None]
    top = torch.cat([axes, position], dim=2).reshape(-1, 12)
    return torch.cat([top, labels[:, 12:]], dim=1)


def camera_angle_deg(first, second):
    """Angle in degrees [N] between the positions of cameras [N, 25] as seen from the world's origin."""
    a, b = (labels[:, [3, 7, 11]].double() for labels in (first, second))
    cross = torch.linalg.cross(a, b).norm(dim=1)
    return torch.atan2(cross, (a * b).sum(dim=1)) * (180 / math.pi)
