"""The Field contract: what a generator family synthesises, and all the renderer ever sees of it."""

from typing import NamedTuple, Optional

import torch


class FieldSample(NamedTuple):
    """Values of a field at points."""
    density: torch.Tensor    # [N, M, 1], before the marcher's softplus
    features: torch.Tensor   # [N, M, C]


class Field:
    """A density and a feature vector at every point of space, for N identities at once."""

    num: int                 # identities N
    device: torch.device     # where points must lie
    bytes_per_point = 2048   # working memory of `density` for each point, or more; plain lookup in planes takes about 700

    def query(self, points, directions=None) -> FieldSample:
        """Values at points [N, M, 3] (world units); `directions` [N, M, 3] are unit vectors, for fields that use them."""
        raise TypeError(f'{type(self).__name__} does not define query')

    def density(self, points):
        """Density [N, M, 1] alone at points [N, M, 3] (world units), where features would be work for nothing."""
        return self.query(points).density

    def render_fused(self, rays, options, noise) -> Optional[tuple]:
        """The whole volume rendering in one operator: (features, depth, weights) as renderer.render_rays returns them,
        or None where this kind of field, device or option has no such operator."""
        return None
