"""What a run leaves for its reader: a console line, stats.jsonl and TensorBoard events per tick, and grids of images."""

import json
import math
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

import dnnlib

# Part of the console line where statistics of these names exist: (statistic, short name).
BRIEF_STATS = (('Loss/G/loss', 'G'), ('Loss/D/loss', 'D'), ('Loss/r1_penalty', 'R1'), ('Loss/scores/real', 'real'),
               ('Loss/scores/fake', 'fake'))


class Reporter:
    """Writes a run's figures into `run_dir`; only rank 0 needs one. Existing files are continued from `position`, what came
    after it is cut off; without one, the lines of earlier starts go to stats.jsonl.abandoned.

    `device` is the one whose memory is reported; `start_nimg` the images shown before this start; `brief` the statistics
    on the console line, pairs (name, short name). TensorBoard events are written where the package is installed.
    Use: start_tick(), train, end_tick(...), repeatedly, then close(); what lies between end_tick and start_tick
    (snapshots, grids, metrics) counts as maintenance.
    """

    def __init__(self, run_dir, device='cpu', start_nimg=0, brief=BRIEF_STATS, clock=time.time, position=None):
        self.run_dir = Path(run_dir)
        self._device, self._brief, self._clock = torch.device(device), brief, clock
        self._start = self._tick_end = self._tick_start = clock()
        self._nimg = self._reported_nimg = start_nimg
        path = self.run_dir / 'stats.jsonl'
        try:
            if position is not None:
                self._go_on_from(position, path)
            elif path.exists():     # the run was killed before its first state, and starts again
                _set_aside(path)
            self._stats_file = open(path, 'a', encoding='utf-8')
        except OSError as error:
            name = Path(error.filename or path).name
            raise dnnlib.UserError(f'--outdir {self.run_dir}: cannot write {name} there ({error.strerror})') from error
        self._events = _summary_writer(self.run_dir, 0 if position is None else position['nimg'] + 1)

    def position(self):
        """Where the reports stand, as plain values, for a later Reporter to go on from."""
        return {'stats_bytes': self._stats_file.tell(), 'seconds': self._clock() - self._start, 'nimg': self._reported_nimg}

    def _go_on_from(self, position, path):
        self._start -= position['seconds']
        self._reported_nimg = position['nimg']
        if path.exists() and path.stat().st_size > position['stats_bytes']:
            with open(path, 'r+b') as file:
                file.truncate(position['stats_bytes'])

    def start_tick(self):
        """Training (re)starts now."""
        self._tick_start = self._clock()

    def end_tick(self, tick, nimg, stats=None, augment_p=None):
        """Report tick number `tick` after `nimg` images in all. `stats`: {name: {'num', 'mean', 'std'}} collected in the
        tick; `augment_p` in [0, 1] if augmentation is on. Returns the record written to stats.jsonl."""
        now = self._clock()
        figures = self._figures(now, nimg, augment_p)
        record = {name: {'num': int(entry['num']), 'mean': _plain(entry['mean']), 'std': _plain(entry['std'])}
                  for name, entry in (stats or {}).items()}
        record.update({name: {'num': 1, 'mean': _plain(value), 'std': 0.0} for name, value in figures.items()})
        record['timestamp'] = now
        self._write_line(tick, figures, record)
        self._stats_file.write(json.dumps(record, allow_nan=False) + '\n')
        self._stats_file.flush()
        if self._events is not None:
            self._write_events(record, nimg, now)
        self._nimg = self._reported_nimg = nimg
        self._tick_end = now
        return record

    def add_metric(self, name, value, nimg):
        """Enter a metric's `value` after `nimg` images into the TensorBoard events."""
        if self._events is not None:
            self._events.add_scalar(f'Metrics/{name}', value, global_step=nimg, walltime=self._clock())

    def close(self):
        """Close the files."""
        self._stats_file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _figures(self, now, nimg, augment_p):
        """Times in seconds, memory in GiB, by their names in stats.jsonl."""
        seconds, images = now - self._tick_start, nimg - self._nimg
        figures = {
            'Progress/kimg': nimg / 1000,
            'Timing/total_sec': now - self._start,
            'Timing/sec_per_tick': seconds,
            'Timing/sec_per_kimg': seconds / images * 1000 if images > 0 else math.nan,
            'Timing/maintenance_sec': self._tick_start - self._tick_end,
            'Resources/cpu_mem_gb': psutil.Process().memory_info().rss / 2 ** 30,
            'Resources/peak_gpu_mem_gb': 0.0,
        }
        if self._device.type == 'cuda':
            figures['Resources/peak_gpu_mem_gb'] = torch.cuda.max_memory_allocated(self._device) / 2 ** 30
            torch.cuda.reset_peak_memory_stats(self._device)
        if augment_p is not None:
            figures['Progress/augment'] = float(augment_p)
        return figures

    def _write_line(self, tick, figures, record):
        fields = [
            f'tick {tick:<5d}',
            f'kimg {figures["Progress/kimg"]:<8.1f}',
            f'time {dnnlib.format_time(figures["Timing/total_sec"]):<12s}',
            f'sec/tick {figures["Timing/sec_per_tick"]:<7.1f}',
            f'sec/kimg {figures["Timing/sec_per_kimg"]:<7.2f}',
            f'maintenance {figures["Timing/maintenance_sec"]:<6.1f}',
            f'cpumem {figures["Resources/cpu_mem_gb"]:<6.2f}',
            f'gpumem {figures["Resources/peak_gpu_mem_gb"]:<6.2f}',
        ]
        if 'Progress/augment' in figures:
            fields.append(f'augment {figures["Progress/augment"]:.3f}')
        means = [(short, record[name]['mean']) for name, short in self._brief if name in record]
        fields += [f'{short} {"none" if mean is None else format(mean, ".3f")}' for short, mean in means]
        # A line above a progress bar that may be on the screen; goes through sys.stdout and so into log.txt.
        tqdm.write(' '.join(fields))

    def _write_events(self, record, nimg, now):
        for name, entry in record.items():
            if name != 'timestamp' and entry['mean'] is not None:
                self._events.add_scalar(name, entry['mean'], global_step=nimg, walltime=now)
        self._events.flush()


