"""Times one 512x512 frame of the published PanoHead configuration (48 + 48 samples, 64x64 rays, tri-grid D = 3 of 256^2).

    python benchmarks/frame.py --reference

'whole frame': latents to image. 'kept field': another view of the same head, which needs the renderer, the background and
the super-resolution; ours keeps the background's features with the field, for no camera changes them.
"""

import harness
import torch

import camera_utils
from inference.session import Session
from torch_utils.misc import reuse_freed_memory
from training.networks.precision import set_precision


def build(plain, options):
    """The work of a variant; see the top of this file."""
    device = torch.device(options.device)
    generator = harness.published_generator().to(device)
    set_precision(generator, 'float32' if plain else options.precision, device)
    z, label = torch.randn(1, 512, device=device), camera_utils.front_label(device=device)
    if plain:
        return plain_work(generator, z, label)
    reuse_freed_memory()
    session = Session(generator, device)
    with torch.inference_mode():
        identity = session.identity(generator.mapping(z, label))

    @torch.inference_mode()
    def whole():
        session.view(session.identity(generator.mapping(z, label)), label)

    return {'whole frame': whole, 'kept field': lambda: session.view(identity, label) and None}


def plain_work(generator, z, label):
    """The same with nothing kept but the field."""
    with torch.no_grad():
        ws = generator.mapping(z, label)
        field = generator.build_field(ws)

    @torch.no_grad()
    def whole():
        generator.synthesis(generator.mapping(z, label), label)

    @torch.no_grad()
    def kept():
        generator.render(field, ws, label)

    return {'whole frame': whole, 'kept field': kept}


@harness.command
def main(**options):
    """Time a frame of the published 512 configuration."""
    harness.run('frame', **options, size=512)


if __name__ == '__main__':
    main()
