"""All faults by all metrics: what each figure becomes when one thing is wrong with otherwise perfect heads.

    python -m metrics.fault_table                      # docs/head_metrics.md's table, some minutes
    python -m metrics.fault_table --heads 12 --images 240 --faults mirrored,hollowed
"""

import json
import sys
import tempfile
from pathlib import Path

import click
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import user_errors
from metrics.evaluate import Evaluator, plan
from metrics.evaluation import Evaluation
from metrics.faults import FAULTS, open_reference
from training.dataset import HeadDataset
from training.synthetic.write import write_dataset

FRECHET = ('fid50k_full', 'fid50k_yaw12')
# From which change on a figure says that something is wrong: absolute, upwards (downwards where negative). Frechet distances
# have no such scale: there it is a share of the faultless figure.
MATTERS = {'identity_consistency': -0.05, 'pose_error': 5.0, 'face_at_back': 0.2, 'mask_agreement': 0.008,
           'depth_agreement': 0.002, 'photometric_consistency': 0.006, 'flicker': 0.004, 'density_sanity': 0.004,
           'hollow_face': 0.2, 'depth_synthetic': 0.01}
FRECHET_MATTERS = {'fid50k_full': 0.3, 'fid50k_yaw12': 0.2}
# What each fault is for (first), and what else it rightly moves.
EXPECTED = {
    'none': (),
    'shifted': ('depth_synthetic', 'fid50k_full', 'fid50k_yaw12'),
    'mirrored': ('pose_error', 'depth_agreement', 'photometric_consistency', 'fid50k_yaw12', 'depth_synthetic'),
    'noised': ('fid50k_full', 'fid50k_yaw12'),
    'hollowed': ('hollow_face', 'depth_synthetic', 'depth_agreement', 'photometric_consistency'),
    'rotated_label': ('pose_error', 'fid50k_yaw12', 'depth_synthetic'),
    'face_at_back': ('face_at_back', 'pose_error', 'fid50k_full', 'fid50k_yaw12', 'depth_synthetic'),
    'flickering': ('flicker',),
    'swapped_identity': ('identity_consistency',),
    'sticking_texture': ('photometric_consistency', 'flicker'),
    'bleeding_background': ('mask_agreement', 'identity_consistency', 'pose_error', 'fid50k_full', 'fid50k_yaw12'),
    'floaters': ('density_sanity',),
}


def measured(fault, dataset, heads, images, metrics, seed=0, batch_size=16):
    """{metric: figure} of the perfect generator with a fault; `heads`: number for 3D metrics, `images`: for distances."""
    generator = open_reference(f'synthetic:{fault}', dataset.resolution)
    evaluation = Evaluation(generator, dataset, 2, batch_size=batch_size, seed=seed)
    figures = {}
    for name in metrics:
        job = plan([name], images if name in FRECHET else heads, ['builtin'])[0]
        evaluator = Evaluator(evaluation, [job])
        try:
            figures[name] = evaluator.compute(job)[job.name]
        finally:
            evaluator.close()
    return figures


def moved(name, value, faultless):
    """Whether a figure says that something is wrong, beside the faultless one."""
    if name in FRECHET:
        return value > faultless * (1 + FRECHET_MATTERS[name])
    change = value - faultless
    return change > MATTERS[name] if MATTERS[name] > 0 else change < MATTERS[name]


def table(rows, metrics):
    """Markdown of {fault: {metric: figure}}, faultless first; figures that moved are bold."""
    lines = ['| fault | ' + ' | '.join(name.replace('_', ' ') for name in metrics) + ' |', '|' + ' --- |' * (len(metrics) + 1)]
    for fault, figures in rows.items():
        bold = {name: '**' if moved(name, figures[name], rows['none'][name]) else '' for name in metrics}
        cells = [f'{bold[name]}{figures[name]:.4g}{bold[name]}' for name in metrics]
        lines.append(f'| {fault.replace("_", " ")} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def surprises(rows):
    """Sentences on what moved without being expected to, or did not move where it is the fault's own metric."""
    found = []
    for fault, figures in rows.items():
        moving = [name for name, value in figures.items() if moved(name, value, rows['none'][name])]
        found += [f'{fault} moves {name}' for name in moving if name not in EXPECTED[fault]]
        found += [f'{fault} does not move {name}' for name in EXPECTED[fault][:1] if name in figures and name not in moving]
    return found


def names_of(text, known, flag):
    """The comma-separated names of an option, all of them if it is empty. UserError for an unknown one."""
    names = [name.strip() for name in text.split(',')] if text else list(known)
    for name in names:
        if name not in known:
            raise UserError(f'{flag} {name}: unknown, choose from {", ".join(known)}')
    return names


@click.command()
@click.option('--heads', help='Heads of each 3D metric', type=click.IntRange(min=4), default=40, show_default=True)
@click.option('--images', help='Images of each distance', type=click.IntRange(min=240), default=480, show_default=True)
@click.option('--faults', help='Names with commas between  [default: all]', default='')
@click.option('--metrics', help='Names with commas between  [default: all]', default='')
@click.option('--resolution', type=click.Choice(['32', '64', '128']), default='64', show_default=True)
@click.option('--json', 'as_json', help='Print JSON instead of a table', is_flag=True)
@user_errors
def main(heads, images, faults, metrics, resolution, as_json):
    """Measure all faults by all metrics."""
    metrics = names_of(metrics, (*FRECHET, *MATTERS), '--metrics')
    faults = names_of(faults, FAULTS, '--faults')
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / 'heads.zip'
        write_dataset(images, int(resolution), data, progress=False)
        dataset = HeadDataset(data)
        rows = {}
        for fault in tqdm(dict.fromkeys(['none', *faults]), unit='fault'):
            rows[fault] = measured(fault, dataset, heads, images, metrics)
            tqdm.write(f'{fault}: {json.dumps(rows[fault])}', file=sys.stderr)
        dataset.close()
    print(json.dumps(rows) if as_json else table(rows, metrics))
    for sentence in surprises(rows):
        print(f'unexpected: {sentence}')


if __name__ == '__main__':
    main()
