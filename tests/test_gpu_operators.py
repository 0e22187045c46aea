"""Every operator on an NVIDIA GPU against plain PyTorch on the CPU: `pytest -m gpu` is the one command.

It ends with a table of the errors seen beside those allowed, in the terminal and in the file that OMNIHEAD_GPU_TABLE names.
"""

import os
import threading
from pathlib import Path

import pytest
import torch

from test_volume_render import CASES, Case, PlainField, make, render
from torch_utils.ops import cuda_build, cuda_images, upfirdn2d as upfirdn2d_module
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from torch_utils.ops.conv2d_resample import modulated_conv2d
from torch_utils.ops.volume_render import can_render
from training.representations.planes import PlaneField
from training.volumetric_rendering.rays import Rays
from training.volumetric_rendering.renderer import render_rays

pytestmark = pytest.mark.gpu
GPU = torch.device('cuda')
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
ROWS = {}   # (operator, what, type): largest error, tolerance


@pytest.fixture(scope='module', autouse=True)
def table(request):
    """Writes what check() collected."""
    yield
    lines = ['| operator | compared | type | error | allowed |', '| --- | --- | --- | ---: | ---: |']
    lines += [f'| {op} | {what} | {str(dtype)[6:]} | {error:.1e} | {allowed:.0e} |' for (op, what, dtype), (error, allowed) in ROWS.items()]
    reporter = request.config.pluginmanager.getplugin('terminalreporter')
    for line in ('', f'{torch.cuda.get_device_name()}, torch {torch.__version__}', *lines):
        reporter.write_line(line)
    if os.environ.get('OMNIHEAD_GPU_TABLE'):
        Path(os.environ['OMNIHEAD_GPU_TABLE']).write_text('\n'.join(lines) + '\n', encoding='utf-8')


@pytest.fixture(scope='module', autouse=True)
def kernels_are_there():
    """Falling back in silence would compare the reference with itself."""
    usable, reason = cuda_build.status(GPU)
    assert usable, reason


def check(operator, what, value, expected, dtype=torch.float32, tolerance=None):
    """Norm of the difference, relative to that of the expected values, within the type's tolerance; a row of the table."""
    value, expected = value.detach().double().cpu().flatten(), expected.detach().double().cpu().flatten()
    assert value.shape == expected.shape and value.isfinite().all()
    error = ((value - expected).norm() / expected.norm().clamp(min=1e-12)).item()
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    ROWS[operator, what, dtype] = max((error, allowed), ROWS.get((operator, what, dtype), (0.0, allowed)))
    assert error <= allowed, f'{operator}, {what}: off by {error:.2e}'


def on_gpu(leaves, decoder, noise):
    """Leaves on the GPU with the decoder's parameters among them, and the noise there."""
    copy = type(decoder)(decoder.net[0].weight.shape[1], decoder.net[2].weight.shape[0] - 1, decoder.activation,
                         hidden_features=decoder.net[0].weight.shape[0])
    copy.load_state_dict(decoder.state_dict())
    copy = copy.to(GPU)
    moved = [leaf.detach().to(GPU).requires_grad_(True) for leaf in leaves]
    return [moved[0], *copy.parameters(), *moved[-2:]], copy, type(noise)(*(None if t is None else t.to(GPU) for t in noise))


def gradients(outputs, leaves):
    torch.manual_seed(1)
    weights = [torch.randn(v.shape).to(v.device) for v in outputs]
    return torch.autograd.grad(outputs, leaves, weights, allow_unused=True)


