"""Metrics of what views of one head must have in common: surface, colours, and a picture that moves as the camera does."""

import numpy as np
import torch

from metrics.geometry import look_up, points_of, project, safe_depth, solid_pixels
from metrics.heads import Heads, PROTOCOL, labels_around
from metrics.reading import worst
from metrics.registry import register_metric
from torch_utils.ops.resize import resize

PAIR_YAWS_DEG = (0, 45, 135, 180, -135, -45)   # middles of the pairs; profiles, where sides meet, are left to identity_consistency
PAIR_ANGLE_DEG = 12                            # between the two cameras of a pair
HIDDEN_BEYOND = 0.05                           # a surface so much nearer, world units, hides the point: no disagreement
CLIP = 0.1                                     # largest disagreement that counts, world units
SAME_SURFACE = 0.02                            # colours are compared where the depths agree so far, world units
PAN_STEP_DEG = 0.5
PAN_FRAMES = 5
PAN_YAWS_DEG = (0, 60, 180, -120)
PAN_SIZE = 128                                 # frames are brought to this size at most


def pair_agreement(first, second, labels):
    """{'depth', 'colour', 'hidden'} [n] each of GeneratorOutputs seen from the pair of `labels` [n, 25].

    The head's pixels of the first view are put into space by their depth and looked up in the second. depth: mean
    difference of distances where the point is not hidden, clipped at CLIP, world units; colour: mean absolute difference of
    colours in [0, 1] where they show the same surface; hidden: share of points not compared.
    """
    depth, mask = first['image_depth'], first['image_mask']
    solid = solid_pixels(mask)[:, 0]
    places, distance = project(points_of(safe_depth(depth, mask), labels[0]), labels[1])
    other = look_up(safe_depth(second['image_depth'], second['image_mask']), places)[:, 0]
    inside = look_up(solid_pixels(second['image_mask']).float(), places)[:, 0] > 0.99
    behind = distance - other                                      # positive: something stands before the point
    open_ = solid & inside & (places.abs().amax(-1) < 1) & (behind < HIDDEN_BEYOND)
    same = open_ & (behind.abs() < SAME_SURFACE)
    size = depth.shape[-1]
    here, there = (resize(out['image'].float(), size) for out in (first, second))
    colour = (here - look_up(there, places)).abs().mean(1) / 2

    def mean(values, where):
        return ((values * where).sum([1, 2]) / where.sum([1, 2]).clamp_min(1)).cpu().numpy()

    return {'depth': mean(behind.abs().clamp_max(CLIP), open_), 'colour': mean(colour, same),
            'hidden': 1 - mean(open_.float(), solid)}


def _pairs(evaluation):
    """{name: [heads, pairs]} of pair_agreement for all pairs of views, both ways."""
    heads = Heads.of(evaluation)

    def look(opened, start, stop):
        found = []
        for yaw in PAIR_YAWS_DEG:
            labels = [labels_around(heads.camera, yaw + side * PAIR_ANGLE_DEG / 2).to(evaluation.device).expand(stop - start, -1)
                      for side in (-1, 1)]
            views = [opened.view(label) for label in labels]
            there, back = pair_agreement(*views, labels), pair_agreement(*views[::-1], labels[::-1])
            found.append({name: (there[name] + back[name]) / 2 for name in there})
        return {name: np.stack([pair[name] for pair in found], axis=1) for name in found[0]}

    return heads.rows(evaluation, look, 'pairs')


def _figures(name, values):
    """The mean of values [heads, pairs], by yaw, and the worst heads."""
    return {name: float(values.mean()),
            **{f'{name}/yaw{yaw:+04d}': float(values[:, i].mean()) for i, yaw in enumerate(PAIR_YAWS_DEG)},
            **worst(name, values.mean(1))}


@register_metric('depth_agreement', num=100, fixed_features=True, **PROTOCOL)
def depth_agreement(evaluation):
    """How far two views of a head disagree about where its surface is: mean distance in world units (1 is about 42 cm)
    between the surface seen from one camera and from another 12 degrees aside, over six sides. 0 is best; perfect
    heads at 64 pixels give 0.0004, a hollow face 0.007, pictures mirrored beside their cameras 0.04. '/hidden' is
    the share of points that the other view does not see; '/yaw...' are the six sides."""
    rows = _pairs(evaluation)
    return {**_figures('depth_agreement', rows['depth']), 'depth_agreement/hidden': float(rows['hidden'].mean())}


@register_metric('photometric_consistency', num=100, fixed_features=True, **PROTOCOL)
def photometric_consistency(evaluation):
    """How far two views of a point of a head disagree about its colour: mean absolute difference in [0, 1] between views 12
    degrees apart, taken from one to the other by the depth, over six sides. 0 is best; perfect heads at 64 pixels give 0.007
    (highlights, interpolation), hollow faces 0.02, texture that sticks to the screen more than perfect heads."""
    return _figures('photometric_consistency', _pairs(evaluation)['colour'])


@register_metric('flicker', num=50, fixed_features=True, **PROTOCOL)
def flicker(evaluation):
    """How much the picture trembles while the camera pans slowly: five frames half a degree apart, at four sides; mean
    absolute second difference of the colours in [0, 1] over the head, frames brought to at most 128 pixels. 0 is best;
    perfect heads at 64 pixels give about 0.002; noise of standard deviation s in every frame adds about 2 s."""
    heads = Heads.of(evaluation)
    turns = (np.arange(PAN_FRAMES) - (PAN_FRAMES - 1) / 2) * PAN_STEP_DEG

    def look(opened, start, stop):
        found = []
        for yaw in PAN_YAWS_DEG:
            outs = [opened.view(labels_around(heads.camera, yaw + turn)) for turn in turns]
            size = min(PAN_SIZE, outs[0]['image'].shape[-1])
            frames = torch.stack([resize(out['image'].float(), size) for out in outs]) / 2    # [T, n, 3, R, R]
            mask = solid_pixels(resize(outs[PAN_FRAMES // 2]['image_mask'].float(), size)).float()
            second = (frames[2:] - 2 * frames[1:-1] + frames[:-2]).abs().mean([0, 2])         # [n, R, R]
            found.append((second * mask[:, 0]).sum([1, 2]) / mask.sum([1, 2, 3]).clamp_min(1))
        return {'tremble': torch.stack(found, 1).cpu().numpy()}

    values = heads.rows(evaluation, look, 'pans')['tremble']
    return {'flicker': float(values.mean()),
            **{f'flicker/yaw{yaw:+04d}': float(values[:, i].mean()) for i, yaw in enumerate(PAN_YAWS_DEG)},
            **worst('flicker', values.mean(1))}

