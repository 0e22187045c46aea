"""The fused volume renderer against the plain one: values, gradients, odd cases."""

import dataclasses
import importlib
import os
import sys

import pytest
import torch

import reference
from project_files import run_python
from torch_utils.ops import native
from torch_utils.ops.volume_render import volume_render
from training.generators import panohead
from training.generators.panohead import PanoHeadGenerator
from training.representations import planes as planes_module
from training.networks.decoders import OSGDecoder
from training.representations.planes import PlaneField
from training.volumetric_rendering.rays import Rays
from training.volumetric_rendering.renderer import RenderOptions, draw_noise, render_rays

needs_native = pytest.mark.skipif(not native.load_native(), reason='no C++ operators here: no compiler, or switched off')


class PlainField(PlaneField):
    """The same field, without its fused operator."""

    def render_fused(self, rays, options, noise):
        return None

    def _plain_decoder(self):
        return None


@dataclasses.dataclass(frozen=True)
class Case:
    """One setting of the renderer; the defaults are small and ordinary."""
    batch: int = 2
    rays: int = 37
    channels: int = 16
    colours: int = 16
    hidden: int = 64
    depth: int = 3
    height: int = 13
    width: int = 11
    activation: str = 'none'
    plane_axes: str = 'orthogonal'
    trilinear: bool = True
    density: float = 3.0          # how much the density varies
    options: dict = dataclasses.field(default_factory=dict)

    def render_options(self):
        """Few samples, jittered; `options` overrides."""
        return RenderOptions(**{'ray_start': 2.2, 'ray_end': 3.3, 'depth_resolution': 12, 'depth_resolution_importance': 9,
                                'jitter': True, **self.options})


CASES = {
    'ordinary': Case(),
    'many_rays': Case(batch=3, rays=301),
    'published_samples': Case(rays=9, channels=32, colours=32, options=dict(depth_resolution=48, depth_resolution_importance=48)),
    'more_samples_than_a_block': Case(rays=5, options=dict(depth_resolution=130, depth_resolution_importance=101)),
    'odd_channels': Case(channels=5, colours=7, hidden=19),
    'wide': Case(channels=80, colours=40, hidden=48),
    'one_layer': Case(depth=1),
    'two_layers': Case(depth=2),
    'five_layers': Case(depth=5, height=3, width=1),
    'bilinear': Case(depth=1, trilinear=False, plane_axes='eg3d', activation='sigmoid'),
    'eg3d_axes': Case(plane_axes='eg3d'),
    'sigmoid': Case(activation='sigmoid'),
    'lrelu': Case(activation='lrelu', colours=5),
    'no_crop': Case(options=dict(crop_margin=None)),
    'dense': Case(density=300.0, options=dict(crop_margin=0.2)),
    'density_beside_cropped_counts': Case(density=60000.0, options=dict(crop_margin=0.2)),
    'white_back': Case(activation='sigmoid', options=dict(white_back=True)),
    'no_importance': Case(options=dict(depth_resolution_importance=0)),
    'few_samples': Case(options=dict(depth_resolution=4, depth_resolution_importance=1)),
    'midpoints': Case(options=dict(jitter=False)),
    'density_noise': Case(options=dict(density_noise=0.7)),
    'auto': Case(options=dict(ray_start='auto', ray_end='auto', crop_margin=None)),
    'beyond_the_box': Case(options=dict(ray_start=0.5, ray_end=6.0, crop_margin=None)),
    'box_of_three': Case(options=dict(box_warp=3.0)),
}


