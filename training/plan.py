"""What batch, accumulation and time a given GPU memory allows for a preset, before anything is bought or booked.

    python -m training.plan --preset panohead-512 --memory 24GB --gpus 8
    python -m training.plan measure --preset panohead-512 --batches 1,2       (adds to the table of this machine's measurements)

Memory is a line in the number of images at once: what networks, gradients, Adam and the moving average take, which is counted,
and what an image adds in the hungriest phase. That is measured, as the peak of a process that runs every phase of a step, or
computed from what autograd keeps where plan_table.json has no measurement; a plan says which. Time on a GPU is computed from the
operations of an image; the speed is yours to give.
"""

import contextlib
import json
import multiprocessing
import platform
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

import camera_utils
import dnnlib
from dnnlib.cli import ByteSize, user_errors
from torch_utils import misc, streams
from training.build import build_loss, build_networks, build_phases
from training.configure import training_config
from training.losses.adversarial import Batch
from training.presets import DEFAULTS, PRESETS
from training.schedules import ScheduleConfig, schedule_at

TABLE = Path(__file__).with_name('plan_table.json')
RESERVE = 2 ** 30            # bytes of a CUDA context and of libraries: assumed
MARGIN = 0.10                # of memory lost to gaps between tensors: assumed
TFLOPS = 20.0                # sustained, of a GPU: assumed
IMAGES_WITHOUT_MASKS = ('eg3d',)
MIN_BATCHES = 2
R1_SCORES = 6                # passes of the discriminator that R1 takes: forward, its gradient, and the gradients of both


# ---------------------------------------------------------------------------------------------------------------------
# Measuring.

def _config(preset, batch, precision):
    """Configuration of a step with `batch` images at once."""
    masks = None if preset.startswith(IMAGES_WITHOUT_MASKS) else 'masks.zip'
    return training_config(dict(preset=preset, img_data='images.zip', seg_data=masks, batch=batch, precision=precision,
                                resume='x' if PRESETS[preset].get('resume_kimg') else None))


def _resolution(preset):
    """Pixels of the images that a preset is for: the number in its name."""
    return int(preset.split('-')[1])


def _step(preset, batch, precision, device):
    """(phases, callable that runs one of them with `batch` images, callable that scores real images) of a preset, at the raw
    resolution it ends with."""
    config = _config(preset, batch, precision)
    resolution = _resolution(preset)
    with device:
        networks = build_networks(config, SimpleNamespace(label_dim=25, resolution=resolution))
        G, D = (network.train().requires_grad_(False) for network in networks)
        loss, _, _ = build_loss(config, G, D)
        phases = build_phases(loss, {'G': G, 'D': D}, {'G': config['G_opt'], 'D': config['D_opt']})
        labels = camera_utils.front_label().to(device).expand(batch, -1).contiguous()
        images = {'image': torch.zeros(batch, 3, resolution, resolution), 'image_mask': torch.zeros(batch, 1, resolution, resolution)}
        z = torch.zeros(batch, G.z_dim)
    schedule = schedule_at(int(config['run']['total_kimg'] * 1000), ScheduleConfig(**config['schedule']))

    batch_of_images = Batch(images, labels, z, labels)

    @torch.no_grad()
    def score():
        loss.scores(loss.reals(batch_of_images, schedule), labels, schedule)

    def run(phase):
        phase.optimizer.zero_grad(set_to_none=True)
        phase.network.requires_grad_(True)
        drawn = contextlib.nullcontext() if device.type == 'meta' else streams.per_sample((0, phase.name), range(batch))
        with drawn:
            loss.accumulate(phase.name, batch_of_images, schedule)
        phase.network.requires_grad_(False)

    return phases, run, score


