"""3x3 convolutions by minimal filtering against their definition in plain PyTorch."""

import pytest
import torch

from torch_utils.ops import conv2d_resample, winograd
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.native import load_native
from torch_utils.ops.upfirdn2d import setup_filter

pytestmark = pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')

# Batch, channels in and out, height and width: odd sizes, several groups of channels, more tiles than a block has.
SHAPES = [(2, 32, 64, 13, 9), (1, 16, 48, 8, 8), (3, 64, 128, 5, 30), (1, 16, 16, 1, 1), (1, 48, 80, 40, 3), (0, 16, 16, 8, 8)]


def layer(n, channels, out, height, width, up, dtype):
    """Arguments of modulated_layer."""
    noise = torch.randn(n or 1, 1, height * up, width * up)
    return dict(x=torch.randn(n, channels, height, width).to(dtype), weight=torch.randn(out, channels, 3, 3),
                styles=torch.rand(n, channels) + 0.5, noise=noise, bias=torch.randn(out), act='lrelu', gain=1.3, up=up, padding=1,
                resample_filter=setup_filter([1, 3, 3, 1]) + 0.01 * torch.randn(4, 4))


def definition(x, weight, styles, noise, bias, act, gain, clamp=None, **kwargs):
    """The same by modulated_conv2d and bias_act in float64."""
    x, weight, styles, noise, bias = (t.double() for t in (x, weight, styles, noise, bias))
    y = conv2d_resample.modulated_conv2d(x, weight, styles, noise, **{**kwargs, 'resample_filter': kwargs['resample_filter'].double()})
    return bias_act(y, bias, act=act, gain=gain, clamp=clamp)


def fused(x, weight, styles, noise, bias, act, gain, up, padding, resample_filter, clamp=None):
    return winograd.conv3x3(x, weight, up, resample_filter, styles, True, noise, bias, 0.2, gain, clamp)


@pytest.mark.parametrize('up', [1, 2])
@pytest.mark.parametrize('shape', SHAPES)
def test_float32_equals_the_definition(shape, up):
    kwargs = layer(*shape, up, torch.float32)
    result = fused(**kwargs, clamp=2.0)
    expected = definition(**kwargs, clamp=2.0)
    assert result.shape == expected.shape and result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize('up', [1, 2])
def test_bfloat16_is_near_the_definition(up):
    kwargs = layer(2, 64, 64, 12, 12, up, torch.bfloat16)
    result, expected = fused(**kwargs), definition(**kwargs)
    assert result.dtype == torch.bfloat16
    error = (result.double() - expected).square().mean().sqrt() / expected.std()
    assert error < 0.02, f'relative error {error:.4f}'


@pytest.mark.parametrize('layout', ['channels last', 'transposed', 'strided'])
def test_layouts(layout):
    kwargs = layer(2, 32, 32, 10, 10, 1, torch.float32)
    x = kwargs['x']
    other = {'channels last': x.to(memory_format=torch.channels_last), 'transposed': x.transpose(2, 3).contiguous().transpose(2, 3),
             'strided': torch.stack([x, x], dim=-1)[..., 0]}[layout]
    assert torch.equal(fused(**kwargs), fused(**{**kwargs, 'x': other}))


def test_noise_of_one_image_goes_to_all():
    kwargs = layer(3, 16, 16, 8, 8, 1, torch.float32)
    shared = kwargs['noise'][:1]
    torch.testing.assert_close(fused(**{**kwargs, 'noise': shared}), fused(**{**kwargs, 'noise': shared.expand(3, -1, -1, -1)}))


def test_plain_convolution():
    x, weight = torch.randn(2, 32, 9, 9), torch.randn(48, 32, 3, 3)
    torch.testing.assert_close(winograd.conv3x3(x, weight), torch.nn.functional.conv2d(x, weight, padding=1), rtol=0, atol=2e-4)


@pytest.mark.parametrize('fault', [dict(x=torch.zeros(1, 8, 8, 8)), dict(styles=torch.zeros(1, 3)), dict(bias=torch.zeros(3)),
                                   dict(x=torch.zeros(1, 16, 8, 8, dtype=torch.float64))])
