"""Pixels to points and back: what views of one head, with their depths, must have in common.

Depths are world units along the ray (docs/conventions.md). All maps of a view are square and of one resolution R.
"""

import torch
import torch.nn.functional as F

from camera_utils import split_label
from training.volumetric_rendering.rays import camera_rays

EDGE_ERODE = 1     # pixels next to the outline are mixtures of head and background: they count for nothing


def points_of(depth, labels):
    """World points [N, 3, R, R] that pixels with `depth` [N, 1, R, R] show from cameras `labels` [N, 25]."""
    size = depth.shape[-1]
    rays = camera_rays(*split_label(labels), size)
    points = rays.origins + rays.directions * depth.flatten(1)[..., None]
    return points.transpose(1, 2).reshape(len(depth), 3, size, size)


def project(points, labels):
    """(places [N, R, R, 2] in [-1, 1] as F.grid_sample reads them, distances [N, R, R] from the camera) of world points
    [N, 3, R, R] in the pictures of cameras `labels` [N, 25]."""
    cam2world, intrinsics = split_label(labels)
    offset = points.flatten(2) - cam2world[:, :3, 3:]
    local = intrinsics @ (cam2world[:, :3, :3].transpose(1, 2) @ offset)        # [N, 3, M], homogeneous
    places = (local[:, :2] / local[:, 2:].clamp_min(1e-6)) * 2 - 1
    size = points.shape[-2:]
    return places.transpose(1, 2).unflatten(1, size), offset.norm(dim=1).unflatten(1, size)


def look_up(image, places):
    """Values [N, C, R, R] of `image` [N, C, H, W] at places [N, R, R, 2]; the border goes on for ever."""
    return F.grid_sample(image, places, mode='bilinear', padding_mode='border', align_corners=False)


def solid_pixels(mask, opaque=0.9, erode=EDGE_ERODE):
    """Booleans [N, 1, R, R]: pixels that are head (mask above `opaque`) and whose neighbours are."""
    kept = F.pad(mask.float(), [erode] * 4, mode='replicate')
    return -F.max_pool2d(-kept, 2 * erode + 1, stride=1) > opaque


def safe_depth(depth, mask, opaque=0.9):
    """Depth with what is not head put at the largest depth of the head, so that no infinity meets arithmetic."""
    solid = (mask > opaque) & torch.isfinite(depth)
    largest = torch.where(solid, depth, -torch.inf).amax([1, 2, 3], keepdim=True)
    return torch.where(solid, depth, torch.where(torch.isfinite(largest), largest, 0.0))


def relief(depth, region):
    """[N] how far the middle of `region` [N, 1, R, R] (booleans) stands before its rim, world units: the curvature of a
    paraboloid fitted to `depth` [N, 1, R, R] by least squares, times the mean squared radius of the region.

    Positive for a face that bulges towards the camera, negative for a hollow one, NaN for fewer than 12 pixels.
    """
    size = depth.shape[-1]
    axis = (torch.arange(size, device=depth.device, dtype=torch.float64) + 0.5) / size * 2 - 1
    found = []
    for values, inside in zip(depth[:, 0].double(), region[:, 0]):
        rows, columns = inside.nonzero().unbind(1)
        if len(rows) < 12:
            found.append(torch.tensor(float('nan')))
            continue
        x, y = axis[columns] - axis[columns].mean(), axis[rows] - axis[rows].mean()
        squared = x * x + y * y
        terms = torch.stack([torch.ones_like(x), x, y, squared], dim=1)
        fit = torch.linalg.lstsq(terms, values[inside][:, None]).solution[:, 0]
        found.append((fit[3] * squared.mean()).float().cpu())
    return torch.stack(found)
