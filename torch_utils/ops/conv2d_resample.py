"""2-D convolution with optional up- or downsampling, and its style-modulated form (StyleGAN2, 1912.04958, section 2.2).

Plain PyTorch, the definition; first and second derivatives come from autograd. 3x3 convolutions that keep the size are
C++ operators where these are faster (winograd.py), so are whole layers, in inference (few_pixels.py too) as in training
(trained_layers.py), and the derivatives of strided ones (conv_gradients.py); or the styles go into the weights of a single image.
"""

import torch
import torch.nn.functional as F

from torch_utils.ops import conv_gradients, few_pixels, trained_layers, winograd
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.trained_layers import SLOPES
from torch_utils.ops.upfirdn2d import upfirdn2d


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0):
    """Convolve x [N, I, H, W] with w [O, I, K, K], upsampling before or downsampling after by an integer factor.

    f [F, F]: low-pass filter of the resampling (None: none); padding: pixels of x at its final resolution on each
    side. Result [N, O, H*up/down, W*up/down] when padding = K // 2. Only one of up and down may exceed 1.
    As in the published networks w is correlated with x, but truly convolved (turned by 180 degrees) when upsampling.
    """
    if up == down == 1 and padding == 1 and winograd.can_convolve(x, w):
        return winograd.differentiable_convolve(x, w)
    w = w.to(x.dtype)
    if up > 1 and down > 1:
        raise ValueError(f'up and down cannot both exceed 1, got {up} and {down}')
    kernel = w.shape[-1]
    fw = 1 if f is None else f.shape[-1]
    if down > 1:
        before, after = padding + (fw - down + 1) // 2, padding + (fw - down) // 2
        if kernel == 1:
            return F.conv2d(upfirdn2d(x, f, down=down, padding=(before, after, before, after)), w)
        return conv_gradients.conv2d(upfirdn2d(x, f, padding=(before, after, before, after)), w, down)
    if up > 1:
        before, after = padding + (fw + up - 1) // 2, padding + (fw - up) // 2
        if kernel == 1:
            x = F.conv2d(x, w)
            return upfirdn2d(x, f, up=up, padding=(before, after, before, after), gain=up * up)
        # Zero insertion and convolution are one transposed convolution, whose own border already counts as padding.
        before, after = before - (kernel - 1), after - (kernel - up)
        inner = max(min(-before, -after), 0)
        x = conv_gradients.conv_transpose2d(x, w.transpose(0, 1), up, inner)
        return upfirdn2d(x, f, padding=(before + inner, after + inner, before + inner, after + inner), gain=up * up)
    return F.conv2d(x, w, padding=padding)


def wants_gradient(*tensors):
    """Whether a derivative by one of the tensors (None: none) is asked for, in reverse or forward mode."""
    return (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)) or trained_layers.have_tangents(*tensors)


def modulated_layer(x, weight, styles, noise=None, bias=None, act='linear', gain=None, clamp=None, up=1, padding=0, resample_filter=None,
                    demodulate=True, products=None):
    """bias_act of modulated_conv2d, whose arguments these are: a layer of a synthesis network in the fastest way there is.
    `products`: see winograd.convolve; where gradients are wanted, or another way is taken, they are of x's type."""
    inference = not wants_gradient(x, weight, styles, noise, bias)
    gain = ACTIVATIONS[act].gain if gain is None else gain
    if inference and act in SLOPES and trained_layers.plain_shapes(x, weight, styles, noise, bias, up):
        around = styles, demodulate, noise, bias, SLOPES[act], gain, None if x.dtype == torch.bfloat16 else clamp
        if padding == 1 and few_pixels.can_convolve(x, weight, up, resample_filter):
            return few_pixels.convolve(x, weight, up, resample_filter, *around)
        if _minimal_filtering_takes(x, weight, noise, up, padding, resample_filter, demodulate):
            return winograd.convolve(x, weight, up, resample_filter, *around, products)
    # The styles go into whatever is smaller: the weights of a single image, or its few pixels.
    if inference and x.shape[0] == 1 and x.numel() > weight.shape[1] * weight.shape[0]:
        folded = weight * styles[0, None, :, None, None]
        if demodulate:
            folded = folded * (folded.square().sum(dim=[1, 2, 3], keepdim=True) + 1e-8).rsqrt()
        if up == 1 and noise is None and bias is not None:
            x, bias = F.conv2d(x, folded.to(x.dtype), bias.to(x.dtype), padding=padding), None
        else:
            x = conv2d_resample(x, folded, resample_filter, up=up, padding=padding)
            x = x if noise is None else x + noise.to(x.dtype)
    elif not inference and trained_layers.can_train(x, weight, styles, noise, bias, act, gain, up, padding, resample_filter,
                                                        demodulate):
        def definition(x, weight, styles, noise, bias):
            x = modulated_conv2d(x, weight, styles, noise, up, padding, resample_filter, demodulate)
            return bias_act(x, bias, act=act, gain=gain, clamp=clamp)
        return trained_layers.layer(definition, x, weight, styles, noise, bias, act, gain, clamp, up, resample_filter)
    elif not inference and trained_layers.can_multiply(x, weight, styles, noise, bias, act, gain, up, padding, demodulate):
        def definition(x, weight, styles, bias):
            return bias_act(modulated_conv2d(x, weight, styles, demodulate=False), bias, clamp=clamp)
        return trained_layers.multiply(definition, x, weight, styles, bias, clamp)
    else:
        x = modulated_conv2d(x, weight, styles, noise, up, padding, resample_filter, demodulate)
    return bias_act(x, bias, act=act, gain=gain, clamp=clamp)


def _minimal_filtering_takes(x, weight, noise, up, padding, resample_filter, demodulate):
    if padding == 1:
        return winograd.can_convolve(x, weight, up, resample_filter)
    return padding == 0 and up == 1 and winograd.can_multiply(x, weight, noise, demodulate)


def modulated_conv2d(x, weight, styles, noise=None, up=1, padding=0, resample_filter=None, demodulate=True):
    """Convolution whose input channels are scaled by each sample's style, with unit-variance demodulation.

    x [N, I, H, W], weight [O, I, K, K], styles [N, I], noise broadcastable to the result [N, O, H*up, W*up].
    Scaling activations instead of weights keeps one weight for the whole batch, hence one ordinary convolution.
    """
    if demodulate:
        if x.dtype == torch.float16:
            # Its range is small: bring weight and styles to unit maximum, demodulation cancels the factors.
            weight = weight * (weight.shape[1] * weight.shape[2] * weight.shape[3]) ** -0.5 \
                / weight.abs().amax(dim=[1, 2, 3], keepdim=True)
            styles = styles / styles.abs().amax(dim=1, keepdim=True)
        if torch.is_grad_enabled() and weight.requires_grad:
            energy = weight.square().sum(dim=[2, 3])                                                 # [O, I]
        else:
            energy = torch.linalg.vector_norm(weight, dim=(2, 3)).square()                           # one pass over the weights
        scale = (styles.square() @ energy.t() + 1e-8).rsqrt()                                        # [N, O]
    x = x * styles.to(x.dtype)[:, :, None, None]
    x = conv2d_resample(x, weight, resample_filter, up=up, padding=padding)
    if demodulate:
        x = x * scale.to(x.dtype)[:, :, None, None]
    return x if noise is None else x + noise.to(x.dtype)
