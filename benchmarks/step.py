"""Times the phases of a training step: one JSON line with seconds of processor time and of the clock, medians of the repeats.

    OMP_NUM_THREADS=1 python benchmarks/step.py --preset synthetic-64 --img_data heads.zip --seg_data masks.zip
    OMNIHEAD_NATIVE=0 OMP_NUM_THREADS=1 python benchmarks/step.py ...        (plain PyTorch instead of the C++ operators)

Processor time of one thread is the steadier figure on a shared machine; compare ratios of runs made side by side.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dnnlib.cli import user_errors  # noqa: E402
from torch_utils.misc import resolve_device  # noqa: E402
from torch_utils.ops.native import load_native  # noqa: E402
from training.configure import training_config  # noqa: E402
from training.training_loop import Trainer  # noqa: E402

CLOCKS = {'cpu_sec': time.process_time, 'wall_sec': time.perf_counter}


def timed(function, repeats, device):
    """Median seconds of `function` by either clock, after one call that does not count."""
    samples = {name: [] for name in CLOCKS}
    for i in range(repeats + 1):
        start = {name: clock() for name, clock in CLOCKS.items()}
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        if i > 0:
            for name, clock in CLOCKS.items():
                samples[name].append(clock() - start[name])
    return {name: round(statistics.median(values), 4) for name, values in samples.items()}


@click.command()
@click.option('--preset', default='synthetic-64', show_default=True)
@click.option('--img_data', required=True)
@click.option('--seg_data')
@click.option('--device', default='auto', show_default=True)
@click.option('--repeats', default=7, show_default=True, type=click.IntRange(min=1))
@user_errors
def main(preset, img_data, seg_data, device, repeats):
    """Time a step of PRESET."""
    device = resolve_device(device)
    config = training_config(dict(preset=preset, img_data=img_data, seg_data=seg_data))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder, device)
    images, labels = trainer.real_batch()
    schedule = trainer.schedule()
    phases = {phase.name: timed(lambda p=phase: trainer.run_phase(p, images, labels, schedule), repeats, device)
              for phase in trainer.phases}
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(json.dumps({'preset': preset, 'batch': config['run']['batch_size'], **phases, 'native': device.type == 'cpu' and load_native(),
                      'threads': torch.get_num_threads(), 'device': str(device), 'torch': torch.__version__,
                      'python': platform.python_version(), 'commit': commit, 'date': time.strftime('%Y-%m-%d')}))


if __name__ == '__main__':
    main()
