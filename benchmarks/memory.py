"""Measures a density grid of the published network: seconds a million points, and the memory it takes.

    python benchmarks/memory.py --reference

Ours is the whole grid, as gen_samples.py --shapes makes it; the plain variant queries densities and colours of four million
points in pieces of a million, as the published script does.
"""

import harness
import torch

from inference.shapes import BORDER_FRACTION, density_grid
from training.networks.decoders import OSGDecoder
from training.representations.planes import PlaneField

PIECE, PLAIN_PIECES = 10 ** 6, 4


def build(plain, options, resolution=512):
    """The work of a variant."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    decoder = OSGDecoder(32, 32).to(device).requires_grad_(False)
    field = PlaneField(torch.randn(1, 3, 32, 3, 256, 256, device=device), decoder, 1.0)
    inner = resolution - 2 * max(int(resolution * BORDER_FRACTION), 1)

    def grid():
        density_grid(field, resolution, 1.0, device)
        return inner ** 3 / 1e6

    @torch.no_grad()
    def pieces():
        for _ in range(PLAIN_PIECES):
            field.query(torch.rand(1, PIECE, 3, device=device) - 0.5)
        return PLAIN_PIECES

    return {f'million points of a {resolution}^3 grid': pieces if plain else grid}


@harness.command
def main(**options):
    """Measure a 512^3 density grid."""
    harness.run('memory', **options, resolution=512)


if __name__ == '__main__':
    main()
