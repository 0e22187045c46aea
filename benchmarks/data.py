"""Times reading 512x512 images, masks and labels from zip files, as training reads them: seconds an image.

    python benchmarks/data.py --reference

The plain variant reads item after item in the training's own process; ours has --workers processes.
"""

import tempfile
from pathlib import Path

import click
import harness
import torch

from training.dataset import HeadDataset, InfiniteSampler, iterate_batches
from training.synthetic.write import write_dataset

IMAGES, BATCH, BATCHES = 64, 8, 16


def build(plain, options):
    """The work of a variant: BATCHES batches on the device."""
    folder, device = Path(tempfile.mkdtemp()), torch.device(options.device)
    write_dataset(IMAGES, 512, str(folder / 'heads.zip'), str(folder / 'masks.zip'), progress=False)
    dataset = HeadDataset(str(folder / 'heads.zip'), str(folder / 'masks.zip'))
    batches = iterate_batches(dataset, BATCH, InfiniteSampler(len(dataset)), 0 if plain else options.settings['workers'],
                              pin_memory=device.type == 'cuda')

    def read():
        for _ in range(BATCHES):
            batch = next(batches)
            batch['image'].to(device, non_blocking=True)
        return BATCH * BATCHES

    return {'image read': read}


@click.option('--workers', default=2, show_default=True, type=click.IntRange(0), help='Reading processes')
@harness.command
def main(workers, **options):
    """Time the data path."""
    harness.run('data', **options, settings={'workers': workers}, size=512)


if __name__ == '__main__':
    main()
