"""Image features that need no download: a fixed convolutional net with seeded random weights.

Random convolutional features separate distributions of images well enough to follow a training run; they are NOT
Inception features, and distances in them compare only with distances in them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dnnlib
from metrics.features import FeatureNetwork, register_features
from torch_utils.misc import weights_digest

SEED = 20_230_313
CHANNELS = (16, 24, 24, 24, 16)      # of the five layers, each at half the resolution of the one before
LAYOUT = 4                           # side of the coarse colour layout that is kept beside the pooled statistics
SCALE = 3.0                          # brings distances between sets of pictures into the range 0 to some hundreds
MIN_SIZE = 32


class SeededFeatures(nn.Module):
    """Images [N, 3, H, W], uint8 or float32 in 0..255, of 32 pixels and more, -> features [N, 256] float32.

    Per layer the mean and deviation over the picture of each channel (of all, what is in it), and the colours of a
    coarse grid (of where it is). Weights come from NumPy's legacy generator, whose streams are frozen, so the features
    are the same under every version and on every device, up to rounding.
    """

    def __init__(self):
        super().__init__()
        random = np.random.RandomState(SEED)
        channels = (3, *CHANNELS)
        for i, (num_in, num_out) in enumerate(zip(channels[:-1], channels[1:])):
            weight = random.standard_normal([num_out, num_in * 9])
            # Rows orthogonal where there is room: no two channels of a layer say the same. Gain of leaky ReLU.
            q, r = np.linalg.qr(weight.T if num_out <= num_in * 9 else weight)
            weight = (q * np.sign(np.diag(r))).T * np.sqrt(2.0)
            self.register_buffer(f'weight{i}', torch.from_numpy(weight.reshape(num_out, num_in, 3, 3)).float())
            self.register_buffer(f'bias{i}', torch.from_numpy(random.standard_normal(num_out) * 0.1).float())

    @property
    def num_features(self):
        """Length of a feature vector."""
        return 2 * sum(CHANNELS) + 3 * LAYOUT ** 2

    @torch.no_grad()
    def forward(self, images):
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f'images must be uint8, or float32 in 0..255, [N, 3, H, W], got {images.dtype} {tuple(images.shape)}')
        if min(images.shape[2:]) < MIN_SIZE:
            raise dnnlib.UserError(f'images of {images.shape[3]}x{images.shape[2]} pixels: the seeded features need at '
                                   f'least {MIN_SIZE}x{MIN_SIZE}')
        x = images.float() / 127.5 - 1
        features = [F.adaptive_avg_pool2d(x, LAYOUT).flatten(1)]
        for i in range(len(CHANNELS)):
            x = F.conv2d(F.pad(x, [1] * 4, mode='replicate'), getattr(self, f'weight{i}'), getattr(self, f'bias{i}'))
            x = F.leaky_relu(x, 0.2)
            features += [x.mean([2, 3]), x.flatten(2).std(2, correction=0)]
            x = F.avg_pool2d(x, 2)
        return torch.cat(features, 1) * SCALE


@register_features('seeded')
def seeded_features(device):
    """The FeatureNetwork 'seeded' on `device`."""
    module = SeededFeatures().to(device)
    return FeatureNetwork('seeded', weights_digest(module), None, module)
