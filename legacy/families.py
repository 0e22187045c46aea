"""Which key map a published network belongs to."""

from dnnlib import UserError
from legacy import eg3d, panohead

FAMILIES = (eg3d, panohead)
GENERATOR = 'TriPlaneGenerator'


def translate(module):
    """The Translation of a published network's Module. UserError if no family knows it."""
    for family in FAMILIES:
        if module.class_name == GENERATOR and family.is_generator(module):
            return family.generator(module)
        if module.class_name in family.DISCRIMINATORS:
            return family.discriminator(module)
    raise UserError(f'{module.class_name} is no generator or discriminator of EG3D or PanoHead; use the code that wrote the file')
