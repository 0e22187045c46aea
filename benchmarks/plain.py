"""The plain published work: what the published networks compute a frame or a step with, in PyTorch alone.

Our own plain code (OMNIHEAD_NATIVE=0) does the same in places in a better way. Here are the published ways: at inference a
modulated convolution is a grouped convolution by weights of each sample (StyleGAN2's fused form), while training it scales
activations; upsampling is zero insertion, padding and a depthwise convolution; bias, activation, gain and clamp are one
operation each; planes are looked up by grid_sample, both passes of a ray are sorted and gathered in memory. Everything is
float32 in PyTorch's default layout.
"""

import torch

from torch_utils.ops import conv2d_resample
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import upsample2d
from training.networks import stylegan2


def grouped_layer(x, weight, styles, noise=None, bias=None, act='linear', gain=None, clamp=None, up=1, padding=0, resample_filter=None,
                  demodulate=True, products=None):
    """conv2d_resample.modulated_layer with the weights of every sample in a convolution of N groups."""
    if torch.is_grad_enabled():
        x = conv2d_resample.modulated_conv2d(x, weight, styles, noise, up, padding, resample_filter, demodulate)
        return bias_act(x, bias, act=act, gain=gain, clamp=clamp)
    n, _, height, width = x.shape
    weights = weight[None] * styles[:, None, :, None, None]                                    # [N, O, I, K, K]
    if demodulate:
        weights = weights * (weights.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    if up > 1:
        images = [conv2d_resample.conv2d_resample(x[i:i + 1], weights[i], resample_filter, up=up, padding=padding) for i in range(n)]
    else:
        grouped = torch.nn.functional.conv2d(x.reshape(1, -1, height, width), weights.flatten(0, 1), padding=padding, groups=n)
        images = grouped.reshape(n, -1, *grouped.shape[2:]).split(1)
    x = torch.cat(list(images)) if n > 1 else images[0]
    x = x if noise is None else x.add_(noise)
    return bias_act(x, bias, act=act, gain=gain, clamp=clamp)


def use_published_operations():
    """From now on this process builds networks' layers in the published way."""
    stylegan2.modulated_layer = grouped_layer
    stylegan2.upsample_add = lambda img, f, added: upsample2d(img, f).add_(added.float())
