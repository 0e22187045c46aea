"""bias_act and upfirdn2d on CUDA: what torch.ops.omnihead.bias_act, its derivatives and upfirdn2d do there.

Signatures: schemas.py; definitions: bias_act.py and upfirdn2d.py; kernels: csrc/bias_act.cu and csrc/upfirdn2d.cu. Layouts are
taken as they come: memory is gone through in its own order, channels-last stays channels-last.
"""

import ctypes
import functools
import math

import torch

from torch_utils.ops import cuda_build
from torch_utils.ops import schemas  # noqa: F401  declares the operators

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
MOST_TAPS = 32                  # of a filter, in each direction: they are unrolled
STRAIGHT = ('linear', 'relu', 'lrelu')   # activations without a second derivative; the first in the kernel's order
ORDER = (*STRAIGHT, 'tanh', 'sigmoid', 'elu', 'selu', 'softplus', 'swish')   # the kernel's numbers
THREADS = 256
BLOCKS = 32                     # of a multiprocessor, at most: threads then take several places
_pointer, _integer, _long, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float


class BiasActParams(ctypes.Structure):
    """omni::BiasActParams of csrc/bias_act.cu."""
    _fields_ = [*((name, _pointer) for name in ('x', 'b', 'dy', 'ddx', 'out')), ('size', _long), ('stride', _long),
                ('channels', _integer), ('gain', _float), ('clamp', _float)]


class UpFirDnParams(ctypes.Structure):
    """omni::UpFirDnParams of csrc/upfirdn2d.cu."""
    _fields_ = [*((name, _pointer) for name in ('x', 'f', 'out')), ('size', _long),
                *((f'{side}{name}', _long) for side in ('', 'out_') for name in ('image', 'row', 'pixel', 'channel')),
                *((name, _integer) for name in ('channels', 'height', 'width', 'out_height', 'out_width', 'pad_x', 'pad_y',
                                                'channels_last'))]


def can_run(x):
    """Whether the operators take this tensor: on CUDA, float32, float16 or bfloat16, and kernels can be had."""
    return x.device.type == 'cuda' and x.dtype in TYPES and _load(x.device)


@functools.lru_cache(maxsize=None)
def _load(device):
    if not cuda_build.load_cuda(device):
        return False
    register('cuda')
    return True


@functools.lru_cache(maxsize=None)
def register(device_type):
    """Make the functions below the operators' implementations for that type of device."""
    for name, function in (('bias_act', bias_act), ('bias_act_grad', bias_act_grad), ('bias_act_grad2', bias_act_grad2),
                           ('upfirdn2d', upfirdn2d)):
        torch.library.impl(f'omnihead::{name}', device_type, function)


def fused_bias_act(x, b, dim, act, gain, clamp):
    """bias_act.bias_act with everything spelled out: b [x.shape[dim]] in x's type or None, clamp a number or None; ask
    can_run first. Gradients of both orders."""
    limit = math.inf if clamp is None or x.dtype == torch.bfloat16 else float(clamp)
    return torch.ops.omnihead.bias_act(x, b, dim % x.ndim, ORDER.index(act), float(gain), limit)


