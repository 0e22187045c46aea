"""The noise images of a network's layers as unknowns of an inversion: optimised with the latents, held apart from the picture's
content by a penalty on what neighbouring pixels have in common (StyleGAN2's projection, 1912.04958, appendix D)."""

import contextlib

import torch
import torch.nn.functional as F

from dnnlib import UserError

WEIGHT = 1e5               # of the penalty
SMALLEST_LEVEL = 8         # pixels on a side of the penalty's coarsest level


def noise_buffers(generator):
    """Noise images [R, R] of the layers by name; those of a super-resolution that takes no noise are left out."""
    unused = ('superresolution.',) if getattr(getattr(generator, 'superresolution', None), 'noise_mode', None) == 'none' else ()
    return {name: buffer for name, buffer in generator.named_buffers()
            if name.endswith('.noise_const') and not name.startswith(unused)}


def noise_penalty(images):
    """Sum, over noise images [R, R] and their halves by averaging down to SMALLEST_LEVEL, of the squared mean product with the
    image shifted by a pixel, along both axes."""
    total = 0.0
    for image in images:
        level = image[None, None]
        while True:
            total = total + sum((level * level.roll(1, dims=axis)).mean().square() for axis in (2, 3))
            if level.shape[-1] <= SMALLEST_LEVEL:
                break
            level = F.avg_pool2d(level, 2)
    return total


@torch.no_grad()
def standardise(images):
    """Give every image a mean of 0 and a root mean square of 1, in place."""
    for image in images:
        image.sub_(image.mean())
        image.mul_(image.square().mean().rsqrt())


class Freed:
    """`images`: leaves; once they are freed no more, `deltas`: their float16 changes by name."""

    def __init__(self, named):
        self.images, self.deltas = list(named.values()), {}


@contextlib.contextmanager
def freed(generator, seed, wanted=True):
    """Within, the noise images of a generator are leaves that can be optimised, and start as normal numbers of the seed; they
    end as what they were plus float16 changes, to the bit. The Freed has none of them unless that is `wanted`. Raises UserError
    if the generator has none."""
    named = noise_buffers(generator) if wanted else {}
    if wanted and not named:
        raise UserError('--optimize-noise: the layers of this network have no noise; leave the flag out')
    random = torch.Generator().manual_seed(seed + 1)           # not the numbers that the latents stray by
    result, before = Freed(named), {name: image.clone() for name, image in named.items()}
    try:
        for image in result.images:
            image.copy_(torch.randn(image.shape, generator=random)).requires_grad_(True)
        yield result
    finally:
        for image in result.images:
            image.requires_grad_(False).grad = None
    for name, image in named.items():
        result.deltas[name] = (image - before[name]).half()
        image.copy_(before[name] + result.deltas[name])