def _plain(value):
    """A number as JSON can hold it; None for what is not finite."""
    value = float(value)
    return value if math.isfinite(value) else None


def _set_aside(path):
    """Move what the file holds to the end of one called after it with `.abandoned`."""
    lines = path.read_bytes()
    if lines:
        with open(path.with_name(f'{path.name}.abandoned'), 'ab') as file:
            file.write(lines)
    path.write_bytes(b'')


def _summary_writer(run_dir, purge_step):
    """TensorBoard's writer, or None where the package is missing. Events of `purge_step` and later are no longer shown."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        tqdm.write('tensorboard is not installed: no event files (pip install tensorboard)')
        return None
    return SummaryWriter(str(run_dir), purge_step=purge_step)


def to_uint8(images, drange=(-1, 1)):
    """uint8 array of the shape of `images` (tensor or array): drange[0] becomes 0 and drange[1] 255, rounded, clipped."""
    images = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    low, high = drange
    if not high > low:
        raise ValueError(f'drange must rise, got {drange}')
    scaled = (images.astype(np.float32) - low) * (255 / (high - low))
    return np.nan_to_num(scaled, nan=0.0).round().clip(0, 255).astype(np.uint8)


def grid_image(images, grid_size, drange=(-1, 1)):
    """uint8 [rows * H, columns * W, C] of images [N, C, H, W] with 1 or 3 channels, row by row; `grid_size` is
    (columns, rows); free places are black. Raises ValueError if they do not fit."""
    images = to_uint8(images, drange)
    columns, rows = grid_size
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[0] > columns * rows:
        raise ValueError(f'images of shape {images.shape} do not fit into a {columns}x{rows} grid of [C, H, W], C 1 or 3')
    num, channels, height, width = images.shape
    canvas = np.zeros([rows * columns, channels, height, width], dtype=np.uint8)
    canvas[:num] = images
    canvas = canvas.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return canvas.reshape(rows * height, columns * width, channels)


def save_image_grid(images, path, drange=(-1, 1), grid_size=None):
    """Write images [N, C, H, W] (tensor or array, C 1 or 3) as one picture. `drange`: values shown as black and white, or
    None for the smallest and largest finite value (depth); `grid_size`: (columns, rows), by default one row.
    Raises UserError if the file cannot be written."""
    if drange is None:
        drange = value_range(images)
    canvas = grid_image(images, grid_size or (len(images), 1), drange)
    try:
        Image.fromarray(canvas[:, :, 0] if canvas.shape[2] == 1 else canvas).save(path)
    except OSError as error:
        raise dnnlib.UserError(f'{path}: cannot write the picture ({error.strerror or error})') from error


def value_range(images):
    """(smallest, largest) finite value of a tensor or array; (0, 1) if there is no range to speak of."""
    values = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() == values.max():
        return 0.0, 1.0
    return float(values.min()), float(values.max())


def save_turntable_sheet(views, path, drange=(-1, 1)):
    """Write identities seen from several sides: one column per view, one row per identity. `views`: list with one entry
    per camera, each an image [C, H, W] (one identity) or a batch [N, C, H, W]."""
    views = [torch.as_tensor(view) for view in views]
    batches = [view[None] if view.ndim == 3 else view for view in views]
    if not batches or len({batch.shape for batch in batches}) != 1:
        raise ValueError(f'views must have one shape, got {[tuple(view.shape) for view in views]}')
    rows = torch.stack(batches, dim=1)                                       # [N, views, C, H, W]
    save_image_grid(rows.flatten(0, 1), path, drange, grid_size=(rows.shape[1], rows.shape[0]))
