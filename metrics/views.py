"""Frechet distances that see all sides: by bins of yaw, and with cameras that the heads were not conditioned on."""

import warnings

import numpy as np
import torch

from camera_utils import label_angles_deg
from dnnlib import UserError
from metrics.collectors import Moments
from metrics.frechet import moments_distance
from metrics.heads import Heads, PROTOCOL
from metrics.images import set_source, to_uint8
from metrics.reading import bin_centre_deg, yaw_bin
from metrics.registry import register_metric

NUM_BINS = 12
FEWEST = 20             # images of a bin; a distance of fewer says nothing
LABEL_STREAM = 41       # keeps the choice of labels apart from other random numbers of the same seed


def _labels(evaluation):
    """float32 [len, 25] of the data. UserError where there are none."""
    if not evaluation.dataset.has_labels:
        raise UserError('--data: this metric needs labels, and there are none; add them to dataset.json')
    return torch.from_numpy(evaluation.dataset.get_labels())


def _real_moments(evaluation, order):
    """Moments of the features of the data's images at the indices `order`."""
    source, moments = set_source(evaluation, evaluation.dataset, order), Moments(len(order))
    for rows in evaluation.map(len(order), lambda *part: evaluation.features(source(*part)).cpu().numpy(), 'reals'):
        moments.add(rows)
    return moments


def _fake_moments(evaluation, labels, first=0):
    """Moments of the features of heads `first` and on, conditioned on the frontal camera, head first + i seen from labels[i]."""
    heads, moments = Heads.of(evaluation), Moments(len(labels))

    def look(start, stop):
        opened = heads.open(first + start, first + stop)
        return evaluation.features(to_uint8(opened.view(labels[start:stop])['image'])).cpu().numpy()

    for rows in evaluation.map(len(labels), look, 'fakes'):
        moments.add(rows)
    return moments


@register_metric('fid50k_yaw12', features='inception', **PROTOCOL)
def fid50k_yaw12(evaluation):
    """FID within each of 12 bins of yaw, 30 degrees wide, one centred on the front: all real images of the bin against
    an equal part of the fakes, conditioned on the frontal camera and seen from cameras of the bin's real images. The figure
    is the mean over the bins, '/yaw...' the bins. 0 is best; expect the front lowest and the back highest, and bins
    with few real images higher by their number alone. Bins of fewer than 20 images are named in a warning and left out."""
    labels = _labels(evaluation)
    bins = yaw_bin(label_angles_deg(labels)[:, 0].numpy())
    counts = np.bincount(bins, minlength=NUM_BINS)
    used = [i for i in range(NUM_BINS) if counts[i] >= FEWEST]
    share = evaluation.num // NUM_BINS
    if not used or share < FEWEST:
        raise UserError(f'fid50k_yaw12: every bin needs {FEWEST} images; --data has at most {counts.max()} in one, --num '
                        f'{evaluation.num} gives {share}; take more')
    left_out = [f'{bin_centre_deg(i):+d} ({counts[i]} images)' for i in range(NUM_BINS) if i not in used]
    if left_out:
        warnings.warn(f'fid50k_yaw12: bins of yaw left out for lack of images: {", ".join(left_out)}', stacklevel=2)
    figures = {}
    for i in used:
        order = np.flatnonzero(bins == i)
        chosen = np.random.default_rng([evaluation.seed, LABEL_STREAM, i]).choice(order, share)
        fake = _fake_moments(evaluation, labels[chosen], first=i * share)
        figures[f'fid50k_yaw12/yaw{bin_centre_deg(i):+04d}'] = moments_distance(_real_moments(evaluation, order), fake)
    return {'fid50k_yaw12': float(np.mean(list(figures.values()))), **figures, 'fid50k_yaw12/bins_left_out': len(left_out)}


@register_metric('fid50k_random_camera', features='inception', **PROTOCOL)
def fid50k_random_camera(evaluation):
    """FID of heads conditioned on the frontal camera and rendered from cameras drawn from the data, without the learned
    translation: all real images against the fakes. 0 is best. A generator that hides part of a head's looks in the camera
    it is conditioned on has a good fid50k_full and a bad one here; the difference of the two is what to watch."""
    labels = _labels(evaluation)
    chosen = np.random.default_rng([evaluation.seed, LABEL_STREAM]).choice(len(labels), evaluation.num)
    real = _real_moments(evaluation, np.arange(len(labels)))
    return {'fid50k_random_camera': moments_distance(real, _fake_moments(evaluation, labels[chosen]))}
