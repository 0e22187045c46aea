"""Schedules and the moving average against hand-computed numbers."""

import dataclasses

import pytest
import torch

from training import schedules
from training.ema import Ema
from training.schedules import Schedule, ScheduleConfig, schedule_at


@pytest.mark.parametrize('nimg, batch, sigma', [
    (0, 32, 10), (100_000, 32, 5), (200_000, 32, 0), (10 ** 7, 32, 0), (12_500, 8, 7.5)])
def test_blur(nimg, batch, sigma):
    assert schedules.blur_sigma(nimg, batch, 200) == pytest.approx(sigma)


def test_blur_without_fade_is_off():
    assert schedules.blur_sigma(0, 32, 0) == 0


@pytest.mark.parametrize('nimg, probability, fade, expected', [
    (0, 0.7, 1000, 1), (500_000, 0.7, 1000, 0.85), (10 ** 6, 0.7, 1000, 0.7), (10 ** 8, 0.7, 1000, 0.7), (0, 0.7, 0, 0.7),
    (250_000, 0.5, 1000, 0.875), (0, None, 1000, 0)])
def test_swap_probability(nimg, probability, fade, expected):
    assert schedules.gpc_swap_probability(nimg, probability, fade) == pytest.approx(expected)


@pytest.mark.parametrize('nimg, initial, final, fade, expected', [
    (0, 64, 128, 1000, 64), (500_000, 64, 128, 1000, 96), (10 ** 6, 64, 128, 1000, 128), (10 ** 7, 64, 128, 1000, 128),
    (20_000, 64, 128, 1000, 65), (0, 64, 128, 0, 128), (10 ** 6, 64, None, 1000, 64), (500_000, 128, 64, 1000, 96)])
def test_neural_rendering_resolution(nimg, initial, final, fade, expected):
    value = schedules.neural_rendering_resolution(nimg, initial, final, fade)
    assert value == expected and isinstance(value, int)


@pytest.mark.parametrize('nimg, fade, expected', [
    (0, 200, 1), (50_000, 200, 0.75), (200_000, 200, 0), (10 ** 6, 200, 0), (0, 0, 0)])
def test_density_noise(nimg, fade, expected):
    assert schedules.density_noise(nimg, fade) == pytest.approx(expected)


def test_ema_beta():
    assert schedules.ema_beta(10 ** 7, 32, 10) == pytest.approx(0.5 ** (32 / 10_000))
    assert schedules.ema_beta(1000, 32, 10) == pytest.approx(0.5 ** (32 / 50))      # ramp-up: 5 % of 1000 images
    assert schedules.ema_beta(1000, 32, 10, rampup=None) == pytest.approx(0.5 ** (32 / 10_000))
    assert schedules.ema_beta(0, 32, 10) == 0 and schedules.ema_beta(1000, 32, 0) == 0


def test_lazy_adam():
    lr, betas = schedules.lazy_adam(0.002, (0, 0.99), 16)
    assert lr == pytest.approx(0.002 * 16 / 17) and betas == (0, pytest.approx(0.99 ** (16 / 17)))
    assert schedules.lazy_adam(0.002, [0, 0.99], None) == (0.002, (0, 0.99))


def test_schedule_at_and_resuming():
    config = ScheduleConfig(batch_size=32, gpc_reg_prob=0.7, neural_rendering_resolution_final=128, density_noise_fade_kimg=200)
    assert schedule_at(0, config) == Schedule(10, 1, 64, 1)
    half = schedule_at(100_000, config)
    assert (half.blur_sigma, half.density_noise) == (5, 0.5)
    assert half.gpc_swap_probability == pytest.approx(0.97) and half.neural_rendering_resolution == 70
    resumed = dataclasses.replace(config, resumed=True)
    assert schedule_at(0, resumed).blur_sigma == 0 and schedule_at(0, resumed).gpc_swap_probability == 1
    assert schedule_at(0, dataclasses.replace(resumed, resume_blur=True)).blur_sigma == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        half.blur_sigma = 1


@pytest.mark.parametrize('bad', [
    {'batch_size': 0}, {'batch_size': 1, 'gpc_reg_prob': 1.1}, {'batch_size': 1, 'blur_init_sigma': -1},
    {'batch_size': 1, 'neural_rendering_resolution_initial': 0}])
def test_config_refuses(bad):
    with pytest.raises(ValueError):
        ScheduleConfig(**bad)


def test_negative_numbers_are_refused():
    for nimg, kimg in ((-1, 10), (1, -10)):
        with pytest.raises(ValueError, match='got'):
            schedules.density_noise(nimg, kimg)


def test_ema_follows_parameters_and_copies_buffers():
    model = torch.nn.BatchNorm1d(2)
    ema = Ema(model, halfkimg=10)
    assert ema.average is not model and not ema.average.training and not any(p.requires_grad for p in ema.average.parameters())
    with torch.no_grad():
        model.weight.fill_(3)
        model.running_mean.fill_(7)
    ema.update(model, cur_nimg=1000, batch_size=50)              # half life 50 images: half way from 1 to 3
    assert torch.allclose(ema.average.weight, torch.full([2], 2.0)) and ema.average.running_mean.tolist() == [7, 7]
    ema.update(model, cur_nimg=10 ** 9, batch_size=10_000)       # half life 10 kimg
    assert torch.allclose(ema.average.weight, torch.full([2], 2.5))
    other = Ema(torch.nn.BatchNorm1d(2), halfkimg=10)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.average.weight, ema.average.weight) and model.weight.tolist() == [3, 3]
    with pytest.raises(ValueError, match='halfkimg'):
        Ema(model, halfkimg=-1)
