"""Key map of PanoHead's files (2303.13071): TriPlaneGenerator with tri-grids, both discriminators that look at masks.

SphereHead's files look the same but for the number of channels that their backbone makes: they are refused.
"""

from dnnlib import UserError
from legacy import shared
from training.generators.panohead import PanoHeadGenerator

FEATURES = 32
DISCRIMINATORS = ('MaskDualDiscriminator', 'MaskDualDiscriminatorV2')


def is_generator(module):
    """Whether a Module of class TriPlaneGenerator is of PanoHead's family."""
    return 'triplane_depth' in shared.rendering_of(module)


def generator(module):
    """The Translation of PanoHead's generator. UserError for SphereHead's and other forks'."""
    def own(rendering, tensors):
        depth = rendering.take('triplane_depth')
        _check_channels(tensors, depth)
        return dict(
            features=FEATURES, plane_depth=depth, plane_resolution=rendering.take('triplane_size', 256),
            decoder_activation=rendering.take('decoder_activation', 'none'), use_torgb_raw=bool(rendering.take('use_torgb_raw', False)),
            use_background=bool(rendering.take('use_background', False)),
            adaptive_camera=any(name.startswith('t_mapping.') for name in tensors))
    return shared.generator(module, 'PanoHead', PanoHeadGenerator, 'orthogonal', own)


def _check_channels(tensors, depth):
    bias = tensors.get('backbone.synthesis.b4.torgb.bias')
    channels = bias.shape[0] if bias is not None and len(bias.shape) == 1 else 0
    if type(depth) is not int or channels != 3 * FEATURES * depth:
        raise UserError(f'its backbone makes {channels} channels, where PanoHead with triplane_depth {depth} has 3 x {FEATURES} x that '
                        'depth: a network of SphereHead or of another fork, whose planes this version does not have; use the code that '
                        'wrote it')


def discriminator(module):
    """The Translation of either of PanoHead's discriminators."""
    if module.class_name == 'MaskDualDiscriminator':
        return shared.discriminator(module, 'PanoHead', ('image', 'image_raw'), mask_trunk=True)
    return shared.discriminator(module, 'PanoHead', ('image', 'image_raw', 'image_mask'))
