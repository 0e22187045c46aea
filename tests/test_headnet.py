"""The built-in head network: what it reads off heads it has never seen, its file, its training, and the part maps."""

import json

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from dnnlib import UserError
from metrics.features import open_features
from metrics.headnet import network as headnet
from metrics.headnet import train
from metrics.headnet.accuracy import HELD_OUT_SEED, accuracy, angle_deg, part_iou, retrieval, small_parts, verification
from metrics.headnet.examples import augmented, make_examples, view_directions
from metrics.headnet.network import direction_angles_deg
from training.synthetic.cameras import label_at
from training.synthetic.heads import HAIR_STYLES, sample_identities
from training.synthetic.parts import PARTS, part_maps
from training.synthetic.render import render_heads

FACE, HAIR, BACKGROUND = (PARTS.index(name) for name in ('face', 'hair', 'background'))


@pytest.fixture(scope='module')
def examples():
    """Twelve held-out heads from four sides."""
    return make_examples(range(HELD_OUT_SEED + 10_000, HELD_OUT_SEED + 10_012), 4, progress=False)


@pytest.fixture(scope='module')
def images(examples):
    return augmented(examples, torch.Generator().manual_seed(3))[0]


@pytest.fixture(scope='module')
def network():
    return headnet.head_network()


def test_weights_are_small(network):
    assert headnet.WEIGHTS.stat().st_size < 3_000_000
    assert {value.dtype for value in safetensors.torch.load_file(headnet.WEIGHTS).values()} == {torch.float16}
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_reads_heads_it_has_never_seen(network, examples):
    """Held-out heads in front of grey; the bounds are wide beside what docs/head_metrics.md reports for many."""
    grey = ((examples.head + (255 - examples.mask[:, None].int()) * 0.5).float() / 127.5 - 1).clamp(-1, 1)
    found = accuracy(network, examples, grey)
    assert found['yaw_error_median_deg'] < 8 and found['pitch_error_deg'] < 10
    assert found['identity_retrieval'] > 0.8 and found['identity_auc'] > 0.95
    assert found['face_seen_accuracy'] > 0.85 and found['style_accuracy'] > 0.6
    assert found['iou_background'] > 0.9 and found['iou_hair'] > 0.75 and found['iou_face'] > 0.7
    assert found['hair_colour_error'] < 0.12 and found['clothes_colour_error'] < 0.12


def test_small_changes_of_the_picture_change_little(network, examples, images):
    """Size, kind of numbers and place in the batch do not matter; another background hardly."""
    reading = network(images)
    integers = network(((images + 1) * 127.5).round().to(torch.uint8))
    assert torch.allclose(integers.identity, reading.identity, atol=0.05)
    large = network(F.interpolate(images, scale_factor=4, mode='bilinear'))
    assert angle_deg(large.direction, reading.direction).median() < 3
    alone = network(images[5:6])
    assert torch.allclose(alone.identity, reading.identity[5:6], atol=1e-4)
    assert torch.allclose(alone.parts, reading.parts[5:6], atol=1e-4)
    before = [(examples.head.float() / 127.5 - 1 + 2 * shade * (1 - examples.mask[:, None] / 255)) for shade in (0.2, 0.8)]
    one, other = (network(picture) for picture in before)
    assert (one.identity * other.identity).sum(1).mean() > 0.9


def test_values_have_the_stated_ranges(network, images):
    reading = network(images)
    assert torch.allclose(reading.identity.norm(dim=1), torch.ones(len(images)), atol=1e-4)
    assert torch.allclose(reading.parts.sum(1), torch.ones(len(images), 32, 32), atol=1e-4)
    assert reading.mask.shape == (len(images), 1, 32, 32)
    for values in (reading.face, reading.mask, reading.colours, reading.beard):
        assert values.min() >= 0 and values.max() <= 1
    with pytest.raises(ValueError, match='N, 3, H, W'):
        network(images[0])


def test_features_are_a_feature_network(network, images):
    opened = open_features('builtin', 'cpu')
    assert opened.name == 'builtin' and len(opened.digest) == 64 and opened.resolution == headnet.INPUT_SIZE
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    rows = opened(pixels)
    assert rows.shape == (len(images), network.num_features) and rows.isfinite().all()
    assert torch.allclose(rows, network.features(pixels), atol=1e-4)
    assert 0.2 < rows.std(0).median() < 3                        # in units of their usual deviation


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        headnet.load_weights(tmp_path / 'none.safetensors')
    broken = tmp_path / 'broken.safetensors'
    broken.write_bytes(headnet.WEIGHTS.read_bytes()[:5000])
    with pytest.raises(UserError, match='broken.safetensors: not the weights'):
        headnet.load_weights(broken)
    other = tmp_path / 'other.safetensors'
    safetensors.torch.save_file({'identity.bias': torch.zeros(3)}, other)
    with pytest.raises(UserError, match='missing or of another shape'):
        headnet.load_weights(other)


