"""Writes synthetic heads as an ordinary data set in the published format."""

import contextlib
import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import writable_folder
from training.dataset_writer import DatasetWriter
from training.synthetic.cameras import sample_labels
from training.synthetic.heads import HAIR_STYLES, sample_identities
from training.synthetic.render import render_heads

BATCH = 16
POOL_FROM = 400   # pictures
MIN_RESOLUTION, MAX_RESOLUTION = 8, 1024


def _square(resolution):
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if width != height or width & (width - 1) or not MIN_RESOLUTION <= width <= MAX_RESOLUTION:
        raise UserError(f'--resolution {width}x{height}: width and height must be the same power of two '
                        f'from {MIN_RESOLUTION} to {MAX_RESOLUTION}, for instance 64x64')
    return width


def to_uint8(image, mask):
    """(uint8 [N, H, W, 3], uint8 [N, H, W]) arrays of images in [-1, 1] and masks in [0, 1], NCHW."""
    image = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return image.contiguous().numpy(), (mask[:, 0] * 255).round().to(torch.uint8).numpy()


def write_dataset(num, resolution, img_dest, seg_dest=None, seed=0, jitter=0.0, views_per_identity=1, yaw='uniform',
                  samples=4, ext='png', extras_dest=None, progress=True):
    """Write `num` synthetic heads with labels and, when `seg_dest` is given, masks.

    `resolution`: int or (width, height), square, a power of two. `img_dest`, `seg_dest`: folders or names ending in
    .zip, see DatasetWriter. `seed`: first identity number; identity seed + k appears in `views_per_identity` pictures in
    a row. `jitter`, `yaw`: see cameras.sample_labels. `samples`: rays per pixel. Every picture's "fnames" entry names
    its identity and view. `extras_dest`: a folder for what the format has no place for: identities.json (identity,
    hair style and true label of each picture) and one .npz per picture with depth float32 [H, W] and normals
    float16 [3, H, W]. Raises UserError naming the flag for bad values and destinations.
    """
    if num < 1:
        raise UserError(f'--synthetic {num}: the number of images must be at least 1')
    if views_per_identity < 1:
        raise UserError(f'views_per_identity {views_per_identity}: must be at least 1')
    size = _square(resolution)
    extras = writable_folder(extras_dest, 'extras_dest') if extras_dest is not None else None
    jobs = [(np.arange(start, min(start + BATCH, num)), seed, views_per_identity, jitter, yaw, size, samples, extras is not None)
            for start in range(0, num, BATCH)]
    records = []
    with DatasetWriter(img_dest, seg_dest, ext=ext) as writer, tqdm(total=num, unit='img', disable=not progress) as bar, \
            _pool(num) as pool:
        for pictures in map(_render, jobs) if pool is None else pool.map(_render, jobs):
            for picture in pictures:
                name = writer.add(picture.image, picture.mask if seg_dest is not None else None, picture.label, picture.name)
                if extras is not None:
                    path = extras / Path(name).with_suffix('.npz')
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.savez_compressed(path, **picture.arrays)
                    records.append({'name': name, **picture.record})
            bar.update(len(pictures))
    if extras is not None:
        (extras / 'identities.json').write_text(json.dumps({'identities': records}))


class Picture(NamedTuple):
    """One picture on its way from the process that renders to the one that writes."""
    image: np.ndarray     # uint8 [H, W, 3]
    mask: np.ndarray      # uint8 [H, W]
    label: list           # 25 numbers
    name: str             # identity and view
    record: dict          # for identities.json
    arrays: dict          # depth and normals where they are wanted


def _render(job):
    """Pictures of one batch; the same in whichever process."""
    numbers, seed, views_per_identity, jitter, yaw, size, samples, with_arrays = job
    views = numbers % views_per_identity
    identities = sample_identities(seed + numbers // views_per_identity)
    # One camera per picture: their seeds run on where those of the identities stand still.
    labels, true_labels = sample_labels(seed * views_per_identity + numbers, jitter=jitter, yaw=yaw)
    batch = render_heads(identities, true_labels, size, samples)
    pictures = []
    for k, (image, mask) in enumerate(zip(*to_uint8(batch.image, batch.mask))):
        identity = int(batch.identity[k])
        arrays = {'depth': batch.depth[k, 0].numpy(), 'normals': batch.normals[k].half().numpy()} if with_arrays else {}
        record = {'identity': identity, 'style': HAIR_STYLES[identities.style[k]], 'true_label': true_labels[k].tolist()}
        pictures.append(Picture(image, mask, labels[k].tolist(), f'synthetic/identity{identity:08d}_view{views[k]:04d}', record, arrays))
    return pictures


@contextlib.contextmanager
def _pool(num):
    """Processes to render in, one a core, or None where their start would take longer than the work. Threads of one process
    would wait for one another's Python code."""
    cores = os.cpu_count() or 1
    if num < POOL_FROM or cores == 1:
        yield None
        return
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context('spawn'), initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError('--synthetic: a rendering process was ended from outside, perhaps for lack of memory; run it again') from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker():
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C is the parent's to handle
