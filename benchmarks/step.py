"""Times the phases of a training step: a 128x128 PanoHead (channel_base 8192, channel_max 256, 64^2 planes, D = 3, raw
images of 32x32, 48 + 48 samples), batch 4, on synthetic heads.

    python benchmarks/step.py --reference
    python benchmarks/step.py --preset synthetic-64 --resolution 64       (another recipe, at its own batch)

The plain variant trains in float32. 'step' is Gmain + Dmain + a sixteenth of Dreg, which comes every 16th step.
"""

import tempfile
from pathlib import Path

import click
import harness
import torch

from torch_utils.misc import reuse_freed_memory
from training.configure import training_config
from training.synthetic.write import write_dataset
from training.trainer import Trainer

IMAGES = 64


def build(plain, options):
    """The work of a variant: its phases, each with the optimiser's step."""
    preset, resolution = options.settings['preset'], options.settings['resolution']
    folder = Path(tempfile.mkdtemp())
    write_dataset(IMAGES, resolution, str(folder / 'heads.zip'), str(folder / 'masks.zip'), progress=False)
    flags = {'preset': preset, 'img_data': str(folder / 'heads.zip'), 'seg_data': str(folder / 'masks.zip'), 'workers': 0}
    if preset == 'panohead-128':
        flags['batch'] = 4
    if plain:
        flags['precision'] = 'float32'
    elif options.precision != 'auto':
        flags['precision'] = options.precision
    if not plain:
        reuse_freed_memory()
    trainer = Trainer(training_config(flags), folder, torch.device(options.device))
    images, labels = trainer.real_batch()
    schedule = trainer.schedule()
    return {phase.name: (lambda p=phase: trainer.run_phase(p, images, labels, schedule)) for phase in trainer.phases}


@click.option('--preset', default='panohead-128', show_default=True, help='Recipe of train.py')
@click.option('--resolution', default=128, show_default=True, type=click.IntRange(16), help='Of the images')
@harness.command
def main(preset, resolution, **options):
    """Time a training step."""
    harness.run('step', **options, settings={'preset': preset, 'resolution': resolution})


if __name__ == '__main__':
    main()