def test_file_keeps_the_network(tmp_path):
    torch.manual_seed(0)
    network = headnet.HeadNet().eval()
    headnet.save_weights(network, tmp_path / 'w.safetensors')
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        a, b = network(x), headnet.load_weights(tmp_path / 'w.safetensors')(x)
    assert torch.allclose(a.identity, b.identity, atol=2e-2) and torch.allclose(a.parts, b.parts, atol=2e-2)


def test_training_command(tmp_path):
    """A few steps from the pictures to a file that loads, and the figures of it."""
    dest = tmp_path / 'w.safetensors'
    result = CliRunner().invoke(train.main, ['--identities', '8', '--views', '3', '--steps', '3', '--batch', '12', '--held_out', '3',
                                             '--dest', str(dest), '--keep_examples', str(tmp_path / 'e.pt')])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout[result.stdout.index('{'):])
    assert figures['bytes'] == dest.stat().st_size and set(figures['as_drawn']) == set(figures['augmented'])
    assert headnet.load_weights(dest).feature_std.min() > 0 and (tmp_path / 'e.pt').is_file()


def test_batches_hold_several_views_of_each_identity(examples):
    for index in train.batches(examples, 4, 3, 12, seed=0):
        chosen = examples.identity[index].reshape(-1, train.VIEWS_OF_BATCH)
        assert (chosen == chosen[:, :1]).all() and len(chosen[:, 0].unique()) == 4
        assert len(index.unique()) == 12


def test_contrastive_loss_prefers_views_of_one_identity_together():
    identity = torch.tensor([0, 0, 1, 1])
    together = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    apart = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert train.contrastive_loss(together, identity) < 0.01 < train.contrastive_loss(apart, identity)


def test_measures_of_accuracy():
    def turn(degrees):
        angle = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angle.sin(), 0 * angle, angle.cos()], dim=1)

    assert torch.allclose(angle_deg(turn([170.0, 10.0]), turn([-170.0, 40.0])), torch.tensor([20.0, 30.0]), atol=1e-3)
    codes, owner = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), dim=1), torch.tensor([0, 0, 1, 1])
    assert retrieval(codes.clone(), owner) == 1 and retrieval(codes.clone(), torch.tensor([0, 1, 0, 1])) == 0
    assert verification(codes, owner)[0] == 1
    maps = torch.zeros(1, 4, 4, dtype=torch.long)
    maps[:, :2] = FACE
    moved = maps.roll(1, dims=1)
    assert part_iou(maps, maps)['face'] == 1 and part_iou(maps, moved)['face'] == pytest.approx(4 / 12)
    shares = small_parts(torch.full([1, 64, 64], HAIR, dtype=torch.uint8))
    assert shares.shape == (1, len(PARTS), 32, 32) and shares[:, HAIR].min() == 1


def test_parts_of_heads():
    """From the front there is a face, from the back none; parts and mask agree; a mirrored head has the mirrored map."""
    identities = sample_identities([3, 3, 8, 8])
    labels = label_at(torch.tensor([0.0, 180.0, 0.0, 180.0]))
    batch = render_heads(identities, labels, 48)
    parts = part_maps(identities, labels, batch.depth)
    assert torch.equal(parts == BACKGROUND, batch.mask[:, 0] == 0)
    face = (parts == FACE).flatten(1).float().mean(1)
    assert (face[::2] > 0.08).all() and (face[1::2] < 0.002).all()
    assert set(parts.unique().tolist()) == set(range(len(PARTS)))


def test_parts_of_a_mirrored_head():
    """A head with hair on one side: its mirror image has the mirrored map."""
    people = sample_identities(range(40))
    head = people[(people.style == HAIR_STYLES.index('asymmetric')).nonzero()[:2, 0]]
    front = label_at([0.0, 0.0])
    here, there = (part_maps(one, front, render_heads(one, front, 48).depth) for one in (head, head.mirrored()))
    assert (there.flip(2) == here).float().mean() > 0.99 > (there == here).float().mean() + 0.02


def test_examples_say_where_the_camera_stood(examples):
    assert torch.allclose(examples.direction.norm(dim=1), torch.ones(len(examples)), atol=1e-5)
    assert torch.allclose(view_directions(label_at([0.0, 90.0, 180.0], 0.0)), torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, -1]]), atol=1e-3)
    aside = direction_angles_deg(view_directions(label_at([70.0, -140.0], 30.0)))
    assert torch.allclose(torch.stack(aside), torch.tensor([[70.0, -140.0], [30.0, 30.0]]), atol=1e-3)
    assert (examples.identity.reshape(-1, 4) == examples.identity.reshape(-1, 4)[:, :1]).all()
    light = examples.head.float().mean([1, 2, 3]).reshape(-1, 4)
    assert light.std(1).min() > 0
