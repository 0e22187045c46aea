"""Inversion: schedules and losses as published, a network's own picture found again, results that can be reproduced and read
back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import camera_utils
from dnnlib import UserError
from inference import inversion, perceptual
from inference.heads import load_head
from inference.inversion import invert
from inference.inversion_files import save_inversion
from inference.inversion_options import RECIPES, InversionOptions, recipe_options
from inference.inversion_run import Run
from inference.latent_space import LatentStatistics, latent_statistics
from inference.perceptual import StructuralFeatures, load_features, squared_distance
from inference.session import Session
from inference.targets import Target
from training.generators.base import GeneratorOutput
from training.generators.panohead import PanoHeadGenerator
from torch_utils.misc import weights_digest
from torch_utils.ops.resize import resize
from inversion_cases import LABEL, RECORD, SHORT, SMALL, network, own_target, write_files, write_vgg


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp('inversion'))


# ---------------------------------------------------------------------------------------------------------------------
# The recipe.

def test_schedules():
    options = InversionOptions()
    rates = [inversion.learning_rate(t, options) for t in (0, 0.025, 0.05, 0.5, 0.75, 0.875, 0.999)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.1, 0.1, 0.05, 3.95e-6], rel=1e-2, abs=1e-12)
    noise = [inversion.noise_factor(t, options) for t in (0, 0.375, 0.75, 0.9)]
    assert noise == pytest.approx([0.05, 0.0125, 0, 0])


def test_statistics(files):
    generator = network(files)
    statistics = latent_statistics(generator, 1500, 'cpu')
    z = torch.from_numpy(np.random.RandomState(123).randn(1500, 16).astype(np.float32))
    front = camera_utils.make_label(camera_utils.look_at_pose(np.pi / 2, np.pi / 2, (0, 0, 0), 2.7))
    w = generator.mapping(z, front.repeat(1500, 1))[:, 0]
    torch.testing.assert_close(statistics.mean, w.mean(0)[None, None])
    torch.testing.assert_close(statistics.z_mean, z.mean(0)[None])
    assert statistics.std == pytest.approx(w.var(dim=0, correction=0).sum().sqrt().item(), rel=1e-4)
    white = statistics.whiten(w)
    kept = statistics.scales > 1.01 * statistics.scales.amin()                # those that are not raised to the least
    covariance = (white.T @ white / len(w))[kept][:, kept]
    torch.testing.assert_close(covariance, torch.eye(len(covariance)), atol=2e-2, rtol=0)
    torch.testing.assert_close(statistics.unwhiten(white), w, atol=1e-4, rtol=1e-3)


def test_statistics_from_behind_too(files):
    """Every other latent is conditioned on the camera behind the head; the deviation is that of all of them."""
    generator = network(files)
    statistics = latent_statistics(generator, 1001, 'cpu', 'front+back')
    z = torch.from_numpy(np.random.RandomState(123).randn(1001, 16).astype(np.float32))
    c = [camera_utils.make_label(camera_utils.look_at_pose(np.pi / 2 + turn, np.pi / 2, (0, 0, 0), 2.7)) for turn in (0, np.pi)]
    w = generator.mapping(z, torch.cat([c[i % 2] for i in range(1001)]))[:, 0]
    torch.testing.assert_close(statistics.samples, w, atol=1e-5, rtol=1e-4)
    assert statistics.std == pytest.approx(w.var(dim=0, correction=0).sum().sqrt().item(), rel=1e-4)
    assert (w - generator.mapping(z, c[0].expand(1001, -1))[:, 0]).abs().max() > 1e-3


def test_camera_is_moved_once_by_the_learned_translation(files):
    generator = network(files)
    z = torch.randn(1, 16)
    moved = inversion.corrected_label(generator, z, LABEL) - LABEL
    assert moved[0, [3, 7, 11]].tolist() == pytest.approx(generator.camera_offset(z, LABEL)[0].tolist(), abs=1e-6)
    assert moved.abs().sum() > 1e-4 and moved[0, [i for i in range(25) if i not in (3, 7, 11)]].abs().sum() == 0
    plain = network(files, 'unlabelled')
    assert inversion.corrected_label(plain, z, LABEL) is LABEL


def test_near_plane_is_that_of_the_published_heads(files):
    assert inversion.inversion_rendering(network(files), SHORT).ray_start == 2.35
    far = PanoHeadGenerator(**SMALL, camera={'radius': 1.7})
    assert inversion.inversion_rendering(far, SHORT) == far.rendering


def pictures(num, size=32):
    return torch.rand(num, 1, 3, size, size) * 2 - 1


def shown(image, mask=None):
    """A GeneratorOutput of these pictures."""
    return GeneratorOutput(image, image, image[:, :1], torch.ones_like(image[:, :1]) if mask is None else mask)


def test_loss_is_the_published_sum():
    features = StructuralFeatures()
    image, target = pictures(2)
    expected = 0.1 * (image - target).square().mean() + squared_distance(features.encode(image), features.encode(target))
    loss = inversion.ViewsLoss([Target(target, LABEL, 'x', 'x')], features, InversionOptions())
    torch.testing.assert_close(loss(shown(image)), expected)


def test_loss_of_front_and_back_is_the_published_sum():
    features = StructuralFeatures()
    front, back, front_target, back_target = pictures(4)
    options = recipe_options('pso')

    def loss_of(weight, options):
        targets = [Target(front_target, LABEL, 'x', 'x'), Target(back_target, LABEL, 'x', 'x', weight=weight)]
        return inversion.ViewsLoss(targets, features, options)(shown(torch.cat([front, back])))

    mse = [(a - b).square().mean() for a, b in ((front, front_target), (back, back_target))]
    lpips = [squared_distance(features.encode(a), features.encode(b)) for a, b in ((front, front_target), (back, back_target))]
    expected = 0.5 * (mse[0] + 0.3 * mse[1]) + (lpips[0] + 0.3 * lpips[1])
    torch.testing.assert_close(loss_of(options.weight_back, options), expected)
    # A back that does not count, and PanoHead's weight of pixels: PanoHead's loss.
    torch.testing.assert_close(loss_of(0.0, InversionOptions()), 0.1 * mse[0] + lpips[0])


def test_what_lies_outside_of_the_mask_counts_less():
    features = StructuralFeatures()
    target = pictures(1)[0]
    mask = torch.zeros(1, 1, 32, 32)
    mask[:, :, :, :16] = 1
    options = recipe_options('omni', weight_mask=0)
    inside, outside = target + 0.2 * mask, target + 0.2 * (1 - mask)

    def loss_of(mask, image, opacity=None, options=options):
        return inversion.ViewsLoss([Target(target, LABEL, 'x', 'x', mask)], features, options)(shown(image, opacity)).item()

    assert loss_of(mask, outside) < 0.2 * loss_of(None, outside)
    assert loss_of(mask, inside) == pytest.approx(loss_of(None, inside), rel=1e-5)
    # The opacity is compared with the mask at its own size, where there is a mask.
    opacity = resize(mask, 16)
    assert loss_of(mask, target, opacity, recipe_options('omni')) == pytest.approx(0, abs=1e-6)
    assert loss_of(mask, target, 1 - opacity, recipe_options('omni')) > 0.9 * RECIPES['omni']['weight_mask']
    assert loss_of(None, target, 1 - opacity, recipe_options('omni')) == 0


def test_stage_1_pulls_towards_the_mean():
    """With nothing to see, the prior alone decides: the latents stay where they start."""
    statistics = LatentStatistics(torch.randn(1, 1, 4), 0.0, None, None, None, None)
    ws, losses = inversion.optimize_layers(lambda ws: shown(ws.sum() * 0 + torch.zeros(1, 3, 2, 2)), lambda out: out.image.sum(),
                                           statistics, 3, SHORT, Run())
    torch.testing.assert_close(ws, statistics.mean.repeat(1, 3, 1))
    assert losses == [0] * SHORT.steps_w


# ---------------------------------------------------------------------------------------------------------------------
# Perceptual distance.

def test_structural_distance_orders_damage():
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, [8, 8, 3], dtype=np.uint8)).resize((64, 64))
    image = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    features = StructuralFeatures()

    def distance(other):
        return squared_distance(features.encode(other), features.encode(image)).item()

    blurred = [torch.nn.functional.avg_pool2d(image, k, 1, k // 2, count_include_pad=False) for k in (3, 7)]
    shifted = image.roll(8, dims=3)
    assert distance(image) == 0
    assert 0 < distance(image + 0.05) < 0.01                                        # a little brighter: the same structure
    assert distance(blurred[0]) < distance(blurred[1]) < distance(shifted)
    assert distance(image.flip(2)) > 10 * distance(image + 0.05)


def defined_features(image):
    """The features by the definition: 5x5 binomial blurs with repeated borders, in double precision."""
    taps = torch.tensor([1., 4, 6, 4, 1], dtype=torch.double) / 16
    kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)

    def blur(x):
        return F.conv2d(F.pad(x, [2, 2, 2, 2], mode='replicate'), kernel, groups=3)

    x, features = (image.double() + 1) / 2, []
    while x.shape[-1] > 8:
        coarse = blur(x)[:, :, ::2, ::2]
        band = x - F.interpolate(coarse, scale_factor=2, mode='bilinear', align_corners=False)
        features.append(band / (0.17 + blur(band.abs())))
        x = coarse
    return torch.cat([f.flatten(1) / f[0].numel() ** 0.5 for f in [*features, x]], dim=1)


@pytest.mark.parametrize('size', [8, 16, 64, 256])
@pytest.mark.parametrize('steps', ['_Products', '_Convolutions'])
def test_features_are_as_defined(size, steps, monkeypatch):
    """Both ways to compute them, and their gradients."""
    monkeypatch.setattr(perceptual, '_Products', getattr(perceptual, steps))      # what a processor takes
    image = (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_(True)
    features, expected = StructuralFeatures().encode(image), defined_features(image)
    torch.testing.assert_close(features, expected.float(), atol=1e-6, rtol=1e-5)
    direction = torch.randn_like(expected)
    (gradient,), (right,) = (torch.autograd.grad((f * direction).sum(), image) for f in (features, expected))
    assert (gradient - right).norm() < 1e-5 * right.norm()


def test_pictures_beyond_256_pixels_are_reduced():
    image = torch.rand(1, 3, 256, 256) * 2 - 1
    large = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(StructuralFeatures().encode(large), StructuralFeatures().encode(image))


@pytest.fixture
def vgg(tmp_path):
    return write_vgg(tmp_path / 'vgg.pt')


def test_vgg_file(vgg):
    features = load_features(vgg)
    assert vgg in features.description
    image = torch.zeros(1, 3, 512, 512)
    image[:, :, :8, :8], image[:, :, -8:, -8:] = -1, 1
    assert features.encode(image).tolist() == [[0, 255, 256]]
    assert squared_distance(torch.zeros(2, 3), torch.ones(2, 3)) == 3


@pytest.mark.parametrize('content', [b'', b'no network', None])
def test_perceptual_file_that_is_none(content, tmp_path):
    if content is not None:
        (tmp_path / 'vgg.pt').write_bytes(content)
    with pytest.raises(UserError, match='vgg.pt'):
        load_features(str(tmp_path / 'vgg.pt'))


# ---------------------------------------------------------------------------------------------------------------------
# Whole inversions.

def test_own_picture_is_found_again(files):
    generator = network(files)
    target = own_target(generator)
    options = InversionOptions(steps_w=60, steps_g=40, num_statistics=500)
    seen = []
    result = invert(generator, target, StructuralFeatures(), options, observe=lambda *args: seen.append(args[:2]))
    assert seen == [('latents', i) for i in range(60)] + [('generator', i) for i in range(41)]
    start = inversion.psnr(network(files).synthesis(latent_statistics(generator, 500, 'cpu').mean.repeat(
        1, generator.num_ws, 1), LABEL).image, target.image)
    pre, post = (inversion.psnr(image, target.image) for image in (result.pre, result.post))
    assert result.losses_w[-1] < result.losses_w[0] / 4
    assert min(result.losses_g) < result.losses_g[0] / 2
    assert start + 0.5 < pre and pre + 3 < post
    assert not any(p.requires_grad for p in generator.parameters())


def test_same_seed_same_result(files):
    def run(seed):
        generator = network(files)
        options = InversionOptions(5, 3, num_statistics=50, seed=seed)
        result = invert(generator, own_target(generator), StructuralFeatures(), options)
        return [result.ws, result.post, *generator.parameters()]

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize('keep', ['best', 'last'])
def test_which_weights_are_kept(keep):
    """A weight goes from 0 to 1, where the loss is 0, and by its momentum on."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    visited = []
    options = InversionOptions(steps_g=3, lr_g=1.0, keep=keep)

    class Loss:
        def __call__(self, out):
            return (out.image - 1).abs().sum()

        def close(self, out, decibels):
            return False

    run = Run(observe=lambda *args: visited.append(args[2].item()))
    losses, deltas = inversion.tune_generator(layer, lambda _: shown(layer.weight[None, None] + 0), Loss(), options, run)
    assert losses == pytest.approx([abs(weight - 1) for weight in visited]) and len(losses) == 4
    assert visited[:2] == pytest.approx([0, 1]) and visited[3] > 1.5
    assert layer.weight.item() == pytest.approx(visited[1 if keep == 'best' else 3], rel=1e-3)
    assert layer.weight.item() == deltas['weight'].float().item()      # what the file holds, to the bit


