"""Layers of images of few pixels against their definition in plain PyTorch."""

import pytest
import torch
from test_winograd import definition, layer

from torch_utils.ops import conv2d_resample, few_pixels, winograd
from torch_utils.ops.native import load_native

pytestmark = pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')

# Batch, channels in and out, height and width: no multiples of registers, one pixel, more pixels than a register of all images.
SHAPES = [(1, 32, 48, 4, 4), (1, 16, 16, 8, 8), (3, 24, 40, 5, 7), (1, 7, 3, 1, 1), (2, 5, 1, 1, 64), (9, 16, 16, 3, 2), (0, 16, 16, 4, 4)]


@pytest.fixture
def calls(monkeypatch):
    """One entry a call."""
    made, real = [], few_pixels.convolve
    monkeypatch.setattr(few_pixels, 'convolve', lambda *args: made.append(1) or real(*args))
    with torch.inference_mode():
        yield made


@pytest.mark.parametrize('up,separable', [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_the_definition(shape, up, separable, calls):
    kwargs = {**layer(*shape, up, torch.float32, separable=separable), 'clamp': 2.0}
    result, expected = conv2d_resample.modulated_layer(**kwargs), definition(**kwargs)
    assert calls == [1] and result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last) or not shape[0]


@pytest.mark.parametrize('up', [1, 2])
@pytest.mark.parametrize('left_out', ['noise', 'bias', 'demodulate', 'noise of each'])
def test_what_may_be_left_out(left_out, up, calls):
    kwargs = layer(2, 16, 24, 6, 5, up, torch.float32)
    if left_out == 'noise of each':
        kwargs['noise'] = kwargs['noise'][:1]
    else:
        kwargs[left_out] = False if left_out == 'demodulate' else None
    expected = conv2d_resample.modulated_layer(**{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
    assert not calls                                   # float64 is for the definition
    result = conv2d_resample.modulated_layer(**kwargs).double()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert calls == [1]


def test_bfloat16_is_near_the_definition(calls, monkeypatch):
    monkeypatch.setattr(winograd, 'types', lambda: (torch.float32, torch.bfloat16))
    kwargs = layer(1, 64, 64, 8, 8, 1, torch.bfloat16)
    result, expected = conv2d_resample.modulated_layer(**kwargs), definition(**kwargs)
    assert calls == [1] and result.dtype == torch.bfloat16
    assert float((result.double() - expected).abs().max()) < 0.02 * float(expected.abs().max())


@pytest.mark.parametrize('up', [1, 2])
def test_an_image_does_not_depend_on_its_batch(up, calls):
    kwargs = layer(5, 32, 32, 6, 6, up, torch.float32)
    together = conv2d_resample.modulated_layer(**kwargs)
    for k in range(5):
        alone = conv2d_resample.modulated_layer(**{**kwargs, **{name: kwargs[name][k:k + 1] for name in ('x', 'styles', 'noise')}})
        assert torch.equal(alone, together[k:k + 1])
    assert len(calls) == 6


@pytest.mark.parametrize('size', [4, 32])
def test_derivatives_over_vmap_are_those_of_the_definition(size):
    """Whatever operator takes such a layer otherwise."""
    weight, styles, images = torch.randn(16, 16, 3, 3), torch.rand(2, 16), torch.randn(3, 2, 16, size, size)

    def total(weight, styles, images):
        return torch.func.vmap(lambda x: conv2d_resample.modulated_layer(x, weight, styles, padding=1))(images).square().sum()
    expected = torch.func.grad(total, argnums=2)(weight.double(), styles.double(), images.double())
    result = torch.func.grad(total, argnums=2)(weight, styles, images)
    assert expected.any()
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('taps', [1, 3])
def test_functionalized_layers_are_the_definition(taps):
    weight, styles, bias = torch.randn(16, 16, taps, taps, requires_grad=True), torch.rand(2, 16), torch.randn(16)
    x = torch.randn(2, 16, 32, 32)

    def function(x):
        return conv2d_resample.modulated_layer(x, weight, styles, bias=bias, padding=taps // 2, demodulate=taps > 1)
    torch.testing.assert_close(torch.func.functionalize(function)(x), function(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize('up', [1, 2])
def test_layouts_and_threads_do_not_matter(up, calls):
    kwargs = layer(2, 24, 40, 5, 7, up, torch.float32)
    expected = conv2d_resample.modulated_layer(**kwargs)
    wide = torch.empty(2, 24, 5, 14)[..., ::2].copy_(kwargs['x'])
    threads = torch.get_num_threads()
    try:
        for number, x in [(1, kwargs['x'].contiguous(memory_format=torch.channels_last)), (2, wide), (3, kwargs['x'])]:
            torch.set_num_threads(number)
            assert torch.equal(conv2d_resample.modulated_layer(**{**kwargs, 'x': x}), expected)
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 4


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_no_number_shows(value, calls):
    kwargs = layer(1, 16, 16, 8, 8, 1, torch.float32)
    kwargs['x'][0, 3, 1, 1] = value
    found = (~conv2d_resample.modulated_layer(**kwargs).isfinite()).any(dim=1)[0]
    assert calls == [1] and found[:3, :3].all() and not found[3:].any() and not found[:, 3:].any()


@pytest.mark.parametrize('mode', [torch.enable_grad, torch.no_grad])
def test_training_takes_another_way(mode, monkeypatch):
    monkeypatch.setattr(few_pixels, 'convolve', None)
    with mode():
        conv2d_resample.modulated_layer(**layer(1, 16, 16, 8, 8, 1, torch.float32))


def test_compiled_layers_take_another_way(calls):
    kwargs = layer(1, 16, 16, 8, 8, 1, torch.float32)
    expected = conv2d_resample.modulated_layer(**kwargs)
    compiled = torch.compile(conv2d_resample.modulated_layer, backend='eager')
    torch.testing.assert_close(compiled(**kwargs), expected, rtol=0, atol=1e-4)
    assert calls == [1]
    torch.compiler.reset()


@pytest.mark.parametrize('fault', [
    dict(weight=torch.zeros(16, 16, 5, 5)), dict(weight=torch.zeros(16, 8, 3, 3)), dict(styles=torch.zeros(1, 3)),
    dict(bias=torch.zeros(3)), dict(up=2, resample_filter=torch.ones(3, 3)), dict(noise=torch.zeros(1, 1, 5, 5)),
    dict(x=torch.zeros(16, 4, 4))])
def test_wrong_arguments_are_refused(fault):
    kwargs = {'x': torch.zeros(1, 16, 4, 4), 'weight': torch.zeros(16, 16, 3, 3), **fault}
    with pytest.raises(RuntimeError):
        few_pixels.convolve(**kwargs)
