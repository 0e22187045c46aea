"""From nothing to a turning head: synthetic data, a short training run, then film, samples and shapes of what it learned.

Every step is one of the project's own commands and is printed as it would be typed.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

import dnnlib
from dnnlib.cli import FiniteFloat, require_fast_option, user_errors, writable_folder
from torch_utils.misc import resolve_device

HERE = Path(__file__).resolve().parent
MOST_PROCESSES = 2      # of four images a step each: the minibatch-std group
METRIC_IMAGES = 1000   # for the Frechet distance: enough to see learning, few enough for a processor


def run(script, *args):
    """Run one of the project's scripts, shown as a command; UserError if it fails."""
    words = [script, *map(str, args)]
    print(f'\n$ python {shlex.join(words)}', flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, str(HERE / script), *words[1:]]).returncode
    if code:
        raise dnnlib.UserError(f'the step above ended with code {code}: python {shlex.join(words)}')
    return time.monotonic() - start


def train(outdir, data, masks, preset, extra):
    """Train and return (folder of the run, seconds)."""
    runs = outdir / 'training-runs'
    seconds = run('train.py', '--outdir', runs, '--img_data', data, '--seg_data', masks, '--preset', preset, *extra)
    return max(runs.iterdir(), key=lambda path: path.name), seconds


def measured(run_dir):
    """Lines on what a run measured: images a second, and the Frechet distance of its first and last snapshot."""
    records = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    speeds = [1000 / r['Timing/sec_per_kimg']['mean'] for r in records if r['Timing/sec_per_kimg']['mean']]
    metrics = [json.loads(line) for line in (run_dir / 'metric-frechet_seeded.jsonl').read_text().splitlines()]
    values = [metric['results']['frechet_seeded'] for metric in metrics]
    return [f'training          {records[-1]["Progress/kimg"]["mean"]:g} kimg at {sum(speeds) / len(speeds):.0f} images/s',
            f'Frechet distance  {values[0]:.1f} untrained -> {values[-1]:.1f} (seeded features, lower is better)']


@click.command()
@click.option('--outdir', default='demo', show_default=True, type=click.Path(path_type=Path), help='Where everything goes')
@click.option('--preset', default='synthetic-64', show_default=True, help='Training recipe')
@click.option('--resolution', default=64, show_default=True, help='Pixels; the preset must fit')
@click.option('--images', default=5000, show_default=True, type=click.IntRange(min=16), help='Size of the synthetic data set')
@click.option('--kimg', type=FiniteFloat(0), help="Thousand images to train on; default: the preset's")
@click.option('--frames', default=120, show_default=True, type=click.IntRange(min=2), help='Frames of the film')
@click.option('--shape-res', default=128, show_default=True, help='Points on a side of the shapes')
@require_fast_option()
@click.option('--device', default='auto', show_default=True, help='auto, cpu, cuda or mps')
@user_errors
def main(outdir, preset, resolution, images, kimg, frames, shape_res, device):
    """Run the whole chain on synthetic heads."""
    start = time.monotonic()
    outdir = writable_folder(outdir)
    data, masks, results = outdir / f'heads{images}-{resolution}.zip', outdir / f'masks{images}-{resolution}.zip', outdir / 'results'
    if not (data.is_file() and masks.is_file()):
        run('dataset_tool_seg.py', '--synthetic', images, '--resolution', f'{resolution}x{resolution}', '--img_dest', data,
            '--seg_dest', masks)
    extra = ['--device', device] + (['--kimg', kimg] if kimg is not None else [])
    if resolve_device(device).type == 'cpu':
        # As fast as two threads where the cores are free; on a busy machine processes wait less for one another.
        extra += ['--gpus', min(os.cpu_count() or 1, MOST_PROCESSES)]
    run_dir, seconds = train(outdir, data, masks, preset, extra)
    snapshots = sorted(run_dir.glob('network-snapshot-*.pkl'))
    network = snapshots[-1]
    for snapshot in dict.fromkeys((snapshots[0], network)):
        run('calc_metrics.py', '--network', snapshot, '--data', data, '--num', min(images, METRIC_IMAGES), '--device', device)
    common = ['--network', network, '--outdir', results, '--trunc', 0.8, '--device', device]
    run('gen_videos.py', *common, '--seeds', '0-3', '--grid', '2x2', '--cfg', 'Head', '--w-frames', frames)
    run('gen_samples.py', *common, '--seeds', '0-7', '--sheet', '--grid', '4x2')
    run('gen_samples.py', *common, '--seeds', 0, '--sheet', '--shapes=true', '--shape-format', 'mrc,glb', '--shape-res', shape_res,
        '--outdir', results / 'shape')
    print('\nResults')
    for path in [*sorted(path for path in results.rglob('*') if path.is_file()), run_dir]:
        print(f'  {path}')
    whole = f'whole demo        {dnnlib.format_time(time.monotonic() - start)}, training {dnnlib.format_time(seconds)}'
    for line in [*measured(run_dir), whole]:
        print(f'  {line}')


if __name__ == '__main__':
    main()
