"""Perfect heads with one thing wrong, to see that each metric finds what it is for and nothing else.

`python -m metrics.fault_table` measures all faults by all metrics; `--network synthetic:hollowed` measures one like a network.
"""

import dataclasses
import hashlib

import torch

from camera_utils import label_angles_deg, make_label, split_label
from dnnlib import UserError
from metrics.geometry import points_of
from metrics.reference import ReferenceField, ReferenceGenerator
from torch_utils.ops.resize import resize
from training.representations.base import FieldSample
from training.synthetic.appearance import backdrop_colour
from training.synthetic.heads import sample_identities

PREFIX = 'synthetic'
LIFT = 0.06             # shifted: world units up
GRAIN = 0.15            # noised: standard deviation, colours in [-1, 1]
GRAIN_LENGTH = 0.06     # noised: wavelength, world units
TURN_DEG = 25.0         # rotated_label
TREMBLE = 0.012         # flickering: standard deviation, colours in [-1, 1]
BEHIND_DEG = 90.0       # face_at_back, swapped_identity: |yaw| from which the fault holds
FACE_PLANE = 0.06       # hollowed: z of the plane at which the face is folded back, world units
BLEED = 0.45            # bleeding_background: share of the background in the head's colours
FLOATER = (0.0, 0.1, -0.36, 0.05)   # floaters: centre and radius of a ball, world units
OTHER_PERSON = 7_919    # swapped_identity: added to the seed


def turned(labels, angle_deg):
    """Labels [N, 25] of the cameras turned by an angle (degrees, float or [N]) about the world's y axis."""
    cam2world, intrinsics = split_label(labels)
    angle = torch.deg2rad(torch.as_tensor(angle_deg, dtype=labels.dtype, device=labels.device)).expand(len(labels))
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    about_y = torch.stack([cos, zero, sin, zero, zero, one, zero, zero, -sin, zero, cos, zero, zero, zero, zero, one], dim=1)
    return make_label(about_y.reshape(-1, 4, 4) @ cam2world, intrinsics)


def _behind(labels):
    """[N] booleans: cameras behind the head."""
    return label_angles_deg(labels)[:, 0].abs() > BEHIND_DEG


def _noise_like(image, keys):
    """Normal noise, image by image the same for the same row of keys [N, K]."""
    rows = []
    for row in keys:
        digest = hashlib.sha256(row.detach().cpu().contiguous().numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], 'little'))
        rows.append(torch.randn(image.shape[1:], generator=generator))
    return torch.stack(rows).to(image.device)


def _repainted(out, change):
    """The GeneratorOutput with `change` applied to its images."""
    return dataclasses.replace(out, image=change(out.image).clamp(-1, 1), image_raw=change(out.image_raw).clamp(-1, 1))


class Faultless(ReferenceGenerator):
    """Nothing wrong."""


class Shifted(ReferenceGenerator):
    """Every head stands too high: all views agree, but not with the data."""

    def render(self, field, ws, c, *args, **kwargs):
        return super().render(field, ws, self.move_camera(c, c.new_tensor([[0.0, -LIFT, 0.0]]).expand(len(c), -1)), *args, **kwargs)


class Mirrored(ReferenceGenerator):
    """Pictures, depths and masks are mirrored, cameras are not."""

    def render(self, *args, **kwargs):
        out = super().render(*args, **kwargs)
        return dataclasses.replace(out, **{name: out[name].flip(3) for name in out.keys()})


class Noised(ReferenceGenerator):
    """A grain lies on every surface: all views of a head agree, but it looks like none of the data."""

    def render(self, field, ws, c, *args, **kwargs):
        out = super().render(field, ws, c, *args, **kwargs)
        waves = _noise_like(ws.new_zeros(len(ws), 8, 4), ws[:, 0])
        points = points_of(out.image_depth, c).flatten(2).transpose(1, 2)                      # [N, M, 3]
        direction = torch.nn.functional.normalize(waves[..., :3], dim=-1).transpose(1, 2)      # [N, 3, 8]
        grain = (points @ direction * (2 * torch.pi / GRAIN_LENGTH) + 9 * waves[:, None, :, 3]).sin().sum(-1) / 2
        grain = GRAIN * grain.reshape(out.image_mask.shape) * out.image_mask
        return _repainted(out, lambda image: image + resize(grain, image.shape[-1]))