def make(case, seed=0):
    """Leaves (planes, decoder parameters, origins, directions), options, noise and the field's maker of a case."""
    torch.manual_seed(seed)
    planes = torch.randn(case.batch, 3, case.channels, case.depth, case.height, case.width)
    decoder = OSGDecoder(case.channels, case.colours, case.activation, hidden_features=case.hidden)
    with torch.no_grad():
        decoder.net[0].bias.normal_()
        decoder.net[2].bias.normal_()
        decoder.net[2].weight[0] *= case.density
    origins = torch.tensor([0.1, -0.2, 2.7]) + 0.05 * torch.randn(case.batch, case.rays, 3)
    directions = torch.tensor([0.0, 0.05, -1.0]) + 0.03 * torch.randn(case.batch, case.rays, 3)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    options = case.render_options()
    noise = draw_noise(Rays(origins, directions), options)
    leaves = [planes, *decoder.parameters(), origins, directions]
    for leaf in leaves:
        leaf.requires_grad_(True)
    return leaves, decoder, options, noise


def render(case, kind, leaves, decoder, options, noise):
    """(features, depth, opacity) of a case by the plain or the fused field."""
    field = kind(leaves[0], decoder, options.box_warp, case.plane_axes, case.trilinear)
    features, depth, weights = render_rays(field, Rays(*leaves[-2:]), options, noise)
    return features, depth, weights.sum(dim=-1, keepdim=True)


def assert_close(value, expected, name, tolerance=1e-4):
    """Norm of the difference within `tolerance` of the expected values' norm, and the same direction."""
    assert value.shape == expected.shape, name
    value, expected = value.double().flatten(), expected.double().flatten()
    assert value.isfinite().all() and expected.isfinite().all(), f'{name}: not finite'
    assert expected.norm() > 0, f'{name}: the case compares zeros'
    error = ((value - expected).norm() / expected.norm()).item()
    assert error <= tolerance, f'{name}: off by {error:.2e}'
    cosine = torch.dot(value, expected) / (value.norm() * expected.norm())
    assert cosine > 0.9999, f'{name}: cosine {cosine:.6f}'


@needs_native
@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients(name):
    case = CASES[name]
    leaves, decoder, options, noise = make(case)
    outputs = [render(case, kind, leaves, decoder, options, noise) for kind in (PlaneField, PlainField)]
    for label, value, expected in zip(('features', 'depth', 'opacity'), *outputs):
        assert_close(value, expected, label)
    torch.manual_seed(1)
    weights = [torch.randn_like(v) for v in outputs[0]]
    grads = [torch.autograd.grad(out, leaves, weights) for out in outputs]
    labels = ['planes', *(k for k, _ in decoder.named_parameters()), 'origins', 'directions']
    if options.ray_start == 'auto':
        labels = labels[:-2]   # the plain code lets gradients of the rays through the limits of the depths as well
    for label, value, expected in zip(labels, *grads):
        assert_close(value, expected, label)


@needs_native
@pytest.mark.parametrize('density, skipped', [(-25.0, False), (-60.0, True)])
def test_nothing_flows_in_empty_space(density, skipped):
    """Samples whose density changes nothing are left out of the backward pass; where it changes a little they are not."""
    leaves, decoder, options, noise = make(Case(density=0.01, options=dict(crop_margin=None)))
    with torch.no_grad():
        decoder.net[2].bias[0] = density
    fused, plain = (torch.autograd.grad(render(Case(), kind, leaves, decoder, options, noise)[2].sum(), leaves, allow_unused=True)
                    for kind in (PlaneField, PlainField))
    for place in (0, 1, -2, -1):
        assert plain[place].any() and bool(fused[place].any()) != skipped
        if not skipped:
            assert_close(fused[place], plain[place], f'leaf {place}')


@needs_native
def test_empty_space_beside_a_head():
    """Half of the space is empty, in which the density changes nothing."""
    leaves, decoder, options, noise = make(Case(density=0.0, options=dict(crop_margin=None)))
    with torch.no_grad():
        leaves[0][:, :, 0] = 0.0
        leaves[0][:, :, 0, :, :6] = 0.1
        decoder.net[0].weight[0].zero_()
        decoder.net[0].weight[0, 0] = 100 / decoder.net[0].weight_gain
        decoder.net[2].weight[0, 0] = -10 / decoder.net[2].weight_gain
    outputs = [render(Case(), kind, leaves, decoder, options, noise) for kind in (PlaneField, PlainField)]
    fused, plain = (torch.autograd.grad(out[0].square().sum() + out[2].sum(), leaves) for out in outputs)
    for place, (value, expected) in enumerate(zip(fused, plain)):
        assert_close(value, expected, f'leaf {place}')


