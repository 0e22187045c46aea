"""Volume rendering of three feature planes in one operator (C++ on the CPU, CUDA), forward and first-order backward.

It computes what training/volumetric_rendering/renderer.py does for planes with a one-layer decoder: the plain code is the
definition, and the fallback where can_render says no. No per-sample value is kept but the sorted depths and densities;
the backward pass computes the rest again. There is no gradient through depths, and no second order. On the CPU samples in
empty space, whose density changes no weight by more than 1e-16 of a unit, have no gradient.
"""

import dataclasses
import functools
import math
from typing import NamedTuple, Optional, Tuple

import torch

from torch_utils.ops import cuda_build, cuda_render
from torch_utils.ops import schemas  # noqa: F401  declares the operators
from torch_utils.ops.native import load_native

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ('none', 'sigmoid', 'lrelu')   # of the colours; the position is the number the operator takes


class PlaneDecoder(NamedTuple):
    """A decoder softplus(x weight1^T + bias1) weight2^T + bias2; row 0 of the second layer is the density."""
    weight1: torch.Tensor   # [hidden, C]
    bias1: torch.Tensor     # [hidden]
    weight2: torch.Tensor   # [1 + colours, hidden]
    bias2: torch.Tensor     # [1 + colours]


@dataclasses.dataclass(frozen=True)
class PlaneLayout:
    """How points find their place on the planes, and what the decoder's colours go through."""
    box_warp: float                             # side of the cube the planes span, world units
    axes: Tuple[Tuple[int, int, int], ...]      # world axes along width, height and depth of the three planes
    trilinear: bool                             # interpolate along the depth too
    activation: str                             # one of ACTIVATIONS

    def arguments(self):
        """The same as the operator takes it."""
        return (float(self.box_warp), [axis for plane in self.axes for axis in plane], self.trilinear,
                ACTIVATIONS.index(self.activation))


@dataclasses.dataclass(frozen=True)
class RaySamples:
    """Where rays are sampled: depths of the coarse pass and all random numbers."""
    origins: torch.Tensor                                  # [N, M, 3] world units
    directions: torch.Tensor                               # [N, M, 3]
    depths: torch.Tensor                                   # [N, M, S] ascending
    fine_noise: Optional[torch.Tensor] = None              # [N, M, S2] in [0, 1), None for no importance samples
    coarse_density_noise: Optional[torch.Tensor] = None    # [N, M, S] added to the density
    fine_density_noise: Optional[torch.Tensor] = None      # [N, M, S2]


def can_render(planes, decoder, samples=0):
    """Whether the operator is there for these tensors: float32, float16 or bfloat16, on a device it was built for, of sizes
    it takes. `samples`: of a ray, coarse and fine, where rays are rendered."""
    tensors = (planes, *decoder)
    if any(t.device != planes.device or t.dtype not in DTYPES for t in tensors):
        return False
    if planes.device.type == 'cpu':
        return load_native()
    return planes.device.type == 'cuda' and _load_cuda(planes.device) and cuda_render.fits(planes, decoder, samples)


def reads_cells(channels, device):
    """Whether the operator takes planes of that many channels without a copy where the channels of a cell lie together in
    memory, the cells in the order [N, H, W, 3, D] (channels-last images) or [N, 3, D, H, W]."""
    return device.type == 'cpu' and channels % 16 == 0 and load_native()


@functools.lru_cache(maxsize=None)
def _load_cuda(device):
    """Register the CUDA implementation where its kernels can be had."""
    if not cuda_build.load_cuda(device):
        return False
    cuda_render.register()
    return True


