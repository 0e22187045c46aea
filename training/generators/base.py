"""The Generator contract, and what every family shares: conditioning, rendering, background, super-resolution."""

import dataclasses
from typing import Optional, Tuple

import torch
from torch import nn

from camera_utils import FOV_DEG, HEAD_PIVOT, HEAD_RADIUS, LABEL_DIM, split_label
from training.networks.layers import MappingNetwork
from training.networks.stylegan2 import SynthesisNetwork
from training.representations.base import Field, FieldSample
from training.volumetric_rendering.rays import Rays, camera_rays
from training.volumetric_rendering.renderer import RenderOptions, render_rays
from torch_utils.ops.resize import resize


@dataclasses.dataclass(frozen=True)
class CameraPrior:
    """The cameras a network was trained with: distance from the origin, point looked at, full angle of view."""
    radius: float = HEAD_RADIUS
    pivot: Tuple[float, float, float] = HEAD_PIVOT
    fov_deg: float = FOV_DEG


@dataclasses.dataclass(frozen=True)
class GeneratorOutput:
    """Images of one call; also read as a dict by the names the family uses, out['image']."""
    image: torch.Tensor                 # [N, 3, img_resolution, img_resolution] in [-1, 1]
    image_raw: torch.Tensor             # [N, 3, R, R] before super-resolution
    image_depth: torch.Tensor           # [N, 1, R, R] world units
    image_mask: torch.Tensor            # [N, 1, R, R] opacity, 0..1
    camera_offset: Optional[torch.Tensor] = None   # [N, 3] learned translation, where forward applied one

    def __getitem__(self, name):
        try:
            return getattr(self, name)
        except (AttributeError, TypeError):
            raise KeyError(name) from None

    def keys(self):
        """Names of the images present."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]


class Backbone(nn.Module):
    """StyleGAN2 mapping and synthesis under the published module names `mapping` and `synthesis`."""

    def __init__(self, z_dim, c_dim, w_dim, resolution, channels, mapping_layers, **synthesis_kwargs):
        super().__init__()
        self.synthesis = SynthesisNetwork(w_dim, resolution, channels, **synthesis_kwargs)
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.synthesis.num_ws, num_layers=mapping_layers)


class Generator(nn.Module):
    """Base of all families.

    A family's constructor sets its networks `backbone` and `superresolution` and, where it has them, `torgb` (ToRGB
    layer of the raw image), `bcg_synthesis` (background features) and `t_mapping` (the camera's self-adaptive
    translation), and defines build_field.
    """

    cond_spec = {}              # named inputs beyond the label: none in the families here
    feature_range = 'any'       # 'unit': features lie in [0, 1] and are mapped to [-1, 1] after rendering

    def __init__(self, z_dim, c_dim, w_dim, img_resolution, neural_rendering_resolution, rendering, camera, c_scale,
                 c_gen_conditioning_zero):
        super().__init__()
        if c_dim not in (0, LABEL_DIM):
            raise ValueError(f'c_dim must be 0 or {LABEL_DIM}, got {c_dim}')
        if z_dim < 1 or w_dim < 1:
            raise ValueError(f'z_dim and w_dim must be at least 1, got {z_dim} and {w_dim}')
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, 3
        self.neural_rendering_resolution = neural_rendering_resolution
        self.rendering = RenderOptions(**rendering)
        self.camera = CameraPrior(**{k: tuple(v) if k == 'pivot' else v for k, v in camera.items()})
        self.c_scale, self.c_gen_conditioning_zero = c_scale, c_gen_conditioning_zero
        self.torgb = self.bcg_synthesis = self.t_mapping = None

    @property
    def num_ws(self):
        """Latents a sample has."""
        return self.backbone.synthesis.num_ws

    def conditioning(self, c):
        """The label [N, c_dim] as the mapping networks see it: scaled, or zeros when pose conditioning is off."""
        return torch.zeros_like(c) if self.c_gen_conditioning_zero else c * self.c_scale

    def mapping(self, z, c, truncation_psi=1.0, truncation_cutoff=None, update_emas=False):
        """z [N, z_dim] and conditioning label c [N, c_dim] -> ws [N, num_ws, w_dim]."""
        return self.backbone.mapping(z, self.conditioning(c)[:, :self.c_dim], truncation_psi, truncation_cutoff, update_emas)

    def camera_offset(self, z, c):
        """Learned translation [N, 3] (world units) of the camera of each sample, None for networks without one."""
        if self.t_mapping is None:
            return None
        return self.t_mapping(z, self.conditioning(c)[:, :self.c_dim])[:, 0]

    @staticmethod
    def move_camera(c, offset):
        """Labels c [N, 25] with the camera moved by offset [N, 3] world units (entries 3, 7, 11)."""
        return c.index_add(1, torch.tensor([3, 7, 11], device=c.device), offset.to(c.dtype))

    def build_field(self, ws, cond=None, noise_mode='const') -> Field:
        """Everything heavy that does not depend on the camera: ws [N, num_ws, w_dim] -> Field. Whoever moves the camera
        keeps the field."""
        raise TypeError(f'{type(self).__name__} does not define build_field')

    def background(self, ws, noise_mode='const'):
        """Background features [N, C, S, S] of latents ws [N, num_ws, w_dim] at the size the super-resolution takes, None for
        networks without a background. No camera matters: who moves one keeps them."""
        if self.bcg_synthesis is None:
            return None
        num = self.bcg_synthesis.num_ws
        if ws.shape[1] < num:
            ws = torch.cat([ws, ws[:, -1:].expand(-1, num - ws.shape[1], -1)], dim=1)
        return self.bcg_synthesis(ws[:, :num], noise_mode=noise_mode)

    def render(self, field, ws, c, resolution=None, options=None, ws_bcg=None, noise_mode='const', noise=None, background=None):
        """Images of `field` seen from labels c [N, 25]; a field of one identity may be seen by several cameras.

        ws [N, num_ws, w_dim]: the field's latents, for super-resolution; resolution R of the rendered features, None
        for the network's own; options: RenderOptions, None for the network's own; ws_bcg: latents of the background,
        None for ws; noise: RenderNoise, None draws what the options ask for; background: what `background` gave for these
        latents, None to paint it now. Returns GeneratorOutput.
        """
        size = self.neural_rendering_resolution if resolution is None else resolution
        options = self.rendering if options is None else options
        rays = camera_rays(*split_label(c), size)
        if field.num == 1 and len(c) > 1:      # all their rays are one batch: the field's gradient is made once
            rays = Rays(rays.origins.reshape(1, -1, 3), rays.directions.reshape(1, -1, 3))
        features, depth, weights = render_rays(field, rays, options, noise)

        def as_image(values):                                                      # [N, R*R, C] -> [N, C, R, R]
            return values.reshape(len(c), size * size, -1).transpose(1, 2).reshape(len(c), -1, size, size)

        feature_image, depth_image = as_image(features), as_image(depth)
        weight_image = as_image(weights.sum(dim=-1, keepdim=True))
        if self.feature_range == 'unit':
            feature_image = feature_image * 2 - 1
        if self.bcg_synthesis is not None:
            if background is None:
                background = self.background(ws if ws_bcg is None else ws_bcg, noise_mode)
            feature_image = feature_image + (1 - weight_image) * resize(background, size)
        raw = feature_image[:, :3] if self.torgb is None else self.torgb(feature_image, ws[:, -1])
        image = self.superresolution(raw, feature_image, ws)
        mask = weight_image * (1 + 2 * 0.001) - 0.001
        return GeneratorOutput(image, raw, depth_image, mask)

    def synthesis(self, ws, c, resolution=None, options=None, ws_bcg=None, noise_mode='const', noise=None, cond=None):
        """Images of latents ws [N, num_ws, w_dim] from labels c [N, 25]; the label's camera is taken as it is. `cond`: the
        family's further inputs, as cond_spec names them."""
        field = self.build_field(ws, cond, noise_mode)
        return self.render(field, ws, c, resolution, options, ws_bcg, noise_mode, noise)

    def forward(self, z, c, truncation_psi=1.0, truncation_cutoff=None, noise_mode='const', resolution=None, options=None,
                update_emas=False, cond=None):
        """z [N, z_dim], c [N, 25] -> GeneratorOutput; c conditions and, moved by the learned translation, is the camera."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        offset = self.camera_offset(z, c)
        camera = c if offset is None else self.move_camera(c, offset)
        out = self.synthesis(ws, camera, resolution, options, noise_mode=noise_mode, cond=cond)
        return dataclasses.replace(out, camera_offset=offset)

    def sample_mixed(self, points, directions, ws, noise_mode='const') -> FieldSample:
        """Density and features at points [N, M, 3] of latents ws, without crop."""
        return self.build_field(ws, noise_mode=noise_mode).query(points, directions)

    def point_colors(self, features, ws):
        """RGB [N, M, 3] in [0, 1] of composited field features [N, M, C] of latents ws [N, num_ws, w_dim], as in the raw
        image; for coloured shapes."""
        if self.feature_range == 'unit':
            features = features * 2 - 1
        if self.torgb is None:
            rgb = features[..., :3]
        else:
            rgb = self.torgb(features.transpose(1, 2)[..., None], ws[:, -1])[..., 0].transpose(1, 2)
        return (rgb + 1).div(2).clamp(0, 1)