@needs_native
@pytest.mark.parametrize('which', range(7))
def test_comparison_notices_a_small_change(which):
    """Any leaf off by a hundredth makes the comparison above fail."""
    leaves, decoder, options, noise = make(Case())
    expected = torch.cat([v.flatten() for v in render(Case(), PlainField, leaves, decoder, options, noise)])
    with torch.no_grad():
        leaves[which].mul_(1.01)
    value = torch.cat([v.flatten() for v in render(Case(), PlaneField, leaves, decoder, options, noise)])
    with pytest.raises(AssertionError, match='off by'):
        assert_close(value, expected, 'perturbed')


@needs_native
@pytest.mark.parametrize('isa', ['baseline', 'avx2'])
def test_other_instruction_sets(isa):
    """The same comparison with the kernels that lesser machines use."""
    code = ('import torch, test_volume_render as t\n'
            't.native.load_native(); print(torch.ops.omnihead.instruction_set())\n'
            'for name in ("ordinary", "odd_channels", "wide", "sigmoid", "one_layer", "white_back"):\n'
            '    t.test_values_and_gradients(name)\n')
    run = run_python(code, OMNIHEAD_ISA=isa)
    assert run.returncode == 0, run.stderr
    if run.stdout.strip() != isa:
        pytest.skip(f'this machine has no {isa}')


@needs_native
def test_layouts_and_shared_planes():
    """Non-contiguous planes and rays; the planes of one identity under several cameras; both with gradients."""
    case = Case(channels=8, hidden=16, colours=3)
    leaves, decoder, options, noise = make(case)
    base = leaves[0].detach()[:1].permute(0, 5, 1, 4, 3, 2).contiguous().requires_grad_(True)
    rays = leaves[-2].detach().transpose(1, 2).contiguous().transpose(1, 2)
    grads = []
    for kind in (PlaneField, PlainField):
        field = kind(base.permute(0, 2, 5, 4, 3, 1), decoder, 1.0).expand(case.batch)
        assert field.planes.stride(0) == 0
        features, _, _ = render_rays(field, Rays(rays, leaves[-1]), options, noise)
        grads.append((features, *torch.autograd.grad(features.square().sum(), [base, leaves[-1]])))
    for value, expected in zip(*grads):
        assert_close(value, expected, 'layout')


@needs_native
@pytest.mark.parametrize('batch, rays', [(0, 5), (2, 0)])
def test_empty(batch, rays):
    leaves, decoder, options, noise = make(Case(batch=batch, rays=rays))
    features, depth, opacity = render(Case(), PlaneField, leaves, decoder, options, noise)
    assert features.shape == (batch, rays, 16) and depth.shape == opacity.shape == (batch, rays, 1)
    grads = torch.autograd.grad(features.sum() + depth.sum(), leaves)
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, leaves))


@needs_native
def test_ray_without_weight():
    """A ray that sees nothing has the largest sampled depth and spoils no gradient."""
    leaves, decoder, options, noise = make(Case(rays=4))
    with torch.no_grad():
        leaves[-2][0, 0, 0] += 5.0
    features, depth, opacity = render(Case(), PlaneField, leaves, decoder, options, noise)
    assert opacity[0, 0] == 0 and not features[0, 0].any()
    assert depth[0, 0] == depth.max() and depth[0, 0] > 3.2
    grads = torch.autograd.grad(features.sum() + depth.sum(), leaves)
    assert all(g.isfinite().all() for g in grads) and not grads[-2][0, 0].any()


