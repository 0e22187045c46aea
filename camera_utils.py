"""Cameras of the family: 25-number labels, look-at poses, pose samplers, angles.

World: y up, the face looks to +z, one unit is about 42 cm. Cameras are OpenCV cameras (x right, y down,
z forward). A label is cam2world row-major (16) then intrinsics row-major (9), normalised by image size.
See docs/conventions.md. Sources: EG3D (2112.07945) appendix on cameras, PanoHead (2303.13071).
"""

import math

import torch

FOV_DEG = 18.837             # the family's full angle of view
LABEL_DIM = 25
HEAD_RADIUS = 2.7            # camera to world origin of the head presets
HEAD_PIVOT = (0.0, 0.0, 0.2)  # what the published head presets look at
GIMBAL_LIMIT = 0.998


def fov_to_intrinsics(fov_deg=FOV_DEG, device=None):
    """Normalised intrinsics [3, 3] of a full angle of view in degrees (the family's formula, which is
    f = 1 / (sqrt 2 * tan(fov / 2)) with pi and sqrt 2 rounded)."""
    if not 0 < fov_deg < 180:
        raise ValueError(f'fov_deg must lie in (0, 180), got {fov_deg}')
    focal = 1 / (math.tan(fov_deg * 3.14159 / 360) * 1.414)
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float32, device=device)


def pose_from_origin(origin, lookat):
    """cam2world [N, 4, 4] of cameras at `origin` [N, 3] looking at `lookat` [N, 3] or [3], upright."""
    def unit(v):
        return v / v.norm(dim=-1, keepdim=True)

    forward = unit(lookat - origin)
    up = torch.tensor([0.0, 1.0, 0.0], device=origin.device).expand_as(forward)
    right = -unit(torch.cross(up, forward, dim=-1))
    up = unit(torch.cross(forward, right, dim=-1))
    cam2world = torch.eye(4, device=origin.device).repeat(origin.shape[0], 1, 1)
    cam2world[:, :3, :3] = torch.stack([right, up, forward], dim=-1)
    cam2world[:, :3, 3] = origin
    return cam2world


def look_at_pose(horizontal, vertical, lookat=HEAD_PIVOT, radius=HEAD_RADIUS, device=None):
    """cam2world [N, 4, 4] from horizontal and vertical angles in radians (float or [N]).

    horizontal = vertical = pi/2 is the front. The vertical angle enters through phi = arccos(1 - 2 v/pi),
    the family's area-uniform parametrisation, so it is not the polar angle itself. `lookat` [3] or [N, 3];
    `radius` is the distance from the world origin, not from the point looked at.
    """
    h = torch.as_tensor(horizontal, dtype=torch.float32, device=device).reshape(-1)
    v = torch.as_tensor(vertical, dtype=torch.float32, device=device).reshape(-1)
    h, v = torch.broadcast_tensors(h, v)
    v = v.clamp(1e-5, math.pi - 1e-5)
    phi = torch.arccos(1 - 2 * (v / math.pi))
    theta = math.pi - h
    direction = torch.stack([phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()], dim=-1)
    lookat = torch.as_tensor(lookat, dtype=torch.float32, device=h.device)
    return pose_from_origin(radius * direction, lookat)


def sample_poses(num, horizontal_mean=math.pi / 2, vertical_mean=math.pi / 2, horizontal_spread=0.0, vertical_spread=0.0,
                 distribution='uniform', lookat=HEAD_PIVOT, radius=HEAD_RADIUS, generator=None, device=None):
    """Random look-at poses cam2world [num, 4, 4].

    `distribution`: 'gaussian' (spread = standard deviation, radians) or 'uniform' (spread = half width).
    """
    if distribution == 'gaussian':
        noise = torch.randn([2, num], generator=generator)
    elif distribution == 'uniform':
        noise = torch.rand([2, num], generator=generator) * 2 - 1
    else:
        raise ValueError(f"distribution must be 'gaussian' or 'uniform', got {distribution!r}")
    h = horizontal_mean + noise[0] * horizontal_spread
    v = vertical_mean + noise[1] * vertical_spread
    return look_at_pose(h.to(device), v.to(device), lookat, radius)


