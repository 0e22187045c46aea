"""Synthetic heads: the same seed gives the same picture, and pictures, labels, masks, depth and normals agree."""

import json
from dataclasses import fields

import numpy as np
import PIL.Image
import pytest
import torch

from camera_utils import HEAD_RADIUS, flip_label, split_label
from dnnlib import UserError
from training.synthetic.cameras import label_at, sample_labels
from training.synthetic.geometry import SKIN, compact, pick, prepare
from training.synthetic.heads import HAIR_STYLES, sample_identities
from training.synthetic.render import camera_rays, render_heads
from training.synthetic.sheet import draw_sheet
from training.synthetic import write
from training.synthetic.write import write_dataset

IMAGE_FIELDS = ('image', 'mask', 'depth', 'normals')


def assert_equal_batches(a, b):
    for name in IMAGE_FIELDS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def project(labels, points):
    """Pixel fractions (u, v) [N, 2] of world points [N, 3]."""
    cam2world, intrinsics = split_label(labels)
    local = (cam2world[:, :3, :3].transpose(1, 2) @ (points - cam2world[:, :3, 3])[..., None])
    return ((intrinsics @ local)[:, :2, 0] / local[:, 2]).clone()


def world_points(labels, depth):
    """World points [N, 3, H, W] of a depth map [N, 1, H, W]; NaN or infinite where depth is infinite."""
    n, _, height, width = depth.shape
    origin, direction = camera_rays(labels, height, width)
    return origin[:, :, None, None] + direction.unflatten(2, (height, width)) * depth


def test_same_seed_same_bits_whatever_stands_beside_it():
    seeds = [3, 8, 11, 4]
    labels = sample_labels(seeds).label
    batch = render_heads(sample_identities(seeds), labels, 32)
    assert_equal_batches(batch, render_heads(sample_identities(seeds), sample_labels(seeds).label, 32))
    alone = render_heads(sample_identities([11]), sample_labels([11]).label, 32)
    assert torch.equal(alone.image[0], batch.image[2]) and torch.equal(alone.depth[0], batch.depth[2])
    assert batch.identity.tolist() == seeds
    other = render_heads(sample_identities([12]), sample_labels([11]).label, 32)
    assert (other.image - alone.image).abs().mean() > 0.05


def test_chunks_and_threads_do_not_change_the_picture():
    seeds = list(range(5))
    identities, labels = sample_identities(seeds), sample_labels(seeds).label
    expected = render_heads(identities, labels, 32)
    chunked = render_heads(identities, labels, 32, images_per_chunk=3)
    # Another order of summation in the matrix products: a few edge rays may fall on the other side.
    assert (chunked.image - expected.image).abs().mean() < 1e-3
    assert (chunked.mask != expected.mask).float().mean() < 0.005
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert_equal_batches(expected, render_heads(identities, labels, 32))
    finally:
        torch.set_num_threads(threads)


def test_nose_tip_appears_where_the_label_projects_it():
    seeds = list(range(6))
    identities = sample_identities(seeds)
    labels = sample_labels(seeds, jitter=0.05, max_yaw_deg=50.0).true_label
    skin = torch.tensor(identities.geometry.groups) == SKIN
    nose = identities.geometry.centre[:, skin][:, identities.geometry.centre[0, skin, 2].argmax()]
    front = render_heads(identities, label_at([0.0] * 6), 128, samples=1)
    points = world_points(label_at([0.0] * 6), front.depth)
    # The frontmost visible point of a frontal view is the tip of the nose.
    height = torch.where(torch.isfinite(points[:, 2]) & (points[:, 1].abs() < 0.12), points[:, 2], -1.0).flatten(1)
    tip = points.flatten(2).gather(2, height.argmax(1)[:, None, None].expand(-1, 3, 1))[..., 0]
    assert ((tip[:, :2] - nose[:, :2] * identities.scale[:, None]).abs() < 0.03).all()
    batch = render_heads(identities, labels, 128, samples=1)
    uv = project(labels, tip)
    column, row = (uv * 128).long().unbind(1)
    here = torch.arange(6)
    depth = batch.depth[here, 0, row, column]
    expected = (tip - split_label(labels)[0][:, :3, 3]).norm(dim=1)
    assert ((depth - expected).abs() < 0.02).all()


def test_depth_lies_on_the_surface_and_normals_point_out_of_it():
    seeds = list(range(8))
    identities, labels = sample_identities(seeds), sample_labels(seeds).label
    batch = render_heads(identities, labels, 64, samples=1)
    solid = prepare(identities.geometry)
    hand = torch.stack([identities.handedness, torch.ones(8), torch.ones(8)], dim=1)
    points = world_points(labels, batch.depth).flatten(2) * hand[:, :, None] / identities.scale[:, None, None]
    hits = torch.isfinite(batch.depth).flatten(1)
    index = compact(hits)
    distance = solid[0:8].distances(pick(points, index)).nearest[index < hits.shape[1]].abs()
    # In head units, 0.01 being a pixel; rays along a silhouette and at the edge of the hair are the last thousandth.
    assert distance.quantile(0.99) < 1e-3 and distance.quantile(0.999) < 3e-3 and distance.max() < 0.015
    _, direction = camera_rays(labels, 64, 64)
    facing = (batch.normals.flatten(2) * direction).sum(1)[hits]
    assert (facing < 0.2).float().mean() > 0.998 and (facing < 0).float().mean() > 0.98
    length = batch.normals.norm(dim=1).flatten(1)
    assert torch.allclose(length[hits], torch.ones(()), atol=1e-4) and (length[~hits] == 0).all()