@needs_native
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_planes_of_low_precision(dtype):
    """Such planes are widened, so that only their own rounding is lost; their gradient has their type."""
    leaves, decoder, options, noise = make(Case())
    low = leaves[0].detach().to(dtype).requires_grad_(True)
    value, expected = (render(Case(), PlaneField, [p, *leaves[1:]], decoder, options, noise) for p in (low, low.detach().float()))
    assert torch.equal(value[0], expected[0])
    grad, = torch.autograd.grad(value[0].sum(), low)
    assert grad.dtype == dtype and grad.any()


CELL_ORDERS = {'image': (0, 4, 5, 1, 3, 2), 'planes': (0, 1, 3, 4, 5, 2)}


@needs_native
@pytest.mark.parametrize('order', CELL_ORDERS)
@pytest.mark.parametrize('depth', [1, 3])
@pytest.mark.parametrize('threads', [1, 2, 7, 13])   # from 12 on the gradient's planes are divided into bands of rows
def test_planes_whose_channels_lie_together(order, depth, threads):
    """Their gradient has their layout, and its bits depend neither on that nor on the threads."""
    case = Case(batch=1, rays=301, channels=32, colours=32, depth=depth)
    leaves, decoder, options, noise = make(case)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        out = render(case, PlaneField, leaves, decoder, options, noise)
        expected = (*out, *torch.autograd.grad(out[0].square().sum(), leaves))
        forth = CELL_ORDERS[order]
        laid = leaves[0].detach().permute(forth).contiguous().permute([forth.index(i) for i in range(6)]).requires_grad_(True)
        assert torch.equal(laid, leaves[0]) and laid.stride(2) == 1
        torch.set_num_threads(threads)
        out = render(case, PlaneField, [laid, *leaves[1:]], decoder, options, noise)
        found = (*out, *torch.autograd.grad(out[0].square().sum(), [laid, *leaves[1:]]))
    finally:
        torch.set_num_threads(before)
    assert found[3].permute(forth).is_contiguous()
    for i in range(4):
        assert torch.equal(found[i], expected[i]), i
    for value, wanted in zip(found[4:], expected[4:]):
        assert_close(value, wanted, 'layout', 1e-5)


@needs_native
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the peak of memory is read from /proc')
@pytest.mark.parametrize('gradient', [False, True])
def test_planes_whose_channels_lie_together_are_not_copied(gradient, monkeypatch):
    """Neither planes nor, beside the gradient itself, their gradient; in PyTorch's order they are, which shows in the measure."""
    monkeypatch.setattr(sys, 'path', list(sys.path))   # the harness adds its folder
    harness = importlib.import_module('benchmarks.harness')
    case = Case(batch=1, rays=9, channels=32, colours=32, height=192, width=192)
    leaves, decoder, options, noise = make(case)
    size = leaves[0].nbytes / 1e6
    copies = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for forth in (range(6), CELL_ORDERS['image']):
            laid = leaves[0].detach().permute(*forth).contiguous().permute([list(forth).index(i) for i in range(6)])
            laid.requires_grad_(gradient)

            def work(laid=laid):
                features, _, _ = render(case, PlaneField, [laid, *leaves[1:]], decoder, options, noise)
                if gradient:
                    torch.autograd.grad(features.sum(), [laid])
            work()
            copies.append(harness.memory_of_call(work, torch.device('cpu'))['peak_mb'] / size)
    finally:
        torch.set_num_threads(before)
    assert copies[0] > copies[1] + 0.75
    assert copies[1] < gradient + 0.25


