"""The fused volume renderer on CUDA: what torch.ops.omnihead.volume_render and its kin do there.

Signatures: schemas.py; meaning and autograd: volume_render.py; kernels: csrc/volume_render_forward.cu and its neighbours.
Planes may be float32, float16 or bfloat16 and are read as they are; everything else, and all sums, are float32.
"""

import ctypes
import functools
import math
from typing import NamedTuple

import torch

from torch_utils.ops import cuda_build

MOST_CHANNELS = 128          # of planes, hidden layer and colours each
LANES = 32
GRID_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_pointer, _integer, _long, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float


class RenderParams(ctypes.Structure):
    """omni::RenderParams of csrc/shared/render.h."""
    _fields_ = [*((name, _pointer) for name in (
        'grid', 'w1', 'b1', 'w2', 'b2', 'origins', 'directions', 'depths', 'fine_noise', 'coarse_density_noise',
        'fine_density_noise', 'features', 'depth', 'opacity', 'sorted_depths', 'sorted_density', 'features_grad', 'depth_grad',
        'opacity_grad', 'grid_grad', 'partial', 'origins_grad', 'directions_grad')),
        ('num_rays', _long), ('rays_per_grid', _long),
        *((name, _integer) for name in ('coarse', 'fine', 'layers', 'height', 'width', 'trilinear', 'white_back')),
        ('axes', _integer * 9), ('scale', _float), ('crop_limit', _float)]


class PackParams(ctypes.Structure):
    """omni::PackParams of csrc/pack_planes.cu."""
    _fields_ = [('source', _pointer), ('target', _pointer), ('cells', _long), ('channels', _integer), ('wide', _integer)]


class Sizes(NamedTuple):
    """What a kernel is compiled for."""
    channels: int
    hidden: int
    colours: int
    activation: int
    grid: int           # number type of the packed planes, one of GRID_TYPES
    layers: int         # 2 where the depth axis is interpolated, else 1

    def padded(self):
        """(channels, hidden, colours) as the kernels pad them."""
        return _up_to(self.channels, 8), _up_to(self.hidden, 16), _up_to(self.colours, 8)

    def defines(self, warps):
        """The macros csrc/shared/render.h asks for."""
        names = ('CHANNELS', 'HIDDEN', 'COLOURS', 'ACTIVATION', 'GRID', 'LAYERS')
        return (*((f'OMNI_{name}', value) for name, value in zip(names, self)), ('OMNI_WARPS', warps))