def make_label(cam2world, intrinsics=None):
    """Label c [N, 25] from cam2world [N, 4, 4] and normalised intrinsics [3, 3] or [N, 3, 3]."""
    if intrinsics is None:
        intrinsics = fov_to_intrinsics(device=cam2world.device)
    intrinsics = intrinsics.expand(cam2world.shape[0], 3, 3)
    return torch.cat([cam2world.reshape(-1, 16), intrinsics.reshape(-1, 9)], dim=1)


def split_label(c):
    """(cam2world [N, 4, 4], intrinsics [N, 3, 3]) of labels c [N, 25]."""
    return c[:, :16].reshape(-1, 4, 4), c[:, 16:25].reshape(-1, 3, 3)


def front_label(lookat=HEAD_PIVOT, radius=HEAD_RADIUS, fov_deg=FOV_DEG, device=None):
    """Label [1, 25] of the camera straight before the face."""
    return make_label(look_at_pose(math.pi / 2, math.pi / 2, lookat, radius, device), fov_to_intrinsics(fov_deg, device))


def label_angles_deg(c):
    """(yaw, pitch, roll) in degrees, [N, 3], of labels c [N, 25]; |yaw| > 90 is the back of the head."""
    cam2world, _ = split_label(c.double())
    flip = torch.diag(torch.tensor([1, -1, -1, 1], dtype=torch.float64, device=c.device))
    r = torch.linalg.inv(cam2world @ flip)[:, :3, :3]
    r20 = r[:, 2, 0].clamp(-1, 1)
    yaw = torch.asin(r20)

    def pitch_roll(x):
        cos = x.cos()
        return torch.atan2(r[:, 2, 1] / cos, r[:, 2, 2] / cos), torch.atan2(r[:, 1, 0] / cos, r[:, 0, 0] / cos)

    pitch, roll = pitch_roll(yaw)
    behind = pitch.abs() > math.pi / 2
    yaw = torch.where(behind, torch.where(yaw > 0, math.pi - yaw, -math.pi - yaw), yaw)
    pitch, roll = pitch_roll(yaw)
    # Near +-90 degrees yaw, pitch and roll are one angle: all of it is called pitch.
    gimbal = r20.abs() > GIMBAL_LIMIT
    pitch = torch.where(gimbal, torch.atan2(-r20.sign() * r[:, 0, 1], -r20.sign() * r[:, 0, 2]), pitch)
    yaw = torch.where(gimbal, r20.sign() * math.pi / 2, yaw)
    roll = torch.where(gimbal, torch.zeros_like(roll), roll)
    return torch.rad2deg(torch.stack([yaw, pitch, roll], dim=1)).float()


def flip_label(c):
    """Labels of the horizontally mirrored images: entries 1, 2, 3, 4 and 8 change sign. c [N, 25] or [25]."""
    sign = torch.ones(LABEL_DIM, dtype=c.dtype, device=c.device)
    sign[[1, 2, 3, 4, 8]] = -1
    return c * sign


def half_turn_label(c):
    """Labels [N, 25] of the cameras on the other side of the head: turned by 180 degrees about the world's y axis, so at the
    same height and with the same roll (PSO-HEAD's pseudo label). Twice gives the label back."""
    sign = torch.ones(LABEL_DIM, dtype=c.dtype, device=c.device)
    sign[[0, 1, 2, 3, 8, 9, 10, 11]] = -1
    return c * sign


def label_from_yaw(yaw_deg, vertical=math.pi / 2, lookat=HEAD_PIVOT, radius=HEAD_RADIUS, fov_deg=FOV_DEG, device=None):
    """Labels [N, 25] of cameras whose position is turned by `yaw_deg` (float or [N]) about the world's y axis: 0 front,
    +-180 back. With a pivot off the origin label_angles_deg, which measures the view direction, gives another figure
    in between."""
    yaw = torch.as_tensor(yaw_deg, dtype=torch.float32, device=device).reshape(-1)
    pose = look_at_pose(math.pi / 2 + torch.deg2rad(yaw), vertical, lookat, radius, device)
    return make_label(pose, fov_to_intrinsics(fov_deg, device))
