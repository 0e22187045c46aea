"""The CUDA kernels' logic without a GPU: their sources compiled by g++, run thread by thread, against plain PyTorch."""

import pytest
import torch

import cuda_emulation
from test_volume_render import CASES, Case, PlainField, assert_close, make, render
from torch_utils.ops import cuda_build, cuda_images, cuda_render, upfirdn2d as upfirdn2d_module, volume_render as volume_render_module
from torch_utils.ops.bias_act import ACTIVATIONS, bias_act
from training.representations.planes import PlaneField
from training.volumetric_rendering.rays import Rays
from training.volumetric_rendering.renderer import render_rays

pytestmark = pytest.mark.skipif(cuda_emulation.COMPILER is None, reason='the emulation of CUDA kernels needs g++ on Linux')
# Distinct paths through the kernels; 'auto' limits take the plain path where rays have gradients.
RENDERED = [name for name in CASES if name not in ('auto', 'dense', 'two_layers', 'box_of_three', 'midpoints', 'no_crop', 'white_back')]


for _name in ('bias_act', 'bias_act_grad', 'bias_act_grad2'):
    # These have no implementation of their own on the CPU; nothing but the tests below calls them there.
    torch.library.impl(f'omnihead::{_name}', 'cpu', getattr(cuda_images, _name))


class Emulated(torch.autograd.Function):
    """omnihead::volume_render with the implementations for CUDA in both directions."""

    @staticmethod
    def forward(*inputs):
        return cuda_render.volume_render(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[3:])
        volume_render_module._setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx, features, depth, opacity, *_):
        rays_grad = any(ctx.needs_input_grad[5:7])
        grads = cuda_render.volume_render_backward(*ctx.saved_tensors, features, depth, opacity, *ctx.arguments, rays_grad)
        return (*grads, *[None] * (len(ctx.needs_input_grad) - len(grads)))


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    cuda_emulation.use(monkeypatch)
    monkeypatch.setattr(volume_render_module, 'can_render', lambda *_: True)
    monkeypatch.setattr('training.representations.planes.can_render', lambda *_: True)
    monkeypatch.setattr(torch.ops.omnihead, 'volume_render', Emulated.apply)
    monkeypatch.setattr(torch.ops.omnihead, 'plane_query', cuda_render.plane_query)
    monkeypatch.setattr(torch.ops.omnihead, 'plane_density', cuda_render.plane_density)


def gradients(outputs, leaves):
    torch.manual_seed(1)
    return torch.autograd.grad(outputs, leaves, [torch.randn_like(v) for v in outputs])


@pytest.mark.parametrize('name', RENDERED)
def test_renderer(name):
    case = CASES[name]
    leaves, decoder, options, noise = make(case)
    outputs = [render(case, kind, leaves, decoder, options, noise) for kind in (PlaneField, PlainField)]
    for label, value, expected in zip(('features', 'depth', 'opacity'), *outputs):
        assert_close(value, expected, label, 1e-5)
    labels = ['planes', *(k for k, _ in decoder.named_parameters()), 'origins', 'directions']
    for label, *pair in zip(labels, *(gradients(out, leaves) for out in outputs)):
        assert_close(*pair, label)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_planes_of_low_precision(dtype):
    """Half planes are read as they are: only their own rounding is lost, and that of their gradient."""
    leaves, decoder, _, noise = make(Case(rays=9))
    low = leaves[0].detach().to(dtype).requires_grad_(True)
    planes = low, low.detach().float().requires_grad_(True)
    field = PlaneField(low, decoder, 1.0)
    depths = torch.linspace(2.2, 3.3, 12).expand(2, 9, 12).contiguous()
    rays = leaves[-2], leaves[-1], depths, noise.fine, None, None
    values = [Emulated.apply(p, *field._plain_decoder(), *rays, *field._layout().arguments(), 0.4, False)[0] for p in planes]
    assert torch.equal(*values) and values[0].dtype == torch.float32
    grads = [torch.autograd.grad(v.sum(), p)[0] for v, p in zip(values, planes)]
    assert grads[0].dtype == dtype
    assert_close(grads[0].float(), grads[1], 'planes', 1e-2)


