"""Which part of a synthetic head every pixel shows, and from where the face can be seen."""

import torch

from training.synthetic.geometry import FAR, SKIN, prepare
from training.synthetic.render import camera_rays

PARTS = ('background', 'face', 'skin', 'ears', 'hair', 'clothes')   # 'skin': neck and bare scalp
EAR_REACH = 1.35      # the ear's ellipsoid is blown up by this much to hold what is blended with it
FACE_FRONT_Z = 0.03   # the face is skin before this plane ...
FACE_TOP_Y, FACE_FOOT_Y = 0.15, -0.19   # ... and between these heights, head units


@torch.no_grad()
def part_maps(identities, labels, depth):
    """uint8 [N, H, W] of indices into PARTS of Identities seen from `labels` [N, 25], given the `depth` [N, 1, H, W] that
    render_heads found there (world units along the ray, infinite where there is no head)."""
    num, _, height, width = depth.shape
    hand = torch.ones(num, 3, device=labels.device)
    hand[:, 0] = identities.handedness
    origin, direction = camera_rays(labels, height, width)
    t = depth.flatten(1).clamp_max(FAR)
    p = (origin[:, :, None] + direction * t[:, None]) * hand[:, :, None] / identities.scale[:, None, None]
    geometry = identities.geometry
    distances = prepare(geometry).distances(p)
    cloth = torch.minimum(distances.cloth, distances.collar)
    nearest = torch.stack([distances.skin, distances.hair, cloth]).argmin(0)
    x, y, z = p.unbind(1)
    # The ears are the ellipsoids farthest to the sides of those the skin has.
    skin = torch.tensor([group == SKIN for group in geometry.groups], device=labels.device)
    ear = torch.where(skin, geometry.centre[:, :, 0], -FAR).argmax(1)
    rows = torch.arange(num, device=labels.device)
    local = torch.stack([x.abs(), y, z], dim=1) - geometry.centre[rows, ear][:, :, None]
    inside = ((geometry.rotation[rows, ear] @ local) / geometry.radii[rows, ear][:, :, None]).square().sum(1) < EAR_REACH ** 2
    face = (z > FACE_FRONT_Z) & (y < FACE_TOP_Y) & (y > FACE_FOOT_Y)

    def index(name):
        return torch.full_like(nearest, PARTS.index(name))

    part = torch.where(face, index('face'), index('skin'))
    part = torch.where(inside, index('ears'), part)
    part = torch.where(nearest == 1, index('hair'), torch.where(nearest == 2, index('clothes'), part))
    part = torch.where(torch.isfinite(depth.flatten(1)), part, index('background'))
    return part.reshape(num, height, width).to(torch.uint8)
