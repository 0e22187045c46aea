"""A perfect generator: the synthetic heads behind the Generator contract, with exact views, depths and masks.

`--network synthetic` measures it like any other. It shows what a metric gives where nothing is wrong, and with a fault of
metrics.faults built in, what it gives where one thing is.
"""

import hashlib

import torch

from camera_utils import LABEL_DIM
from metrics.headnet.examples import without_backdrop
from torch_utils.ops.resize import resize
from training.generators.base import Generator, GeneratorOutput
from training.representations.base import Field, FieldSample
from training.synthetic.appearance import backdrop_colour
from training.synthetic.geometry import prepare
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads

Z_DIM = 16
FIRST_SEED = 100_000_000     # far from the seeds of data sets and of what the head network learned from
NUM_SEEDS = 900_000_000
STEEPNESS = 4000.0           # density grows by this per world unit below the surface, up to +-DENSITY_LIMIT
DENSITY_LIMIT = 200.0


def head_seed(z):
    """The identity number of a latent z [Z_DIM] float32: a digest of its bytes."""
    digest = hashlib.sha256(z.detach().cpu().contiguous().numpy().tobytes()).digest()
    return FIRST_SEED + int.from_bytes(digest[:8], 'little') % NUM_SEEDS


class ReferenceField(Field):
    """The solid of some identities: density inside, none outside; without colours away from its surface."""

    def __init__(self, identities):
        self.identities = identities
        self._solid = prepare(identities.geometry)

    @property
    def num(self):
        """Identities N."""
        return len(self.identities)

    @property
    def device(self):
        """Where the identities are."""
        return self.identities.scale.device

    def query(self, points, directions=None):
        hand = torch.ones(self.num, 1, 3, device=points.device)
        hand[:, :, 0] = self.identities.handedness[:, None]
        scale = self.identities.scale[:, None]
        distance = self._solid.distances((points * hand / scale[..., None]).transpose(1, 2)).nearest * scale
        density = (distance * -STEEPNESS).clamp(-DENSITY_LIMIT, DENSITY_LIMIT)
        return FieldSample(density[..., None], torch.zeros_like(points))


class ReferenceGenerator(Generator):
    """z [N, 16] picks a synthetic head, by digest; ws [N, 1, 16] is z. Truncation changes the choice, not the look."""

    def __init__(self, img_resolution=64):
        super().__init__(z_dim=Z_DIM, c_dim=LABEL_DIM, w_dim=Z_DIM, img_resolution=img_resolution,
                         neural_rendering_resolution=img_resolution, rendering={}, camera={}, c_scale=1.0,
                         c_gen_conditioning_zero=True)
        self.register_buffer('anchor', torch.zeros([]))

    @property
    def num_ws(self):
        """Latents a sample has: 1."""
        return 1

    def mapping(self, z, c, truncation_psi=1.0, truncation_cutoff=None, update_emas=False):
        return z[:, None] * truncation_psi

    def people(self, ws):
        """Identities of latents ws [N, 1, 16]."""
        return sample_identities([head_seed(row) for row in ws[:, 0]]).to(self.anchor.device)

    def build_field(self, ws, cond=None, noise_mode='const'):
        return ReferenceField(self.people(ws))

    def render(self, field, ws, c, resolution=None, options=None, ws_bcg=None, noise_mode='const', noise=None):
        """GeneratorOutput of `field` from labels c [N, 25]; `ws_bcg`: latents whose backdrop stands behind the heads."""
        size = self.neural_rendering_resolution if resolution is None else resolution
        backdrop = None if ws_bcg is None else self.people(ws_bcg)
        return self.picture(field.identities, c, size, backdrop)

    def picture(self, identities, c, size, behind=None):
        """GeneratorOutput of Identities from labels c [N, 25], `size` pixels wide; `behind`: Identities whose backdrops stand
        behind them, None for their own."""
        behind = identities if behind is None else behind
        batch = render_heads(without_backdrop(identities), c, size)
        backdrop = backdrop_colour(behind.backdrop, behind.handedness, size, size)
        image = batch.image + (1 - batch.mask) * backdrop * 2
        whole = image if size == self.img_resolution else resize(image, self.img_resolution)
        # Rays that meet nothing end beyond the head, as those of a volume do.
        depth = torch.where(torch.isfinite(batch.depth), batch.depth, self.rendering.ray_end)
        return GeneratorOutput(whole, image, depth, batch.mask)
