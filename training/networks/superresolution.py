"""Super-resolution of the rendered feature image (EG3D 2112.07945, section 4.3; module names of the published code).

Two StyleGAN2 blocks modulated by the last latent. The published modules are rows of one table; the rows for 64 and
32 pixel images carry the same idea to small machines.
"""

from typing import NamedTuple

from torch import nn

from torch_utils.ops.resize import resize
from training.networks.stylegan2 import SynthesisBlock


class SuperResolutionSpec(NamedTuple):
    """What tells one module from another: sizes in pixels, channels of the two blocks, what is resized at the input."""
    img_resolution: int
    input_resolution: int
    channels: tuple
    resize_larger: bool = True   # False: an input that is larger than input_resolution is left as it is


SPECS = {
    'SuperresolutionHybrid8XDC': SuperResolutionSpec(512, 128, (256, 128)),
    'SuperresolutionHybrid8X': SuperResolutionSpec(512, 128, (128, 64)),
    'SuperresolutionHybrid4X': SuperResolutionSpec(256, 128, (128, 64), resize_larger=False),
    'SuperresolutionHybrid2X': SuperResolutionSpec(128, 64, (128, 64)),
    'SuperresolutionHybrid64': SuperResolutionSpec(64, 32, (64, 32)),
    'SuperresolutionHybrid32': SuperResolutionSpec(32, 16, (32, 32)),
}
DEFAULT_MODULES = {512: 'SuperresolutionHybrid8XDC', 256: 'SuperresolutionHybrid4X', 128: 'SuperresolutionHybrid2X',
                   64: 'SuperresolutionHybrid64', 32: 'SuperresolutionHybrid32'}


def default_module(img_resolution):
    """Name of the family's usual module for images of `img_resolution` pixels; ValueError if there is none."""
    if img_resolution not in DEFAULT_MODULES:
        raise ValueError(f'img_resolution must be one of {", ".join(map(str, sorted(DEFAULT_MODULES)))}, got {img_resolution}')
    return DEFAULT_MODULES[img_resolution]


class SuperResolution(nn.Module):
    """(rgb [N, 3, R, R], features [N, channels, R, R], ws [N, num_ws, w_dim]) -> image [N, 3, img_resolution, ...].

    `name`: a key of SPECS, with or without a leading module path. `channel_scale` multiplies the blocks' channels.
    """

    def __init__(self, channels, name, w_dim=512, num_fp16_res=0, noise_mode='none', antialias=True, channel_scale=1.0):
        super().__init__()
        name = name.rpartition('.')[2]
        if name not in SPECS:
            raise ValueError(f'superresolution module must be one of {", ".join(SPECS)}, got {name!r}')
        self.spec = SPECS[name]
        self.noise_mode, self.antialias = noise_mode, antialias
        res = self.spec.input_resolution
        first, second = (max(int(c * channel_scale), 1) for c in self.spec.channels)
        up = self.spec.img_resolution // (2 * res)
        use_fp16 = num_fp16_res > 0
        self.block0 = SynthesisBlock(channels, first, w_dim, res * up, 3, up=up, use_fp16=use_fp16)
        self.block1 = SynthesisBlock(first, second, w_dim, self.spec.img_resolution, 3, up=2, use_fp16=use_fp16)

    @property
    def input_resolution(self):
        """Side in pixels of the images the first block takes."""
        return self.spec.input_resolution

    def forward(self, rgb, features, ws, noise_mode=None, force_fp32=False):
        noise_mode = self.noise_mode if noise_mode is None else noise_mode
        ws = ws[:, -1:, :].repeat(1, 3, 1)
        size = features.shape[-1]
        if size < self.input_resolution or (size > self.input_resolution and self.spec.resize_larger):
            features = resize(features, self.input_resolution, self.antialias)
            rgb = resize(rgb, self.input_resolution, self.antialias)
        features, rgb = self.block0(features, rgb, ws, noise_mode, force_fp32)
        _, rgb = self.block1(features, rgb, ws, noise_mode, force_fp32)
        return rgb
