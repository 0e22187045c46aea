"""Random cameras of the synthetic set: one label per seed, with the mis-centring of in-the-wild crops on request."""

import math
from typing import NamedTuple

import numpy as np
import torch

from camera_utils import HEAD_RADIUS, fov_to_intrinsics, make_label, pose_from_origin

CAMERA_STREAM = 1          # keeps the cameras' random numbers apart from the identities' (see heads.IDENTITY_STREAM)
LOOKAT = (0.0, 0.0, 0.0)   # labels of real crops look at the origin, and so do the published evaluation scripts
FRONT_SPREAD_DEG = 50.0    # standard deviation of the yaw of the front-heavy distribution
FRONT_SHARE = 0.75         # its share of front-heavy draws; the rest is uniform, so no side is ever empty


class LabelPair(NamedTuple):
    """`label` [N, 25], what the data set says; `true_label` [N, 25], the camera that made the picture."""
    label: torch.Tensor
    true_label: torch.Tensor


def _pose(yaw_deg, pitch_deg, lookat, radius):
    """cam2world [N, 4, 4] of cameras at true spherical angles; positive pitch looks from above."""
    yaw, pitch = torch.deg2rad(yaw_deg), torch.deg2rad(pitch_deg)
    direction = torch.stack([pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()], dim=1)
    return pose_from_origin(radius * direction, torch.tensor(lookat, dtype=torch.float32))


def pixel_centres(height, width, offset=(0.0, 0.0), device=None):
    """(u, v), both [height, width]: pixel centres, moved by `offset` pixels (x, y), as fractions of the image."""
    v, u = torch.meshgrid((torch.arange(height, device=device) + 0.5 + offset[1]) / height,
                          (torch.arange(width, device=device) + 0.5 + offset[0]) / width, indexing='ij')
    return u, v


def label_at(yaw_deg, pitch_deg=0.0, lookat=LOOKAT, radius=HEAD_RADIUS):
    """Labels [N, 25] of centred cameras at yaw and pitch in degrees (floats or [N]); pitch > 0 looks from above."""
    yaw = torch.as_tensor(yaw_deg, dtype=torch.float32).reshape(-1)
    pitch = torch.as_tensor(pitch_deg, dtype=torch.float32).reshape(-1)
    yaw, pitch = torch.broadcast_tensors(yaw, pitch)
    return make_label(_pose(yaw, pitch, lookat, radius))


def sample_labels(seeds, jitter=0.0, yaw='uniform', max_yaw_deg=180.0, max_pitch_deg=25.0, lookat=LOOKAT, radius=HEAD_RADIUS):
    """One camera per seed, as a LabelPair; a seed always gives the same camera, whatever stands beside it.

    `seeds`: whole numbers >= 0, [N]. `yaw`: 'uniform' in +-max_yaw_deg or 'front', heavy at the front with all sides
    present. The pitch is normal with a third of `max_pitch_deg`, cut at it. `jitter` >= 0 mis-centres the crop: its shift
    has this standard deviation as a fraction of the image, and its log scale the same; `label` stays that of the
    centred camera, `true_label` has the principal point and focal length of the shifted crop.
    """
    if yaw not in ('uniform', 'front'):
        raise ValueError(f"yaw must be 'uniform' or 'front', got {yaw!r}")
    if not (jitter >= 0 and math.isfinite(jitter)):
        raise ValueError(f'jitter must be a finite number >= 0, got {jitter}')
    rows = []
    for seed in seeds:
        rng = np.random.default_rng([int(seed), CAMERA_STREAM])
        rows.append(np.concatenate([rng.uniform(-1, 1, 2), rng.standard_normal(5)]))
    draws = torch.from_numpy(np.array(rows, dtype=np.float32).reshape(-1, 7))
    uniform, choice, normal = draws[:, 0], draws[:, 1], draws[:, 2:].clamp(-3, 3)
    yaw_deg = uniform * max_yaw_deg
    if yaw == 'front':
        frontal = (normal[:, 0] * FRONT_SPREAD_DEG).clamp(-max_yaw_deg, max_yaw_deg)
        yaw_deg = torch.where(choice < 2 * FRONT_SHARE - 1, frontal, yaw_deg)
    cam2world = _pose(yaw_deg, normal[:, 1] * max_pitch_deg / 3, lookat, radius)
    intrinsics = fov_to_intrinsics().repeat(len(draws), 1, 1)
    true_intrinsics = intrinsics.clone()
    true_intrinsics[:, :2, 2] += jitter * normal[:, 2:4]
    scale = torch.exp(jitter * normal[:, 4])
    true_intrinsics[:, 0, 0] *= scale
    true_intrinsics[:, 1, 1] *= scale
    return LabelPair(make_label(cam2world, intrinsics), make_label(cam2world, true_intrinsics))