def _up_to(x, step):
    return -(-x // step) * step


# Shared memory: (floats of a block, floats of each of its warps), as the kernels hand it out.

def _forward_floats(sizes, samples):
    c, h, o = sizes.padded()
    rows = _up_to(samples, 16)
    return c * h + 2 * h + o + (0 if sizes.activation == 0 else h * o), rows * (c + 4 + 8) + max(h, o)


def _backward_floats(sizes, samples):
    c, h, o = sizes.padded()
    rows, linear = _up_to(samples, 16), sizes.activation == 0
    block = 2 * c * h + 2 * h + o + (0 if linear else 2 * h * o)
    own = rows * (c + 4 + 8) + 2 * o + 4 * h + 16 * (h + 8) + (0 if linear else 16 * (h + 8 + o + 8))
    return block, own


def _query_floats(sizes, _):
    c, h, o = sizes.padded()
    return c * h + 2 * h + o + h * o, 16 * (c + 4)


class Plan(NamedTuple):
    """How a kernel is compiled and launched."""
    kernel: cuda_build.Kernel
    warps: int
    shared: int          # bytes
    resident: int        # blocks that the device runs at a time

    def run(self, items, params):
        """Launch for that many rays (or groups of points), one a warp; returns the number of blocks."""
        blocks = min(-(-items // self.warps), self.resident)
        self.kernel.launch((blocks, 1, 1), self.warps * LANES, self.shared, params)
        return blocks


@functools.lru_cache(maxsize=None)
def _warps_for(floats, sizes, samples, device):
    """(warps, bytes, resident blocks of a multiprocessor): as many warps at work as shared memory allows; warps 0 for none."""
    facts = cuda_build.facts(device)
    block, own = floats(sizes, samples)
    best = (0, 0, 0)
    for warps in (4, 5, 6, 7, 8, 3, 2, 1):
        size = 4 * (block + warps * own)
        if size <= facts.shared_per_block:
            # A block takes 1 KiB for itself; registers bear 8 warps of 255 in the backward pass, 16 elsewhere.
            resident = min(facts.shared_per_multiprocessor // (size + 1024), (8 if floats is _backward_floats else 16) // warps)
            if max(resident, 1) * warps > best[0] * best[2]:
                best = (warps, size, max(resident, 1))
    return best


@functools.lru_cache(maxsize=None)
def _plan(name, floats, sizes, samples, device):
    warps, shared, resident = _warps_for(floats, sizes, samples, device)
    if not warps:
        raise ValueError(f'{name}: {samples} samples of {sizes.channels} channels are more than shared memory holds')
    kernel = cuda_build.kernel(f'{name}.cu', name, sizes.defines(warps), device)
    return Plan(kernel, warps, shared, resident * cuda_build.facts(device).multiprocessors)


def fits(planes, decoder, samples=0):
    """Whether the kernels take planes and a decoder of these sizes, with `samples` on a ray in both passes together."""
    channels, hidden, colours = planes.shape[2], decoder.weight1.shape[0], decoder.weight2.shape[0] - 1
    if max(channels, hidden, colours) > MOST_CHANNELS or planes.dtype not in GRID_TYPES:
        return False
    if 3 * _up_to(channels, 8) * math.prod(planes.shape[3:]) >= 2 ** 31:
        return False
    sizes = Sizes(channels, hidden, colours, 1, GRID_TYPES[planes.dtype], 2)   # those that take the most memory
    return all(_warps_for(f, sizes, max(samples, 16), planes.device)[0] for f in (_forward_floats, _backward_floats))


def _require(condition, message):
    if not condition:
        raise RuntimeError(message)


def _checked(tensor, name, shape, like):
    """Contiguous float32 tensor of that shape on the device of `like`."""
    if tensor is None:
        return None
    _require(tensor.device == like.device and tensor.dtype == torch.float32, f'{name} must be a float32 tensor on {like.device}')
    _require(tuple(tensor.shape) == tuple(shape), f'{name} must have shape {list(shape)}, got {list(tensor.shape)}')
    return tensor.contiguous()


def _address(tensor):
    return None if tensor is None else tensor.data_ptr()


def _exchange(name, planar, packed, source, target):
    """Run pack_planes or unpack_planes between [N, 3, C, D, H, W] and [N, 3, D, H, W, padded C]."""
    n, _, channels, *cells = planar.shape
    cells, wide = math.prod(cells), packed.shape[-1]
    if n * cells == 0:
        return
    defines = (('OMNI_PACKED', GRID_TYPES[packed.dtype]), ('OMNI_PLANAR', GRID_TYPES[planar.dtype]))
    params = PackParams(source.data_ptr(), target.data_ptr(), cells, channels, wide)
    grid = (-(-cells // 32), -(-wide // 32), 3 * n)
    cuda_build.kernel('pack_planes.cu', name, defines, planar.device).launch(grid, 256, 4 * 32 * 33, params)


def _pack(planes):
    """Planes with the channels of a cell together, padded to a multiple of eight: [N, 3, D, H, W, padded C]."""
    n, _, channels, *cells = planes.shape
    last = planes.permute(0, 1, 3, 4, 5, 2)
    if channels % 8 == 0 and last.is_contiguous() and last.data_ptr() % 16 == 0:
        return last
    planes = planes.contiguous()
    packed = planes.new_empty(n, 3, *cells, _up_to(channels, 8))
    _exchange('pack_planes', planes, packed, planes, packed)
    return packed


def _unpack(packed, planes):
    """The inverse of _pack, in type and shape of `planes`."""
    out = torch.empty(planes.shape, dtype=planes.dtype, device=planes.device)
    _exchange('unpack_planes', out, packed, packed, out)
    return out


class _Call(NamedTuple):
    """A call's sizes, its parameters but for outputs, and the tensors they point to."""
    sizes: Sizes
    params: RenderParams
    held: list


def _prepare(field, points, box_warp, axes, trilinear, activation, crop_limit, white_back):
    """_Call for a field (planes, weights and biases) and what lies at `points` [N, M, 3]."""
    planes, w1, b1, w2, b2 = field
    _require(planes.ndim == 6 and planes.shape[1] == 3 and planes.dtype in GRID_TYPES,
             f'planes must be [N, 3, C, D, H, W] in float32, float16 or bfloat16, got {planes.dtype} {list(planes.shape)}')
    _require(w1.ndim == 2 and w2.ndim == 2 and w2.shape[0] >= 2, 'decoder weights must be [hidden, C] and [1 + colours, hidden]')
    _require(len(axes) == 9 and all(0 <= a < 3 for a in axes) and 0 <= activation <= 2, 'axes must be nine of 0, 1, 2, activation 0 to 2')
    _require(trilinear or planes.shape[3] == 1, f'planes without trilinear lookup have one layer, got {planes.shape[3]}')
    _require(points.ndim == 3, f'points and rays must be [N, M, 3], got {list(points.shape)}')
    n, m, grids = points.shape[0], points.shape[1], planes.shape[0]
    _require(grids in (n, 1), f'planes are of {grids} identities, rays of {n}')
    channels, hidden, colours = planes.shape[2], w1.shape[0], w2.shape[0] - 1
    layers = 2 if trilinear and planes.shape[3] > 1 else 1
    shapes = dict(weight1=(hidden, channels), bias1=(hidden,), weight2=(1 + colours, hidden), bias2=(1 + colours,))
    held = [_pack(planes), *(_checked(t, name, shape, planes) for t, (name, shape) in zip(field[1:], shapes.items()))]
    params = RenderParams(*map(_address, held))
    params.num_rays, params.rays_per_grid = n * m, max(n * m if grids == 1 else m, 1)
    params.layers, params.height, params.width = planes.shape[3:]
    params.trilinear, params.white_back = trilinear, white_back
    params.axes[:] = list(axes)
    params.scale, params.crop_limit = 2 / box_warp, crop_limit
    return _Call(Sizes(channels, hidden, colours, activation, GRID_TYPES[planes.dtype], layers), params, held)


def _point_to(call, **tensors):
    """Set parameters to the addresses of tensors and keep these alive."""
    for name, tensor in tensors.items():
        setattr(call.params, name, _address(tensor))
        call.held.append(tensor)


def volume_render(planes, weight1, bias1, weight2, bias2, origins, directions, depths, fine_noise, coarse_density_noise,
                  fine_density_noise, box_warp, axes, trilinear, activation, crop_limit, white_back):
    """The operator omnihead::volume_render on CUDA."""
    _require(depths.ndim == 3, f'depths must be [N, M, S], got {list(depths.shape)}')
    n, m, coarse = depths.shape
    fine = 0 if fine_noise is None else fine_noise.shape[-1]
    _require(coarse >= 2 and (fine == 0 or coarse >= 4), f'needs at least 4 coarse samples, got {coarse}')
    call = _prepare((planes, weight1, bias1, weight2, bias2), origins, box_warp, axes, trilinear, activation, crop_limit, white_back)
    given = dict(origins=(origins, 3), directions=(directions, 3), depths=(depths, coarse), fine_noise=(fine_noise, fine),
                 coarse_density_noise=(coarse_density_noise, coarse), fine_density_noise=(fine_density_noise, fine))
    _point_to(call, **{name: _checked(t, name, (n, m, width), planes) for name, (t, width) in given.items()})
    widths = dict(features=call.sizes.colours, depth=1, opacity=1, sorted_depths=coarse + fine, sorted_density=coarse + fine)
    out = {name: origins.new_empty(n, m, width) for name, width in widths.items()}
    _point_to(call, **out)
    call.params.coarse, call.params.fine = coarse, fine
    if n * m > 0:
        _plan('volume_render_forward', _forward_floats, call.sizes, coarse + fine, planes.device).run(n * m, call.params)
    return tuple(out.values())


def volume_render_backward(planes, weight1, bias1, weight2, bias2, origins, directions, sorted_depths, sorted_density, features_grad,
                           depth_grad, opacity_grad, box_warp, axes, trilinear, activation, crop_limit, white_back, rays_grad,
                           decoder_grad=True):
    """The operator omnihead::volume_render_backward on CUDA. Sums in the planes are in no fixed order; the decoder's gradients
    come in any case."""
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError('the backward pass of volume_render on CUDA adds up in no fixed order; deterministic algorithms were asked for: '
                           'set OMNIHEAD_NATIVE=0 for plain PyTorch')
    n, m, samples = sorted_depths.shape
    field = (planes, weight1, bias1, weight2, bias2)
    call = _prepare(field, origins, box_warp, axes, trilinear, activation, crop_limit, white_back)
    given = dict(origins=(origins, 3), directions=(directions, 3), sorted_depths=(sorted_depths, samples),
                 sorted_density=(sorted_density, samples), features_grad=(features_grad, call.sizes.colours),
                 depth_grad=(depth_grad, 1), opacity_grad=(opacity_grad, 1))
    _point_to(call, **{name: _checked(t, name, (n, m, width), planes) for name, (t, width) in given.items()})
    call.params.coarse, call.params.fine = samples, 0
    if n * m == 0:
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (*field, origins, directions))
    c, h, o = call.sizes.padded()
    plan = _plan('volume_render_backward', _backward_floats, call.sizes, samples, planes.device)
    warps, blocks = plan.warps, min(-(-n * m // plan.warps), plan.resident)
    partial = origins.new_empty(blocks, h * c + o * h + warps * (2 * h + o + 1))
    grid_grad = torch.zeros(call.held[0].shape, dtype=torch.float32, device=planes.device)
    rays = [torch.zeros(n, m, 3, dtype=torch.float32, device=planes.device) for _ in range(2)]
    _point_to(call, grid_grad=grid_grad, partial=partial)
    if rays_grad:
        _point_to(call, origins_grad=rays[0], directions_grad=rays[1])
    plan.run(n * m, call.params)
    w1, w2, b1, density_row, b2, density_bias = partial.sum(dim=0).split([h * c, o * h, warps * h, warps * h, warps * o, warps])
    _, _, channels, *_ = planes.shape
    hidden, colours = weight1.shape[0], weight2.shape[0] - 1
    density_row, b1, b2 = (t.reshape(warps, -1).sum(dim=0) for t in (density_row, b1, b2))
    return (_unpack(grid_grad, planes), w1.reshape(h, c)[:hidden, :channels].contiguous(), b1[:hidden].contiguous(),
            torch.cat([density_row[None, :hidden], w2.reshape(o, h)[:colours, :hidden]]),
            torch.cat([density_bias.sum(dim=0, keepdim=True), b2[:colours]]), *rays)


def _query(field, points, layout, activation, wants_features):
    call = _prepare(field, points, *layout, activation, math.inf, False)
    n, m, _ = points.shape
    density = points.new_empty(n, m, 1)
    features = points.new_empty(n, m, call.sizes.colours) if wants_features else None
    _point_to(call, origins=_checked(points, 'points', (n, m, 3), field[0]), depth=density, features=features)
    if n * m > 0:
        _plan('plane_query', _query_floats, call.sizes, 0, points.device).run(-(-n * m // 16), call.params)
    return density, features


def plane_query(planes, weight1, bias1, weight2, bias2, points, box_warp, axes, trilinear, activation):
    """The operator omnihead::plane_query on CUDA."""
    return _query((planes, weight1, bias1, weight2, bias2), points, (box_warp, axes, trilinear), activation, True)


def plane_density(planes, weight1, bias1, weight2, bias2, points, box_warp, axes, trilinear):
    """The operator omnihead::plane_density on CUDA."""
    return _query((planes, weight1, bias1, weight2, bias2), points, (box_warp, axes, trilinear), 0, False)[0]


@functools.lru_cache(maxsize=1)
def register():
    """Make these the CUDA implementations of the operators."""
    for function in (volume_render, volume_render_backward, plane_query, plane_density):
        torch.library.impl(f'omnihead::{function.__name__}', 'cuda', function)