@needs_native
def test_backbone_leaves_planes_as_the_operator_reads_them(monkeypatch):
    """Exchanging the channels of ToRGB changes where the numbers of the planes lie and nothing else, gradients included."""
    torch.manual_seed(0)
    generator = PanoHeadGenerator(z_dim=16, w_dim=16, img_resolution=128, channel_base=1024, channel_max=16, plane_resolution=32,
                                  use_background=False, adaptive_camera=False, sr_channel_scale=0.1)
    ws = torch.randn(2, generator.num_ws, 16, requires_grad=True)
    found = []
    for together in (True, False):
        if not together:
            monkeypatch.setattr(panohead, 'reads_cells', lambda channels, device: False)
        planes = generator.build_field(ws).planes
        assert planes.permute(CELL_ORDERS['image']).is_contiguous() is together
        weight = generator.backbone.synthesis.b32.torgb.weight
        found.append((planes, *torch.autograd.grad((planes * torch.linspace(-1, 1, planes[0].numel()).reshape(planes[:1].shape)).sum(),
                                                   [ws, weight])))
    for value, expected in zip(*found):
        assert_close(value, expected, 'exchange', 1e-5)


@needs_native
@pytest.mark.parametrize('activation', ['none', 'sigmoid'])
def test_gradients_where_the_decoder_is_held(activation, monkeypatch):
    """As with a decoder that learns, to the bit, though less is computed."""
    case = Case(activation=activation)
    leaves, decoder, options, noise = make(case)
    wanted = [leaves[0], *leaves[-2:]]

    def gradients():
        outputs = render(case, PlaneField, leaves, decoder, options, noise)
        return torch.autograd.grad(sum(out.square().sum() for out in outputs), wanted)
    expected = gradients()
    decoder.requires_grad_(False)
    real, calls = torch.ops.omnihead.volume_render_backward, []
    monkeypatch.setattr(torch.ops.omnihead, 'volume_render_backward', lambda *args: calls.append(args[-1]) or real(*args))
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected)) and calls == [False]


@needs_native
def test_backward_is_repeatable():
    case = Case(batch=3, rays=401)
    leaves, decoder, options, noise = make(case)
    before = torch.get_num_threads()
    torch.set_num_threads(2)   # the second identity is shared by both threads
    try:
        runs = [torch.autograd.grad(render(case, PlaneField, leaves, decoder, options, noise)[0].sum(), leaves) for _ in range(3)]
        torch.set_num_threads(1)
        single = torch.autograd.grad(render(case, PlaneField, leaves, decoder, options, noise)[0].sum(), leaves)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0]))
    for value, expected in zip(runs[0], single):
        assert_close(value, expected, 'threads', 1e-5)


@needs_native
@pytest.mark.parametrize('name', ['ordinary', 'odd_channels', 'bilinear', 'lrelu', 'box_of_three'])
def test_query(name):
    """Without gradients a query takes the fast way, and gives the same."""
    case = CASES[name]
    leaves, decoder, options, _ = make(case)
    points = (torch.rand(case.batch, 1500, 3) - 0.5) * options.box_warp * 1.2
    with torch.no_grad():
        value, expected = (kind(leaves[0], decoder, options.box_warp, case.plane_axes, case.trilinear).query(points)
                           for kind in (PlaneField, PlainField))
    assert_close(value.density, expected.density, 'density', 1e-5)
    assert_close(value.features, expected.features, 'features', 1e-5)
    with torch.no_grad():
        alone = PlaneField(leaves[0], decoder, options.box_warp, case.plane_axes, case.trilinear).density(points)
    assert_close(alone, expected.density, 'density alone', 1e-5)


@needs_native
def test_numbers_that_are_none_show():
    """A NaN in the planes reaches the pictures of the rays that meet it, and no others. The plain code loses more rays: there
    a NaN counts that no light comes from."""
    leaves, decoder, options, noise = make(Case(activation='sigmoid'))
    planes = leaves[0].detach().clone()
    planes[:, :, :, :, :, 5] = torch.nan
    rays = Rays(leaves[-2].detach(), leaves[-1].detach())
    with torch.no_grad():
        fused, plain = (render_rays(kind(planes, decoder, options.box_warp), rays, options, noise).features.isnan()
                        for kind in (PlaneField, PlainField))
    assert fused.sum() > 0.9 * plain.sum() and not (fused & ~plain).any()


