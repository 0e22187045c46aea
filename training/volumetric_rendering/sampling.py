"""Where along a ray the field is asked: stratified, then importance sampling (NeRF 2003.08934, section 5.2)."""

import torch
import torch.nn.functional as F


def midpoint_noise(shape, device):
    """The uniform numbers of deterministic rendering [N, M, S]: mid-points of S equal parts of [0, 1]."""
    num = shape[-1]
    return ((torch.arange(num, device=device, dtype=torch.float32) + 0.5) / num).expand(shape)


def stratified_depths(near, far, noise):
    """One depth in each of S equal steps. near, far [N, M] or floats, noise [N, M, S] in [0, 1) -> [N, M, S]."""
    num = noise.shape[-1]
    steps = torch.linspace(0, 1, num, device=noise.device)
    if isinstance(near, torch.Tensor):
        near, far = near[..., None], far[..., None]
        return near + steps * (far - near) + noise * ((far - near) / (num - 1))
    return torch.linspace(near, far, num, device=noise.device) + noise * ((far - near) / (num - 1))


def importance_depths(depths, weights, noise):
    """Depths drawn where the coarse pass found weight; no gradient.

    depths [N, M, S] of the coarse samples, weights [N, M, S-1] of the intervals between them, noise [N, M, S2] in
    [0, 1] -> [N, M, S2]. Weights are widened by a max filter and smoothed before they become a distribution.
    """
    with torch.no_grad():
        n, m, num = depths.shape
        w = weights.reshape(n * m, 1, num - 1).float()
        w = F.avg_pool1d(F.max_pool1d(w, 2, stride=1, padding=1), 2, stride=1).reshape(n, m, num - 1) + 0.01
        edges = (depths[..., :-1] + depths[..., 1:]) / 2
        return _inverse_cdf(edges, w[..., 1:-1] + 1e-5, noise)


def _inverse_cdf(edges, weights, noise, eps=1e-5):
    pdf = weights / weights.sum(dim=-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[..., :1]), pdf.cumsum(dim=-1)], dim=-1)
    last = cdf.shape[-1] - 1
    above = torch.searchsorted(cdf, noise.contiguous(), right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=last)
    cdf0, cdf1 = cdf.gather(-1, below), cdf.gather(-1, above)
    edge0, edge1 = edges.gather(-1, below), edges.gather(-1, above)
    width = cdf1 - cdf0
    width = torch.where(width < eps, torch.ones_like(width), width)
    return edge0 + (noise - cdf0) / width * (edge1 - edge0)
