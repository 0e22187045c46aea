"""Operators of the networks against finite differences of both orders, numbers by hand and plainer forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from torch_utils.ops import upfirdn2d
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import conv2d_resample, modulated_conv2d


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def check_both_orders(function, *inputs):
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


FIR = upfirdn2d.setup_filter([1, 3, 3, 1]).double()
CROOKED = torch.arange(6, dtype=torch.float64).reshape(2, 3)   # not symmetric, not square


@pytest.mark.parametrize('up, down, padding', [
    (1, 1, 0), (2, 1, (2, 1, 2, 1)), (1, 2, 1), ((2, 3), (3, 1), (2, 1, 0, 3)), (1, 1, -1)])
@pytest.mark.parametrize('flip', [False, True])
def test_upfirdn2d_derivatives(up, down, padding, flip):
    check_both_orders(lambda x: upfirdn2d.upfirdn2d(x, CROOKED, up, down, padding, flip), doubles(1, 2, 5, 6))


def test_upfirdn2d_by_hand():
    x = torch.tensor([[[[1.0, 2.0]]]])
    f = torch.tensor([[1.0, 10.0, 100.0]])
    # zeros inserted: 1 0 2 0; the filter runs as a convolution, so that an impulse leaves the filter as it is written
    spread = dict(up=(2, 1), padding=(2, 2, 0, 0))
    assert upfirdn2d.upfirdn2d(x, f, **spread).flatten().tolist() == [1, 10, 102, 20, 200, 0]
    assert upfirdn2d.upfirdn2d(x, f, **spread, flip_filter=True).flatten().tolist() == [100, 10, 201, 20, 2, 0]
    assert upfirdn2d.upfirdn2d(x, f, **spread, down=(2, 1)).flatten().tolist() == [1, 102, 200]
    assert upfirdn2d.upfirdn2d(x, None, padding=(-1, 0, 0, 0), gain=3).flatten().tolist() == [6]


def test_resampling_keeps_brightness():
    x = torch.full([1, 1, 8, 8], 5.0)
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    for y, size in ((upfirdn2d.upsample2d(x, f), 16), (upfirdn2d.downsample2d(x, f), 4), (upfirdn2d.filter2d(x, f), 8)):
        assert y.shape == (1, 1, size, size)
        torch.testing.assert_close(y[..., 2:-2, 2:-2], torch.full_like(y[..., 2:-2, 2:-2], 5.0))


@pytest.mark.parametrize('kernel, up, down', [(3, 1, 1), (3, 2, 1), (3, 1, 2), (1, 2, 1), (1, 1, 2)])
def test_conv2d_resample_derivatives(kernel, up, down):
    def function(x, w):
        return conv2d_resample(x, w, FIR, up, down, kernel // 2)
    check_both_orders(function, doubles(1, 2, 4, 4), doubles(2, 2, kernel, kernel))


def test_conv2d_resample_sizes_and_refusal():
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    assert conv2d_resample(x, w, FIR.float(), up=2, padding=1).shape == (1, 3, 16, 16)
    assert conv2d_resample(x, w, FIR.float(), down=2, padding=1).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match='up and down'):
        conv2d_resample(x, w, FIR.float(), up=2, down=2)


@pytest.mark.parametrize('up, demodulate', [(1, True), (1, False), (2, True)])
def test_modulated_conv2d_derivatives(up, demodulate):
    def function(x, w, styles):
        return modulated_conv2d(x, w, styles, up=up, padding=1, resample_filter=FIR, demodulate=demodulate)
    check_both_orders(function, doubles(2, 2, 3, 3), doubles(2, 2, 3, 3), doubles(2, 2))


def test_modulated_conv2d_is_one_convolution_per_sample():
    x, w, styles, noise = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(2, 3), torch.randn(2, 1, 6, 6)
    result = modulated_conv2d(x, w, styles, noise, padding=1)
    for i in range(2):
        own = w * styles[i][None, :, None, None]
        own = own / own.square().sum(dim=[1, 2, 3], keepdim=True).sqrt()
        torch.testing.assert_close(result[i:i + 1], F.conv2d(x[i:i + 1], own, padding=1) + noise[i:i + 1])


def test_modulated_conv2d_in_half_precision_does_not_overflow():
    x, w, styles = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3) * 300, torch.randn(1, 3) * 300
    half = modulated_conv2d(x.bfloat16(), w, styles, padding=1).float()
    torch.testing.assert_close(half, modulated_conv2d(x, w, styles, padding=1), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_bias_act_derivatives(act):
    check_both_orders(lambda x, b: bias_act(x, b, act=act, gain=1.3), doubles(2, 3, 2, 2), doubles(3))


def test_bias_act_by_hand():
    x, b = torch.tensor([[-2.0, 4.0]]), torch.tensor([1.0, -1.0])
    torch.testing.assert_close(bias_act(x, b, act='lrelu'), torch.tensor([[-0.2, 3.0]]) * math.sqrt(2))
    assert bias_act(x, b, gain=2.0, clamp=3.0).tolist() == [[-2.0, 3.0]]
    assert bias_act(x.t(), b, dim=0).tolist() == [[-1.0], [3.0]]
    with pytest.raises(ValueError, match='teapot'):
        bias_act(x, act='teapot')
