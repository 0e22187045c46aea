"""What watching a run and saving its state cost, in parts of the time that steps take, at a preset's default settings.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py
    OMP_NUM_THREADS=1 python benchmarks/overhead.py --preset synthetic-128 --resolution 128

Steps (sixteen, so that every phase has its share), a tick's monitors and the saving of a state are timed in turns in one run;
figures are medians. Monitors come once a tick, states every --state_minutes and with every snapshot. One JSON line, by the
processor's time of this process and by the clock, which counts the disk as well.
"""

import json
import statistics
import tempfile
from pathlib import Path

import click
from harness import environment, time_call
import torch

from dnnlib.cli import user_errors
from torch_utils import misc
from training.configure import training_config
from training.keeper import Keeper
from training.monitors import Monitors, Stopwatch
from training.synthetic.write import write_dataset
from training.trainer import Trainer

IMAGES = 64
STEPS = 16
TIMERS = 2000


def pieces(trainer):
    """{name: callable} of what is timed."""
    watch = Monitors(trainer.G, trainer.cameras, trainer.run.seed)
    keeper = Keeper(trainer, trainer.run.state_minutes, trainer.run.state_ticks, trainer.run.keep_states)
    stopwatch = Stopwatch()

    def steps():
        for _ in range(STEPS):
            trainer.step()

    def monitors():
        trainer.collector.update()
        resolution = trainer.schedule().neural_rendering_resolution
        watch.warnings(watch.tick(trainer.collector.as_dict(), trainer.stopwatch.take(), trainer.ema.average, resolution))

    def state():
        problems = {}
        keeper.save(None, problems)
        if problems:
            raise click.ClickException(str(problems))

    def timers():
        for _ in range(TIMERS):
            with stopwatch.time('x'):
                pass

    return {'steps': steps, 'monitors': monitors, 'state': state, 'timers': timers}


def overhead(seconds, run):
    """{what: percent of the time of steps} from the seconds of the pieces and a run's settings."""
    step = seconds['steps'] / STEPS
    tick = step * max(run['kimg_per_tick'] * 1000 / run['batch_size'], 1)
    with_snapshots = 1 / run['snapshot_ticks'] if run['snapshot_ticks'] else 0
    by_the_clock = tick / 60 / run['state_minutes'] if run['state_minutes'] else 0
    parts = {'monitors': seconds['monitors'] / tick, 'timers': 2 * seconds['timers'] / TIMERS / step,
             'states': seconds['state'] * (with_snapshots + by_the_clock) / tick}
    return {**{name: round(100 * part, 3) for name, part in parts.items()}, 'all': round(100 * sum(parts.values()), 3)}


@click.command()
@click.option('--preset', default='synthetic-64', show_default=True)
@click.option('--resolution', type=int, default=64, show_default=True, help='Pixels of the images.')
@click.option('--device', default='auto', show_default=True)
@click.option('--repeats', type=click.IntRange(min=1), default=3, show_default=True)
@user_errors
def main(preset, resolution, device, repeats):
    """Time the pieces in turns."""
    device = misc.resolve_device(device)
    with tempfile.TemporaryDirectory() as folder:
        images, masks = f'{folder}/heads.zip', f'{folder}/masks.zip'
        write_dataset(IMAGES, resolution, images, masks, progress=False)
        config = training_config(dict(preset=preset, img_data=images, seg_data=masks, device=device.type))
        trainer = Trainer(config, Path(folder), device)
        work = pieces(trainer)
        samples = {name: [] for name in work}
        for repeat in range(repeats + 1):
            for name, function in work.items():
                sample = time_call(function, device)
                if repeat > 0:
                    samples[name].append(sample)
    seconds = {clock: {name: statistics.median(sample[clock] for sample in rows) for name, rows in samples.items()}
               for clock in ('cpu_sec', 'wall_sec')}
    settings = {name: config['run'][name] for name in ('batch_size', 'kimg_per_tick', 'snapshot_ticks', 'state_minutes')}
    rounded = {clock: {name: round(value, 5) for name, value in values.items()} for clock, values in seconds.items()}
    click.echo(json.dumps({'benchmark': 'overhead', 'preset': preset, **settings,
                           'overhead_percent': {clock: overhead(values, config['run']) for clock, values in seconds.items()},
                           'seconds': rounded, 'repeats': repeats, **environment(device, torch.get_num_threads())}))


if __name__ == '__main__':
    main()
