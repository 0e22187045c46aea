"""Inverts a network's own pictures of heads it was never asked about, by every recipe, and compares with the truth.

    python benchmarks/inversion.py --network demo --num 20 --out inversion.jsonl          # measure; goes on where it stopped
    python benchmarks/inversion.py --out inversion.jsonl --table                          # the table for docs/benchmarks.md

A head of a seed is rendered from a camera within 30 degrees of the front: the picture to invert. From cameras turned by 60
and 180 degrees it is rendered too: what an inversion should show there. 'omni from 15 degrees off' is told a camera
that is turned by so much in a random direction.
"""

import json
import math
import os
import time
from pathlib import Path

import click
import numpy as np
import torch

import camera_utils
from dnnlib.cli import user_errors
from inference import latents
from inference.camera_fit import camera_angle_deg, moved_cameras
from inference.inversion import invert, psnr
from inference.inversion_job import set_inversion_precision
from inference.inversion_options import recipe_options
from inference.perceptual import load_features
from inference.session import Session
from inference.targets import Target
from torch_utils.misc import resolve_device, reuse_freed_memory
from training.snapshot import load_network

TURNS_DEG = (0, 60, 180)
MAX_YAW_DEG = 30
OFF_DEG = 15
CASES = {'panohead': ('panohead', 0), 'pso': ('pso', 0), 'omni': ('omni', 0), f'omni from {OFF_DEG} degrees off': ('omni', OFF_DEG)}
COLUMNS = [*(f'PSNR at {turn}, dB' for turn in TURNS_DEG), 'camera off by, degrees', 'CPU seconds']


def true_views(session, seed):
    """(labels, images): of the head of a seed, by turn in degrees; images [1, 3, R, R] are of 8-bit values."""
    yaw = np.random.RandomState(seed).uniform(-MAX_YAW_DEG, MAX_YAW_DEG)
    camera = session.camera()
    front = camera_utils.label_from_yaw(0.0, lookat=camera.pivot, radius=camera.radius, fov_deg=camera.fov_deg)
    z = latents.seeds_to_z([seed], session.generator.z_dim).to(session.device)
    labels = {turn: camera_utils.label_from_yaw(yaw + turn, lookat=camera.pivot, radius=camera.radius,
                                                fov_deg=camera.fov_deg).to(session.device) for turn in TURNS_DEG}
    with torch.no_grad():
        ws = session.generator.mapping(z, latents.conditioning(session.generator, front.to(session.device)))
        images = {turn: session.generator.synthesis(ws, label).image for turn, label in labels.items()}
    return labels, {turn: (image * 127.5 + 127.5).round().clamp(0, 255) / 127.5 - 1 for turn, image in images.items()}


def opened(network, device, precision='auto'):
    """Session in the precision that projector.py computes in; the plain path, without compiled operators, in float32."""
    generator = load_network(network, device=device)
    plain = os.environ.get('OMNIHEAD_NATIVE') == '0'
    set_inversion_precision(generator, 'float32' if plain else precision, device)
    if not plain:
        reuse_freed_memory()
    return Session(generator, device)


def measure(network, device, features, seed, case, steps):
    """Record of one inversion."""
    session = opened(network, device)
    labels, images = true_views(session, seed)
    recipe, off = CASES[case]
    phase = np.random.RandomState(seed + 1).uniform(0, 2 * math.pi)
    turn = math.radians(off) * torch.tensor([[math.cos(phase), math.sin(phase), 0, 0, 0, 0]], dtype=torch.float32)
    given = moved_cameras(labels[0], turn.to(labels[0].device))
    began = time.process_time()
    result = invert(session.generator, Target(images[0], given, str(seed), 'own'), features, recipe_options(recipe, **steps))
    seconds = time.process_time() - began
    with torch.no_grad():
        views = {turn: session.generator.synthesis(result.ws, label, options=result.rendering).image
                 for turn, label in labels.items()}
    quality = {turn: psnr(views[turn], images[turn]) for turn in TURNS_DEG[1:]}
    return {'seed': seed, 'case': case, 'steps': [len(result.losses_w), len(result.losses_g)], 'perceptual': features.description,
            # At the input view the picture is that of the camera found; elsewhere the cameras are the true ones.
            'psnr': [psnr(result.post[0], images[0][0]), *quality.values()], 'psnr_pre': psnr(result.pre[0], images[0][0]),
            'camera': camera_angle_deg(result.label, labels[0]).item(), 'seconds': seconds}


def table(records):
    """Markdown lines: medians over the heads, with the 10th and the 90th percentile."""
    lines = [f'| recipe | heads | {" | ".join(COLUMNS)} |', '| --- ' * (2 + len(COLUMNS)) + '|']
    for case in CASES:
        rows = [r for r in records if r['case'] == case]
        if rows:
            values = np.array([[*r['psnr'], r['camera'], r['seconds']] for r in rows])
            middle, low, high = np.percentile(values, [50, 10, 90], axis=0)
            cells = [f'{m:.1f} ({a:.1f} to {b:.1f})' for m, a, b in zip(middle, low, high)]
            lines.append(f'| {case} | {len(rows)} | {" | ".join(cells)} |')
    return lines


@click.command()
@click.option('--network', default='demo', show_default=True)
@click.option('--device', default='cpu', show_default=True)
@click.option('--perceptual', default='auto', show_default=True)
@click.option('--num', default=20, show_default=True, help='Heads.')
@click.option('--first', default=10000, show_default=True, help='Seed of the first.')
@click.option('--steps', default=None, help="'w,g' steps of both stages for all recipes.  [default: each recipe's own]")
@click.option('--out', type=click.Path(path_type=Path), default=Path('inversion.jsonl'), show_default=True)
@click.option('--table', 'only_table', is_flag=True, help='Print the table of --out.')
@user_errors
def main(network, device, perceptual, num, first, steps, out, only_table):
    """Measure inversions against the truth."""
    device = resolve_device(device)
    features = load_features(perceptual, device)
    records = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(r['seed'], r['case']) for r in records}
    chosen = {} if steps is None else dict(zip(('steps_w', 'steps_g'), map(int, steps.split(','))))
    if not only_table:
        for seed in range(first, first + num):
            for case in CASES:
                if (seed, case) not in done:
                    records.append(measure(network, device, features, seed, case, chosen))
                    with open(out, 'a', encoding='utf-8') as file:
                        file.write(json.dumps(records[-1]) + '\n')
    print('\n'.join(table(records)))


if __name__ == '__main__':
    main()