@pytest.mark.parametrize('name', [name for name in CASES if name != 'auto'])
def test_renderer(name):
    case = CASES[name]
    leaves, decoder, options, noise = make(case)
    expected = render(case, PlainField, leaves, decoder, options, noise)
    expected_grads = gradients(expected, leaves)
    leaves, decoder, noise = on_gpu(leaves, decoder, noise)
    field = PlaneField(leaves[0], decoder, options.box_warp, case.plane_axes, case.trilinear)
    assert can_render(field.planes, field._plain_decoder(), options.depth_resolution + options.depth_resolution_importance)
    value = render(case, PlaneField, leaves, decoder, options, noise)
    for label, v, e in zip(('features', 'depth', 'opacity'), value, expected):
        check(f'volume_render, {name}', label, v, e)
    labels = ['planes', *(f'gradient of {k}' for k, _ in decoder.named_parameters()), 'origins', 'directions']
    for label, v, e in zip(labels, gradients(value, leaves), expected_grads):
        check(f'volume_render, {name}', f'gradient of {label}', v, e)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_renderer_with_planes_of_low_precision(dtype):
    """The same planes widened and plain are the reference: only the gradient is rounded."""
    case = CASES['published_samples']
    leaves, decoder, options, noise = make(case)
    leaves[0] = leaves[0].detach().to(dtype).float().requires_grad_(True)
    expected = render(case, PlainField, leaves, decoder, options, noise)
    expected_grads = gradients(expected, leaves)
    leaves, decoder, noise = on_gpu(leaves, decoder, noise)
    leaves[0] = leaves[0].detach().to(dtype).requires_grad_(True)
    value = render(case, PlaneField, leaves, decoder, options, noise)
    grads = gradients(value, leaves)
    assert grads[0].dtype == dtype
    check('volume_render', 'features', value[0], expected[0], dtype, 1e-4)
    check('volume_render', 'gradient of planes', grads[0], expected_grads[0], dtype)


@pytest.mark.parametrize('batch, rays', [(0, 5), (2, 0)])
def test_nothing_to_render(batch, rays):
    leaves, decoder, options, noise = make(Case(batch=batch, rays=rays))
    leaves, decoder, noise = on_gpu(leaves, decoder, noise)
    features, depth, _ = render(Case(), PlaneField, leaves, decoder, options, noise)
    assert features.shape == (batch, rays, 16)
    grads = torch.autograd.grad(features.sum() + depth.sum(), leaves, allow_unused=True)
    assert all(g is None or not g.any() for g in grads)


@pytest.mark.parametrize('name', ['ordinary', 'odd_channels', 'bilinear', 'lrelu'])
def test_query(name):
    case = CASES[name]
    leaves, decoder, options, noise = make(case)
    points = (torch.rand(case.batch, 2000, 3) - 0.5) * options.box_warp * 1.2
    layout = options.box_warp, case.plane_axes, case.trilinear
    with torch.no_grad():
        expected = PlainField(leaves[0], decoder, *layout).query(points)
        leaves, decoder, _ = on_gpu(leaves, decoder, noise)
        field = PlaneField(leaves[0], decoder, *layout)
        value, alone = field.query(points.to(GPU)), field.density(points.to(GPU))
    check(f'plane_query, {name}', 'density', value.density, expected.density)
    check(f'plane_query, {name}', 'features', value.features, expected.features)
    check(f'plane_density, {name}', 'density', alone, expected.density)


def test_layouts_and_shared_planes():
    leaves, decoder, options, noise = make(Case(channels=8))
    base = leaves[0].detach()[:1].permute(0, 5, 1, 4, 3, 2).contiguous().requires_grad_(True)
    results = []
    for device, kind in ((torch.device('cpu'), PlainField), (GPU, PlaneField)):
        if device == GPU:
            leaves, decoder, noise = on_gpu(leaves, decoder, noise)
        planes = base.detach().to(device).requires_grad_(True)
        field = kind(planes.permute(0, 2, 5, 4, 3, 1), decoder, 1.0).expand(2)
        out = render_rays(field, Rays(*leaves[-2:]), options, noise).features
        results.append((out, *torch.autograd.grad(out.square().sum(), [planes, leaves[-1]])))
    for label, expected, value in zip(('features', 'gradient of planes', 'gradient of directions'), *results):
        check('volume_render, shared planes', label, value, expected)


