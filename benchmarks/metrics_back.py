"""Whether FID sees faces on the backs of heads: synthetic heads against other synthetic heads, before and after every back view
gives way to the front view of the same head. FID of all and of the back, by the evaluator.

    python dataset_tool_seg.py --synthetic 6000 --resolution 64x64 --img_dest heads.zip
    python -m benchmarks.metrics_back --data heads.zip --images 1500 --backs 0.2
"""

import tempfile
import warnings
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

from camera_utils import label_angles_deg
from dnnlib import UserError
from dnnlib.cli import user_errors
from metrics import cache, measure
from metrics.headnet.examples import view_directions
from metrics.headnet.network import direction_angles_deg
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter
from training.synthetic.cameras import label_at
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads
from training.synthetic.write import to_uint8

BATCH = 16


def choose(yaw_deg, images, backs):
    """Two index arrays [images], none twice, of which the first round(images * backs) are seen from behind by yaws [N]."""
    behind = round(images * backs)
    found = [np.flatnonzero(np.abs(yaw_deg) >= 90), np.flatnonzero(np.abs(yaw_deg) < 90)]
    for order, number, name in zip(found, (behind, images - behind), ('behind', 'before')):
        if len(order) < 2 * number:
            raise UserError(f'--data: {len(order)} heads seen from {name}, {2 * number} are needed; lower --images or write more heads')
    return [np.concatenate([order[half::2][:number] for order, number in zip(found, (behind, images - behind))]) for half in (0, 1)]


def opposite(labels):
    """Labels [N, 25] of cameras as far to the side, and as high, on the other side of the ears as those of `labels` [N, 25]."""
    yaw, pitch = direction_angles_deg(view_directions(labels))
    return label_at(180 - yaw, pitch)


def pictures(identities, labels, resolution):
    """uint8 [N, resolution, resolution, 3] of identities [N] seen from labels [N, 25]."""
    found = []
    for start in tqdm(range(0, len(identities), BATCH), desc='fronts'):
        part = slice(start, start + BATCH)
        batch = render_heads(sample_identities(identities[part]), labels[part], resolution, 4)
        found.append(to_uint8(batch.image, batch.mask)[0])
    return np.concatenate(found)


def write(path, images, labels):
    """A data set of images and labels."""
    with DatasetWriter(path) as writer:
        for i, (image, label) in enumerate(zip(images, labels)):
            writer.add(image, None, label, f'{i}.png')


def write_sets(data, folder, images, backs):
    """Paths of three sets in `folder`: reals, other heads, and these with faces behind."""
    dataset = HeadDataset(data)
    labels = torch.from_numpy(dataset.get_labels())
    real, other = choose(label_angles_deg(labels)[:, 0].numpy(), images, backs)
    sets = {name: [dataset[i]['image'].transpose(1, 2, 0) for i in order] for name, order in (('real', real), ('other', other))}
    behind = other[:round(images * backs)]
    fronts = opposite(labels[behind])
    again = pictures(behind[:BATCH], opposite(fronts[:BATCH]), dataset.resolution)      # the back views themselves
    if np.abs(again.astype(int) - np.stack(sets['other'][:BATCH])[:len(again)]).mean() > 1:
        raise UserError(f'--data {data}: is not what dataset_tool_seg.py --synthetic writes; see the top of this script')
    sets['faces'] = [*pictures(behind, fronts, dataset.resolution), *sets['other'][len(behind):]]
    paths = [folder / f'{name}.zip' for name in ('real', 'other', 'faces')]
    for path, order in zip(paths, (real, other, other)):
        write(path, sets[path.stem], labels[order].numpy())
    return paths


@click.command()
@click.option('--data', help='What dataset_tool_seg.py --synthetic wrote', metavar='PATH', required=True)
@click.option('--images', default=1500, show_default=True, help='Of each set', type=click.IntRange(min=20))
@click.option('--backs', default=0.2, show_default=True, help='Share of back views', type=click.FloatRange(0.1, 0.9))
@click.option('--features', default='builtin', show_default=True, help='Names with commas between')
@user_errors
def main(data, images, backs, features):
    """Measure FID with and without faces on the backs of heads."""
    warnings.filterwarnings('ignore', message='.*samples instead of')
    with tempfile.TemporaryDirectory() as folder:
        real, *others = write_sets(data, Path(folder), images, backs)
        cache.FOLDER = Path(folder) / 'statistics'
        print('| features | mode | FID, other heads | FID, faces behind | growth |\n| --- | --- | --- | --- | --- |')
        for network in features.split(','):
            for mode in ('all', 'back'):
                records = [next(measure(None, real, fakes=path, metrics=['fid50k_full'], features=[network.strip()], mode=mode,
                                        device='cpu', progress=True)) for path in others]
                none, faces = (figure for record in records for figure in record['results'].values())
                print(f'| {network} | {mode} | {none:.4g} | {faces:.4g} | {faces / none:.1f} |', flush=True)


if __name__ == '__main__':
    main()
