"""Make the carried network from a snapshot: its moving average alone, as pretrained/demo.pkl.

    python docs/carry_network.py training-runs/NNNNN-.../network-snapshot-NNNNNN.pkl
"""

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dnnlib import UserError  # noqa: E402
from dnnlib.cli import user_errors  # noqa: E402
from training.snapshot import DEMO_PATH, load_network, save_snapshot  # noqa: E402

LARGEST = 8 * 2 ** 20   # bytes; what a repository can carry without harm


@click.command()
@click.argument('snapshot')
@click.option('--dest', default=DEMO_PATH, show_default=True, type=click.Path(path_type=Path), help='File to write')
@user_errors
def main(snapshot, dest):
    """Write the moving average of SNAPSHOT to DEST."""
    network = load_network(snapshot)
    if sum(4 * p.numel() for p in network.state_dict().values()) > LARGEST:
        raise UserError(f'{snapshot}: the network takes more than {LARGEST} bytes; train a smaller one')
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_snapshot(dest, {'G_ema': network})
    print(f'{dest}: {dest.stat().st_size} bytes')


if __name__ == '__main__':
    main()
