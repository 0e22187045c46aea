"""Add a bias, apply an activation, scale and clamp (StyleGAN2, 1912.04958).

Plain PyTorch, the definition; on CUDA, and on CPU for piecewise linear activations of images, one operator computes the same.
"""

import math
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

from torch_utils.ops import cuda_images, trained_layers


class Activation(NamedTuple):
    """Function and the gain that keeps unit variance, as the family uses it."""
    function: Callable
    gain: float


ACTIVATIONS = {
    'linear': Activation(lambda x: x, 1.0),
    'relu': Activation(F.relu, math.sqrt(2)),
    'lrelu': Activation(lambda x: F.leaky_relu(x, 0.2), math.sqrt(2)),
    'tanh': Activation(torch.tanh, 1.0),
    'sigmoid': Activation(torch.sigmoid, 1.0),
    'elu': Activation(F.elu, 1.0),
    'selu': Activation(F.selu, 1.0),
    'softplus': Activation(F.softplus, 1.0),
    'swish': Activation(lambda x: torch.sigmoid(x) * x, math.sqrt(2)),
}


def bias_act(x, b=None, dim=1, act='linear', gain=None, clamp=None):
    """activation(x + b) * gain, clamped to [-clamp, clamp].

    b [x.shape[dim]] or None; act: a key of ACTIVATIONS; gain None takes the activation's own. bfloat16 has the range of
    float32 and is not clamped: the clamp guards float16 from overflow.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f'act must be one of {", ".join(ACTIVATIONS)}, got {act!r}')
    gain = ACTIVATIONS[act].gain if gain is None else gain
    if cuda_images.can_run(x):
        return cuda_images.fused_bias_act(x, None if b is None else b.to(x.dtype), dim, act, gain, clamp)
    if dim == 1 and (act != 'linear' or clamp is not None) and trained_layers.can_activate(x, act, gain):
        return trained_layers.activation(x, b, act, gain, clamp)
    if b is not None:
        x = x + b.to(x.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = ACTIVATIONS[act].function(x)
    if gain != 1:
        x = x * gain
    return x if clamp is None or x.dtype == torch.bfloat16 else x.clamp(-clamp, clamp)
