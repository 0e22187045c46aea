"""Metrics of the solid a head is: matter in the right place, no floaters, no hollow face."""

import numpy as np
import scipy.ndimage
import torch

from inference.shapes import density_grid
from metrics.geometry import relief, solid_pixels
from metrics.headnet.network import head_network
from metrics.heads import Heads, PROTOCOL, labels_around
from metrics.reading import ORBIT_DEG, worst
from metrics.reference import ReferenceGenerator, head_seed
from metrics.registry import register_metric
from training.synthetic.heads import sample_identities
from training.synthetic.parts import PARTS
from torch_utils.ops.resize import resize

GRID = 64                # points on a side of the density grid
OPAQUE_CELL = 0.5        # a cell that stops this share of the light that crosses it is matter
MIN_PIECE = 2            # cells; single ones are noise of the grid
FACE_SHARE = 0.5         # of a cell's probability, to belong to the face
COMPARED_STREAM = 31     # keeps the heads that are compared with apart from those measured
SEEN_BY_MOST = 0.8       # mean depths are compared where so many of the heads of both sides are seen


def pieces(density, box):
    """Sizes in cells, largest first, of the separate pieces of matter in a density grid [R, R, R] of side `box`."""
    step = box / (density.shape[0] - 1)
    opacity = 1 - np.exp(-np.logaddexp(0, density.astype(np.float64) - 1) * step)      # the marcher's softplus
    labelled, num = scipy.ndimage.label(opacity > OPAQUE_CELL, structure=np.ones([3, 3, 3]))
    return np.sort(np.bincount(labelled.ravel(), minlength=num + 1)[1:])[::-1]


@register_metric('density_sanity', num=50, fixed_features=True, **PROTOCOL)
def density_sanity(evaluation):
    """Share of a head's matter that floats apart from it, on a 64^3 grid of density: 0 is best and what perfect heads give;
    above 0.01 films show specks. '/empty' is the share of heads without any matter, '/volume' the mean volume in world
    units cubed: 0.04 to 0.09 for heads with shoulders."""
    heads = Heads.of(evaluation)
    box = evaluation.generator.rendering.box_warp

    def look(opened, start, stop):
        rows = []
        for i in range(start, stop):
            field = heads.open(i, i + 1).field
            sizes = pieces(density_grid(field, GRID, box, evaluation.device), box)
            total = sizes.sum()
            floating = sizes[1:][sizes[1:] >= MIN_PIECE].sum() / max(total, 1)
            rows.append((floating, total == 0, total * (box / (GRID - 1)) ** 3))
        return {'rows': np.array(rows, dtype=np.float64)}

    rows = heads.rows(evaluation, look, 'densities')['rows']
    return {'density_sanity': float(rows[:, 0].mean()), 'density_sanity/empty': float(rows[:, 1].mean()),
            'density_sanity/volume': float(rows[:, 2].mean()), **worst('density_sanity', rows[:, 0])}


@register_metric('hollow_face', num=200, features='builtin', fixed_features=True, **PROTOCOL)
def hollow_face(evaluation):
    """Share of heads whose face is hollow: seen from the front it looks like a face, but its depth is that of a mask from
    behind. The built-in network says where the face is, a paraboloid fitted to the depth there which way it bends
    (metrics.geometry.relief). 0 is best; perfect heads give 0. '/relief' is the mean height of the face before its rim in
    world units, 0.045 for perfect heads, near 0 for a flat picture; '/no_face' the share of heads without a face to
    look at, which count as neither."""
    heads, network = Heads.of(evaluation), head_network(evaluation.device)

    def look(opened, start, stop):
        out = opened.view(labels_around(heads.camera, 0.0))
        size = out['image_depth'].shape[-1]
        face = resize(network(out['image']).parts[:, PARTS.index('face')][:, None], size)
        region = (face > FACE_SHARE) & solid_pixels(out['image_mask'])
        return {'relief': relief(out['image_depth'], region).numpy()}

    values = heads.rows(evaluation, look, 'faces')['relief']
    seen = np.isfinite(values)
    mean = float(values[seen].mean()) if seen.any() else 0.0
    return {'hollow_face': float((values[seen] < 0).mean()) if seen.any() else 1.0, 'hollow_face/relief': mean,
            'hollow_face/no_face': float((~seen).mean()), **worst('hollow_face', np.where(seen, values, np.inf), largest=False)}


def _depth_sums(depth, mask):
    """[n, 2, R, R]: depth where there is head and 0 elsewhere, and where there is head, of maps [n, 1, R, R]."""
    solid = ((mask > 0.9) & torch.isfinite(depth)).float()
    return torch.cat([torch.where(solid > 0, depth, 0.0), solid], dim=1)


@register_metric('depth_synthetic', num=100, fixed_features=True, **PROTOCOL)
def depth_synthetic(evaluation):
    """For networks trained on synthetic heads, whose true depth is known: mean difference in world units (1 is about 42 cm)
    between the average depth map of the network's heads and that of as many synthetic ones seen from the same eight sides,
    where both have a head. 0 is best; two draws of 100 synthetic heads differ by about 0.005. It finds what every head has
    wrong in common: flat or hollow faces, wrong size or place. For networks trained on photographs it says how their
    heads stand beside drawn ones. '/overlap' is the share of the synthetic heads' pixels that were compared; without any
    the figure is 1."""
    heads = Heads.of(evaluation)
    size = evaluation.generator.neural_rendering_resolution
    truth = ReferenceGenerator(size).to(evaluation.device)

    def look(opened, start, stop):
        z = np.stack([np.random.default_rng([evaluation.seed, COMPARED_STREAM, i]).standard_normal(truth.z_dim)
                      for i in range(start, stop)])
        people = sample_identities([head_seed(row) for row in torch.from_numpy(z).float()]).to(evaluation.device)
        sums = []
        for yaw in ORBIT_DEG:
            labels = labels_around(heads.camera, yaw).to(evaluation.device)
            out, true = opened.view(labels), truth.picture(people, labels.expand(len(people), -1), size)
            sums.append(torch.stack([_depth_sums(o['image_depth'], o['image_mask']).sum(0) for o in (out, true)]))
        return {'sums': torch.stack(sums)[None].cpu().double().numpy()}                 # [1, V, 2, 2, R, R]

    sums = heads.rows(evaluation, look, 'depths')['sums'].sum(0)
    depth, count = sums[:, :, 0], sums[:, :, 1]
    both = (count > SEEN_BY_MOST * evaluation.num).all(1)                               # [V, R, R]
    mean = depth / np.maximum(count, 1)
    difference = np.abs(mean[:, 0] - mean[:, 1])
    by_side = {f'depth_synthetic/yaw{yaw:+04d}': float(difference[i][both[i]].mean())
               for i, yaw in enumerate(ORBIT_DEG) if both[i].any()}
    overlap = both.sum() / max((count[:, 1] > SEEN_BY_MOST * evaluation.num).sum(), 1)
    return {'depth_synthetic': float(difference[both].mean()) if both.any() else 1.0,
            'depth_synthetic/overlap': float(overlap), **by_side}