def test_layouts_and_shared_planes():
    """Planes that need no packing, planes with channels last, and those of one identity under several cameras."""
    case = Case(channels=8, hidden=16, colours=3, rays=11)
    leaves, decoder, options, noise = make(case)
    base = leaves[0].detach()[:1].permute(0, 1, 3, 4, 5, 2).contiguous().requires_grad_(True)
    results = []
    for kind in (PlaneField, PlainField):
        field = kind(base.permute(0, 1, 5, 2, 3, 4), decoder, 1.0).expand(case.batch)
        out = render_rays(field, Rays(*leaves[-2:]), options, noise).features
        results.append((out, *torch.autograd.grad(out.square().sum(), [base, leaves[-1]])))
    for value, expected in zip(*results):
        assert_close(value, expected, 'layout')


@pytest.mark.parametrize('batch, rays', [(0, 5), (2, 0)])
def test_nothing_to_render(batch, rays):
    leaves, decoder, options, noise = make(Case(batch=batch, rays=rays))
    features, depth, opacity = render(Case(), PlaneField, leaves, decoder, options, noise)
    assert features.shape == (batch, rays, 16) and depth.shape == opacity.shape == (batch, rays, 1)
    grads = torch.autograd.grad(features.sum() + depth.sum(), leaves)
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, leaves))


def test_ray_without_weight():
    """Such a ray has the largest sampled depth and spoils no gradient."""
    leaves, decoder, options, noise = make(Case(rays=4))
    with torch.no_grad():
        leaves[-2][0, 0, 0] += 5.0
    features, depth, opacity = render(Case(), PlaneField, leaves, decoder, options, noise)
    assert opacity[0, 0] == 0 and not features[0, 0].any() and depth[0, 0] == depth.max()
    grads = torch.autograd.grad(features.sum() + depth.sum(), leaves)
    assert all(g.isfinite().all() for g in grads) and not grads[-2][0, 0].any()


def test_nan_shows():
    leaves, decoder, options, noise = make(Case(rays=4))
    with torch.no_grad():
        leaves[0][1].fill_(float('nan'))
    features, _, _ = render(Case(), PlaneField, leaves, decoder, options, noise)
    assert features[0].isfinite().all() and features[1].isnan().all()


@pytest.mark.parametrize('name', ['ordinary', 'odd_channels', 'bilinear', 'lrelu'])
def test_query(name):
    case = CASES[name]
    leaves, decoder, options, _ = make(case)
    points = (torch.rand(case.batch, 75, 3) - 0.5) * options.box_warp * 1.2
    with torch.no_grad():
        fast, plain = (kind(leaves[0], decoder, options.box_warp, case.plane_axes, case.trilinear) for kind in (PlaneField, PlainField))
        value, expected, alone = fast.query(points), plain.query(points), fast.density(points)
        nothing = fast.query(points[:, :0])
    assert_close(value.density, expected.density, 'density', 1e-5)
    assert_close(value.features, expected.features, 'features', 1e-5)
    assert_close(alone, expected.density, 'density alone', 1e-5)
    assert nothing.density.shape == (2, 0, 1)


@pytest.mark.parametrize('bad, message', [
    (dict(depths=torch.zeros(2, 4, 12)), 'depths must have shape|origins must have shape'),
    (dict(directions=torch.zeros(2, 5, 3).double()), 'float32'), (dict(planes=torch.zeros(3, 3, 16, 1, 4, 4)), 'planes are of 3'),
    (dict(weight2=torch.zeros(1, 64)), 'decoder weights'), (dict(planes=torch.zeros(2, 3, 16, 1, 4, 4).double()), 'float16')])
