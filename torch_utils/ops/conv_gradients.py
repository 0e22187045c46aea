"""Convolutions on CPU with derivatives of any order, each of them again a convolution of this kind.

A convolution is linear in its image x and in its weight w, so that <convolve(x, w), g> has three derivatives, and those of
each are the other two: `spread(g, w)` by x (the transposed convolution) and `correlate(x, g)` by w. Saying so to autograd
keeps second derivatives, which the gradient penalty of a discriminator takes (R1, 1801.04406), in the same fast code; what
PyTorch derives for itself there, and its weight gradients with a stride, take several times as long.
"""

import contextlib
import threading
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops.native import load_native

_skipped = threading.local()     # on CPU a backward pass runs in the thread that asks for it


class Kind(NamedTuple):
    """A way to convolve: (x [N, I, H, W], w [O, I, K, K]) -> g [N, O, h, w], and its two adjoints, (g, w, (H, W)) -> x and
    (x, g, K) -> w."""
    convolve: Callable
    spread: Callable
    correlate: Callable


@contextlib.contextmanager
def no_weight_gradients():
    """In here backward passes of this thread leave out the gradients of convolutions' weights: autograd.grad by images alone would
    compute them for nothing, as a Python function is not told which of its gradients are asked for. For networks whose weights
    are parameters: nothing flows to what a weight is computed from. Backward passes outside have them."""
    before, _skipped.weights = skip_weights(), True
    try:
        yield
    finally:
        _skipped.weights = before


def skip_weights():
    """Whether no_weight_gradients is in force here."""
    return getattr(_skipped, 'weights', False)


def _need(ctx, index, weight=False):
    return ctx.needs_input_grad[index] and not (weight and skip_weights())


class Convolve(torch.autograd.Function):
    """Kind.convolve of (kind, x, w)."""

    @staticmethod
    def forward(ctx, kind, x, w):
        ctx.save_for_backward(x, w)
        ctx.kind = kind
        return kind.convolve(x, w)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        by_x = Spread.apply(ctx.kind, grad, w, x.shape[2:]) if _need(ctx, 1) else None
        return None, by_x, Correlate.apply(ctx.kind, x, grad, w) if _need(ctx, 2, weight=True) else None


class Spread(torch.autograd.Function):
    """Kind.spread of (kind, g, w, size)."""

    @staticmethod
    def forward(ctx, kind, g, w, size):
        ctx.save_for_backward(g, w)
        ctx.kind = kind
        return kind.spread(g, w, size)

    @staticmethod
    def backward(ctx, grad):
        g, w = ctx.saved_tensors
        by_g = Convolve.apply(ctx.kind, grad, w) if _need(ctx, 1) else None
        return None, by_g, Correlate.apply(ctx.kind, grad, g, w) if _need(ctx, 2, weight=True) else None, None


class Correlate(torch.autograd.Function):
    """Kind.correlate of (kind, x, g), in the type of `like`, a weight."""

    @staticmethod
    def forward(ctx, kind, x, g, like):
        ctx.save_for_backward(x, g)
        ctx.kind = kind
        return kind.correlate(x, g, like.shape[-1]).to(like.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, g = ctx.saved_tensors
        by_x = Spread.apply(ctx.kind, g, grad, x.shape[2:]) if _need(ctx, 1) else None
        return None, by_x, Convolve.apply(ctx.kind, x, grad) if _need(ctx, 2) else None, None


# ---------------------------------------------------------------------------------------------------------------------
# Every second pixel, no padding.

STRIDE = 2


def _spread_strided(g, w, size):
    rest = [whole - ((part - 1) * STRIDE + w.shape[-1]) for whole, part in zip(size, g.shape[2:])]   # pixels that no tap meets
    return F.conv_transpose2d(g, w, stride=STRIDE, output_padding=rest)


def _correlate_strided(x, g, kernel):
    """One product of matrices an image: its pixels under every tap by the pixels of the result."""
    channels, out = x.shape[1], g.shape[1]
    total = x.new_zeros(out, kernel * kernel * channels)
    for image, result in zip(x, g):
        taps = image.unfold(1, kernel, STRIDE).unfold(2, kernel, STRIDE).permute(1, 2, 3, 4, 0)                # [h, w, K, K, I]
        taps = taps[:result.shape[1], :result.shape[2]].reshape(-1, kernel * kernel * channels)
        total.addmm_(result.permute(1, 2, 0).reshape(-1, out).t(), taps)
    return total.view(out, kernel, kernel, channels).permute(0, 3, 1, 2)


STRIDED = Kind(lambda x, w: F.conv2d(x, w, stride=STRIDE), _spread_strided, _correlate_strided)


def _is_ours(x, w):
    return (x.device.type == 'cpu' and x.dtype == w.dtype == torch.float32 and w.shape[2] == w.shape[3]
            and not torch.is_autocast_enabled('cpu') and load_native())


def conv2d(x, w, stride):
    """torch.nn.functional.conv2d(x, w, stride=stride)."""
    if stride == STRIDE and _is_ours(x, w):
        return Convolve.apply(STRIDED, x, w)
    return F.conv2d(x, w, stride=stride)


def conv_transpose2d(x, w, stride, padding=0):
    """torch.nn.functional.conv_transpose2d(x, w, stride=stride, padding=padding)."""
    if padding == 0 and stride == STRIDE and _is_ours(x, w):
        return Spread.apply(STRIDED, x, w, [(size - 1) * stride + w.shape[-1] for size in x.shape[2:]])
    return F.conv_transpose2d(x, w, stride=stride, padding=padding)