def volume_render(planes, decoder, layout, rays, crop_limit=None, white_back=False):
    """Render rays through planes [N, 3, C, D, H, W]; ask can_render first.

    decoder: PlaneDecoder; layout: PlaneLayout; rays: RaySamples; crop_limit: samples with |x| or |z| beyond it are empty,
    None for no limit; white_back: rays that pass end in white. Returns features [N, M, colours], depth [N, M, 1] and
    opacity [N, M, 1] (the sum of the weights) in float32. Gradients: planes, decoder, origins, directions.
    """
    floats = [_planes(planes), *(t.float() for t in (*decoder, rays.origins, rays.directions))]
    noise = [None if t is None or t.numel() == 0 else t.float() for t in
             (rays.fine_noise, rays.coarse_density_noise, rays.fine_density_noise)]
    limit = math.inf if crop_limit is None else float(crop_limit)
    features, depth, opacity, depths, _ = torch.ops.omnihead.volume_render(
        *floats, rays.depths.detach().float(), *noise, *layout.arguments(), limit, white_back)
    if depths.numel() > 0:
        depth = depth.nan_to_num(math.inf).clamp(depths.amin(), depths.amax())
    return features, depth, opacity


def plane_query(planes, decoder, layout, points):
    """(density [N, M, 1], features [N, M, colours]) at points [N, M, 3], without gradients; ask can_render first."""
    with torch.no_grad():
        floats = [_planes(planes), *(t.float() for t in (*decoder, points))]
        return torch.ops.omnihead.plane_query(*floats, *layout.arguments())


def plane_density(planes, decoder, layout, points):
    """Density [N, M, 1] at points [N, M, 3], without gradients and without the work of colours; ask can_render first."""
    with torch.no_grad():
        floats = [_planes(planes), *(t.float() for t in (*decoder, points))]
        return torch.ops.omnihead.plane_density(*floats, *layout.arguments()[:3])


def _planes(planes):
    """Planes as the operator takes them: one identity's where they were expanded, which all rays then share; in their own type
    on CUDA, where half of the memory is half of the time."""
    planes = planes[:1] if planes.shape[0] > 1 and planes.stride(0) == 0 else planes
    return planes if planes.device.type == 'cuda' else planes.float()


def _fake_render(planes, weight1, bias1, weight2, bias2, origins, directions, depths, fine_noise, *_):
    n, m, samples = depths.shape
    samples = samples + (0 if fine_noise is None else fine_noise.shape[-1])
    return tuple(origins.new_empty(n, m, width) for width in (weight2.shape[0] - 1, 1, 1, samples, samples))


def _fake_backward(planes, weight1, bias1, weight2, bias2, origins, directions, *_):
    return torch.empty_like(planes), *(t.new_empty(t.shape) for t in (weight1, bias1, weight2, bias2, origins, directions))


def _fake_query(planes, weight1, bias1, weight2, bias2, points, *_):
    return points.new_empty(*points.shape[:2], 1), points.new_empty(*points.shape[:2], weight2.shape[0] - 1)


def _setup_context(ctx, inputs, output):
    *_, depths, density = output
    ctx.save_for_backward(*inputs[:7], depths, density)
    ctx.arguments = inputs[11:]


def _backward(ctx, features_grad, depth_grad, opacity_grad, *_):
    decoder_grad, rays_grad = any(ctx.needs_input_grad[1:5]), any(ctx.needs_input_grad[5:7])
    grads = torch.ops.omnihead.volume_render_backward(*ctx.saved_tensors, features_grad, depth_grad, opacity_grad,
                                                      *ctx.arguments, rays_grad, decoder_grad)
    needed = ctx.needs_input_grad
    return (*(g if needed[i] else None for i, g in enumerate(grads)), *[None] * (len(needed) - len(grads)))


torch.library.register_fake('omnihead::volume_render', _fake_render)
torch.library.register_fake('omnihead::volume_render_backward', _fake_backward)
torch.library.register_fake('omnihead::plane_query', _fake_query)
torch.library.register_fake('omnihead::plane_density', lambda *tensors: tensors[5].new_empty(*tensors[5].shape[:2], 1))
torch.library.register_autograd('omnihead::volume_render', _backward, setup_context=_setup_context)
