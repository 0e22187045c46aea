"""Two-pass volume rendering of any Field (NeRF 2003.08934; options as in EG3D 2112.07945 and PanoHead 2303.13071)."""

import dataclasses
from typing import NamedTuple, Optional, Union

import torch

from torch_utils import streams
from torch_utils.ops.native import fallback
from training.volumetric_rendering.compositing import Composite, interval_weights, march
from training.volumetric_rendering.rays import box_limits
from training.volumetric_rendering.sampling import importance_depths, midpoint_noise, stratified_depths

EMPTY_DENSITY = -1000.0


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """How rays are sampled. Depths in world units; defaults are the published full-head setting."""
    ray_start: Union[float, str] = 2.25   # 'auto': where the ray enters the box
    ray_end: Union[float, str] = 3.3
    depth_resolution: int = 48            # coarse samples
    depth_resolution_importance: int = 48  # fine samples, 0 for none
    box_warp: float = 1.0                 # side of the cube the field spans
    crop_margin: Optional[float] = 0.1    # nothing is seen closer than this to the box's four sides; None for no crop
    white_back: bool = False
    missed_rays_end_near: bool = False    # compatibility: 'auto' rays that miss end at the largest NEAR of those that hit
    jitter: bool = False                  # random samples (training) instead of mid-points
    density_noise: float = 0.0            # standard deviation of noise on the density (training)

    def __post_init__(self):
        if (self.ray_start == 'auto') != (self.ray_end == 'auto'):
            raise ValueError(f"ray_start and ray_end are both 'auto' or both numbers, got {self.ray_start!r}, {self.ray_end!r}")
        if self.ray_start != 'auto' and not 0 <= float(self.ray_start) < float(self.ray_end):
            raise ValueError(f'ray_start must be at least 0 and below ray_end, got {self.ray_start}, {self.ray_end}')
        if self.depth_resolution < 4 or self.depth_resolution_importance < 0:
            raise ValueError('depth_resolution must be at least 4 and depth_resolution_importance at least 0, got '
                             f'{self.depth_resolution}, {self.depth_resolution_importance}')
        if self.box_warp <= 0:
            raise ValueError(f'box_warp must be positive, got {self.box_warp}')


class RenderNoise(NamedTuple):
    """All randomness of one rendering: uniform numbers of both passes, and normal ones on their densities or None."""
    coarse: torch.Tensor                       # [N, M, S]
    fine: Optional[torch.Tensor]               # [N, M, S2]
    coarse_density: Optional[torch.Tensor]     # [N, M, S]
    fine_density: Optional[torch.Tensor]       # [N, M, S2]


def draw_noise(rays, options):
    """RenderNoise for `rays`: random when options.jitter, else the mid-point of every coarse step and fine part."""
    n, m, _ = rays.origins.shape
    device = rays.origins.device
    coarse, fine = (n, m, options.depth_resolution), (n, m, options.depth_resolution_importance)
    std = options.density_noise
    normal = [streams.normal(shape, device) * std if std > 0 else None for shape in (coarse, fine)]
    if options.jitter:
        return RenderNoise(streams.uniform(coarse, device), streams.uniform(fine, device), *normal)
    return RenderNoise(torch.full((1, 1, 1), 0.5, device=device).expand(coarse), midpoint_noise(fine, device), *normal)


def ray_limits(rays, options):
    """(near, far) of the rays: the options' numbers, or [N, M] where they meet the box ('auto')."""
    if options.ray_start != 'auto':
        return float(options.ray_start), float(options.ray_end)
    near, far, hit = box_limits(rays, options.box_warp)
    if not hit.any():
        raise ValueError(f'no ray meets the box of side {options.box_warp}: the camera looks past it')
    near = torch.where(hit, near, near[hit].amin())
    # Published code lets rays that miss end where the latest hit BEGINS; they see nothing either way unless the field
    # reaches beyond the box, but the depths of a whole batch depend on it.
    largest = box_limits(rays, options.box_warp)[0 if options.missed_rays_end_near else 1][hit].amax()
    return near, torch.where(hit, far, largest)


def crop_density(density, points, options):
    """density [N, M, 1] emptied where points [N, M, 3] are too close to or beyond the box's left, right, front or back."""
    if options.crop_margin is None:
        return density
    limit = options.box_warp / 2 - options.crop_margin
    inside = (points[..., 0].abs() <= limit) & (points[..., 2].abs() <= limit)
    return torch.where(inside[..., None], density, density.new_full((), EMPTY_DENSITY))


def _query(field, rays, depths, density_noise, options):
    n, m, s = depths.shape
    points = rays.at(depths).reshape(n, m * s, 3)
    directions = rays.directions[:, :, None].expand(n, m, s, 3).reshape(n, m * s, 3)
    sample = field.query(points, directions)
    density = sample.density
    if density_noise is not None:
        density = density + density_noise.reshape(n, m * s, 1)
    density = crop_density(density, points, options)
    return density.reshape(n, m, s), sample.features.reshape(n, m, s, -1)


def render_rays(field, rays, options, noise=None):
    """Render `rays` through `field`: Composite of features [N, M, C], depth [N, M, 1], weights [N, M, S-1].

    `noise` None draws what options.jitter and options.density_noise ask for. Where the field offers a fused
    operator it is used; it computes the same and may leave `weights` summed to one interval.
    """
    noise = draw_noise(rays, options) if noise is None else noise
    fused = field.render_fused(rays, options, noise)
    if fused is not None:
        return Composite(*fused)
    fallback('the fused volume renderer', f'not for {type(field).__name__} on {rays.origins.device} with these options')
    near, far = ray_limits(rays, options)
    depths = stratified_depths(near, far, noise.coarse)
    density, features = _query(field, rays, depths, noise.coarse_density, options)
    if options.depth_resolution_importance > 0:
        weights, _ = interval_weights(density, depths)
        fine_depths = importance_depths(depths, weights, noise.fine)
        fine_density, fine_features = _query(field, rays, fine_depths, noise.fine_density, options)
        depths, order = torch.cat([depths, fine_depths], dim=-1).sort(dim=-1)
        density = torch.cat([density, fine_density], dim=-1).gather(-1, order)
        features = torch.cat([features, fine_features], dim=-2)
        features = features.gather(-2, order[..., None].expand_as(features))
    return march(density, features, depths, options.white_back)