def _dense(x):
    """x, or a contiguous copy where its memory has gaps or is shared between places."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape) if n != 1):
        if stride != expected:
            return x.contiguous()
        expected *= size
    return x


def _laid_out_as(tensor, x):
    """tensor with its numbers in memory in the order of x."""
    return tensor if tensor.stride() == x.stride() else torch.empty_like(x).copy_(tensor)


def _count(tensors, multiples=()):
    """Numbers that can be read at once: 16 bytes, if all addresses and the given sizes are multiples of that."""
    count = 16 // tensors[0].element_size()
    return count if all(t.data_ptr() % 16 == 0 for t in tensors) and all(m % count == 0 for m in multiples) else 1


def _blocks(threads, device):
    return max(1, min(-(-threads // THREADS), BLOCKS * cuda_build.facts(device).multiprocessors))


def _index_type(size):
    return 'u32' if size < 2 ** 31 else 'i64'


def _run_bias_act(order, x, b, dim, act, gain, clamp, dy=None, ddx=None):
    if x.dtype not in TYPES or any(t is not None and (t.dtype != x.dtype or t.device != x.device) for t in (b, dy, ddx)):
        raise RuntimeError(f'bias_act takes float32, float16 or bfloat16, all of one type and device, got {x.dtype}')
    if b is not None and tuple(b.shape) != (x.shape[dim],):
        raise RuntimeError(f'b must have shape [{x.shape[dim]}], got {list(b.shape)}')
    x = _dense(x)
    b = None if b is None else b.contiguous()
    dy, ddx = (None if t is None else _laid_out_as(t, x) for t in (dy, ddx))
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    given = [t for t in (x, dy, ddx, out) if t is not None]
    count = _count(given, [x.numel()])
    params = BiasActParams(*(None if t is None else t.data_ptr() for t in (x, b, dy, ddx, out)), x.numel(),
                           max(x.stride(dim), 1), x.shape[dim], gain, clamp)
    defines = (('OMNI_ACT', act), ('OMNI_COUNT', count), ('OMNI_INDEX', _index_type(x.numel())), ('OMNI_ORDER', order),
               ('OMNI_TYPE', TYPES[x.dtype]))
    kernel = cuda_build.kernel('bias_act.cu', 'bias_act', defines, x.device)
    kernel.launch((_blocks(x.numel() // count, x.device), 1, 1), THREADS, 0, params)
    return out


def bias_act(x, b, dim, act, gain, clamp):
    """The operator omnihead::bias_act on CUDA."""
    return _run_bias_act(0, x, b, dim, act, gain, clamp)


def bias_act_grad(dy, x, b, dim, act, gain, clamp):
    """The operator omnihead::bias_act_grad on CUDA: dy times the derivative at x."""
    return _run_bias_act(1, x, b, dim, act, gain, clamp, dy)


def bias_act_grad2(dy, ddx, x, b, dim, act, gain, clamp):
    """The operator omnihead::bias_act_grad2 on CUDA: dy times ddx times the second derivative at x."""
    return _run_bias_act(2, x, b, dim, act, gain, clamp, dy, ddx)


def _sum_to_bias(grad, b, dim):
    return None if b is None else grad.sum(dim=[i for i in range(grad.ndim) if i != dim])


def _save_first(ctx, inputs, output):
    x, b, *ctx.arguments = inputs
    ctx.save_for_backward(x, b)


def _backward_first(ctx, dy):
    x, b = ctx.saved_tensors
    dx = torch.ops.omnihead.bias_act_grad(dy, x, b, *ctx.arguments)
    return dx, _sum_to_bias(dx, b if ctx.needs_input_grad[1] else None, ctx.arguments[0]), None, None, None, None


def _save_second(ctx, inputs, output):
    dy, x, b, *ctx.arguments = inputs
    ctx.save_for_backward(dy, x, b)


def _backward_second(ctx, ddx):
    dy, x, b = ctx.saved_tensors
    dim, act, *_ = ctx.arguments
    by_dy = torch.ops.omnihead.bias_act_grad(ddx, x, b, *ctx.arguments) if ctx.needs_input_grad[0] else None
    by_x = by_b = None
    if any(ctx.needs_input_grad[1:3]) and ORDER[act] not in STRAIGHT:
        by_x = torch.ops.omnihead.bias_act_grad2(dy, ddx, x, b, *ctx.arguments)
        by_b = _sum_to_bias(by_x, b if ctx.needs_input_grad[2] else None, dim)
    return by_dy, by_x, by_b, None, None, None, None


def _out_size(x, f, up, down, padding):
    width = (x.shape[3] * up[0] + padding[0] + padding[1] - f.shape[1]) // down[0] + 1
    height = (x.shape[2] * up[1] + padding[2] + padding[3] - f.shape[0]) // down[1] + 1
    if width < 1 or height < 1:
        raise RuntimeError('upfirdn2d: the filter is larger than the padded image')
    return x.shape[0], x.shape[1], height, width


def _channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def upfirdn2d(x, f, up, down, padding):
    """The operator omnihead::upfirdn2d on CUDA; channels-last where x is."""
    if x.ndim != 4 or f.ndim != 2 or x.dtype not in TYPES:
        raise RuntimeError(f'upfirdn2d takes [N, C, H, W] in float32, float16 or bfloat16 and a filter [K, K], got {x.dtype}')
    layout = torch.channels_last if _channels_last(x) else torch.contiguous_format
    out = torch.empty(_out_size(x, f, up, down, padding), dtype=x.dtype, device=x.device, memory_format=layout)
    if out.numel() == 0:
        return out
    if x.numel() == 0:
        return out.zero_()
    f = f.float().contiguous()
    last = x.stride(1) == 1 and out.stride(1) == 1
    count = _count((x, out), (x.shape[1], x.stride(0), x.stride(2), x.stride(3))) if last else 1
    size = out.numel() // count
    steps = [t.stride(i) for t in (x, out) for i in (0, 2, 3, 1)]
    params = UpFirDnParams(x.data_ptr(), f.data_ptr(), out.data_ptr(), size, *steps, *x.shape[1:], *out.shape[2:], padding[0],
                           padding[2], layout is torch.channels_last)
    numbers = (('COUNT', count), ('DOWN_X', down[0]), ('DOWN_Y', down[1]), ('INDEX', _index_type(size)), ('TAPS_X', f.shape[1]),
               ('TAPS_Y', f.shape[0]), ('TYPE', TYPES[x.dtype]), ('UP_X', up[0]), ('UP_Y', up[1]))
    kernel = cuda_build.kernel('upfirdn2d.cu', 'upfirdn2d', tuple((f'OMNI_{name}', value) for name, value in numbers), x.device)
    kernel.launch((_blocks(size, x.device), 1, 1), THREADS, 0, params)
    return out


def _fake_upfirdn2d(x, f, up, down, padding):
    last = x.device.type == 'cpu' or _channels_last(x)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(_out_size(x, f, up, down, padding), dtype=x.dtype, device=x.device, memory_format=layout)


torch.library.register_fake('omnihead::upfirdn2d', _fake_upfirdn2d)
torch.library.register_fake('omnihead::bias_act', lambda x, *_: torch.empty_like(_dense(x)))
torch.library.register_fake('omnihead::bias_act_grad', lambda dy, x, *_: torch.empty_like(_dense(x)))
torch.library.register_fake('omnihead::bias_act_grad2', lambda dy, ddx, x, *_: torch.empty_like(_dense(x)))
torch.library.register_autograd('omnihead::bias_act', _backward_first, setup_context=_save_first)
torch.library.register_autograd('omnihead::bias_act_grad', _backward_second, setup_context=_save_second)
