"""Convolutions by minimal filtering, and of one tap, against their definition in plain PyTorch."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

from torch_utils.ops import conv2d_resample, winograd
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.native import load_native
from torch_utils.ops.upfirdn2d import setup_filter

pytestmark = pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')

# Batch, channels in and out, height and width: odd sizes, several groups of channels, more tiles than a block or a strip has.
SHAPES = [(2, 32, 64, 13, 9), (1, 16, 48, 8, 8), (3, 64, 128, 5, 30), (1, 16, 16, 1, 1), (1, 48, 80, 40, 3), (2, 16, 16, 90, 60),
          (5, 16, 32, 36, 32), (1, 16, 16, 61, 66), (0, 16, 16, 8, 8)]


def layer(n, channels, out, height, width, up, dtype, kernel=3, separable=False):
    """Arguments of modulated_layer."""
    noise = torch.randn(n or 1, 1, height * up, width * up)
    return dict(x=torch.randn(n, channels, height, width).to(dtype), weight=torch.randn(out, channels, kernel, kernel),
                styles=torch.rand(n, channels) + 0.5, noise=noise, bias=torch.randn(out), act='lrelu', gain=1.3, up=up, padding=kernel // 2,
                resample_filter=torch.outer(torch.rand(4), torch.rand(4)) if separable
                else setup_filter([1, 3, 3, 1]) + 0.01 * torch.randn(4, 4))


def definition(x, weight, styles, noise, bias, act, gain, clamp=None, **kwargs):
    """The same by modulated_conv2d and bias_act in float64."""
    x, weight, styles, noise, bias = (t.double() for t in (x, weight, styles, noise, bias))
    y = conv2d_resample.modulated_conv2d(x, weight, styles, noise, **{**kwargs, 'resample_filter': kwargs['resample_filter'].double()})
    return bias_act(y, bias, act=act, gain=gain, clamp=clamp)


def fused(x, weight, styles, noise, bias, act, gain, up, padding, resample_filter, clamp=None, products=None):
    return winograd.convolve(x, weight, up, resample_filter, styles, True, noise, bias, 0.2, gain, clamp, products)


def relative_error(result, expected):
    """Root of the mean square of the difference, in standard deviations of what was expected."""
    return float((result.double() - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize('up,kernel,separable', [(1, 3, False), (2, 3, False), (2, 3, True), (1, 1, False)])
@pytest.mark.parametrize('shape', SHAPES)
def test_float32_equals_the_definition(shape, up, kernel, separable):
    kwargs = layer(*shape, up, torch.float32, kernel, separable)
    result = fused(**kwargs, clamp=2.0)
    expected = definition(**kwargs, clamp=2.0)
    assert result.shape == expected.shape and result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize('products', ['float32', pytest.param('int16', marks=pytest.mark.skipif(
    not load_native() or not winograd.multiplies('int16'), reason='no products of integers on this processor'))])
@pytest.mark.parametrize('size,up,kernel', [(450, 1, 3), (225, 2, 3), (450, 1, 1)])
def test_results_beyond_the_caches(size, up, kernel, products):
    kwargs = layer(1, 16, 64, size, size, up, torch.float32, kernel, separable=True)
    result = fused(**kwargs, products=products)
    assert result.numel() * 4 > 48 << 20        # they are written another way
    if products == 'int16':
        assert relative_error(result, definition(**kwargs)) < 1e-3
    else:
        torch.testing.assert_close(result.double(), definition(**kwargs), rtol=0, atol=3e-5)


@pytest.mark.parametrize('out', [1, 2, 3, 4])
@pytest.mark.parametrize('shape', [(2, 32, 13, 9), (1, 16, 1, 3), (3, 48, 40, 41), (0, 16, 8, 8)])
def test_few_channels_equal_the_definition(shape, out, monkeypatch):
    monkeypatch.setattr(winograd, 'LEAST_PIXELS', 1)
    calls = []
    real = winograd.convolve
    monkeypatch.setattr(winograd, 'convolve', lambda *args: calls.append(1) or real(*args))
    kwargs = dict(x=torch.randn(shape), weight=torch.randn(out, shape[1], 1, 1), styles=torch.randn(shape[:2]), bias=torch.randn(out),
                  act='lrelu', gain=1.3, clamp=2.0, demodulate=False)
    result = conv2d_resample.modulated_layer(**kwargs)
    kwargs.update({k: v.double() for k, v in kwargs.items() if isinstance(v, torch.Tensor)})
    torch.testing.assert_close(result.double(), conv2d_resample.modulated_layer(**kwargs), rtol=0, atol=3e-5)
    assert calls == [1] and (result.is_contiguous(memory_format=torch.channels_last) or not shape[0])


@pytest.mark.parametrize('up', [1, 2])
def test_bfloat16_is_near_the_definition(up):
    kwargs = layer(2, 64, 64, 12, 12, up, torch.bfloat16)
    result, expected = fused(**kwargs), definition(**kwargs)
    assert result.dtype == torch.bfloat16
    assert relative_error(result, expected) < 0.02


integers = pytest.mark.skipif(not load_native() or not winograd.multiplies('int16'), reason='no products of integers on this processor')


@integers
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('up,kernel', [(1, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize('shape', [*SHAPES[:3], SHAPES[5], (1, 512, 16, 9, 9), (1, 1024, 16, 12, 12)])
def test_int16_is_near_the_definition(shape, up, kernel, dtype):
    kwargs = layer(*shape, up, dtype, kernel)
    result, expected = fused(**kwargs, products='int16'), definition(**kwargs)
    assert result.dtype == dtype and not torch.equal(result, fused(**kwargs))
    bound = (9e-5 if kernel == 3 else 2e-5) * shape[1] ** 0.5
    assert relative_error(result, expected) < (bound if dtype == torch.float32 else 0.02)


@integers
@pytest.mark.parametrize('size,kernel', [(1e-14, 3), (1e-14, 1), (1e15, 3), (1e15, 1)])
def test_int16_keeps_its_accuracy_over_a_wide_range(size, kernel):
    kwargs = {**layer(1, 64, 32, 16, 16, 1, torch.float32, kernel), 'noise': None, 'bias': None}
    kwargs['x'] *= size
    expected = definition(**{**kwargs, 'noise': torch.zeros(1, 1, 1, 1), 'bias': torch.zeros(32)})
    assert relative_error(fused(**kwargs, products='int16'), expected) < 2e-3
    kwargs['x'] *= 1e-14 / size * 1e-9            # squares lose their bits: nothing, but no nonsense
    assert not fused(**kwargs, products='int16').any()


@integers
def test_int16_sums_do_not_overflow():
    """Whatever the channels hold; and every tile and channel has its own scale."""
    kwargs = layer(1, 64, 32, 24, 24, 1, torch.float32)
    kwargs['x'][:, :, :12] *= 1e12
    kwargs['x'][:, :, 12:] *= 1e-12
    kwargs['noise'], kwargs['bias'] = None, None
    parts = slice(0, 8), slice(16, 24)
    result = fused(**kwargs, products='int16')
    expected = conv2d_resample.modulated_layer(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
    for rows in parts:
        assert relative_error(result[:, :, rows], expected[:, :, rows]) < 2e-3
    kwargs['x'] = torch.ones(1, 64, 24, 24)           # all products of one sign, in every channel the largest value
    kwargs['weight'] = torch.ones(32, 64, 3, 3)
    kwargs['styles'] = torch.ones(1, 64)
    expected = definition(**{**kwargs, 'noise': torch.zeros(1, 1, 24, 24), 'bias': torch.zeros(32)})
    torch.testing.assert_close(fused(**kwargs, products='int16').double(), expected, rtol=1e-3, atol=0)
    kwargs['x'] = torch.zeros(1, 64, 24, 24)
    assert not fused(**kwargs, products='int16').any()


@pytest.mark.parametrize('products', ['float32', pytest.param('int16', marks=integers)])
@pytest.mark.parametrize('up,kernel', [(1, 3), (2, 3), (1, 1)])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_no_number_shows(products, up, kernel, value):
    kwargs = layer(1, 32, 32, 24, 24, up, torch.float32, kernel)
    kwargs['x'][0, 3, 5, 6] = value
    found = (~fused(**kwargs, products=products).isfinite()).any(dim=1)[0]
    assert found[5 * up:6 * up, 6 * up:7 * up].all() and not found[16 * up:].any() and not found[:, 16 * up:].any()


@pytest.mark.parametrize('products', ['float32', pytest.param('int16', marks=integers)])
@pytest.mark.parametrize('up', [1, 2])
def test_threads_share_the_work_without_a_trace(products, up):
    kwargs = layer(3, 32, 48, 45, 45, up, torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(fused(**kwargs, products=products))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


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
    torch.testing.assert_close(winograd.convolve(x, weight), torch.nn.functional.conv2d(x, weight, padding=1), rtol=0, atol=2e-4)


@pytest.mark.parametrize('out', [32, 3])
def test_forward_derivatives_take_the_definition(out):
    x, tangent = torch.randn(2, 1, 32, 32, 32)
    weight, styles, bias = torch.randn(out, 32, 1, 1), torch.rand(1, 32), torch.randn(out)
    function = functools.partial(conv2d_resample.modulated_layer, weight=weight, styles=styles, bias=bias, demodulate=False)
    _, found = torch.func.jvp(function, (x,), (tangent,))
    with forward_ad.dual_level():
        other = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    expected = torch.nn.functional.conv2d(tangent * styles[:, :, None, None], weight)
    for result in (found, other):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('fault', [
    dict(x=torch.zeros(1, 8, 8, 8)), dict(products='int8'), dict(weight=torch.zeros(16, 16, 5, 5)), dict(styles=torch.zeros(1, 3)),
    dict(up=2, resample_filter=torch.ones(4, 4), weight=torch.zeros(16, 16, 1, 1)), dict(bias=torch.zeros(3)),
    dict(x=torch.zeros(1, 16, 8, 8, dtype=torch.float64))])
def test_wrong_arguments_are_refused(fault):
    kwargs = {'x': torch.zeros(1, 16, 8, 8), 'weight': torch.zeros(16, 16, 3, 3), **fault}
    with pytest.raises(RuntimeError):
        winograd.convolve(**kwargs)


def test_few_tiles_pay_where_weights_are_light():
    for channels, size, taken in [(128, 4, True), (256, 4, False), (256, 16, True)]:
        x, weight = torch.zeros(1, channels, size, size), torch.zeros(channels, channels, 3, 3)
        assert winograd.can_convolve(x, weight) == taken and not winograd.can_convolve(x[:, :, :0], weight)


@pytest.mark.parametrize('up,kernel', [(2, 3), (1, 1)])
def test_layers_take_it_where_no_gradient_is_wanted(up, kernel, monkeypatch):
    monkeypatch.setattr(winograd, 'LEAST_TILES', 1)
    kwargs = layer(1, 32, 32, 16, 16, up, torch.float32, kernel)
    calls = []
    real = winograd.convolve
    monkeypatch.setattr(winograd, 'convolve', lambda *args: calls.append(1) or real(*args))
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
    monkeypatch.setattr(winograd, 'types', lambda: (torch.float32, torch.bfloat16))
    x, weight, grad = torch.randn(2, 64, 12, 12), torch.randn(32, 64, 3, 3), torch.randn(2, 32, 12, 12)
    results = derivatives(winograd.differentiable_convolve, x.bfloat16(), weight, grad.bfloat16())
    expected = derivatives(lambda x, weight: torch.nn.functional.conv2d(x, weight, padding=1), *(t.double() for t in (x, weight, grad)))
    assert results[0].dtype == results[1].dtype == torch.bfloat16 and results[2].dtype == torch.float32
    y = winograd.differentiable_convolve(x.bfloat16(), weight.requires_grad_(True))
    results = results[:3] + torch.autograd.grad(y, [weight], grad.bfloat16())
    for result, value in zip(results, (*expected[:3], expected[2])):
        error = (result.double() - value).square().mean().sqrt() / value.std()
        assert error < 0.02, f'relative error {error:.4f}'