def test_wrong_arguments_are_refused(fault):
    kwargs = {'x': torch.zeros(1, 16, 8, 8), 'weight': torch.zeros(16, 16, 3, 3), **fault}
    with pytest.raises(RuntimeError):
        winograd.conv3x3(**kwargs)


def test_layers_take_it_where_no_gradient_is_wanted(monkeypatch):
    monkeypatch.setattr(winograd, 'LEAST_TILES', 1)
    kwargs = layer(1, 32, 32, 16, 16, 2, torch.float32)
    calls = []
    real = winograd.conv3x3
    monkeypatch.setattr(winograd, 'conv3x3', lambda *args: calls.append(1) or real(*args))
    expected = definition(**kwargs)
    torch.testing.assert_close(conv2d_resample.modulated_layer(**kwargs).double(), expected, rtol=0, atol=3e-5)
    assert calls == [1]
    kwargs['x'].requires_grad_(True)
    torch.testing.assert_close(conv2d_resample.modulated_layer(**kwargs).double(), expected, rtol=0, atol=3e-5)
    assert calls == [1]


def derivatives(convolve, x, weight, grad):
    """Result, gradients, and gradients of a scalar of them by autograd through `convolve`."""
    x, weight, grad = (t.detach().requires_grad_(True) for t in (x, weight, grad))
    y = convolve(x, weight)
    first = torch.autograd.grad(y, (x, weight), grad, create_graph=True)
    scalar = sum(t.square().mean() for t in (y, *first))
    return y, *first, *torch.autograd.grad(scalar, (x, weight, grad))


@pytest.mark.parametrize('shape', SHAPES[:4])
def test_derivatives_equal_those_of_the_definition(shape, monkeypatch):
    monkeypatch.setattr(winograd, 'LEAST_TILES', 1)
    n, channels, out, height, width = shape
    args = torch.randn(n, channels, height, width), torch.randn(out, channels, 3, 3), torch.randn(n, out, height, width)
    results = derivatives(lambda x, weight: conv2d_resample.conv2d_resample(x, weight, padding=1), *args)
    expected = derivatives(lambda x, weight: torch.nn.functional.conv2d(x, weight, padding=1), *(t.double() for t in args))
    assert 'Convolve' in type(results[0].grad_fn).__name__ and results[0].grad_fn.name() != expected[0].grad_fn.name()
    y = conv2d_resample.conv2d_resample(*(t.requires_grad_(True) for t in args[:2]), padding=1)
    results += torch.autograd.grad(y, args[:2], args[2])          # in another way when nobody asks for the second
    for result, value in zip(results, expected + expected[1:3]):
        torch.testing.assert_close(result.double(), value, rtol=0, atol=3e-6 * float(value.detach().abs().max()))


def test_gradients_in_bfloat16_are_near_the_definition(monkeypatch):
    monkeypatch.setattr(winograd, 'LEAST_TILES', 1)
    monkeypatch.setattr(winograd, '_types', lambda: (torch.float32, torch.bfloat16))
    x, weight, grad = torch.randn(2, 64, 12, 12), torch.randn(32, 64, 3, 3), torch.randn(2, 32, 12, 12)
    results = derivatives(winograd.differentiable_conv3x3, x.bfloat16(), weight, grad.bfloat16())
    expected = derivatives(lambda x, weight: torch.nn.functional.conv2d(x, weight, padding=1), *(t.double() for t in (x, weight, grad)))
    assert results[0].dtype == results[1].dtype == torch.bfloat16 and results[2].dtype == torch.float32
    y = winograd.differentiable_conv3x3(x.bfloat16(), weight.requires_grad_(True))
    results = results[:3] + torch.autograd.grad(y, [weight], grad.bfloat16())
    for result, value in zip(results, (*expected[:3], expected[2])):
        error = (result.double() - value).square().mean().sqrt() / value.std()
        assert error < 0.02, f'relative error {error:.4f}'