def test_renderer_refuses(bad, message):
    tensors = dict(planes=torch.zeros(2, 3, 16, 1, 4, 4), weight1=torch.zeros(64, 16), bias1=torch.zeros(64),
                   weight2=torch.zeros(4, 64), bias2=torch.zeros(4), origins=torch.zeros(2, 5, 3),
                   directions=torch.zeros(2, 5, 3), depths=torch.zeros(2, 5, 12), fine_noise=None,
                   coarse_density_noise=None, fine_density_noise=None)
    with pytest.raises(RuntimeError, match=message):
        cuda_render.volume_render(*{**tensors, **bad}.values(), 1.0, [0] * 9, True, 0, 1.0, False)


def test_deterministic_algorithms_are_refused():
    leaves, decoder, options, noise = make(Case(rays=2))
    features, _, _ = render(Case(), PlaneField, leaves, decoder, options, noise)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match='no fixed order'):
            torch.autograd.grad(features.sum(), leaves)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('capability, shared, forward_warps, backward_warps', [
    ('sm_80', (163 << 10, 164 << 10), 8, 4), ('sm_86', (99 << 10, 100 << 10), 4, 3), ('sm_90', (227 << 10, 228 << 10), 12, 8)])
def test_plans_fill_the_machine(monkeypatch, capability, shared, forward_warps, backward_warps):
    """Rays at work on a multiprocessor, for the published sizes."""
    device = torch.device('cuda', 0)
    monkeypatch.setattr(cuda_build, 'facts', lambda _: cuda_build.Facts(capability, 100, *shared))
    cuda_render._warps_for.cache_clear()
    sizes = cuda_render.Sizes(32, 64, 32, 0, 0, 2)
    for floats, least in ((cuda_render._forward_floats, forward_warps), (cuda_render._backward_floats, backward_warps)):
        warps, shared_bytes, resident = cuda_render._warps_for(floats, sizes, 96, device)
        assert shared_bytes <= shared[0] and warps * resident >= least, (warps, shared_bytes, resident)
    cuda_render._warps_for.cache_clear()


def bias_act_results(function, x, b):
    """Value, first derivatives and second derivatives of a function of x and b."""
    y = function(x, b)
    dy = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype).requires_grad_(True)
    first = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    scalar = sum((g * g.detach().float().cos().to(g.dtype)).sum() for g in first)
    second = torch.autograd.grad(scalar, [x, b, dy], allow_unused=True)
    return [y, *first, *(g for g in second if g is not None and g.any())]


def test_activations_are_in_the_kernels_order():
    assert cuda_images.ORDER == tuple(ACTIVATIONS)


