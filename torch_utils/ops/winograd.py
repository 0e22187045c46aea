"""Convolutions of 3x3 taps by minimal filtering, and of one tap, with all that surrounds them in a StyleGAN2 layer, in one
operator (C++, CPU).

Winograd's F(4x4, 3x3) (Lavin and Gray 1509.09308) takes a quarter of the products that the definition takes. Upsampling
layers are a transposed convolution, four smaller convolutions by F(4, 2) and F(4, 1) in each direction, which take 9/16 of the
definition's products, and then a low-pass filter. The definition is plain PyTorch: conv2d_resample.modulated_layer.
"""

import functools

import torch

from torch_utils.misc import cpu_flags
from torch_utils.ops.conv_gradients import Convolve, Kind
from torch_utils.ops.native import load_native

# Of an image, for a batch that is split between processes must take the same way in all of them.
LEAST_TILES = 16        # below, transforming the weights costs more than it spares; a quarter of them where the size doubles
LIGHT = 128 * 128 * 9   # weights of so many numbers pay with any number of tiles
LEAST_PIXELS = 256      # as LEAST_TILES, for one tap
CHANNELS = 16           # multiples of it
FEW = 4                 # or so many made by one tap: images


@functools.lru_cache(maxsize=None)
def types():
    """Types in which this is the fastest convolution here: with AMX that of PyTorch is, in bfloat16."""
    if not load_native():
        return ()
    half = multiplies('bfloat16') and 'amx_bf16' not in cpu_flags()
    return (torch.float32, torch.bfloat16) if half else (torch.float32,)


def multiplies(products):
    """Whether there are products of 'bfloat16' or 'int16' here."""
    return load_native() and torch.ops.omnihead.winograd_multiplies(products)


def integers_pay():
    """Whether products of int16 are the fastest here. With AVX-512 that has not been measured."""
    return multiplies('int16') and torch.ops.omnihead.instruction_set() == 'avx2'


def can_convolve(x, weight, up=1, resample_filter=None):
    """Whether the operator is there, and pays, for x [N, I, H, W], weight [O, I, 3, 3] and upsampling by `up`."""
    if not are_taps_known(weight, up, resample_filter) or weight.shape[0] % CHANNELS or not takes_input(x, weight):
        return False
    enough = -(-x.shape[2] // 4) * -(-x.shape[3] // 4) * up * up >= LEAST_TILES or 0 < weight.numel() <= LIGHT
    return enough and x.numel() > 0 and load_native() and x.dtype in types()


def are_taps_known(weight, up, resample_filter):
    """Whether there are operators for weights of so many taps, and for what low-pass filter follows them."""
    filtered = resample_filter is not None and resample_filter.shape == (4, 4)
    return weight.shape[2:] == (3, 3) and (up == 1 or (up == 2 and filtered))


def can_multiply(x, weight, noise=None, demodulate=False):
    """Whether the operator takes, and pays for, x [N, I, H, W] and weight [O, I, 1, 1]."""
    out = weight.shape[0]
    if weight.shape[2:] != (1, 1) or x.dtype != torch.float32 or not takes_input(x, weight):
        return False
    few = out <= FEW and noise is None and not demodulate
    return (few or out % CHANNELS == 0) and x.shape[2] * x.shape[3] >= LEAST_PIXELS and load_native()


def takes_input(x, weight):
    """Whether images x and the number of their channels are such as the operators take."""
    channels = weight.shape[1]
    return (x.device.type == weight.device.type == 'cpu' and channels % CHANNELS == 0 < channels and not torch.is_autocast_enabled('cpu')
            and not are_transformed(x, weight))


def are_transformed(*tensors):
    """Whether torch.func transforms one of the tensors (None: none), for operators would not see what derivatives are wanted.
    torch.compile cannot be told, and has no such tensors itself."""
    return not torch.compiler.is_compiling() and any(t is not None and _is_cover(t) for t in tensors)


def _is_cover(tensor):
    """Whether torch.func has put the tensor around another: then it has no storage of its own, or PyTorch (from 2.7 on) says so."""
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return True
    return hasattr(torch.func, 'debug_unwrap') and torch.func.debug_unwrap(tensor) is not tensor


def products_of(x):
    """Name of the type in which a convolution of x multiplies, unless told otherwise."""
    return 'bfloat16' if x.dtype == torch.bfloat16 else 'float32'


def convolve(x, weight, up=1, resample_filter=None, styles=None, demodulate=False, noise=None, bias=None, slope=1.0, gain=1.0, clamp=None,
            products=None):
    """gain * leaky_relu(conv(styles * x) + noise + bias), held to +-clamp; ask can_convolve or can_multiply first. No gradients.

    x [N, I, H, W] float32 or bfloat16; weight [O, I, 3, 3], correlated with x, or truly convolved when `up` is 2, as in
    conv2d_resample, or [O, I, 1, 1], where O may be at most 4 too if there is neither noise nor demodulation; styles [N, I],
    noise [N or 1, 1, H*up, W*up], bias [O], None for none of them; demodulate: see conv2d_resample.modulated_conv2d; slope of
    negative values. Result [N, O, H*up, W*up] in x's type, channels last.
    products: 'float32', 'bfloat16' or 'int16', float32 where there are none of that type; None: x's type. Integers have a scale
    for every tile and every output channel. The error of a result is about 7e-5 * sqrt(I) of its standard deviation if tiles and
    channels are alike, 1.5e-3 for 512 channels, where bfloat16 has 1e-2; a tile's largest values count, so that it is more beside a
    spike. Norms over the channels may lie between 1e-14 and 1e18: below, results go to 0, above NaN.
    """
    return torch.ops.omnihead.winograd_convolve(x, weight.float().contiguous(), resample_filter if up == 2 else None,
                                               *layer_arguments(styles, demodulate, noise, bias, slope, gain, clamp),
                                               products or products_of(x))


def layer_arguments(styles, demodulate, noise, bias, slope, gain, clamp):
    """What surrounds a convolution, as the operators take it."""
    styles, noise, bias = (None if t is None else t.float().contiguous() for t in (styles, None if noise is None else noise[:, 0], bias))
    return styles, demodulate, noise, bias, slope, gain, float('inf') if clamp is None else float(clamp)


def _convolve(x, weight, turned=False):
    return torch.ops.omnihead.winograd_convolve(x, weight.float().contiguous(), None, None, False, None, None, 1.0, 1.0, float('inf'),
                                               products_of(x), turned)


KIND = Kind(_convolve, lambda g, weight, size: _convolve(g, weight, turned=True),
            lambda x, g, kernel: torch.ops.omnihead.winograd_weight_gradient(x, g, products_of(x)))


def differentiable_convolve(x, weight):
    """torch.nn.functional.conv2d(x, weight, padding=1) with derivatives of any order; ask can_convolve first.

    x [N, I, H, W] float32 or bfloat16, weight [O, I, 3, 3] float32 -> [N, O, H, W] in x's type, channels last.
    """
    return Convolve.apply(KIND, x, weight)
