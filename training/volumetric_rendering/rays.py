"""Rays through the pixels of a pinhole camera."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Rays:
    """origins [N, M, 3] in world units and unit directions [N, M, 3]."""
    origins: torch.Tensor
    directions: torch.Tensor

    def __post_init__(self):
        if self.origins.shape != self.directions.shape or self.origins.ndim != 3 or self.origins.shape[-1] != 3:
            raise ValueError(f'rays need origins and directions of one shape [N, M, 3], got {tuple(self.origins.shape)} '
                             f'and {tuple(self.directions.shape)}')

    def at(self, depths):
        """Points [N, M, S, 3] at depths [N, M, S] along the rays."""
        return self.origins[:, :, None] + depths[..., None] * self.directions[:, :, None]


def camera_rays(cam2world, intrinsics, resolution):
    """Rays through the pixel centres of a resolution x resolution image, row by row.

    cam2world [N, 4, 4], intrinsics [N, 3, 3] normalised by the image size (skew allowed).
    """
    centres = (torch.arange(resolution, device=cam2world.device, dtype=torch.float32) + 0.5) / resolution
    v, u = torch.meshgrid(centres, centres, indexing='ij')
    u, v = u.reshape(1, -1), v.reshape(1, -1)                                       # [1, M]
    fx, fy = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    cx, cy, skew = intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None], intrinsics[:, 0, 1, None]
    x = (u - cx + cy * skew / fy - skew * v / fy) / fx
    y = ((v - cy) / fy).expand_as(x)
    directions = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ cam2world[:, :3, :3].transpose(1, 2)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    origins = cam2world[:, None, :3, 3].expand_as(directions)
    return Rays(origins, directions)


def box_limits(rays, box_side):
    """(near, far, hit) [N, M]: depths at which rays enter and leave the cube of that side about the origin."""
    inverse = 1 / rays.directions
    t0 = (-box_side / 2 - rays.origins) * inverse
    t1 = (box_side / 2 - rays.origins) * inverse
    near = torch.minimum(t0, t1).amax(dim=-1)
    far = torch.maximum(t0, t1).amin(dim=-1)
    return near, far, near <= far
