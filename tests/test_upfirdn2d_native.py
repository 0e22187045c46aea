"""The C++ upfirdn2d against its definition in plain PyTorch."""

import pytest
import torch

from torch_utils.ops import upfirdn2d as op
from torch_utils.ops.native import load_native

CASES = [((2, 2), (1, 1), (2, 1, 2, 1)), ((2, 3), (3, 1), (2, 1, 0, 3)), ((2, 2), (1, 1), (1, -1, 0, 0)), ((3, 3), (2, 2), (0, 0, 0, 0)),
         ((2, 2), (2, 2), (3, -2, -1, 4)), ((2, 1), (1, 2), (1, 1, 1, 1)), ((1, 1), (2, 2), (1, 2, 0, 1)), ((1, 1), (1, 1), (-1, 2, 0, 1))]


@pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')
@pytest.mark.parametrize('up,down,padding', CASES)
@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize('channels', [1, 5, 16, 33])
def test_equals_the_definition(up, down, padding, dtype, tolerance, channels):
    x = torch.randn(2, channels, 7, 6).to(dtype)
    f = torch.randn(4, 3).to(dtype)
    expected = op._reference(x.double(), f.double(), up, down, padding)
    for layout in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        result = torch.ops.omnihead.upfirdn2d(layout, f, up, down, padding)
        assert result.shape == expected.shape and result.dtype == dtype
        assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')
@pytest.mark.parametrize('column', [[0.0, 0, 0, 0], [0.1, 0.5, 0.2, 0.2], [1.0, -1, 1, -1]], ids=['zero', 'separable', 'sum zero'])
def test_filters_of_four_taps(column):
    f = torch.outer(torch.tensor(column), torch.tensor([0.3, 0.4, 0.1, 0.2]))
    x = torch.randn(2, 5, 7, 6)
    result = torch.ops.omnihead.upfirdn2d(x, f, (1, 1), (1, 1), (1, 2, 1, 2))
    torch.testing.assert_close(result.double(), op._reference(x.double(), f.double(), (1, 1), (1, 1), (1, 2, 1, 2)), rtol=0, atol=1e-5)


@pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')
def test_gradients_go_through_it(monkeypatch):
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    f = op.setup_filter([1, 3, 3, 1])

    def gradients():
        y = op.upsample2d(x, f)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return first, torch.autograd.grad(first.pow(3).sum(), x)[0]

    native = gradients()
    monkeypatch.setattr(op, 'load_native', lambda: False)
    for ours, plain in zip(native, gradients()):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')
@pytest.mark.parametrize('taps', [op.setup_filter([1, 3, 3, 1]), torch.randn(4, 4, generator=torch.Generator().manual_seed(0))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_sum_with_an_upsampled_image(taps, dtype):
    """In training; derivatives of both orders."""
    img, added = torch.randn(2, 16, 5, 7), torch.randn(2, 16, 10, 14).to(dtype)
    found = []
    for function, number in ((op.upsample_add, torch.float32), (lambda img, f, added: op.upsample2d(img, f) + added, torch.float64)):
        inputs = [t.to(number if number == torch.float64 else t.dtype).requires_grad_(True) for t in (img, added)]
        y = function(inputs[0], taps.to(inputs[0].dtype), inputs[1])
        first = torch.autograd.grad((y ** 3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g ** 2).sum() for g in first), inputs)
        found.append([y, *first, *second])
    assert '_UpsampleAdd' in type(found[0][0].grad_fn).__name__ and found[0][2].dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for value, expected in zip(*found):
        assert (value.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')
def test_sum_with_an_upsampled_image_takes_what_broadcasts_and_constants_of_inference():
    with torch.inference_mode():
        taps = op.setup_filter([1, 3, 3, 1])
    img, added = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(1, 3, 8, 8)
    y = op.upsample_add(img, taps, added)
    torch.testing.assert_close(y, op.upsample2d(img, taps) + added)
    torch.testing.assert_close(op.upsample_add(img, taps, added.expand(2, -1, -1, -1)), y)
    assert torch.autograd.grad(y.sum(), img)[0].shape == img.shape
