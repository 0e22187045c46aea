"""Augmentation: identity at p = 0, one transform for all resolutions, masks left alone by colour, second derivatives, ADA."""

import math

import pytest
import torch

from training import augment
from training.augment import PRESETS, AdaController, AugmentPipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pipe_at(p, **strengths):
    pipe = AugmentPipe(**strengths)
    pipe.set_p(p)
    return pipe


def blob(size, x=0.25, y=-0.2, width=0.15):
    """[1, 1, size, size] Gaussian spot at (x, y) of [-1, 1]^2."""
    at = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.exp(-((at[None] - x) ** 2 + (at[:, None] - y) ** 2) / (2 * width ** 2))[None, None]


def centroid(x):
    """[N, 2] centre of mass in [-1, 1]."""
    at = (torch.arange(x.shape[-1]) + 0.5) * 2 / x.shape[-1] - 1
    weight = x.mean(1)
    total = weight.sum((1, 2))
    return torch.stack([(weight.sum(1) * at).sum(1) / total, (weight.sum(2) * at).sum(1) / total], 1)


def triple(num=4, size=32):
    image, raw = torch.rand(num, 3, size, size) * 2 - 1, torch.rand(num, 3, size // 2, size // 2) * 2 - 1
    return {'image': image, 'image_raw': raw, 'image_mask': torch.rand(num, 1, size // 2, size // 2)}


@pytest.mark.parametrize('preset', sorted(PRESETS))
def test_p_zero_is_the_identity_and_p_one_is_not(preset):
    images = {**triple(), 'image_depth': None}
    pipe = AugmentPipe(**PRESETS[preset])
    out = pipe(images)
    assert out['image_depth'] is None and all(out[key] is images[key] for key in ('image', 'image_raw', 'image_mask'))
    pipe.set_p(1)
    out = pipe(images, seeded())
    assert list(out) == list(images)
    for key in ('image', 'image_raw'):
        assert out[key].shape == images[key].shape and out[key].isfinite().all() and not torch.equal(out[key], images[key])
    again = pipe(images, seeded())
    assert torch.equal(out['image'], again['image']) and torch.equal(out['image_mask'], again['image_mask'])


def test_samples_not_hit_pass_bit_equal():
    images = triple(num=64, size=16)
    out = pipe_at(0.3, shift=0.2, brightness=0.3)(images, seeded())
    same = [torch.equal(a, b) for a, b in zip(out['image'], images['image'])]
    assert 0.3 < sum(same) / len(same) < 0.7                 # 0.7 squared, 0.49, is expected
    moved = [not torch.equal(a, b) for a, b in zip(out['image_mask'], images['image_mask'])]
    assert 0.15 < sum(moved) / len(moved) < 0.45             # brightness does not touch masks


def test_resampling_with_the_identity_changes_nothing():
    x = torch.randn(2, 3, 32, 32)
    eye = torch.eye(3).repeat(2, 1, 1)
    moved = augment._move(x, eye, False)
    # sym6 is not quite symmetric, so mirroring after it is exact only away from the border; noise is the hardest case.
    assert torch.allclose(moved[..., 6:-6, 6:-6], x[..., 6:-6, 6:-6], atol=1e-5) and (moved - x).abs().max() < 0.2
    assert torch.allclose(augment._move(x, eye, True), x, atol=1e-5)


def test_whole_pixel_shift_and_mirror_are_exact():
    x = torch.randn(1, 3, 32, 32)
    theta = torch.eye(3)[None].clone()
    theta[0, 0, 2] = 2 * 3 / 32                              # reads three pixels to the right
    expected = torch.cat([x[..., 3:], x[..., -3:].flip(3)], -1)
    assert torch.allclose(augment._move(x, theta, True), expected, atol=1e-5)
    inside = slice(6, -9)
    assert torch.allclose(augment._move(x, theta, False)[..., inside, inside], expected[..., inside, inside], atol=1e-5)
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    assert torch.allclose(augment._move(x, mirror, True), x.flip(3), atol=1e-5)
    # The sub-pixel phase of sym6 is compensated: a mirrored smooth picture does not wander.
    smooth = blob(32).repeat(1, 3, 1, 1)
    mirrored = augment._move(smooth, mirror, False)
    assert torch.allclose(centroid(mirrored), centroid(smooth.flip(3)), atol=2e-3)
    assert torch.allclose(mirrored, smooth.flip(3), atol=2e-2)


def test_image_raw_and_mask_move_together():
    num = 16
    images = {'image': blob(64).repeat(num, 3, 1, 1), 'image_raw': blob(32).repeat(num, 3, 1, 1),
              'image_mask': blob(32).repeat(num, 1, 1, 1)}
    out = pipe_at(1.0, scale=0.2, rotation=0.5, stretch=0.2, drift=0.05)(images, seeded(3))
    image, raw, mask = (centroid(out[key]) for key in ('image', 'image_raw', 'image_mask'))
    assert (image - centroid(images['image'])).norm(dim=1).median() > 0.1
    assert torch.allclose(image, raw, atol=5e-3) and torch.allclose(image, mask, atol=5e-3)
    assert out['image_mask'].min() >= 0 and out['image_mask'].max() <= 1


def test_colour_is_shared_and_leaves_masks_alone():
    images = triple(num=8)
    images['image'] = torch.nn.functional.interpolate(images['image_raw'], scale_factor=2)
    out = pipe_at(1.0, **PRESETS['color'])(images, seeded())
    assert out['image_mask'] is images['image_mask']
    assert torch.allclose(out['image'], torch.nn.functional.interpolate(out['image_raw'], scale_factor=2), atol=1e-5)


def test_colour_matrices_against_hand_computed_values():
    grey = torch.full([1, 3, 2, 2], 0.5)
    red = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).repeat(1, 1, 2, 2)
    third_turn = augment._hue_rotation(torch.tensor([2 * math.pi / 3]))
    assert torch.allclose(augment._recolour(red, third_turn)[0, :, 0, 0], torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(augment._recolour(grey, third_turn), grey, atol=1e-6)
    for seed in range(6):                                    # a luma flip or none, then nothing else
        flipped = pipe_at(1.0, luma_flip=1)({'image': grey}, seeded(seed))['image']
        assert torch.allclose(flipped.abs(), grey, atol=1e-6)
    saturated = pipe_at(1.0, saturation=1)({'image': grey}, seeded(1))['image']
    assert torch.allclose(saturated, grey, atol=1e-6)


def test_filter_bank_adds_up_and_raw_takes_the_bands_it_has():
    bank = augment._filter_bank()
    impulse = torch.zeros(bank.shape[1])
    impulse[bank.shape[1] // 2] = 1
    assert torch.allclose(bank.sum(0), impulse, atol=1e-6)
    constant = torch.ones(1, 3, 32, 32)
    assert torch.allclose(augment._filter(constant, bank[:1]), constant, atol=1e-5)          # lowest band keeps a constant
    assert augment._filter(constant, bank[3:]).abs().max() < 1e-5
    spectrum = torch.fft.rfft(bank, n=256).abs()                                             # [4, 129], 128 = Nyquist
    assert [int(row.argmax()) for row in spectrum][0] == 0 and int(spectrum[3].argmax()) > 64
    out = pipe_at(1.0, filtering=1)({'image': torch.randn(2, 3, 32, 32), 'image_raw': torch.randn(2, 3, 8, 8)}, seeded())
    assert out['image_raw'].shape == (2, 3, 8, 8) and out['image'].isfinite().all()


def test_cutout_and_noise():
    images = {'image': torch.ones(8, 3, 32, 32), 'image_mask': torch.ones(8, 1, 16, 16)}
    out = pipe_at(1.0, cutout=0.5)(images, seeded())
    assert set(out['image'].unique().tolist()) == {0.0, 1.0} and set(out['image_mask'].unique().tolist()) == {0.5, 1.0}
    cut = torch.nn.functional.avg_pool2d((out['image'][:, :1] == 0).float(), 2)
    assert 0.05 < cut.mean() <= 0.27 and (cut - (out['image_mask'] == 0.5).float()).abs().mean() < 0.05
    noisy = pipe_at(1.0, noise=0.1)(images, seeded())
    assert noisy['image_mask'] is images['image_mask'] and 0 < (noisy['image'] - 1).std() < 0.3


def test_derivatives_of_first_and_second_order():
    pipe = pipe_at(1.0, **PRESETS['bgcfnc']).double()
    mask = torch.rand(1, 1, 4, 4, dtype=torch.double)

    def run(image, raw, mask):
        out = pipe({'image': image, 'image_raw': raw, 'image_mask': mask}, seeded(5))
        return tuple(x ** 2 for x in out.values())

    inputs = [torch.randn(1, 3, 6, 6, dtype=torch.double), torch.randn(1, 3, 4, 4, dtype=torch.double), mask]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_r1_through_the_augmentation_reaches_the_discriminator():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.LazyLinear(1))
    real = torch.randn(4, 3, 16, 16).requires_grad_()
    out = net(pipe_at(0.8, **PRESETS['head'])({'image': real}, seeded())['image'])
    grad, = torch.autograd.grad(out.sum(), real, create_graph=True)
    grad.square().sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


def test_state_dict_carries_p_and_bad_values_are_refused():
    pipe = pipe_at(0.25, noise=1)
    fresh = AugmentPipe(noise=1)
    fresh.load_state_dict(pipe.state_dict())
    assert float(fresh.p) == 0.25
    for bad in ({'noise': -1}, {'hue': math.nan}):
        with pytest.raises(ValueError, match='strengths'):
            AugmentPipe(**bad)
    with pytest.raises(TypeError):
        AugmentPipe(blur=1)
    with pytest.raises(ValueError, match=r'\[0, 1\]'):
        pipe.set_p(1.5)


def test_ada_controller():
    ada = AdaController(target=0.6, interval=4, kimg=500)
    assert [i for i in range(9) if ada.due(i)] == [0, 4, 8]
    assert ada.update(0.9, 50_000) == pytest.approx(0.1)     # 50 of 500 kimg
    assert ada.update(0.2, 25_000) == pytest.approx(0.05)
    assert ada.update(0.6, 25_000) == pytest.approx(0.05)
    assert ada.update(math.nan, 25_000) == pytest.approx(0.05)
    assert ada.update(0.0, 10 ** 7) == 0 and ada.update(1.0, 10 ** 7) == 1
    resumed = AdaController()
    resumed.load_state_dict(ada.state_dict())
    assert resumed.p == 1
    fixed = AdaController(target=None, p=0.2)
    assert not fixed.due(0) and fixed.update(1.0, 10 ** 6) == 0.2
    for bad in ({'target': 0}, {'interval': 0}, {'kimg': 0}, {'p': 2}):
        with pytest.raises(ValueError):
            AdaController(**bad)
