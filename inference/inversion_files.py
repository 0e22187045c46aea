"""What an inversion leaves in its folder: the portable head, the published pair of files, pictures and numbers."""

import contextlib
import hashlib
import json
import os
import shutil

import numpy as np

from dnnlib import UserError
from inference import images
from inference.heads import Head, save_head
from inference.inversion import psnr
from training.snapshot import save_snapshot

HEAD_FILE = 'head.safetensors'
STATE_FILE = 'inversion.state'                                           # of an interrupted run
TUNED_FILES = ('fintuned_generator.pkl', 'finetuned_generator.pkl')      # spelt as published, and as meant


def inversion_digest(network_digest, targets, settings):
    """sha256 of all that decides an inversion: network, pictures, cameras, masks and settings (JSON values)."""
    digest = hashlib.sha256(json.dumps([network_digest, settings], sort_keys=True).encode())
    for target in targets:
        digest.update(json.dumps([target.weight, target.correct_camera, target.mask is not None]).encode())
        for tensor in (target.image, target.label, target.mask):
            if tensor is not None:
                digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _numbered(name, index):
    """'target.png' of the first view, 'target_1.png' of the next."""
    return f'{name}.png' if index == 0 else f'{name}_{index}.png'


def save_inversion(folder, generator, inversion, record):
    """Write into the folder: head.safetensors (see inference.heads); the published projected_w.npz (`w`, and the corrected
    camera `c`), fintuned_generator.pkl and the same rightly spelt; target, pre (before stage 2) and proj (after) of every
    view as .png; settings.json with `record` (JSON values; network, network_digest, settings), losses and PSNR.

    The networks in the files render as the inversion did: their near plane is `inversion.rendering`'s.
    Raises UserError if a file cannot be written.
    """
    for index, target in enumerate(inversion.targets):
        for name, image in (('target', target.image[0]), ('pre', inversion.pre[index]), ('proj', inversion.post[index])):
            images.save_png(folder / _numbered(name, index), images.to_uint8(image[None])[0])
    ray_start = inversion.rendering.ray_start
    quality = {f'psnr_{name}': [psnr(image, target.image[0]) for image, target in zip(pictures, inversion.targets)]
               for name, pictures in (('pre', inversion.pre), ('post', inversion.post))}
    record = {**record, 'ray_start': ray_start, **quality}
    save_head(folder / HEAD_FILE, Head(inversion.ws, inversion.labels, inversion.deltas, record))
    numbers = {**record, 'losses_w': inversion.losses_w, 'losses_g': inversion.losses_g, 'labels': inversion.labels.tolist()}
    try:
        np.savez(folder / 'projected_w.npz', w=inversion.ws.cpu().numpy(), c=inversion.label.cpu().numpy())
        (folder / 'settings.json').write_text(json.dumps(numbers), encoding='utf-8')
    except OSError as error:
        raise UserError(f'cannot write to {folder}: {error}; free some space or choose another --outdir') from error
    rendering = {**(generator.init_kwargs['rendering'] or {}), 'ray_start': ray_start}
    first, second = (folder / name for name in TUNED_FILES)
    save_snapshot(first, {'G_ema': generator}, overrides={'G_ema': {'rendering': rendering}})
    second.unlink(missing_ok=True)
    try:
        os.link(first, second)
    except OSError:            # a file system without links
        shutil.copyfile(first, second)


def finished_record(folder):
    """The record of settings.json of a finished inversion in `folder`, or None."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / 'settings.json').read_text(encoding='utf-8'))
        if isinstance(record, dict) and (folder / HEAD_FILE).is_file():
            return record
    return None
