"""StyleGAN2 synthesis network with skip connections (1912.04958, figures 2 and 7c), any number of output channels."""

import math

import torch
from torch import nn

from torch_utils import streams
from torch_utils.misc import to_working_format, working_dtype
from torch_utils.ops.bias_act import ACTIVATIONS
from torch_utils.ops.conv2d_resample import modulated_layer
from torch_utils.ops.upfirdn2d import upsample_add
from training.networks.layers import FullyConnectedLayer, register_resample_filter

NOISE_MODES = ('random', 'const', 'none')


def channels_at(resolution, channel_base, channel_max):
    """Feature channels of the blocks at `resolution` pixels. ValueError if there are none."""
    if channel_base < resolution:
        raise ValueError(f'channel_base {channel_base} (--cbase) leaves no channels at {resolution} pixels')
    return min(channel_base // resolution, channel_max)


def num_latents(resolution):
    """Latents a synthesis network up to `resolution` pixels takes: two a resolution, ToRGB of the last one counted."""
    return 2 * int(math.log2(resolution)) - 2


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, activation. x [N, I, H, W], w [N, w_dim] -> [N, O, H*up, W*up]."""

    products = None   # set by training.networks.precision: the type of products where no gradient is wanted

    def __init__(self, in_channels, out_channels, w_dim, resolution, kernel_size=3, up=1, activation='lrelu', conv_clamp=None):
        super().__init__()
        self.resolution, self.up, self.activation, self.conv_clamp = resolution, up, activation, conv_clamp
        self.padding = kernel_size // 2
        register_resample_filter(self)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        self.register_buffer('noise_const', torch.randn([resolution, resolution]))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros([out_channels]))

    def noise(self, batch, noise_mode):
        """Noise image [N or 1, 1, H, W] of the mode, or None."""
        if noise_mode == 'none':
            return None
        if noise_mode == 'const':
            return self.noise_const[None, None] * self.noise_strength
        shape = [batch, 1, self.resolution, self.resolution]
        return streams.normal(shape, self.noise_const.device) * self.noise_strength

    def forward(self, x, w, noise_mode='random', gain=1.0):
        if noise_mode not in NOISE_MODES:
            raise ValueError(f'noise_mode must be one of {", ".join(NOISE_MODES)}, got {noise_mode!r}')
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return modulated_layer(x, self.weight, self.affine(w), self.noise(x.shape[0], noise_mode), self.bias, act=self.activation,
                               gain=ACTIVATIONS[self.activation].gain * gain, clamp=clamp, up=self.up, padding=self.padding,
                               resample_filter=self.resample_filter, products=self.products)


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to image channels, no demodulation. x [N, I, H, W], w [N, w_dim] -> [N, O, H, W].

    `exchange` (C, D): the O channels, which are [O/(C D), C, D], come as [O/(C D), D, C].
    """

    products = None   # as SynthesisLayer's

    def __init__(self, in_channels, out_channels, w_dim, kernel_size=1, conv_clamp=None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        self.bias = nn.Parameter(torch.zeros([out_channels]))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size ** 2)

    def forward(self, x, w, exchange=None):
        styles = self.affine(w) * self.weight_gain
        weight, bias = self.weight, self.bias
        if exchange is not None:
            weight, bias = (t.unflatten(0, (-1, *exchange)).transpose(1, 2).reshape(t.shape) for t in (weight, bias))
        return modulated_layer(x, weight, styles, bias=bias, clamp=self.conv_clamp, demodulate=False, products=self.products)


class SynthesisBlock(nn.Module):
    """One resolution: (constant or upsampling layer), layer, ToRGB added to the upsampled image.

    forward(x [N, I, H/2, W/2] or None, img [N, img_channels, H/2, W/2] or None, ws [N, 2 or 3, w_dim]) -> (x, img).
    `up` 1 makes the block that keeps its input's size (used by super-resolution). `use_fp16`: the convolutions run
    in 16 bits where the device gains by it, clamped at `conv_clamp`. `exchange`: see ToRGBLayer.
    """

    compute_dtype = None   # set by training.networks.precision: the type whatever use_fp16 says

    def __init__(self, in_channels, out_channels, w_dim, resolution, img_channels, up=2, use_fp16=False, conv_clamp=256):
        super().__init__()
        self.in_channels, self.resolution, self.img_channels, self.up = in_channels, resolution, img_channels, up
        self.use_fp16 = use_fp16
        clamp = conv_clamp if use_fp16 else None
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = 1
        if up > 1 or in_channels == 0:
            register_resample_filter(self)
        else:
            self.register_buffer('resample_filter', None, persistent=False)
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=up, conv_clamp=clamp)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, conv_clamp=clamp)
        self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp=clamp)

    def forward(self, x, img, ws, noise_mode='random', force_fp32=False, exchange=None):
        dtype = working_dtype(self, ws.device, force_fp32)
        ws = ws.unbind(dim=1)
        if self.in_channels == 0:
            x = to_working_format(self.const.expand(ws[0].shape[0], -1, -1, -1), dtype)
        else:
            x = self.conv0(to_working_format(x, dtype), ws[0], noise_mode)
        x = self.conv1(x, ws[self.num_conv - 1], noise_mode)
        rgb = self.torgb(x, ws[self.num_conv], exchange)
        if img is None:
            return x, rgb.float()
        return x, upsample_add(img, self.resample_filter, rgb) if self.up > 1 else img + rgb.float()


class SynthesisNetwork(nn.Module):
    """ws [N, num_ws, w_dim] -> image [N, img_channels, img_resolution, img_resolution], float32.

    `exchange`: order of the image's channels, see ToRGBLayer; costs nothing, where exchanging them afterwards is a copy.
    """

    def __init__(self, w_dim, img_resolution, img_channels, channel_base=32768, channel_max=512, num_fp16_res=0, conv_clamp=256):
        super().__init__()
        if img_resolution < 4 or img_resolution & (img_resolution - 1):
            raise ValueError(f'img_resolution must be a power of two of at least 4, got {img_resolution}')
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.num_ws = num_latents(img_resolution)
        self.resolutions = [2 ** i for i in range(2, int(math.log2(img_resolution)) + 1)]
        in_channels = 0
        for resolution in self.resolutions:
            out_channels = channels_at(resolution, channel_base, channel_max)
            use_fp16 = resolution > img_resolution // 2 ** num_fp16_res and resolution > 4
            setattr(self, f'b{resolution}', SynthesisBlock(in_channels, out_channels, w_dim, resolution, img_channels,
                                                           use_fp16=use_fp16, conv_clamp=conv_clamp))
            in_channels = out_channels

    def forward(self, ws, noise_mode='random', force_fp32=False, exchange=None):
        x = img = None
        start = 0
        for resolution in self.resolutions:
            block = getattr(self, f'b{resolution}')
            # ToRGB shares its latent with the next block's first layer.
            x, img = block(x, img, ws[:, start:start + block.num_conv + block.num_torgb], noise_mode, force_fp32, exchange)
            start += block.num_conv
        return img
