"""Regularisers of the generator's density, one object each: name, interval, weight (EG3D 2112.07945, supplement; PanoHead)."""

import torch

from torch_utils import streams

TYPES = ('l1', 'monotonic-detach', 'monotonic-fixed')
MONOTONIC_WEIGHT = 10.0
L1_POINTS = 1000
MONOTONIC_POINTS = 2000
VOXELS = 256.0            # the monotonic step is one of so many parts of the box


class DensityL1:
    """Densities of neighbouring points shall agree: mean |density(p) - density(p + gaussian step)|.

    `weight` multiplies the loss; `step` is the deviation of the step in world units, None takes box / 256.
    """

    name = 'l1'

    def __init__(self, weight, step=0.004, interval=4):
        self.weight, self.step, self.interval = weight, step, interval

    def __call__(self, generator, field):
        points = streams.uniform([field.num, L1_POINTS, 3], field.device) * 2 - 1
        step = generator.rendering.box_warp / VOXELS if self.step is None else self.step
        density = field.query(torch.cat([points, points + streams.normal(points.shape, points.device) * step], dim=1)).density
        return (density[:, :L1_POINTS] - density[:, L1_POINTS:]).abs().mean() * self.weight


class DensityMonotonic:
    """One step of box / 256 towards -z, into the head from the front, must not lower the density; then the l1 term.

    `detach`: only the deeper point learns.
    """

    def __init__(self, weight, detach, interval=4):
        self.name = 'monotonic-detach' if detach else 'monotonic-fixed'
        self.detach, self.interval = detach, interval
        self.smooth = DensityL1(weight, step=None)

    def __call__(self, generator, field):
        points = streams.uniform([field.num, MONOTONIC_POINTS, 3], field.device) * 2 - 1
        inward = torch.tensor([0.0, 0.0, -1.0], device=points.device) * (generator.rendering.box_warp / VOXELS)
        density = field.query(torch.cat([points, points + inward], dim=1)).density
        outer, inner = density[:, :MONOTONIC_POINTS], density[:, MONOTONIC_POINTS:]
        lowered = torch.relu((outer.detach() if self.detach else outer) - inner).mean()
        return lowered * MONOTONIC_WEIGHT + self.smooth(generator, field)


def density_regularizer(reg_type, weight, p_dist=0.004, interval=4):
    """The regulariser of that name (one of TYPES), or None for weight 0."""
    if reg_type not in TYPES:
        raise ValueError(f'reg_type must be one of {", ".join(TYPES)}, got {reg_type!r}')
    if weight == 0:
        return None
    if reg_type == 'l1':
        return DensityL1(weight, p_dist, interval)
    return DensityMonotonic(weight, reg_type == 'monotonic-detach', interval)