def test_network_without_labels(files):
    generator = network(files, 'unlabelled')
    result = invert(generator, own_target(generator), StructuralFeatures(), SHORT)
    assert result.ws.shape == (1, generator.num_ws, 32) and torch.equal(result.label, LABEL)
    assert result.losses_g[-1] < result.losses_g[0]


def test_without_tuning_the_generator_stays(files):
    generator = network(files)
    result = invert(generator, own_target(generator), StructuralFeatures(), InversionOptions(3, 0, num_statistics=50))
    assert result.losses_g == [] and result.deltas == {} and result.post is result.pre
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), network(files).parameters(), strict=True))


def test_picture_that_is_not_finite_ends_it(files):
    generator = network(files)
    target = own_target(generator)
    generator.torgb.bias.data[:] = float('nan')
    with pytest.raises(UserError, match='loss is nan at step 0'):
        invert(generator, target, StructuralFeatures(), SHORT)


def test_saved_result_renders_bit_equal(files, tmp_path):
    generator = network(files)
    target = own_target(generator)
    result = invert(generator, target, StructuralFeatures(), SHORT)
    save_inversion(tmp_path, generator, result, RECORD | {'network_digest': weights_digest(network(files))})
    loaded = Session.open(str(tmp_path / 'fintuned_generator.pkl'), 'cpu', precision='float32')
    with np.load(tmp_path / 'projected_w.npz') as data:
        image = loaded.view(loaded.identity(torch.from_numpy(data['w'])), torch.from_numpy(data['c'])).image
    assert torch.equal(image, result.post) and not torch.equal(image, result.pre)
    assert (tmp_path / 'finetuned_generator.pkl').read_bytes() == (tmp_path / 'fintuned_generator.pkl').read_bytes()

    # The one file, with the network as it was.
    head, session = load_head(tmp_path / 'head.safetensors'), Session.open(str(files / 'small.pkl'), 'cpu')
    ws = session.given_ws(head)
    assert torch.equal(session.view(session.identity(ws), head.labels).image, result.post)
    untuned = Session.open(str(files / 'small.pkl'), 'cpu', precision='float32')
    untuned.options = result.rendering
    assert torch.equal(untuned.view(untuned.identity(result.ws), result.label).image, result.pre)
