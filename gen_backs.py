"""Makes an enhanced set: good views of the backs of heads, which sets of photographs lack, to fine-tune a network on.

    python gen_backs.py --network X.pkl --num 1000 --img_dest backs.zip --seg_dest backmasks.zip     # own renders
    python gen_backs.py --img_source heads.zip --seg_source masks.zip --img_dest backs.zip --seg_dest backmasks.zip
    python train.py --preset panohead-512-backs --resume X.pkl --img_data A.zip --seg_data B.zip --extra_data backs.zip \\
        --extra_seg backmasks.zip --outdir training-runs
"""

import collections
import json

import click
import numpy as np
import torch
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import FiniteFloat, trust_pickle_option, user_errors
from inference.back_sources import BackViews, dataset_backs, network_backs
from inference.back_views import OK, VERDICTS, BackLimits, judge_back
from inference.session import Session
from metrics.headnet.network import head_network
from preprocessing import load_tools
from preprocessing.prepare import find_faces
from torch_utils import misc
from training.dataset import HeadDataset
from training.dataset_writer import DatasetWriter
from training.snapshot import load_network


FACE_YAW_DEG = 90      # a picture that looks like a view from before that shows a face


def face_finder(folder, device):
    """Function of a picture uint8 [H, W, 3], whether it shows a face: by the face networks in `folder`, or, for None, whether
    the head network carried along takes it for a view from before."""
    if folder is not None:
        tools = load_tools(folder)
        return lambda image: bool(find_faces(np.ascontiguousarray(image), tools))
    network = head_network(device)

    def finds(image):
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1
        with torch.no_grad():
            return network(pixels).yaw_deg.abs().item() < FACE_YAW_DEG
    return finds


def open_source(network, device, num, seed, truncation_psi, img_source, seg_source, min_yaw):
    """Iterator of the BackViews of the network or of the image set."""
    if (network is None) == (img_source is None):
        raise UserError('give --network for own renders or --img_source for real images, one of the two')
    if network is not None:
        views = BackViews(min_yaw, num, seed)
        return network_backs(Session(load_network(network, device=device), device), views, truncation_psi)
    if seg_source is None:
        raise UserError('--seg_source is missing: views are judged by their masks')
    return dataset_backs(HeadDataset(img_source, seg_source), BackViews(min_yaw, num, seed))


@click.command()
@click.option('--network', metavar='PKL|URL|demo', default=None, help='Network whose own heads are rendered from behind.')
@click.option('--img_source', metavar='PATH', default=None, help='Instead: folder or zip of images with dataset.json.')
@click.option('--seg_source', metavar='PATH', default=None, help='Their masks.')
@click.option('--img_dest', metavar='PATH', required=True, help='Folder or .zip to write the good views and labels to.')
@click.option('--seg_dest', metavar='PATH', required=True, help='Folder or .zip to write their masks to.')
@click.option('--num', type=click.IntRange(min=1), default=1000, show_default=True, help='Good views wanted, at most.')
@click.option('--min_yaw', type=FiniteFloat(90, 180), default=120, show_default=True, help='Smallest |yaw| of a back view, degrees.')
@click.option('--trunc', 'truncation_psi', type=FiniteFloat(0, 1), default=0.7, show_default=True,
              help='Truncation of own renders: heads nearer to the average are better ones.')
@click.option('--min-mirror', type=FiniteFloat(0, 1), default=BackLimits.min_mirror, show_default=True,
              help='Least overlap of a silhouette with the mirrored one from the front.')
@click.option('--faces', metavar='DIR', default=None,
              help='Photographs: folder of the face networks (see preprocessing.weights) that look for faces.  [default: the head '
                   'network carried along, which knows drawn heads]')
@click.option('--seed', type=click.IntRange(0, 2 ** 31), default=0, show_default=True, help='Of the heads and cameras.')
@click.option('--device', default='auto', show_default=True, help='Where the network runs: auto, cpu, cuda or mps.')
@trust_pickle_option()
@user_errors
def main(network, img_source, seg_source, img_dest, seg_dest, num, min_yaw, truncation_psi, min_mirror, faces, seed, device):
    """Write the good back views of a network's own heads, or of an image set."""
    limits = BackLimits(min_mirror=min_mirror)
    device = misc.resolve_device(device)
    shows_face = face_finder(faces, device)
    views = open_source(network, device, num, seed, truncation_psi, img_source, seg_source, min_yaw)
    counts = collections.Counter()
    with DatasetWriter(img_dest, seg_dest) as writer, tqdm(total=num, unit='view') as bar:
        for view in views:
            verdict = judge_back(view.image, view.mask, shows_face, limits, view.opposite)
            counts[verdict] += 1
            if verdict == OK:
                writer.add(view.image, view.mask, view.label, view.name)
                bar.update()
            if len(writer) == num:
                break
        if not len(writer):
            raise UserError(f'none of {sum(counts.values())} back views is good: {json.dumps(counts)}; lower --min_yaw or '
                            '--min-mirror, or use another source')
    click.echo(f'{img_dest}: {counts[OK]} of {sum(counts.values())} views; left out: '
               + (', '.join(f'{counts[v]} {v}' for v in VERDICTS[1:] if counts[v]) or 'none'))


if __name__ == '__main__':
    main()
