"""Where density becomes colour: emission-absorption marching on interval mid-points (NeRF 2003.08934, equation 3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Composite(NamedTuple):
    """What marching leaves of a ray."""
    features: torch.Tensor   # [N, M, C] weighted sum of the samples' features
    depth: torch.Tensor      # [N, M, 1] mean depth, world units
    weights: torch.Tensor    # [N, M, S-1] weight of every interval; their sum is the ray's opacity


def interval_weights(density, depths):
    """Weights [N, M, S-1] and mid-depths [N, M, S-1] of the intervals between S samples; density, depths [N, M, S]."""
    delta = depths[..., 1:] - depths[..., :-1]
    middle = (depths[..., 1:] + depths[..., :-1]) / 2
    sigma = F.softplus((density[..., 1:] + density[..., :-1]) / 2 - 1)
    alpha = 1 - torch.exp(-sigma * delta)
    passed = torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], dim=-1)
    return alpha * passed.cumprod(dim=-1)[..., :-1], middle


def march(density, features, depths, white_back=False):
    """Composite samples in order of depth: density [N, M, S], features [N, M, S, C], depths [N, M, S].

    An interval's features are the mean of its two samples'. A ray without any weight has the largest sampled depth.
    """
    weights, middle = interval_weights(density, depths)
    mean_features = (features[..., 1:, :] + features[..., :-1, :]) / 2
    total = weights.sum(dim=-1, keepdim=True)
    out = (weights[..., None] * mean_features).sum(dim=-2)
    # A ray that meets nothing must not divide by zero: its gradient would be NaN, and spread.
    seen = total > 0
    depth = (weights * middle).sum(dim=-1, keepdim=True) / torch.where(seen, total, torch.ones_like(total))
    depth = torch.where(seen, depth, depths.amax()).clamp(depths.amin(), depths.amax())
    if white_back:
        out = out + 1 - total
    return Composite(out, depth, weights)
