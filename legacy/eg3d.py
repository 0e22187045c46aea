"""Key map of EG3D's files (2112.07945): TriPlaneGenerator with bilinear planes, DualDiscriminator.

Told apart by what `rendering_kwargs` lacks: `triplane_depth`.
"""

from legacy import shared
from training.generators.eg3d import EG3DGenerator

DISCRIMINATORS = ('DualDiscriminator',)


def is_generator(module):
    """Whether a Module of class TriPlaneGenerator is EG3D's."""
    return 'triplane_depth' not in shared.rendering_of(module)


def generator(module):
    """The Translation of EG3D's generator."""
    def own(rendering, tensors):
        rendering.require('decoder_activation', 'sigmoid')
        return {'plane_resolution': rendering.take('triplane_size', 256)}
    return shared.generator(module, 'EG3D', EG3DGenerator, 'eg3d', own)


def discriminator(module):
    """The Translation of EG3D's discriminator."""
    return shared.discriminator(module, 'EG3D', ('image', 'image_raw'))
