"""Measures a network against a data set: one JSON line per metric, also appended to metric-NAME.jsonl beside the network.

    python calc_metrics.py --network training-runs/00000/network-snapshot-000100.pkl --data A.zip --metrics frechet_seeded
"""

import json

import click

from dnnlib.cli import trust_pickle_option, user_errors
from metrics import MODES, append_record, list_metrics, measure


@click.command()
@click.option('--network', help="Network file, address or 'demo'", metavar='PATH', required=True)
@click.option('--data', help='Folder or zip of real images with labels', metavar='PATH', required=True)
@click.option('--seg', help='Folder or zip of their masks, for metrics that use masks', metavar='PATH')
@click.option('--metrics', help=f'Names with commas between, of: {", ".join(list_metrics())}', default='frechet_seeded',
              show_default=True)
@click.option('--num', help="Number of generated images  [default: each metric's own]", type=click.IntRange(min=2))
@click.option('--mode', help='Which |yaw| count: 0..180, 0..90 or 90..180 degrees', type=click.Choice(list(MODES)), default='all',
              show_default=True)
@click.option('--batch', 'batch_size', help='Images at a time', type=click.IntRange(min=1), default=16, show_default=True)
@click.option('--seed', help='Random seed of images and labels', type=click.IntRange(0, 2 ** 32 - 1), default=0,
              show_default=True)
@click.option('--device', help='auto, cpu, cuda or mps', default='auto', show_default=True)
@trust_pickle_option()
@user_errors
def main(metrics, **opts):
    """Measure a network against a data set."""
    names = [name.strip() for name in metrics.split(',')]
    for record in measure(metrics=names, progress=True, **opts):
        click.echo(json.dumps(record))
        append_record(opts['network'], record)


if __name__ == '__main__':
    main()
