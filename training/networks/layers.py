"""Equalised-learning-rate layers (Progressive GAN 1710.10196, StyleGAN2 1912.04958): the parts every network is made of."""

import math

import torch
from torch import nn

from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import setup_filter

RESAMPLE_TAPS = (1, 3, 3, 1)


def normalize_2nd_moment(x, dim=1, eps=1e-8):
    """x scaled to mean square 1 along `dim`."""
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def register_resample_filter(module):
    """Give `module` the family's resampling filter as a buffer (the published state dicts hold it everywhere)."""
    module.register_buffer('resample_filter', setup_filter(RESAMPLE_TAPS))


class FullyConnectedLayer(nn.Module):
    """y = act(x W^T * gain + b), weights kept at unit variance. x [N, in_features] -> [N, out_features]."""

    def __init__(self, in_features, out_features, bias=True, activation='linear', lr_multiplier=1.0, bias_init=0.0):
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x):
        w, b = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if b is None or x.ndim != 2:
            b = None if b is None else b * self.bias_gain
            return bias_act(x @ w.t() * self.weight_gain, b, dim=x.ndim - 1, act=self.activation)
        # The product is scaled, not the weights: they are more.
        return bias_act(torch.addmm(b, x, w.t(), beta=self.bias_gain, alpha=self.weight_gain), act=self.activation)


class Conv2dLayer(nn.Module):
    """Equalised convolution with bias, activation and optional resampling. x [N, I, H, W] -> [N, O, H*up/down, ...]."""

    def __init__(self, in_channels, out_channels, kernel_size, bias=True, activation='linear', up=1, down=1, conv_clamp=None,
                 trainable=True):
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size ** 2)
        register_resample_filter(self)
        weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
        bias = torch.zeros([out_channels]) if bias else None
        if trainable:
            self.weight = nn.Parameter(weight)
            self.bias = None if bias is None else nn.Parameter(bias)
        else:
            self.register_buffer('weight', weight)
            self.register_buffer('bias', bias)

    def forward(self, x, gain=1.0):
        x = conv2d_resample(x, self.weight * self.weight_gain, self.resample_filter, up=self.up, down=self.down, padding=self.padding)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, self.bias, act=self.activation, gain=ACTIVATIONS[self.activation].gain * gain, clamp=clamp)


class MappingNetwork(nn.Module):
    """z and label -> intermediate latents (StyleGAN2 mapping network; EG3D conditions it on the camera).

    z [N, z_dim] (z_dim 0: label only), c [N, c_dim] (c_dim 0: none) -> ws [N, num_ws, w_dim], or [N, w_dim] when
    num_ws is None. `w_avg_beta` None: no running mean of w, hence no truncation. `last_activation` names the
    activation of the last layer.
    """

    def __init__(self, z_dim, c_dim, w_dim, num_ws, num_layers=8, activation='lrelu', last_activation=None, lr_multiplier=0.01,
                 w_avg_beta=0.998):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        embed_dim = w_dim if c_dim > 0 else 0
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_dim)
        features = [z_dim + embed_dim] + [w_dim] * num_layers
        for i in range(num_layers):
            act = last_activation if last_activation and i == num_layers - 1 else activation
            setattr(self, f'fc{i}', FullyConnectedLayer(features[i], features[i + 1], activation=act, lr_multiplier=lr_multiplier))
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer('w_avg', torch.zeros([w_dim]))

    def forward(self, z, c, truncation_psi=1.0, truncation_cutoff=None, update_emas=False):
        inputs = []
        if self.z_dim > 0:
            inputs.append(normalize_2nd_moment(z.float()))
        if self.c_dim > 0:
            inputs.append(normalize_2nd_moment(self.embed(c.float())))
        x = torch.cat(inputs, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f'fc{i}')(x)
        if update_emas and self.w_avg_beta is not None:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is None:
            return x
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)                              # [N, num_ws, w_dim]
        return self.truncate(ws, truncation_psi, truncation_cutoff)

    def truncate(self, ws, truncation_psi=1.0, truncation_cutoff=None):
        """ws [N, num_ws, w_dim] moved towards the mean latent; the first `truncation_cutoff` layers, None for all."""
        if truncation_psi == 1:
            return ws
        if self.w_avg_beta is None:
            raise ValueError('this network keeps no mean latent, so truncation_psi must be 1')
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        return torch.cat([self.w_avg.lerp(ws[:, :cutoff], truncation_psi), ws[:, cutoff:]], dim=1)
