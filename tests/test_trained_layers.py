"""Layers in training on CPU: their results and their derivatives of both orders against the definition in float64."""

import functools
import threading

import pytest
import torch
import torch.nn.functional as F

from torch_utils.ops import conv2d_resample, conv_gradients, trained_layers, winograd
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.native import load_native
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from training.networks.layers import Conv2dLayer, FullyConnectedLayer

pytestmark = pytest.mark.skipif(not load_native(), reason='the C++ operators cannot be built here')

FILTER = setup_filter([1, 3, 3, 1])


@pytest.fixture(autouse=True)
def small_images_too(monkeypatch):
    monkeypatch.setattr(winograd, 'LEAST_TILES', 1)
    torch.manual_seed(0)


def images(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


def derivatives(function, tensors, dtype, second=True):
    """Result, gradients by all tensors, and with `second` those of a scalar of all these; tensors None stay None."""
    tensors = [t if t is None else t.detach().to(dtype).requires_grad_(True) for t in tensors]
    given = [t for t in tensors if t is not None]
    y = function(*tensors)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    first = torch.autograd.grad(y, given, grad, create_graph=second)
    later = torch.autograd.grad(sum(t.square().mean() for t in (y, *first)), given, allow_unused=True) if second else ()
    return [y, *first, *(torch.zeros(()) if t is None else t for t in later)]


def compare(results, expected, tolerance):
    assert len(results) == len(expected)
    for place, (result, value) in enumerate(zip(results, expected)):
        largest = float(value.detach().abs().max())
        torch.testing.assert_close(result.double().broadcast_to(value.shape), value, rtol=0, atol=tolerance * max(largest, 1e-3),
                                   msg=lambda text, place=place: f'at place {place}: {text}')


def modulated(batch, noise_batch, up, channels=(32, 48)):
    """x, weight, styles, noise, bias of a layer."""
    noise = None if noise_batch is None else torch.randn(noise_batch, 1, 12 * up, 10 * up)
    return images(batch, channels[0], 12, 10), torch.randn(channels[1], channels[0], 3, 3), torch.rand(batch, channels[0]) + 0.5, noise, \
        torch.randn(channels[1])


def layer(up, clamp):
    def function(x, weight, styles, noise, bias):
        return conv2d_resample.modulated_layer(x, weight, styles, noise, bias, 'lrelu', 1.3, clamp, up, 1, FILTER.to(weight.dtype))
    return function


def definition(up, clamp):
    def function(x, weight, styles, noise, bias):
        y = conv2d_resample.modulated_conv2d(x, weight, styles, noise, up, 1, FILTER.to(x.dtype))
        return bias_act(y, bias, act='lrelu', gain=1.3, clamp=clamp)
    return function


@pytest.mark.parametrize('second', [False, True])
@pytest.mark.parametrize('noise_batch', [None, 1, 2])
@pytest.mark.parametrize('clamp', [None, 1.5])
@pytest.mark.parametrize('up', [1, 2])
def test_layer_equals_the_definition(up, clamp, noise_batch, second):
    tensors = modulated(2, noise_batch, up)
    results = derivatives(layer(up, clamp), tensors, torch.float32, second)
    assert '_Layer' in type(results[0].grad_fn).__name__
    compare(results, derivatives(definition(up, clamp), tensors, torch.float64, second), 1e-5)


def product(clamp):
    return lambda x, weight, styles, bias: conv2d_resample.modulated_layer(x, weight, styles, bias=bias, clamp=clamp, demodulate=False)


@pytest.mark.parametrize('second', [False, True])
@pytest.mark.parametrize('clamp', [None, 9.0, 256.0])
@pytest.mark.parametrize('batch, out, layout', [(1, 3, torch.channels_last), (2, 48, torch.channels_last), (2, 5, torch.contiguous_format)])
def test_product_equals_the_definition(batch, out, layout, clamp, second):
    """Layers of one tap, without demodulation; some values reach the clamp, or none."""
    x = torch.randn(batch, 32, 7, 9).contiguous(memory_format=layout)
    tensors = x, torch.randn(out, 32, 1, 1), torch.rand(batch, 32) + 0.5, torch.randn(out)
    results = derivatives(product(clamp), tensors, torch.float32, second)
    expected = derivatives(product(clamp), tensors, torch.float64, second)
    assert '_Products' in type(results[0].grad_fn).__name__ and '_Products' not in type(expected[0].grad_fn).__name__
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    reached = 0 if clamp is None else (results[0].detach().abs() == clamp).double().mean()
    assert (0 < reached < 0.5) == (clamp == 9.0)
    compare(results, expected, 1e-5)


def test_product_keeps_what_is_not_a_number():
    """And clamps what else is beyond."""
    x, weight, styles, bias = torch.ones(1, 16, 4, 4), torch.ones(3, 16, 1, 1), torch.ones(1, 16), torch.zeros(3)
    x[0, 0, 1, 2], x[0, 0, 3, 3] = float('nan'), 1e4
    x = x.to(memory_format=torch.channels_last).requires_grad_(True)
    for clamp, most in ((None, 1e4 + 15), (256.0, 256.0)):
        y = product(clamp)(x, weight, styles, bias)
        assert y.isnan().sum() == 3 and y[:, :, 1, 2].isnan().all() and (y[:, :, 3, 3] == most).all()


def operations(work):
    """What work() gives, and the names of the operations it takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = work()
    return result, {event.key.split('::')[-1] for event in profile.key_averages()}


def test_product_computes_only_what_is_asked_for():
    x, weight, styles, bias = images(2, 16, 5, 5), torch.randn(3, 16, 1, 1), torch.rand(2, 16), torch.randn(3)
    everything = derivatives(product(None), (x, weight, styles, bias), torch.float32, False)
    work = {'modulation_grad', 'bmm'}      # for x and styles; for the weight
    for wanted, value, needed in zip((x, weight, styles, bias), everything[1:], ({'modulation_grad'}, {'bmm'}, {'modulation_grad'}, set())):
        for t in (x, weight, styles, bias):
            t.requires_grad_(t is wanted)
        y = product(None)(x, weight, styles, bias)
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        grad = grad.contiguous(memory_format=torch.channels_last)
        (found,), names = operations(functools.partial(torch.autograd.grad, y, wanted, grad))
        assert names & work == needed
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)
    weight.requires_grad_(True)
    y = product(None)(x, weight, styles, bias).square().sum()
    with conv_gradients.no_weight_gradients():
        _, names = operations(y.backward)
    assert not names & work and weight.grad is None


def test_products_of_other_gains_and_types_are_the_definitions():
    x, weight, styles, bias = images(2, 16, 5, 5), torch.randn(3, 16, 1, 1, requires_grad=True), torch.rand(2, 16), torch.randn(3)
    layer = conv2d_resample.modulated_layer
    expected = layer(x.double(), weight.double(), styles.double(), bias=bias.double(), demodulate=False)
    for y, value, tolerance in ((layer(x, weight, styles, bias=bias, gain=2.0, demodulate=False), 2 * expected, 1e-5),
                                (layer(x.bfloat16(), weight, styles, bias=bias, demodulate=False), expected, 0.1),
                                (layer(x[:0], weight, styles[:0], bias=bias, demodulate=False), expected[:0], 0)):
        assert '_Products' not in type(y.grad_fn).__name__ and y.shape == value.shape
        torch.testing.assert_close(y.double(), value, rtol=0, atol=tolerance)


@pytest.mark.parametrize('clamp', [None, 1.0])
def test_products_may_be_changed_in_place_and_derived_in_any_company(clamp):
    tensors = [images(2, 16, 5, 5), *(t.requires_grad_(True) for t in (torch.randn(3, 16, 1, 1), torch.rand(2, 16), torch.randn(3)))]
    leaves = tensors[1:]
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    expected = torch.autograd.grad((product(clamp)(*doubles) * 2).square().sum(), doubles[1:])
    compare(torch.autograd.grad(product(clamp)(*tensors).mul_(2).square().sum(), leaves), expected, 1e-5)
    total = (product(clamp)(*tensors) * 2).square().sum()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        compare(torch.autograd.grad(total, leaves), expected, 1e-5)
    y, many = product(clamp)(*tensors), torch.randn(4, 2, 3, 5, 5)
    together = torch.autograd.grad(y, leaves, many, is_grads_batched=True, retain_graph=True)
    for place, value in enumerate(zip(*(torch.autograd.grad(y, leaves, grad, retain_graph=True) for grad in many))):
        torch.testing.assert_close(together[place], torch.stack(value), rtol=0, atol=1e-4)


@pytest.mark.parametrize('up', [1, 2])
def test_layer_in_bfloat16_is_near_the_definition(up, monkeypatch):
    monkeypatch.setattr(winograd, 'types', lambda: (torch.float32, torch.bfloat16))
    tensors = modulated(2, 1, up, channels=(64, 64))
    x, *others = tensors
    results = derivatives(lambda x, *rest: layer(up, None)(x.bfloat16(), *rest), (x, *others), torch.float32, False)
    assert results[0].dtype == torch.bfloat16 and '_Layer' in type(results[0].grad_fn).__name__
    for result, value in zip(results, derivatives(definition(up, None), tensors, torch.float64, False)):
        error = (result.double() - value).square().mean().sqrt() / value.square().mean().sqrt()
        assert error < 0.02, f'relative error {error:.4f}'


def test_only_what_is_asked_for():
    """A layer whose weights are held, as in the first stage of an inversion, and one of which only the weight is trained."""
    x, weight, styles, noise, bias = modulated(1, 1, 1)
    for wanted in ([x, styles], [weight], [noise]):
        for t in (x, weight, styles, noise, bias):
            t.requires_grad_(any(t is w for w in wanted))
        found = torch.autograd.grad(layer(1, None)(x, weight, styles, noise, bias).square().sum(), wanted)
        doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, weight, styles, noise, bias)]
        value = definition(1, None)(*doubles).square().sum()
        compare(found, torch.autograd.grad(value, [t for t in doubles if t.requires_grad]), 1e-5)


def test_activation_does_not_depend_on_the_number_of_threads():
    tensors = modulated(3, 3, 1)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(derivatives(lambda x, bias: bias_act(x, bias, act='lrelu', clamp=1.0), (tensors[0], tensors[2][0]), torch.float32,
                                     False))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


@pytest.mark.parametrize('act, clamp', [('linear', 0.8), ('lrelu', None), ('lrelu', 0.8)])
@pytest.mark.parametrize('shape', [(2, 3, 5, 7), (1, 32, 40, 30), (3, 100, 1, 1), (0, 8, 4, 4)])
def test_activation_equals_the_definition(shape, act, clamp):
    x, bias = images(*shape), torch.randn(shape[1])
    results = derivatives(lambda x, bias: bias_act(x, bias, act=act, gain=1.7, clamp=clamp), (x, bias), torch.float32, shape[0] > 0)
    expected = derivatives(lambda x, bias: bias_act(x, bias, act=act, gain=1.7, clamp=clamp), (x, bias), torch.float64, shape[0] > 0)
    assert '_Activation' in type(results[0].grad_fn).__name__ and '_Activation' not in type(expected[0].grad_fn).__name__
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    if shape[0] > 0:
        compare(results, expected, 1e-6)


def test_activation_leaves_other_layouts_and_activations_alone():
    x = images(2, 8, 4, 4)
    assert trained_layers.can_activate(x, 'lrelu', 1.0)
    assert not any(trained_layers.can_activate(t, act, gain) for t, act, gain in [
        (x, 'tanh', 1.0), (x.double(), 'lrelu', 1.0), (x[0], 'lrelu', 1.0), (x.contiguous(), 'lrelu', 1.0), (x, 'lrelu', -1.0)])


def test_activation_keeps_what_is_not_a_number():
    x = images(1, 16, 2, 2)
    x[0, 3, 1, 1] = float('nan')
    y = bias_act(x, act='lrelu', clamp=1.0)
    assert y.isnan().sum() == 1 and y[0, 3, 1, 1].isnan()


@pytest.mark.parametrize('size', [(9, 13), (8, 8), (3, 4)])
def test_strided_convolutions_equal_the_definition(size):
    x, weight = images(2, 6, *size), torch.randn(10, 6, 3, 3)
    compare(derivatives(lambda x, w: conv_gradients.conv2d(x, w, 2), (x, weight), torch.float32),
            derivatives(lambda x, w: F.conv2d(x, w, stride=2), (x, weight), torch.float64), 1e-5)
    transposed = weight.transpose(0, 1)
    y = images(2, 6, *size)
    compare(derivatives(lambda x, w: conv_gradients.conv_transpose2d(x, w, 2), (y, transposed), torch.float32),
            derivatives(lambda x, w: F.conv_transpose2d(x, w, stride=2), (y, transposed), torch.float64), 1e-5)


@pytest.mark.parametrize('convolve', [lambda x, w: conv2d_resample.conv2d_resample(x, w, padding=1),
                                      lambda x, w: conv_gradients.conv2d(x, w, 2)])
def test_gradient_penalty_computes_no_weight_gradient_that_is_thrown_away(convolve, monkeypatch):
    """And has the same gradient of the weight as with them."""
    calls = []
    real = conv_gradients.Correlate.forward
    monkeypatch.setattr(conv_gradients.Correlate, 'forward', staticmethod(lambda *args: calls.append(1) or real(*args)))
    x, weight = images(2, 16, 8, 8).requires_grad_(True), torch.randn(16, 16, 3, 3, requires_grad=True)
    with conv_gradients.no_weight_gradients():
        gradient, = torch.autograd.grad(convolve(x, weight).square().sum(), [x], create_graph=True)
    assert not calls
    penalty = torch.autograd.grad(gradient.square().sum(), [weight])[0]
    assert calls
    gradient, = torch.autograd.grad(convolve(x, weight).square().sum(), [x], create_graph=True)
    torch.testing.assert_close(penalty, torch.autograd.grad(gradient.square().sum(), [weight])[0])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('padding', [0, 1, 2, (2, 1, 3, 0)])
@pytest.mark.parametrize('down', [1, 2])
def test_separable_filters_equal_the_definition(down, padding, dtype):
    x, f = images(2, 5, 11, 8, dtype=dtype), torch.outer(torch.rand(4) + 0.1, torch.rand(4) + 0.1)
    expected = upfirdn2d(x.double(), f.double(), down=down, padding=padding)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(upfirdn2d(x, f, down=down, padding=padding).double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize('name', ['no product', 'sum zero'])
def test_filters_that_are_not_separable_or_have_no_sum(name):
    f = {'no product': torch.randn(4, 4), 'sum zero': torch.outer(torch.tensor([1., -1, 1, -1]), torch.rand(4))}[name]
    x = images(1, 6, 9, 9)
    torch.testing.assert_close(upfirdn2d(x, f, padding=2).double(), upfirdn2d(x.double(), f.double(), padding=2), rtol=0, atol=1e-5)


def test_gradient_penalty_of_a_discriminators_layer(monkeypatch):
    """The gradient penalty of a whole convolutional layer by the fast path and by plain PyTorch."""
    module = Conv2dLayer(16, 32, 3, activation='lrelu', down=2)
    x = images(2, 16, 16, 16)

    def penalty():
        leaf = x.clone(memory_format=torch.channels_last).requires_grad_(True)
        gradient, = torch.autograd.grad(module(leaf).sum(), [leaf], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), list(module.parameters()), allow_unused=True)
    fast = penalty()
    monkeypatch.setattr(conv_gradients, 'load_native', lambda: False)
    monkeypatch.setattr(trained_layers, 'load_native', lambda: False)
    plain = penalty()
    assert fast[1] is None or not fast[1].any()
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('up', [1, 2])
def test_inputs_that_depend_on_one_another(up):
    """The image is made of the styles, and two layers share a weight: every path counts once, in both orders."""
    x, weight, styles, _, bias = modulated(2, None, up, channels=(32, 32))

    def chain(run):
        def function(x, weight, styles, bias):
            y = run(x * styles[:, :, None, None], weight, styles, None, bias)
            return run(y.contiguous(memory_format=torch.channels_last), weight, styles, None, bias)
        return function
    for second in (False, True):
        results = derivatives(chain(layer(up, None)), (x, weight, styles, bias), torch.float32, second)
        compare(results, derivatives(chain(definition(up, None)), (x, weight, styles, bias), torch.float64, second), 1e-4)


@pytest.mark.parametrize('gradient', [False, True])
@pytest.mark.parametrize('noise_shape, styles_shape', [((12, 10), (2, 32)), ((2, 48, 12, 10), (2, 32)), ((1, 1, 1, 1), (2, 32)),
                                                       ((1, 1, 12, 10), (1, 32))])
def test_shapes_that_only_broadcast_are_left_to_the_definition(noise_shape, styles_shape, gradient):
    x, weight, _, _, bias = modulated(2, None, 1)
    noise, styles = torch.randn(noise_shape), torch.rand(styles_shape) + 0.5
    weight.requires_grad_(gradient)
    expected = definition(1, None)(*(t.double() for t in (x, weight, styles, noise, bias)))
    torch.testing.assert_close(layer(1, None)(x, weight, styles, noise, bias).double(), expected, rtol=0, atol=1e-4)


def test_separable_filter_with_far_padding_and_infinite_pixels():
    x = images(1, 64, 8, 8)
    beyond = upfirdn2d(x, FILTER, padding=(400, -395, 2, 1))      # the right padding cuts off all of the image
    assert beyond.shape == (1, 64, 8, 10) and not beyond.any()
    x[0, 0, 0] = float('inf')
    finite = upfirdn2d(x, FILTER, padding=2)[0, 0].isfinite().all(dim=1)
    assert finite.tolist() == [False] * 3 + [True] * 6


def test_weight_gradients_are_left_out_in_one_thread_only():
    inside, done = threading.Event(), threading.Event()

    def hold():
        with conv_gradients.no_weight_gradients():
            inside.set()
            done.wait(20)
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(20)
    x, weight = images(1, 16, 8, 8), torch.randn(16, 16, 3, 3, requires_grad=True)
    conv2d_resample.conv2d_resample(x, weight, padding=1).sum().backward()
    done.set()
    thread.join()
    assert weight.grad is not None


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('activation', ['linear', 'lrelu'])
def test_dense_layers_take_any_number_of_dimensions(activation, bias):
    module = FullyConnectedLayer(8, 4, bias=bias, activation=activation, lr_multiplier=0.5, bias_init=0.3)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(module(x), module(x.view(6, 8)).view(2, 3, 4))