def outline(preset):
    """What follows from shapes alone, by a step without numbers: {'fixed_bytes': networks, moving average, gradients, Adam;
    'saved_bytes': what autograd keeps of an image in the hungriest phase, in float32 and plain PyTorch; 'operations': {phase:
    (floating-point operations an image, interval)} of products and convolutions, forward and backward}.
    For a process whose statistics nobody will want."""
    meta = torch.device('meta')
    saved = []
    for batch in (1, 2):
        phases, run, score = _step(preset, batch, 'float32', meta)
        saved.append({phase.name: _saved_bytes(run, phase) for phase in phases})
        if batch == 1:
            operations = {phase.name: (_operations(run, score, phase), phase.interval) for phase in phases}
    return {'fixed_bytes': _fixed_bytes(phases), 'saved_bytes': max(saved[1][name] - saved[0][name] for name in operations),
            'operations': operations}


def _saved_bytes(run, phase):
    total = 0

    def note(tensor):
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(phase)
    return total


def _operations(run, score, phase):
    with FlopCounterMode(display=False) as counter:
        score() if phase.name == 'Dreg' else run(phase)
    # PyTorch's counter does not follow a gradient of a gradient.
    return counter.get_total_flops() * (R1_SCORES if phase.name == 'Dreg' else 1)


def _fixed_bytes(phases):
    networks = {phase.owner: phase.network for phase in phases}
    parameters = {owner: sum(p.nbytes for p in network.parameters()) for owner, network in networks.items()}
    buffers = sum(b.nbytes for network in networks.values() for b in network.buffers())
    return 4 * sum(parameters.values()) + parameters['G'] + buffers


def _in_new_process(function, *arguments):
    """What function(*arguments) returns in a process of its own. UserError if that process died."""
    here, there = multiprocessing.get_context('spawn').Pipe(duplex=False)
    worker = multiprocessing.get_context('spawn').Process(target=_send, args=(there, function, arguments))
    worker.start()
    there.close()
    try:
        return here.recv()
    except EOFError as error:
        raise dnnlib.UserError(f'measuring {", ".join(map(str, arguments))}: the process died; give smaller numbers, memory may be '
                               'short') from error
    finally:
        worker.join()


def _send(pipe, function, arguments):
    pipe.send(function(*arguments))
    pipe.close()


def peak_of_step(preset, batch, precision, device):
    """(peak bytes of a step of `batch` images beyond what the process had before, {phase: seconds}), in a new process."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    phases, run, _ = _step(preset, batch, precision, device)
    _fill_optimisers(phases)
    seconds = {}
    for phase in phases:
        start = time.process_time()
        run(phase)
        seconds[phase.name] = time.process_time() - start
    return _peak_memory(device, before), seconds


def _fill_optimisers(phases):
    """Let the optimisers take the memory that they have after a first step, and the networks that of gradients."""
    for phase in {phase.owner: phase for phase in phases}.values():
        for p in phase.network.parameters():
            p.grad = torch.zeros_like(p)
        phase.optimizer.step()


def _peak_memory(device, before):
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    import resource     # not on Windows, where nothing is measured
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def measure(preset, batches, precision='auto', device=None):
    """Row of the table: a preset's outline and, for every number of `batches`, the peak on this machine.
    Raises UserError if a process died, as it does where memory is short."""
    device = device or torch.device('cpu')
    row = {'preset': preset, **_in_new_process(outline, preset)}
    if not batches:
        return row
    found = {batch: _in_new_process(peak_of_step, preset, batch, precision, device) for batch in batches}
    last = max(found)
    return {**row, 'measured': {
        'peak_bytes': {str(batch): peak for batch, (peak, _) in found.items()}, 'precision': precision,
        'seconds_per_image': {name: round(seconds / last, 3) for name, seconds in found[last][1].items()},
        'device': _machine(device), 'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d')}}


def _machine(device):
    """What was measured on."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else f'one thread of a {platform.machine()} processor'


# ---------------------------------------------------------------------------------------------------------------------
# Planning.

def read_table():
    """Rows of the table by preset: {preset: row}, as `measure` returns them."""
    return {row['preset']: row for row in json.loads(TABLE.read_text(encoding='utf-8'))}


