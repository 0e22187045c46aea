"""Pad, upsample, FIR-filter and downsample 2-D images (StyleGAN2, 1912.04958, appendix B).

`_reference` is the definition of the operator; C++ and CUDA operators compute the same.
"""

import torch
import torch.nn.functional as F

from torch_utils.ops import cuda_images
from torch_utils.ops.native import load_native

NATIVE_TYPES = (torch.float32, torch.bfloat16)


def setup_filter(taps, gain=1.0):
    """Separable 2-D low-pass filter [K, K] float32 of sum `gain` from 1-D `taps`, for instance [1, 3, 3, 1]."""
    f = torch.as_tensor(taps, dtype=torch.float32)
    f = torch.outer(f, f) if f.ndim == 1 else f
    return f * (gain / f.sum())


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _padding4(padding):
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return (padding[0], padding[0], padding[1], padding[1])
    return tuple(padding)


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1.0):
    """Upsample by zero insertion, pad, filter and keep every `down`-th pixel.

    x [N, C, H, W]; f [K, K] or None for the identity; up, down: int or (x, y); padding in upsampled pixels: int,
    (x, y) or (x0, x1, y0, y1), negative values crop; `flip_filter` False is a true convolution. Derivatives of any
    order with respect to x; the filter is a constant.
    """
    f = x.new_ones([1, 1]) if f is None else f
    f = (f * gain).to(x.dtype)
    return _UpFirDn.apply(x, f if flip_filter else f.flip([0, 1]), _pair(up), _pair(down), _padding4(padding))


def _reference(x, f, up, down, padding):
    """The definition, correlating with f."""
    n, c, h, w = x.shape
    if up != (1, 1):
        x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up[0] - 1, 0, 0, 0, up[1] - 1]).reshape(n, c, h * up[1], w * up[0])
    return F.conv2d(F.pad(x, padding), f.expand(c, 1, *f.shape), stride=(down[1], down[0]), groups=c)


class _UpFirDn(torch.autograd.Function):
    """The gradient of this operator is the same operator with up and down exchanged and the filter turned round. Saying so
    spares the second derivative that PyTorch has for grouped convolutions, which goes group by group."""

    @staticmethod
    def forward(ctx, x, f, up, down, padding):
        ctx.save_for_backward(f)
        ctx.args = x.shape, up, down, padding
        # Without inserted zeros PyTorch's depthwise convolution is the faster one, unless the filter has the family's shape.
        if (up != (1, 1) or f.shape == (4, 4)) and x.device.type == 'cpu' and x.dtype in NATIVE_TYPES and load_native():
            return torch.ops.omnihead.upfirdn2d(x, f, up, down, padding)
        if max(f.shape) <= cuda_images.MOST_TAPS and cuda_images.can_run(x):
            return torch.ops.omnihead.upfirdn2d(x, f, up, down, padding)
        return _reference(x, f, up, down, padding)

    @staticmethod
    def backward(ctx, grad):
        (f,) = ctx.saved_tensors
        (_, _, height, width), up, down, (x0, _, y0, _) = ctx.args
        kh, kw = f.shape
        before_x, before_y = kw - x0 - 1, kh - y0 - 1
        after_x = width * up[0] - grad.shape[3] * down[0] + x0 - up[0] + 1
        after_y = height * up[1] - grad.shape[2] * down[1] + y0 - up[1] + 1
        padding = (before_x, after_x, before_y, after_y)
        return _UpFirDn.apply(grad, f.flip([0, 1]), down, up, padding), None, None, None, None


def filter2d(x, f, gain=1.0, flip_filter=False):
    """Filter x [N, C, H, W] with f [K, K], keeping its size."""
    kh, kw = f.shape
    return upfirdn2d(x, f, padding=(kw // 2, (kw - 1) // 2, kh // 2, (kh - 1) // 2), flip_filter=flip_filter, gain=gain)


def upsample2d(x, f, up=2, gain=1.0):
    """Upsample x [N, C, H, W] by `up` with filter f [K, K]; brightness is kept."""
    kh, kw = f.shape
    padding = ((kw + up - 1) // 2, (kw - up) // 2, (kh + up - 1) // 2, (kh - up) // 2)
    return upfirdn2d(x, f, up=up, padding=padding, gain=gain * up * up)


def upsample_add(img, f, added):
    """upsample2d(img, f) + added: img [N, C, H, W] float32, added [N, C, 2H, 2W] of any type -> float32."""
    doubled = (*img.shape[:2], 2 * img.shape[2], 2 * img.shape[3])
    if (img.device.type == 'cpu' and img.dtype == torch.float32 and added.dtype in NATIVE_TYPES and f.shape == (4, 4)
            and added.shape == doubled and load_native()):
        if torch.is_grad_enabled() and (img.requires_grad or added.requires_grad):
            return _UpsampleAdd.apply(img, f, added)
        return torch.ops.omnihead.upsample_add(img, f, added)
    return upsample2d(img, f) + added.float()


class _UpsampleAdd(torch.autograd.Function):
    """upsample_add of float32 images, 4x4 taps and twice the size, in one pass."""

    @staticmethod
    def forward(ctx, img, f, added):
        ctx.taps, ctx.dtype = f, added.dtype      # a constant, which may come from inference mode
        return torch.ops.omnihead.upsample_add(img, f, added)

    @staticmethod
    def backward(ctx, grad):
        by_img = upfirdn2d(grad, ctx.taps, down=2, padding=1, flip_filter=True, gain=4) if ctx.needs_input_grad[0] else None
        return by_img, None, grad.to(ctx.dtype) if ctx.needs_input_grad[2] else None


def downsample2d(x, f, down=2, gain=1.0):
    """Filter x [N, C, H, W] with f [K, K] and keep every `down`-th pixel."""
    kh, kw = f.shape
    padding = ((kw - down + 1) // 2, (kw - down) // 2, (kh - down + 1) // 2, (kh - down) // 2)
    return upfirdn2d(x, f, down=down, padding=padding, gain=gain)