def test_mask_agrees_with_depth_and_head_is_framed_like_the_familys_crops():
    labels = label_at(torch.arange(12) * 30.0)
    batch = render_heads(sample_identities(range(12)), labels, 64)
    assert torch.equal(batch.mask > 0, torch.isfinite(batch.depth))
    assert set(batch.mask.unique().tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert (batch.mask[:, :, -1].sum((1, 2)) > 20).all(), 'shoulders reach the lower border'
    assert (batch.mask[:, :, 32, 24:40] == 1).all(), 'the head stands in the middle'
    assert batch.mask[:, 0, :32, [0, -1]].sum() == 0, 'hair stays inside the picture'
    assert (batch.depth[torch.isfinite(batch.depth)] - HEAD_RADIUS).abs().max() < 0.6
    assert 0.25 < batch.mask.mean() < 0.7
    assert batch.image.min() >= -1 and batch.image.max() <= 1


def test_mirror_image_is_the_mirrored_head_under_the_flipped_label():
    seeds = list(range(6))
    identities, labels = sample_identities(seeds), sample_labels(seeds).label
    batch = render_heads(identities, labels, 64, samples=1)
    mirrored = render_heads(identities.mirrored(), flip_label(labels), 64, samples=1)
    difference = (mirrored.image.flip(3) - batch.image).abs().amax(1)
    assert (difference > 0.02).float().mean() < 2e-3
    normals = mirrored.normals.flip(3) * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    assert (normals - batch.normals).abs().mean() < 2e-3
    assert (render_heads(identities, flip_label(labels), 64, samples=1).image.flip(3) - batch.image).abs().mean() > 0.02


def test_four_sides_of_every_head_differ():
    for seed in range(8):
        batch = render_heads(sample_identities([seed] * 4), label_at([0.0, 90.0, 180.0, -90.0]), 64)
        inside = (batch.mask.amin(0) > 0).expand(3, -1, -1)
        for i in range(4):
            for j in range(i):
                difference = (batch.image[i] - batch.image[j])[inside].abs().mean()
                assert difference > 0.03, (seed, i, j, difference)


def test_hair_covers_the_back_and_never_the_face():
    identities = sample_identities(range(40))
    solid = prepare(identities.geometry)
    y, x = torch.meshgrid(torch.linspace(-0.12, 0.20, 33), torch.linspace(-0.08, 0.08, 17), indexing='ij')
    x, y = x.flatten(), y.flatten()
    for side in (1.0, -1.0):
        # Parallel rays along z, from the front and from behind, in the heads' own units.
        ray = torch.tensor([0.0, 0.0, -side])[:, None].expand(40, 3, 1)
        hits = []
        for column in range(len(x)):
            start = torch.stack([x[column], y[column], torch.tensor(side)]).expand(40, 3)
            hits.append(start[:, :, None] + ray * solid.trace(start, ray)[:, None])
        distances = solid.distances(torch.cat(hits, dim=2))
        is_hair = distances.hair < torch.minimum(distances.skin, distances.cloth)
        haired = identities.style != HAIR_STYLES.index('bald')
        if side > 0:
            assert not is_hair[:, (y < 0.07) & (x.abs() < 0.07 - 0.3 * (y - 0.02).clamp_min(0))].any()
        else:
            assert is_hair[haired][:, (y > 0.08) & (x.abs() < 0.05)].all() and not is_hair[~haired].any()


def contrast_at_eyes(identities, yaw_deg):
    """Range of brightness [2, N] at both eyes, as seen (through the head if need be) from `yaw_deg`."""
    num = len(identities)
    labels = label_at([yaw_deg] * num)
    image = render_heads(identities, labels, 128, samples=1).image.mean(1)
    face = identities.paint.face
    ranges = []
    for sign in (-1.0, 1.0):
        eye = torch.stack([sign * face[:, 0], face[:, 1], torch.full([num], 0.15)], dim=1) * identities.scale[:, None]
        column, row = (project(labels, eye) * 128).long().unbind(1)
        patches = torch.stack([image[i, r - 2:r + 3, c - 6:c + 7] for i, (r, c) in enumerate(zip(row, column))]).flatten(1)
        ranges.append(patches.amax(1) - patches.amin(1))
    return torch.stack(ranges)


def test_eyes_show_at_the_front_in_every_style_and_never_at_the_back():
    identities = sample_identities(range(40))
    assert identities.style.unique().numel() == len(HAIR_STYLES)
    assert (contrast_at_eyes(identities, 0.0) > 0.6).all()
    bald = identities[identities.style == HAIR_STYLES.index('bald')]
    assert (contrast_at_eyes(bald, 180.0) < 0.4).all()


def test_all_styles_clothes_and_backdrops_occur():
    identities = sample_identities(range(200))
    counts = torch.bincount(identities.style, minlength=len(HAIR_STYLES))
    assert (counts >= 8).all()
    assert identities.paint.cloth_kind.unique().numel() == 6 and identities.backdrop.kind.unique().numel() == 4
    assert identities.handedness.unique().tolist() == [-1.0, 1.0]


def test_identities_can_be_picked_and_moved():
    identities = sample_identities(range(4))
    some = identities[[2, 0]]
    assert len(some) == 2 and some.seeds.tolist() == [2, 0]
    assert torch.equal(some.geometry.centre[0], identities.geometry.centre[2])
    assert {f.name for f in fields(identities)} == {f.name for f in fields(identities.to('cpu'))}


def test_labels_jitter_only_the_true_camera():
    plain, jittered = sample_labels(range(50)), sample_labels(range(50), jitter=0.03)
    assert torch.equal(plain.label, plain.true_label) and torch.equal(plain.label, jittered.label)
    shift = jittered.true_label - jittered.label
    assert (shift[:, :16] == 0).all() and 0.015 < shift[:, [18, 21]].std() < 0.045
    assert torch.equal(shift[:, [17, 19, 22, 23, 24]], torch.zeros(50, 5))
    yaw = torch.atan2(plain.label[:, 3], plain.label[:, 11])
    assert yaw.min() < -2 and yaw.max() > 2
    front = sample_labels(range(200), yaw='front').label
    assert (front[:, 11] > 0).float().mean() > 0.7 and (front[:, 11] < 0).any()
    with pytest.raises(ValueError, match='jitter'):
        sample_labels([0], jitter=-1)
    with pytest.raises(ValueError, match='yaw'):
        sample_labels([0], yaw='back')


def test_render_refuses_what_does_not_fit():
    identities = sample_identities([0])
    with pytest.raises(ValueError, match='labels'):
        render_heads(identities, label_at([0.0, 1.0]))
    with pytest.raises(ValueError, match='samples'):
        render_heads(identities, label_at(0.0), samples=3)
    with pytest.raises(ValueError, match='resolution'):
        render_heads(identities, label_at(0.0), resolution=0)
    assert render_heads(identities, label_at(0.0), (16, 8)).image.shape == (1, 3, 8, 16)
    assert render_heads(sample_identities([]), torch.zeros(0, 25), 8).image.shape == (0, 3, 8, 8)


def test_written_set_reads_back(tmp_path):
    write_dataset(5, (16, 16), tmp_path / 'img', tmp_path / 'seg', seed=7, jitter=0.02, views_per_identity=2,
                  extras_dest=tmp_path / 'extras', progress=False)
    meta = json.loads((tmp_path / 'img' / 'dataset.json').read_text())
    records = json.loads((tmp_path / 'extras' / 'identities.json').read_text())['identities']
    assert [record['identity'] for record in records] == [7, 7, 8, 8, 9]
    assert meta['fnames'][1][1] == 'synthetic/identity00000007_view0001'
    name, label = meta['labels'][3]
    assert name == records[3]['name'] and label[:16] == records[3]['true_label'][:16] and label != records[3]['true_label']
    batch = render_heads(sample_identities([8]), torch.tensor([records[3]['true_label']]), 16)
    image = np.asarray(PIL.Image.open(tmp_path / 'img' / name))
    mask = np.asarray(PIL.Image.open(tmp_path / 'seg' / name))
    assert np.abs(image - (batch.image[0].permute(1, 2, 0).numpy() + 1) * 127.5).max() < 0.51
    assert np.abs(mask - batch.mask[0, 0].numpy() * 255).max() < 0.51
    arrays = np.load((tmp_path / 'extras' / name).with_suffix('.npz'))
    assert np.array_equal(arrays['depth'], batch.depth[0, 0].numpy()) and arrays['normals'].shape == (3, 16, 16)


@pytest.mark.parametrize('arguments, message', [
    (dict(num=0, resolution=16), '--synthetic 0'), (dict(num=1, resolution=(16, 8)), '16x8'),
    (dict(num=1, resolution=24), '24x24'), (dict(num=1, resolution=16, views_per_identity=0), 'views_per_identity'),
])
def test_written_set_refuses_bad_numbers(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_dataset(img_dest=tmp_path / 'img', progress=False, **arguments)
    assert not (tmp_path / 'img').exists()


def test_sheet_has_a_row_per_seed():
    assert draw_sheet([0, 1], num_views=3, resolution=16).shape == (32, 48, 3)


@pytest.mark.slow
def test_processes_write_the_same_files_as_one(tmp_path, monkeypatch):
    for name, start in (('one', 10 ** 9), ('pool', 1)):
        monkeypatch.setattr(write, 'POOL_FROM', start)
        write.write_dataset(20, 16, tmp_path / f'{name}.zip', tmp_path / f'{name}-masks.zip', progress=False)
    for end in ('.zip', '-masks.zip'):
        assert (tmp_path / f'one{end}').read_bytes() == (tmp_path / f'pool{end}').read_bytes()