def find_row(preset, table):
    """The row of a preset, or of the one it is a variant of by its name (panohead-512-backs of panohead-512), or None."""
    known = [name for name in table if preset == name or preset.startswith(f'{name}-')]
    return table[max(known, key=len)] if preset in PRESETS and known else None


def measured_bytes_per_image(row):
    """Bytes that each further image takes: the slope between the smallest and the largest number measured."""
    peaks = {int(number): peak for number, peak in row['measured']['peak_bytes'].items()}
    return (peaks[max(peaks)] - peaks[min(peaks)]) / (max(peaks) - min(peaks))


def bytes_per_image(row, table):
    """(bytes an image takes, whether that was measured): else what autograd keeps, times the part of it that measured presets
    really took (16 bits and fused operators keep less)."""
    if 'measured' in row:
        return measured_bytes_per_image(row), True
    parts = [measured_bytes_per_image(other) / other['saved_bytes'] for other in table.values() if 'measured' in other]
    return row['saved_bytes'] * statistics.median(parts), False


def needed_bytes(row, table, batch_gpu):
    """Bytes on a GPU for `batch_gpu` images at once: the counted part, the images, what the smallest measurement had beyond
    both, reserve and margin."""
    slope, is_measured = bytes_per_image(row, table)
    rest = 0
    if is_measured:
        fewest = min(row['measured']['peak_bytes'], key=int)
        rest = max(row['measured']['peak_bytes'][fewest] - row['fixed_bytes'] - slope * int(fewest), 0)
    return (row['fixed_bytes'] + rest + slope * batch_gpu) * (1 + MARGIN) + RESERVE


def operations_per_image(row):
    """Floating-point operations that a step takes per image: phases by their intervals."""
    return sum(operations / interval for operations, interval in row['operations'].values())


def allowed_batches(per_gpu, group):
    """Numbers of images at once that divide a GPU's share of the batch, largest first, in whole minibatch-std groups."""
    return [n for n in range(per_gpu, 0, -1) if per_gpu % n == 0 and n % min(group, n) == 0]


def make_plan(preset, memory, gpus=1, batch=None, tflops=TFLOPS, table=None):
    """Lines of text: what of a preset fits into `memory` bytes on each of `gpus` GPUs.
    Raises UserError for a preset without a row, and where not a single image fits."""
    table = read_table() if table is None else table
    row = find_row(preset, table)
    if row is None:
        raise dnnlib.UserError(f'--preset {preset}: is not in the table, which has {", ".join(table)}; add it: python -m training.plan '
                               f'measure --preset {preset} --save')
    recipe = PRESETS[preset]
    batch = batch or recipe['batch']
    if batch % gpus:
        raise dnnlib.UserError(f'--batch {batch}: must be a multiple of --gpus {gpus}')
    per_gpu = batch // gpus
    fitting = [n for n in allowed_batches(per_gpu, recipe.get('mbstd_group', DEFAULTS['mbstd_group']))
               if needed_bytes(row, table, n) <= memory]
    if not fitting:
        raise dnnlib.UserError(f'--memory {memory / 1e9:.1f}GB: {preset} needs {needed_bytes(row, table, 1) / 1e9:.1f} GB for one image '
                               'at a time; take a smaller preset, or more memory')
    return _lines({**row, 'preset': preset}, table, memory, gpus, batch, fitting[0], tflops)


