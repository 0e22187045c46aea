"""Field decoder: mean plane features -> density and colour features (EG3D 2112.07945, section 4.2)."""

import math

from torch import nn
import torch.nn.functional as F

from training.networks.layers import FullyConnectedLayer

DECODER_ACTIVATIONS = ('sigmoid', 'lrelu', 'none')


class OSGDecoder(nn.Module):
    """features [..., in_features] -> (density [..., 1], colour [..., out_features]); one softplus hidden layer of 64.

    `activation` of the colours: 'sigmoid' (EG3D; slightly widened so that 0 and 1 are reached), 'lrelu' (times
    sqrt 2) or 'none' (PanoHead).
    """

    def __init__(self, in_features, out_features, activation='none', lr_multiplier=1.0, hidden_features=64):
        super().__init__()
        if activation not in DECODER_ACTIVATIONS:
            raise ValueError(f'decoder_activation must be one of {", ".join(DECODER_ACTIVATIONS)}, got {activation!r}')
        self.activation = activation
        self.net = nn.Sequential(
            FullyConnectedLayer(in_features, hidden_features, lr_multiplier=lr_multiplier),
            nn.Softplus(),
            FullyConnectedLayer(hidden_features, 1 + out_features, lr_multiplier=lr_multiplier))

    def forward(self, features):
        out = self.net(features.reshape(-1, features.shape[-1])).reshape(*features.shape[:-1], -1)
        density, colour = out[..., :1], out[..., 1:]
        if self.activation == 'sigmoid':
            colour = colour.sigmoid() * (1 + 2 * 0.001) - 0.001
        elif self.activation == 'lrelu':
            colour = F.leaky_relu(colour, 0.2) * math.sqrt(2)
        return density, colour