class Hollowed(ReferenceGenerator):
    """The face's surface is folded back like a mask seen from behind, but painted as a face."""

    def render(self, field, ws, c, *args, **kwargs):
        out = super().render(field, ws, c, *args, **kwargs)
        ahead = -split_label(c)[0][:, 2, 2]                        # cosine of the view direction to the face's
        z = points_of(out.image_depth, c)[:, 2:]
        fold = 2 * (z - FACE_PLANE).clamp_min(0) / ahead.clamp_min(0.3)[:, None, None, None]
        folded = torch.where((ahead > 0.3)[:, None, None, None], out.image_depth + fold, out.image_depth)
        return dataclasses.replace(out, image_depth=torch.where(out.image_mask > 0, folded, out.image_depth))


class RotatedLabel(ReferenceGenerator):
    """The camera stands aside of where the label says."""

    def render(self, field, ws, c, *args, **kwargs):
        return super().render(field, ws, turned(c, TURN_DEG), *args, **kwargs)


class FaceAtBack(ReferenceGenerator):
    """From behind, the head shows its front."""

    def render(self, field, ws, c, *args, **kwargs):
        return super().render(field, ws, torch.where(_behind(c)[:, None], turned(c, 180.0), c), *args, **kwargs)


class Flickering(ReferenceGenerator):
    """Fine noise, another for every camera."""

    def render(self, field, ws, c, *args, **kwargs):
        out = super().render(field, ws, c, *args, **kwargs)
        return _repainted(out, lambda image: image + TREMBLE * _noise_like(image, c))


class SwappedIdentity(ReferenceGenerator):
    """From behind, the head is somebody else's."""

    def render(self, field, ws, c, *args, **kwargs):
        seeds = (field.identities.seeds + OTHER_PERSON * _behind(c).to(field.device)).cpu()
        return super().render(ReferenceField(sample_identities(seeds.tolist()).to(c.device)), ws, c, *args, **kwargs)


class StickingTexture(ReferenceGenerator):
    """Colours stay where they are in the picture while the surface turns under them, for ten degrees at a time."""

    def render(self, field, ws, c, *args, **kwargs):
        out = super().render(field, ws, c, *args, **kwargs)
        yaw = label_angles_deg(c)[:, 0].to(c.device)
        held = super().render(field, ws, turned(c, (yaw / 10).round() * 10 - yaw), *args, **kwargs)
        return dataclasses.replace(out, image=held.image, image_raw=held.image_raw)


class BleedingBackground(ReferenceGenerator):
    """The background shows through the head."""

    def render(self, field, ws, c, resolution=None, options=None, ws_bcg=None, noise_mode='const', noise=None):
        out = super().render(field, ws, c, resolution, options, ws_bcg, noise_mode, noise)
        behind = field.identities if ws_bcg is None else self.people(ws_bcg)
        through = {size: backdrop_colour(behind.backdrop, behind.handedness, size, size) * 2 - 1
                   for size in {out.image.shape[-1], out.image_raw.shape[-1]}}
        return _repainted(out, lambda image: torch.lerp(image, through[image.shape[-1]], BLEED))


class _FloatingField(ReferenceField):
    """The solid and a ball beside it."""

    def query(self, points, directions=None):
        sample = super().query(points, directions)
        centre, radius = points.new_tensor(FLOATER[:3]), FLOATER[3]
        ball = torch.where((points - centre).norm(dim=-1, keepdim=True) < radius, 200.0, -200.0)
        return FieldSample(torch.maximum(sample.density, ball), sample.features)


class Floaters(ReferenceGenerator):
    """A ball of matter floats behind the head, where few look."""

    def build_field(self, ws, cond=None, noise_mode='const'):
        return _FloatingField(self.people(ws))


FAULTS = {'none': Faultless, 'shifted': Shifted, 'mirrored': Mirrored, 'noised': Noised, 'hollowed': Hollowed,
          'rotated_label': RotatedLabel, 'face_at_back': FaceAtBack, 'flickering': Flickering,
          'swapped_identity': SwappedIdentity, 'sticking_texture': StickingTexture,
          'bleeding_background': BleedingBackground, 'floaters': Floaters}


def is_reference(network):
    """Whether a --network names the perfect generator or one of its faults."""
    return str(network).split(':')[0] == PREFIX


def open_reference(network, resolution, device='cpu'):
    """The generator of 'synthetic' or 'synthetic:FAULT' at the given image width. UserError for an unknown fault."""
    fault = str(network).partition(':')[2] or 'none'
    if fault not in FAULTS:
        raise UserError(f'--network {network}: unknown fault, choose one of {", ".join(FAULTS)}')
    return FAULTS[fault](resolution).to(device).eval()
