"""Tri-planes (EG3D 2112.07945, section 4.1) and tri-grids (PanoHead 2303.13071, section 3.2).

A tri-grid is three planes with a few layers of depth; a tri-plane has one layer and ignores the third coordinate.
"""

import torch
import torch.nn.functional as F

from torch_utils.ops.volume_render import (PlaneDecoder, PlaneLayout, RaySamples, can_render, plane_density, plane_query,
                                             volume_render)
from training.networks.decoders import OSGDecoder
from training.representations.base import Field, FieldSample
from training.volumetric_rendering.renderer import ray_limits
from training.volumetric_rendering.sampling import stratified_depths

# For each plane the world axes (x 0, y 1, z 2) that run along its width, height and depth.
PLANE_AXES = {
    'orthogonal': ((0, 1, 2), (0, 2, 1), (1, 2, 0)),
    'eg3d': ((0, 1, 2), (0, 2, 1), (2, 0, 1)),   # as released with EG3D: the third plane lacks y; its weights need it
}


def plane_coordinates(points, plane_axes, box_warp):
    """Grid coordinates [N, 3, M, 3] (width, height, depth; the box spans [-1, 1]) of points [N, M, 3] on each plane."""
    axes = torch.tensor(PLANE_AXES[plane_axes], device=points.device)
    return (points * (2 / box_warp))[:, :, axes].transpose(1, 2)


def sample_planes(planes, points, box_warp, plane_axes='orthogonal', trilinear=True):
    """Features [N, M, C] of points [N, M, 3]: the mean over the three planes [N, 3, C, D, H, W].

    Linear interpolation between cell centres, zeros outside. `trilinear` interpolates along the depth too, where a
    plane of one layer fades with |t|/2 off its centre; without it D must be 1 and the third coordinate is ignored.
    """
    n, num_planes, channels, depth, height, width = planes.shape
    coordinates = plane_coordinates(points, plane_axes, box_warp).reshape(n * num_planes, 1, -1, 3)
    if trilinear:
        grid = planes.reshape(n * num_planes, channels, depth, height, width)
        values = F.grid_sample(grid, coordinates[:, None], mode='bilinear', padding_mode='zeros', align_corners=False)
    else:
        if depth != 1:
            raise ValueError(f'planes without trilinear lookup have one layer, got {depth}')
        grid = planes.reshape(n * num_planes, channels, height, width)
        values = F.grid_sample(grid, coordinates[..., :2], mode='bilinear', padding_mode='zeros', align_corners=False)
    return values.reshape(n, num_planes, channels, -1).mean(dim=1).transpose(1, 2)


class PlaneField(Field):
    """Field of three feature planes and a decoder.

    planes [N, 3, C, D, H, W]; decoder: features [N, M, C] -> (density [N, M, 1], colour [N, M, C']); box_warp: side of
    the cube the planes span, world units; plane_axes: a key of PLANE_AXES; trilinear: see sample_planes.
    """

    def __init__(self, planes, decoder, box_warp, plane_axes='orthogonal', trilinear=True):
        if plane_axes not in PLANE_AXES:
            raise ValueError(f'plane_axes must be one of {", ".join(PLANE_AXES)}, got {plane_axes!r}')
        self.planes, self.decoder, self.box_warp = planes, decoder, box_warp
        self.plane_axes, self.trilinear = plane_axes, trilinear

    @property
    def num(self):
        """Identities N."""
        return self.planes.shape[0]

    @property
    def device(self):
        """Where the planes are."""
        return self.planes.device

    @property
    def bytes_per_point(self):
        """Working memory of `density` for each point: the operator needs no more than the points and the result."""
        return 64 if self._query_decoder() is not None else Field.bytes_per_point

    def query(self, points, directions=None):
        decoder = self._query_decoder(points)
        if decoder is not None:
            return FieldSample(*plane_query(self.planes, decoder, self._layout(), points))
        features = sample_planes(self.planes, points, self.box_warp, self.plane_axes, self.trilinear)
        return FieldSample(*self.decoder(features))

    def density(self, points):
        decoder = self._query_decoder(points)
        return super().density(points) if decoder is None else plane_density(self.planes, decoder, self._layout(), points)

    def _query_decoder(self, points=None):
        """The decoder's weights where the fused operator can take the query, which it can without gradients only."""
        decoder = self._plain_decoder()
        tensors = (self.planes, *(decoder or ()), *(() if points is None else (points,)))
        wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return decoder if decoder is not None and not wants_grad and can_render(self.planes, decoder) else None

    def render_fused(self, rays, options, noise):
        decoder = self._plain_decoder()
        samples = options.depth_resolution + options.depth_resolution_importance
        if decoder is None or not can_render(self.planes, decoder, samples):
            return None
        if options.ray_start == 'auto' and torch.is_grad_enabled() and (rays.origins.requires_grad or rays.directions.requires_grad):
            return None   # here depths depend on the rays, and the operator has no gradient through depths
        with torch.no_grad():
            depths = stratified_depths(*ray_limits(rays, options), noise.coarse)
        fine_noise = noise.fine if options.depth_resolution_importance > 0 else None
        samples = RaySamples(rays.origins, rays.directions, depths, fine_noise, noise.coarse_density, noise.fine_density)
        crop_limit = None if options.crop_margin is None else options.box_warp / 2 - options.crop_margin
        return volume_render(self.planes, decoder, self._layout(), samples, crop_limit, options.white_back)

    def _layout(self):
        return PlaneLayout(self.box_warp, PLANE_AXES[self.plane_axes], self.trilinear, self.decoder.activation)

    def _plain_decoder(self):
        """The decoder's weights as the fused operator takes them, or None where it is of another kind."""
        if type(self.decoder) is not OSGDecoder:
            return None
        first, _, second = self.decoder.net
        return PlaneDecoder(*(t for layer in (first, second)
                              for t in (layer.weight * layer.weight_gain, layer.bias * layer.bias_gain)))

    def __getitem__(self, index):
        """The field of the identities a slice names."""
        return PlaneField(self.planes[index], self.decoder, self.box_warp, self.plane_axes, self.trilinear)

    def expand(self, num):
        """The field of one identity seen as `num` identities (no copy)."""
        planes = self.planes.expand(num, *self.planes.shape[1:])
        return PlaneField(planes, self.decoder, self.box_warp, self.plane_axes, self.trilinear)
