"""A generator without networks: an off-centre coloured ellipsoid, for tests of what stands round a generator.

It keeps the Generator contract and counts what it is asked to do. The first latents move and tint the ellipsoid, so
that seeds differ; its right half (world +x) is red and its left half blue, so that sides can be told apart.
"""

import torch
from torch import nn

from training.generators.base import CameraPrior, GeneratorOutput
from training.representations.base import Field, FieldSample
from training.volumetric_rendering.rays import camera_rays
from training.volumetric_rendering.renderer import RenderOptions, render_rays
from camera_utils import split_label

RADII = (0.22, 0.3, 0.25)
CENTER = (0.04, -0.03, 0.02)
DENSITY_PER_UNIT = 2000.0     # how steeply density rises behind the surface


class EllipsoidField(Field):
    """Density [N, M, 1] grows linearly with depth below the surface, up to a plateau; features [N, M, 3] are colours."""

    def __init__(self, center, tint, radii=RADII, plateau=200.0):
        self.center, self.tint, self.plateau = center, tint, plateau
        self.radii = torch.tensor(radii)
        self.largest_query = 0

    def query(self, points, directions=None):
        self.largest_query = max(self.largest_query, points.shape[1])
        offset = points - self.center
        depth = (1 - (offset / self.radii).norm(dim=-1, keepdim=True)) * self.radii.min()
        density = (depth * DENSITY_PER_UNIT).clamp(-50, self.plateau)
        right = (offset[..., :1] > 0).float() * 2 - 1
        features = torch.cat([right, self.tint.expand_as(right), -right], dim=-1)
        return FieldSample(density, features)


class FakeGenerator(nn.Module):
    """See the top of this file. `counts` holds how often each method ran, the lists what it was given or gave."""

    def __init__(self, img_resolution=32, num_ws=10, c_dim=25):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = 16, c_dim, 16, num_ws
        self.img_resolution, self.img_channels, self.neural_rendering_resolution = img_resolution, 3, 16
        self.rendering = RenderOptions(depth_resolution=16, depth_resolution_importance=8)
        self.camera = CameraPrior()
        self.counts = {'mapping': 0, 'build_field': 0, 'render': 0}
        self.conditions, self.mapped, self.built, self.options_seen, self.labels_seen = [], [], [], [], []

    def mapping(self, z, c, truncation_psi=1.0, truncation_cutoff=None, update_emas=False):
        self.counts['mapping'] += 1
        self.conditions.append(c)
        assert c.shape == (z.shape[0], self.c_dim)
        ws = z[:, None].repeat(1, self.num_ws, 1)
        ws[:, :truncation_cutoff] *= truncation_psi
        self.mapped.append(ws)
        return ws

    def camera_offset(self, z, c):
        return torch.full([z.shape[0], 3], 0.5)

    def build_field(self, ws, cond=None, noise_mode='const'):
        self.counts['build_field'] += 1
        self.built.append(ws)
        center = torch.tensor(CENTER) + 0.02 * ws[:, :1, :3].tanh()
        return EllipsoidField(center, ws[:, -1:, 3:4].tanh())

    def background(self, ws, noise_mode='const'):
        return None

    def render(self, field, ws, c, resolution=None, options=None, ws_bcg=None, background=None):
        self.counts['render'] += 1
        self.options_seen.append(options)
        self.labels_seen.append(c)
        size = resolution or self.neural_rendering_resolution
        rays = camera_rays(*split_label(c), size)
        features, depth, weights = render_rays(field, rays, options or self.rendering)
        raw, depth, mask = (values.transpose(1, 2).reshape(len(c), -1, size, size)
                            for values in (features, depth, weights.sum(dim=-1, keepdim=True)))
        image = nn.functional.interpolate(raw, size=(self.img_resolution,) * 2, mode='bilinear')
        return GeneratorOutput(image, raw, depth, mask)

    def point_colors(self, features, ws):
        return (features + 1) / 2
