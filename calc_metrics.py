"""Measures networks, or sets of images, against a data set: one JSON line per metric, also appended to metric-NAME.jsonl
beside the network. Ctrl-C keeps what is finished.

    python calc_metrics.py --network training-runs/00000/network-snapshot-000100.pkl --data A.zip --metrics fid50k_full
"""

import json
import os
import sys
import warnings
from pathlib import Path

import click

from dnnlib import UserError
from dnnlib.cli import FiniteFloat, require_fast_option, trust_pickle_option, user_errors
from metrics import BACKGROUNDS, MODES, append_record, list_features, list_metrics, measure, report
from torch_utils import distributed, misc


def warn(message, *_args, **_kwargs):
    """A warning as users read it."""
    tty = '' if sys.stderr.isatty() else None
    click.secho(f'Warning: {message}', err=True, fg=tty and 'yellow')


def run_process(networks, opts):
    """All metrics of all networks, in one process of a run."""
    warnings.showwarning = warn if os.environ.get('RANK', '0') == '0' else lambda *_, **__: None
    opts['device'], path = distributed.init(misc.resolve_device(opts['device'])), opts.pop('report')
    measured = {}
    for network in networks or (None,):
        for record in measure(network, progress=True, **opts):
            if distributed.rank() == 0:
                click.echo(json.dumps(record))
                try:
                    append_record(network, record)
                except UserError as error:          # hours of others' figures are not given up for a copy of this one
                    warn(f'{error}; the record is on the screen alone')
                measured.setdefault(network, []).append(record)
    if path and distributed.rank() == 0:
        report.write_report(path, report.collect(measured, opts['device'], opts['seed'], opts['truncation_psi']))
        click.echo(f'Report: {path}', err=True)


def names(_context, _option, value):
    """'a, b' -> ['a', 'b']; None stays."""
    return None if value is None else [name.strip() for name in value.split(',')]


@click.command()
@click.option('--network', 'networks', help="Network file, address or 'demo'; may be given several times", metavar='PATH', multiple=True)
@click.option('--fakes', help='Images with labels to measure instead of a network: folder or zip', metavar='PATH')
@click.option('--data', help='Folder or zip of real images with labels  [default: what the network was trained on]', metavar='PATH')
@click.option('--seg', help='Folder or zip of their masks, for metrics and backgrounds that need them', metavar='PATH')
@click.option('--metrics', help=f'Names with commas between, of: {", ".join(list_metrics())}', default='frechet_seeded',
              show_default=True, callback=names)
@click.option('--features', help=f'Feature network: {", ".join(list_features())}, or a TorchScript file or address; several with '
              "commas go to the metrics that are known by them  [default: each metric's own]", callback=names)
@click.option('--num', help="Number of generated images  [default: each metric's own, 50000 for most]", type=click.IntRange(min=2))
@click.option('--mode', help='Which |yaw| count: 0..180, 0..90 or 90..180 degrees', type=click.Choice(list(MODES)), default='all',
              show_default=True)
@click.option('--mirror', help='Mirrored real images as well', type=bool, default=False, show_default=True)
@click.option('--trunc', 'truncation_psi', help='Truncation psi of the fakes', type=FiniteFloat(), default=1, show_default=True)
@click.option('--background', help='What stands behind the heads, real and fake', type=click.Choice(list(BACKGROUNDS)), default='keep',
              show_default=True)
@click.option('--batch', 'batch_size', help='Images at a time', type=click.IntRange(min=1), default=16, show_default=True)
@click.option('--seed', help='Random seed of images and labels', type=click.IntRange(0, 2 ** 32 - 1), default=0,
              show_default=True)
@click.option('--report', help='HTML file to write: tables, plots over yaw and worst heads of all networks', metavar='PATH',
              type=click.Path(path_type=Path))
@click.option('--gpus', help='Processes', type=click.IntRange(min=1), default=1, show_default=True)
@require_fast_option()
@click.option('--device', help='auto, cpu, cuda or mps', default='auto', show_default=True)
@click.option('--cache/--no-cache', 'use_cache', help='Keep statistics of real images for the next run', default=True,
              show_default=True)
@trust_pickle_option()
@user_errors
def main(networks, gpus, **opts):
    """Measure networks against a data set."""
    if opts['report']:
        report.check_report_path(opts['report'])
    distributed.run_processes(run_process, gpus, networks, opts)


if __name__ == '__main__':
    main()