SIZES = [(2, 6, 5, 7), (2, 8, 16, 16), (0, 3, 4, 4)]
LAYOUTS = {'contiguous': lambda x: x, 'channels-last': lambda x: x.contiguous(memory_format=torch.channels_last),
           'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), 'gaps': lambda x: torch.stack([x, x], dim=2)[:, :, 0]}


def first_and_second(function, *inputs):
    """Value, gradients, and gradients of a function of these."""
    y = function(*inputs)
    torch.manual_seed(2)
    first = torch.autograd.grad(y, inputs, torch.randn(y.shape).to(y), create_graph=True)
    scalar = sum((g.float() * g.detach().float().cos()).sum() for g in first)
    second = torch.autograd.grad(scalar, inputs, allow_unused=True) if scalar.requires_grad else ()
    return [y, *first, *(g for g in second if g is not None and g.any())]


@pytest.mark.parametrize('dtype', list(TOLERANCE))
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_bias_act(act, layout, dtype):
    clamp = 1.5 if dtype != torch.bfloat16 else None
    for shape in SIZES:
        x, b = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
        expected = first_and_second(lambda x, b: bias_act(x, b, act=act, gain=1.3, clamp=clamp),
                                    *(t.float().requires_grad_(True) for t in (x, b)))
        inputs = [t.detach().requires_grad_(True) for t in (LAYOUTS[layout](x.to(GPU)), b.to(GPU))]
        value = first_and_second(lambda x, b: bias_act(x, b, act=act, gain=1.3, clamp=1.5), *inputs)
        if shape[0] == 0:
            assert value[0].shape == shape
            continue
        for label, v, e in zip(('value', 'dx', 'db', 'ddx', 'ddb'), value, expected):
            # A half number beside the clamp may fall on its other side: some gradients are then another's.
            check(f'bias_act, {act}, {layout}', label, v, e, dtype, None if label == 'value' or dtype == torch.float32 else 0.1)


@pytest.mark.parametrize('dtype', list(TOLERANCE))
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('up, down, padding', [(2, 1, (2, 1, 2, 1)), (1, 2, (1, 2, 0, 1)), ((2, 3), (3, 1), (2, 1, 0, 3)),
                                               (1, 1, (-1, 2, 1, 1))])
def test_upfirdn2d(up, down, padding, layout, dtype):
    f = torch.rand(4, 3)

    def function(x):
        return upfirdn2d_module.upfirdn2d(x, f.to(x.device), up, down, padding).square()
    for shape in SIZES[:2]:
        x = torch.randn(shape).to(dtype)
        expected = first_and_second(function, x.float().requires_grad_(True))
        value = first_and_second(function, LAYOUTS[layout](x.to(GPU)).detach().requires_grad_(True))
        assert len(value) == len(expected) == 3
        for label, v, e in zip(('value', 'dx', 'ddx'), value, expected):
            check(f'upfirdn2d, {layout}, up {up}, down {down}', label, v, e, dtype, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', list(TOLERANCE))
@pytest.mark.parametrize('up', [1, 2])
def test_modulated_convolution(up, dtype):
    """Its convolution is cuDNN's; filter and demodulation are around it."""
    f = upfirdn2d_module.setup_filter([1, 3, 3, 1])
    x, w, styles = torch.randn(2, 16, 9, 7), torch.randn(8, 16, 3, 3), torch.randn(2, 16)

    def on(device, dtype):
        leaves = [t.detach().to(device).requires_grad_(True) for t in (x, w, styles)]
        return first_and_second(lambda x, w, styles: modulated_conv2d(
            x.to(dtype), w, styles, up=up, padding=1, resample_filter=f.to(device)).float(), *leaves)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        results = on('cpu', torch.float32), on(GPU, dtype)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    for label, e, v in zip(('value', 'dx', 'dw', 'ds'), *results):
        check(f'modulated_conv2d, up {up}', label, v, e, dtype, 3 * TOLERANCE[dtype])


def render_arguments():
    """Positional arguments of omnihead::volume_render on the GPU."""
    leaves, decoder, _, noise = make(Case(rays=5, channels=5, height=4, width=3))
    leaves, decoder, noise = on_gpu(leaves, decoder, noise)
    layers = [t.detach().requires_grad_(True) for t in PlaneField(leaves[0], decoder, 1.0)._plain_decoder()]
    depths = torch.linspace(2.2, 3.3, 12, device=GPU).expand(2, 5, 12).contiguous()
    layout = 1.0, [0, 1, 2, 0, 2, 1, 1, 2, 0], True, 0, 0.4, False
    return leaves[0], *layers, leaves[-2], leaves[-1], depths, noise.fine, None, None, *layout


def test_operators_are_well_formed():
    """Schema, shapes without data and registration of gradients, as torch.library.opcheck sees them."""
    arguments = render_arguments()
    assert can_render(arguments[0], PlaneField(arguments[0], make(Case(channels=5))[1].to(GPU), 1.0)._plain_decoder())
    # Without the fourth test, which wants two runs to be equal to the last bit: sums in the planes are in no fixed order.
    tests = dict(test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'))
    torch.library.opcheck(torch.ops.omnihead.volume_render.default, arguments, **tests)
    field = [t.detach() for t in arguments[:5]]
    layout = arguments[11:14]
    torch.library.opcheck(torch.ops.omnihead.plane_query.default, (*field, torch.rand(2, 7, 3, device=GPU), *layout, 0), **tests)
    torch.library.opcheck(torch.ops.omnihead.plane_density.default, (*field, torch.rand(2, 7, 3, device=GPU), *layout), **tests)
    x, b = torch.randn(2, 6, 5, 7, device=GPU, requires_grad=True), torch.randn(6, device=GPU, requires_grad=True)
    assert cuda_images.can_run(x)
    torch.library.opcheck(torch.ops.omnihead.bias_act.default, (x, b, 1, cuda_images.ORDER.index('swish'), 1.3, 2.0), **tests)
    arguments = x.detach(), torch.ones(4, 4, device=GPU), [2, 2], [1, 1], [2, 1, 2, 1]
    torch.library.opcheck(torch.ops.omnihead.upfirdn2d.default, arguments, **tests)


def test_cuda_graph():
    """Everything but the backward pass's autograd engine is captured, and replays with other input."""
    case = Case(rays=64, channels=32, colours=32)
    leaves, decoder, options, noise = make(case)
    leaves, decoder, noise = on_gpu(leaves, decoder, noise)
    f = upfirdn2d_module.setup_filter([1, 3, 3, 1]).to(GPU)

    def frame():
        features, _, _ = render(case, PlaneField, leaves, decoder, options, noise)
        image = features.transpose(1, 2).reshape(2, 32, 8, 8)
        return upfirdn2d_module.upsample2d(bias_act(image, torch.zeros(32, device=GPU), act='lrelu'), f)

    def step():
        return frame(), *torch.autograd.grad(frame().sum(), leaves[:1])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()   # compiles and loads
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].mul_(1.5)
    graph.replay()
    for label, v, e in zip(('frame', 'gradient of planes'), captured, step()):
        check('CUDA graph', label, v, e, tolerance=1e-5)


def test_other_streams_and_threads():
    """Kernels run on the stream that is current, and in threads that PyTorch has not used before."""
    x = torch.zeros(1 << 20, device=GPU)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = bias_act(x.fill_(3.0)[None], act='relu', gain=1.0)
    stream.synchronize()
    assert (y == 3).all()
    results = []
    thread = threading.Thread(target=lambda: results.append(bias_act(x[None], act='relu', gain=2.0)))
    thread.start()
    thread.join()
    assert (results[0] == 6).all()