@needs_native
def test_camera_gradient_where_depths_follow_the_rays():
    case = Case(options={'ray_start': 'auto', 'ray_end': 'auto'})
    leaves, decoder, options, noise = make(case)
    gradients = []
    for kind in (PlaneField, PlainField):
        origins = leaves[-2].detach().clone().requires_grad_(True)
        out = render_rays(kind(leaves[0], decoder, options.box_warp), Rays(origins, leaves[-1].detach()), options, noise)
        gradients += torch.autograd.grad(out.features.square().sum() + out.depth.sum(), origins)
    assert_close(gradients[0], gradients[1], 'origins', 1e-4)


@needs_native
def test_query_keeps_second_order_gradients():
    leaves, decoder, _, _ = make(Case())
    points = (torch.rand(2, 50, 3) - 0.5).requires_grad_(True)
    density = PlaneField(leaves[0], decoder, 1.0).query(points).density
    normal, = torch.autograd.grad(density.sum(), points, create_graph=True)
    assert torch.autograd.grad(normal.square().sum(), leaves[0])[0].any()


@needs_native
def test_operators_are_well_formed():
    """Schema, shapes without data and registration of gradients, as torch.library.opcheck sees them."""
    leaves, decoder, options, noise = make(Case(rays=5, channels=5, height=4, width=3))
    layers = [t.detach().requires_grad_(True) for t in PlaneField(leaves[0], decoder, 1.0)._plain_decoder()]
    field = [leaves[0], *layers]
    depths = torch.linspace(2.2, 3.3, 12).expand(2, 5, 12).contiguous()
    layout = (1.0, [0, 1, 2, 0, 2, 1, 1, 2, 0], True, 0)
    rays = [leaves[-2], leaves[-1], depths, noise.fine, None, None]
    torch.library.opcheck(torch.ops.omnihead.volume_render.default, (*field, *rays, *layout, 0.4, False))
    points = [*(t.detach() for t in field), torch.rand(2, 7, 3)]
    torch.library.opcheck(torch.ops.omnihead.plane_query.default, (*points, *layout))
    torch.library.opcheck(torch.ops.omnihead.plane_density.default, (*points, *layout[:3]))


@needs_native
@pytest.mark.parametrize('bad, message', [
    (dict(depths=torch.zeros(2, 4, 12)), 'depths must have shape'), (dict(directions=torch.zeros(2, 5, 3).double()), 'float32'),
    (dict(planes=torch.zeros(3, 3, 16, 1, 4, 4)), 'planes are of 3 identities')])
def test_operator_refuses(bad, message):
    tensors = dict(planes=torch.zeros(2, 3, 16, 1, 4, 4), weight1=torch.zeros(64, 16), bias1=torch.zeros(64),
                   weight2=torch.zeros(4, 64), bias2=torch.zeros(4), origins=torch.zeros(2, 5, 3),
                   directions=torch.zeros(2, 5, 3), depths=torch.zeros(2, 5, 12), fine_noise=None,
                   coarse_density_noise=None, fine_density_noise=None)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.omnihead.volume_render(*{**tensors, **bad}.values(), 1.0, [0] * 9, True, 0, 1.0, False)


@needs_native
@pytest.mark.parametrize('path', reference.files('generator_*_128.npz') + reference.files('generator_*_rays.npz'))
def test_published_values_come_from_the_operator(path, monkeypatch):
    """The reference images go through the fused path: here the depths, with the operator's calls counted."""
    values, config = reference.load(path)
    generator = reference.build_generator(config, 'panohead' in path.stem)
    calls = []
    monkeypatch.setattr(planes_module, 'volume_render', lambda *a: calls.append(1) or volume_render(*a))
    with torch.no_grad():
        label = values['c'].clone()
        if 'delta_c' in values:
            label[:, [3, 7, 11]] += values['delta_c']
        out = generator.synthesis(values['ws'], label)
    assert calls == [1]
    reference.assert_within(out.image_depth, values['image_depth'], 'image_depth')