def _lines(row, table, memory, gpus, batch, chosen, tflops):
    rounds = batch // gpus // chosen
    slope, is_measured = bytes_per_image(row, table)
    need = needed_bytes(row, table, chosen)
    most = int((memory - needed_bytes(row, table, 0)) / (slope * (1 + MARGIN)))
    operations = operations_per_image(row)
    seconds = operations * 1000 / (tflops * 1e12 * gpus)
    kimg = PRESETS[row['preset']].get('kimg', DEFAULTS['kimg'])
    how = 'measured' if is_measured else 'computed from shapes, by the part that measured presets took'
    lines = [
        f'{row["preset"]} on {dnnlib.util.counted(gpus, "GPU")} with {memory / 1e9:.1f} GB each',
        f'  flags          --gpus {gpus} --batch {batch} --batch-gpu {chosen}',
        f'  accumulation   {dnnlib.util.counted(rounds, "round")} of {chosen} on each GPU make a step',
        f'  memory         {need / 1e9:.1f} GB: {row["fixed_bytes"] / 1e9:.2f} GB networks, gradients, Adam, moving average (counted),',
        f'                 {slope / 1e9:.2f} GB an image ({how}),',
        f'                 {MARGIN:.0%} and {RESERVE / 1e9:.1f} GB for gaps and CUDA (assumed)',
        f'  at most        {most} images at once (computed)',
        f'  time           {seconds:.0f} s per kimg, {dnnlib.format_time(seconds * kimg)} for {kimg:g} kimg:',
        f'                 {operations / 1e12:.2f} TFLOP an image (counted) at {tflops:g} TFLOP/s sustained (--tflops, assumed)',
    ]
    if is_measured:
        found = row['measured']
        alone = sum(found['seconds_per_image'][name] / interval for name, (_, interval) in row['operations'].items()) * 1000
        lines += [f'  measured       with precision {found["precision"]} on {found["device"]}, torch {found["torch"]}, {found["date"]};',
                  f'                 it took {dnnlib.format_time(alone)} per kimg. Libraries of a GPU need other workspace.']
    return lines


@click.group(invoke_without_command=True)
@click.option('--preset', help='Recipe: ' + ', '.join(PRESETS))
@click.option('--memory', type=ByteSize(), help='Memory of one GPU, such as 24GB.')
@click.option('--gpus', type=click.IntRange(min=1), default=1, show_default=True)
@click.option('--batch', type=click.IntRange(min=1), help="Images a step.  [default: the preset's]")
@click.option('--tflops', type=dnnlib.cli.FiniteFloat(min=0.001), default=TFLOPS, show_default=True, help='Sustained speed of one GPU.')
@click.pass_context
@user_errors
def main(context, preset, memory, gpus, batch, tflops):
    """What batch, accumulation and time a GPU memory allows for a preset."""
    if context.invoked_subcommand is not None:
        return
    if preset is None or memory is None:
        raise dnnlib.UserError('--preset and --memory are needed, such as --preset panohead-512 --memory 24GB')
    click.echo('\n'.join(make_plan(preset, memory, gpus, batch, tflops)))


@main.command('measure')
@click.option('--preset', required=True, type=click.Choice(list(PRESETS)))
@click.option('--batches', default='1,2', show_default=True, help='Images at once, with commas, at least two numbers; 0: shapes only.')
@click.option('--precision', default='auto', show_default=True)
@click.option('--device', default='cpu', show_default=True)
@click.option('--save', is_flag=True, help='Into the table, in the place of the former row.')
@user_errors
def measure_command(preset, batches, precision, device, save):
    """Measure a preset's memory on this machine: every phase of a step, in processes of their own."""
    numbers = sorted({int(part) for part in batches.split(',') if part.strip().isdigit() and int(part) > 0})
    if len(numbers) < MIN_BATCHES and batches != '0':
        raise dnnlib.UserError(f'--batches {batches}: give two or more different numbers of images, such as 1,2, or 0')
    row = measure(preset, numbers, precision, misc.resolve_device(device))
    click.echo(json.dumps(row))
    if save:
        table = {**(read_table() if TABLE.is_file() else {}), preset: row}
        rows = [json.dumps(table[name]) for name in PRESETS if name in table]
        TABLE.write_text('[\n' + ',\n'.join(rows) + '\n]\n', encoding='utf-8')


if __name__ == '__main__':
    main()
