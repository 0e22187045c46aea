"""Where a generator's latents lie: their mean, spread and principal axes, estimated from samples."""

import dataclasses

import numpy as np
import torch

from inference import latents, trajectories

STATISTICS_SEED = 123       # of the published statistics, whatever the run's seed
STATISTICS_BATCH = 1000
SMALLEST_AXIS = 1e-2        # of the largest: what lies below is as good as flat, and is not made flatter


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """Mean latent [1, 1, w_dim]; `std`: root mean square length of w - mean, a float; `z_mean` [1, z_dim]; `axes`
    [w_dim, K] orthonormal and `scales` [K]: principal axes and standard deviations along them; `samples` [num, w_dim]."""
    mean: torch.Tensor
    std: float
    z_mean: torch.Tensor
    axes: torch.Tensor
    scales: torch.Tensor
    samples: torch.Tensor

    def whiten(self, w):
        """Coordinates [..., K] of w [..., w_dim]: about 1 in size for every likely latent."""
        return (w - self.mean[0, 0]) @ self.axes / self.scales

    def unwhiten(self, p):
        """w [..., w_dim] of coordinates p [..., K]."""
        return self.mean[0, 0] + (p * self.scales) @ self.axes.T


@torch.no_grad()
def latent_statistics(generator, num, device, views='front'):
    """LatentStatistics over `num` latents conditioned on the camera before the face, or, for `views` 'front+back', every
    other one on the camera behind the head (generators that do not see the camera make no difference)."""
    z = np.random.RandomState(STATISTICS_SEED).randn(num, generator.z_dim).astype(np.float32)
    z = torch.from_numpy(z).to(device)
    w = []
    for start, rows in zip(range(0, num, STATISTICS_BATCH), z.split(STATISTICS_BATCH)):
        yaw = torch.zeros(len(rows))
        if views == 'front+back':
            yaw[(torch.arange(len(rows)) + start) % 2 == 1] = 180.0
        c = trajectories.turned(generator.camera, yaw, pivot=trajectories.ORIGIN).to(device)
        w.append(generator.mapping(rows, latents.conditioning(generator, c))[:, 0])
    w = torch.cat(w)                                                                                # [num, w_dim]
    mean = w.mean(dim=0, keepdim=True)
    centred = w - mean
    # The published pseudo-supervision divides the sum of `num` squares by half their number; here it is the deviation proper.
    std = centred.square().sum(dim=1).mean().sqrt().item()
    variances, axes = torch.linalg.eigh((centred.T @ centred).double().cpu() / num)                # ascending
    scales = variances.clamp_min(0).sqrt().flip(0)
    scales = scales.clamp_min(SMALLEST_AXIS * scales[0]).float().to(device)
    return LatentStatistics(mean[:, None], std, z.mean(dim=0, keepdim=True), axes.flip(1).float().to(device), scales, w)
