"""One discriminator for images, raw images and masks (StyleGAN2 1912.04958; dual: EG3D 2112.07945, section 4.4; masks:
PanoHead 2303.13071, section 3.1).

The published variants are settings: DualDiscriminator stacks image and raw image; MaskDualDiscriminatorV2 stacks the
mask as well; MaskDualDiscriminator (V1) gives the mask a trunk of its own that joins at 4x4.
"""

import math

import torch
from torch import nn

from torch_utils import streams
from torch_utils.misc import deviation_within_groups, grouped, to_working_format, working_dtype
from torch_utils.ops.resize import resize
from torch_utils.persistence import persistent_class
from training.networks.layers import Conv2dLayer, FullyConnectedLayer, MappingNetwork, register_resample_filter
from training.networks.stylegan2 import channels_at

INPUT_CHANNELS = {'image': 3, 'image_raw': 3, 'image_mask': 1}


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution. (x [N, I, H, W] or None, img for the first block) -> [N, O, H/2, W/2]."""

    compute_dtype = None   # set by training.networks.precision: the type whatever use_fp16 says

    def __init__(self, in_channels, mid_channels, out_channels, img_channels, use_fp16=False, conv_clamp=256, trainable=None):
        super().__init__()
        trainable = iter(trainable or ())
        clamp = conv_clamp if use_fp16 else None
        self.use_fp16 = use_fp16
        register_resample_filter(self)

        def layer(*args, **kwargs):
            return Conv2dLayer(*args, trainable=next(trainable, True), conv_clamp=clamp, **kwargs)

        self.fromrgb = layer(img_channels, mid_channels, 1, activation='lrelu') if in_channels == 0 else None
        self.conv0 = layer(mid_channels, mid_channels, 3, activation='lrelu')
        self.conv1 = layer(mid_channels, out_channels, 3, activation='lrelu', down=2)
        self.skip = layer(mid_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x, img=None, force_fp32=False):
        x = to_working_format(img if x is None else x, working_dtype(self, self.resample_filter.device, force_fp32))
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        y = self.skip(x, gain=math.sqrt(0.5))
        return y + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


class MinibatchStdLayer(nn.Module):
    """Appends one channel: the mean standard deviation within groups of the batch (1710.10196, section 3)."""

    def __init__(self, group_size):
        super().__init__()
        self.group_size = group_size

    def forward(self, x):
        n, c, h, w = x.shape
        y = grouped(x, self.group_size)                                            # [group, N/group, C, H, W]
        group = y.shape[0]
        std = ((y - y.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt()             # [N/group, C, H, W]
        y = std.mean(dim=[1, 2, 3]).repeat(group)[:, None, None, None]
        return torch.cat([x, y.expand(n, 1, h, w)], dim=1)


class DiscriminatorEpilogue(nn.Module):
    """4x4 features [N, C, 4, 4] and label features cmap [N, cmap_dim] -> logits [N, 1]."""

    def __init__(self, channels, cmap_dim, mbstd_group_size):
        super().__init__()
        self.cmap_dim = cmap_dim
        self.mbstd = MinibatchStdLayer(mbstd_group_size)
        self.conv = Conv2dLayer(channels + 1, channels, 3, activation='lrelu')
        self.fc = FullyConnectedLayer(channels * 16, channels, activation='lrelu')
        self.out = FullyConnectedLayer(channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(self, x, cmap):
        x = self.conv(self.mbstd(x.float()))
        x = self.out(self.fc(x.flatten(1)))
        return x if cmap is None else (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)


@persistent_class
class MultiInputDiscriminator(nn.Module):
    """Scores of what a generator returns (or a dict of the same names), given the label.

    `inputs`: which of image, image_raw, image_mask are stacked at img_resolution; `mask_trunk_resolution`: side at
    which a second trunk takes the mask, None for no such trunk; `disc_c_noise`: noise on the label, in standard
    deviations of each entry over the minibatch-std group (over the batch if that is 1); `freeze_layers`: Freeze-D, that
    many layers from the input on never learn.
    """

    def __init__(self, c_dim=25, img_resolution=512, inputs=('image', 'image_raw', 'image_mask'), mask_trunk_resolution=None,
                 channel_base=32768, channel_max=512, num_fp16_res=0, conv_clamp=256, mapping_layers=8, mbstd_group_size=4,
                 disc_c_noise=0.0, freeze_layers=0):
        super().__init__()
        unknown = set(inputs) - set(INPUT_CHANNELS)
        if unknown or not inputs:
            raise ValueError(f'inputs must be some of {", ".join(INPUT_CHANNELS)}, got {inputs!r}')
        self.c_dim, self.img_resolution, self.inputs = c_dim, img_resolution, tuple(inputs)
        self.mask_trunk_resolution, self.disc_c_noise = mask_trunk_resolution, disc_c_noise
        self.resolutions = [2 ** i for i in range(int(math.log2(img_resolution)), 2, -1)]
        if mask_trunk_resolution is not None and mask_trunk_resolution not in self.resolutions:
            raise ValueError(f'mask_trunk_resolution (--seg_resolution) must be one of {", ".join(map(str, self.resolutions))}, '
                             f'got {mask_trunk_resolution}')
        register_resample_filter(self)

        def add_trunk(prefix, start, img_channels, num_frozen):
            for resolution in [r for r in self.resolutions if r <= start]:
                first = resolution == start
                num_layers = 4 if first else 3
                trainable = [i >= num_frozen for i in range(num_layers)]
                num_frozen -= num_layers
                block = DiscriminatorBlock(0 if first else channels_at(resolution, channel_base, channel_max),
                                           channels_at(resolution, channel_base, channel_max),
                                           channels_at(resolution // 2, channel_base, channel_max), img_channels,
                                           use_fp16=resolution > img_resolution // 2 ** num_fp16_res, conv_clamp=conv_clamp,
                                           trainable=trainable)
                setattr(self, f'{prefix}{resolution}', block)

        add_trunk('b', img_resolution, sum(INPUT_CHANNELS[name] for name in self.inputs), freeze_layers)
        if mask_trunk_resolution is not None:
            add_trunk('sb', mask_trunk_resolution, INPUT_CHANNELS['image_mask'], freeze_layers)
        cmap_dim = channels_at(4, channel_base, channel_max) if c_dim > 0 else 0
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, num_layers=mapping_layers, w_avg_beta=None)
        self.b4 = DiscriminatorEpilogue(channels_at(4, channel_base, channel_max), cmap_dim, mbstd_group_size)

    @property
    def wanted(self):
        """Names of all the images this discriminator looks at."""
        return self.inputs + (('image_mask',) if self.mask_trunk_resolution and 'image_mask' not in self.inputs else ())

    def _input(self, images, name, size):
        x = images[name]
        # Masks lie in [0, 1]; every input of the network lies in [-1, 1].
        return resize(x * 2 - 1 if name == 'image_mask' else x, size)

    def forward(self, images, c, force_fp32=False):
        """images: dict or GeneratorOutput with `inputs`; c [N, c_dim] -> logits [N, 1]."""
        x = None
        img = torch.cat([self._input(images, name, self.img_resolution) for name in self.inputs], dim=1)
        mask = mask_x = None
        if self.mask_trunk_resolution is not None:
            mask = self._input(images, 'image_mask', self.mask_trunk_resolution)
        for resolution in self.resolutions:
            x = getattr(self, f'b{resolution}')(x, img, force_fp32)
            if mask is not None and resolution <= self.mask_trunk_resolution:
                mask_x = getattr(self, f'sb{resolution}')(mask_x, mask, force_fp32)
        if mask_x is not None:
            x = x.float() + mask_x.float()
        return self.b4(x, self._cmap(c))

    def _cmap(self, c):
        if self.c_dim == 0:
            return None
        if self.disc_c_noise > 0:
            group = self.b4.mbstd.group_size
            deviation = deviation_within_groups(c, None if group == 1 else group)
            c = c + streams.normal(c.shape, c.device) * deviation * self.disc_c_noise
        return self.mapping(None, c)