@pytest.mark.parametrize('act', ACTIVATIONS)
def test_bias_act(act):
    """Both orders; a layout that is neither contiguous nor channels-last; some values beyond the clamp."""
    b = torch.randn(6, requires_grad=True)
    x = (torch.randn(3, 6, 5, 7).transpose(0, 2).contiguous().transpose(0, 2) * 2).requires_grad_(True)
    value = bias_act_results(lambda x, b: cuda_images.fused_bias_act(x, b, 1, act, 1.3, 1.5), x, b)
    expected = bias_act_results(lambda x, b: bias_act(x, b, act=act, gain=1.3, clamp=1.5), x, b)
    assert value[0].stride() == x.stride() and len(value) == len(expected) >= 4
    for v, e in zip(value, expected):
        torch.testing.assert_close(v, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype, layout', [(torch.float16, torch.contiguous_format), (torch.bfloat16, torch.channels_last)])
def test_bias_act_in_low_precision(dtype, layout):
    """Only the result is rounded; bfloat16 is not clamped; sizes that are and are not a multiple of sixteen bytes."""
    for shape in ((2, 8, 4, 4), (1, 3, 5, 1)):
        x = (torch.randn(shape) * 3).to(dtype).contiguous(memory_format=layout).requires_grad_(True)
        b = torch.randn(shape[1]).to(dtype).requires_grad_(True)
        value = bias_act_results(lambda x, b: cuda_images.fused_bias_act(x, b, 1, 'swish', 1.4, 2.0), x, b)
        expected = bias_act_results(lambda x, b: bias_act(x, b, act='swish', gain=1.4, clamp=2 if dtype == torch.float16 else None),
                                    x.detach().float().requires_grad_(True), b.detach().float().requires_grad_(True))
        assert value[0].dtype == dtype and value[0].stride() == x.stride()
        for v, e in zip(value, expected):
            assert_close(v.float(), e, 'low precision', 2e-2)


def test_bias_act_is_well_formed():
    """Schema, shapes without data and registration of gradients, as torch.library.opcheck sees them."""
    x, b = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(6, requires_grad=True)
    gaps = torch.randn(2, 6, 2)[..., 0].requires_grad_(True)
    arguments = 1, cuda_images.ORDER.index('swish'), 1.3, 2.0
    # Its fourth test fails in torch 2.13 for operators whose fakes look at strides, unless the inductor was imported before.
    tests = dict(test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'))
    for inputs in ((x, b), (x, None), (gaps, b)):
        torch.library.opcheck(torch.ops.omnihead.bias_act.default, (*inputs, *arguments), **tests)
    torch.library.opcheck(torch.ops.omnihead.bias_act_grad.default, (torch.randn_like(x).requires_grad_(True), x, b, *arguments), **tests)


def test_bias_act_without_bias_or_pixels():
    x = torch.randn(2, 3)
    torch.testing.assert_close(cuda_images.fused_bias_act(x, None, -1, 'lrelu', 1.0, None), bias_act(x, act='lrelu', gain=1.0))
    assert cuda_images.fused_bias_act(x[:0], None, 1, 'lrelu', 1.0, None).shape == (0, 3)
    gaps = torch.randn(2, 6)[:, ::2]
    torch.testing.assert_close(cuda_images.fused_bias_act(gaps, None, 1, 'relu', 1.0, None), gaps.relu())
    with pytest.raises(RuntimeError, match='b must have shape'):
        cuda_images.fused_bias_act(x, torch.randn(4), 1, 'relu', 1.0, None)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('up, down, padding', [
    ((2, 2), (1, 1), (2, 1, 2, 1)), ((2, 3), (3, 1), (2, 1, 0, 3)), ((2, 2), (2, 2), (3, -2, -1, 4)), ((1, 1), (2, 2), (1, 2, 0, 1))])
def test_upfirdn2d(up, down, padding, dtype):
    f = torch.randn(4, 3)
    for channels in (3, 8):
        x = torch.randn(2, channels, 7, 6).to(dtype)
        expected = upfirdn2d_module._reference(x.double(), f.double(), up, down, padding)
        transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
        gaps = torch.stack([x, x], dim=2)[:, :, 0]
        for layout in (x, x.to(memory_format=torch.channels_last), transposed, gaps):
            result = cuda_images.upfirdn2d(layout, f, up, down, padding)
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            assert result.shape == expected.shape and result.dtype == dtype
            assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()
            assert result.stride() == cuda_images._fake_upfirdn2d(layout.to('meta'), f, up, down, padding).stride()


def test_upfirdn2d_refuses_and_skips():
    f = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match='larger than the padded image'):
        cuda_images.upfirdn2d(torch.zeros(1, 1, 2, 2), f, (1, 1), (1, 1), (0, 0, 0, 0))
    with pytest.raises(RuntimeError, match='float16'):
        cuda_images.upfirdn2d(torch.zeros(1, 1, 8, 8).double(), f, (1, 1), (1, 1), (0, 0, 0, 0))
    assert cuda_images.upfirdn2d(torch.zeros(0, 1, 8, 8), f, (1, 1), (1, 1), (0, 0, 0, 0)).shape == (0, 1, 5, 5)
