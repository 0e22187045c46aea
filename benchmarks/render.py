"""Times the volume renderer alone: tri-grid D = 3 of 256^2 planes with 32 channels, 64x64 rays, 48 + 48 samples.

    python benchmarks/render.py --reference

For batches of 1 and 4: forward without gradient, and forward and backward with gradients to planes and decoder. Planes are
given as the backbones of both sides leave them: channel by channel there, the channels of a cell together here.
"""

import harness
import torch

import camera_utils
from torch_utils.ops.volume_render import reads_cells
from training.networks.decoders import OSGDecoder
from training.representations.planes import PlaneField
from training.volumetric_rendering.rays import camera_rays
from training.volumetric_rendering.renderer import RenderOptions, render_rays

BATCHES, SIZE, CHANNELS, DEPTH, PLANE = (1, 4), 64, 32, 3, 256


def build(plain, options):
    """The work of a variant; the plain one differs by its process."""
    device = torch.device(options.device)
    work = {}
    for batch in BATCHES:
        forward, both = _passes(batch, device, plain)
        work[f'batch {batch} forward'] = torch.no_grad()(forward)
        work[f'batch {batch} forward+backward'] = both
    return work


def _passes(batch, device, plain):
    torch.manual_seed(0)
    planes = torch.randn(batch, 3, CHANNELS, DEPTH, PLANE, PLANE, device=device)
    if not plain and reads_cells(CHANNELS, device):
        planes = planes.permute(0, 4, 5, 1, 3, 2).contiguous().permute(0, 3, 5, 4, 1, 2)
    planes.requires_grad_(True)
    decoder = OSGDecoder(CHANNELS, CHANNELS).to(device)
    labels = camera_utils.label_from_yaw([15.0 * i for i in range(batch)], device=device)
    rays = camera_rays(*camera_utils.split_label(labels), SIZE)
    options = RenderOptions()

    def forward():
        field = PlaneField(planes, decoder, options.box_warp)
        composite = render_rays(field, rays, options)
        return composite.features.sum() + composite.depth.sum() + composite.weights.sum()

    def both():
        planes.grad = None
        decoder.zero_grad(set_to_none=True)
        forward().backward()

    def without():
        forward()

    return without, both


@harness.command
def main(**options):
    """Time the volume renderer."""
    harness.run('render', **options, rays=SIZE * SIZE, planes=[3, CHANNELS, DEPTH, PLANE, PLANE])


if __name__ == '__main__':
    main()
