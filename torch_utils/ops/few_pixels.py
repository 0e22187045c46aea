"""Layers of 3x3 taps whose images have few pixels, in one operator (C++, CPU), in inference.

Their time is that of reading the weights, which are read once, as they lie; convolutions of other kinds lay them out anew. What
becomes of an image does not depend on others in its batch, so there is no bound on that, though from about 16 images of 8x8 on
other ways are as fast, at 32 up to a quarter faster. In torch.inference_mode alone: what training computes without gradients keeps
the sums, and with them the bits, of the layers it trains. The definition is plain PyTorch: conv2d_resample.modulated_layer.
"""

import torch

from torch_utils.ops import winograd

PIXELS = 64   # of an image, at most: with more, minimal filtering (winograd.py) is faster


def can_convolve(x, weight, up=1, resample_filter=None):
    """Whether the operator is there, and pays, for x [N, I, H, W], weight [O, I, 3, 3] and upsampling by `up`."""
    if not (winograd.are_taps_known(weight, up, resample_filter) and 0 < x.shape[2] * x.shape[3] <= PIXELS):
        return False
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():   # torch.compile cannot trace the question
        return False
    return x.device.type == weight.device.type == 'cpu' and not torch.is_autocast_enabled('cpu') and x.dtype in winograd.types()


def convolve(x, weight, up=1, resample_filter=None, styles=None, demodulate=False, noise=None, bias=None, slope=1.0, gain=1.0, clamp=None):
    """As winograd.convolve, of 3x3 taps and any number of channels, in float32 whatever x's type; ask can_convolve first. No gradients."""
    y = torch.ops.omnihead.few_pixels_convolve(x.float(), weight.float().contiguous(), resample_filter if up == 2 else None,
                                               *winograd.layer_arguments(styles, demodulate, noise, bias, slope, gain, clamp))
    return y.to(x.dtype)
