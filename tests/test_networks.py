"""Layers, planes, discriminator and generators, each against what it must compute: numbers by hand and closed forms."""

import copy
import dataclasses
import math

import pytest
import torch

import camera_utils
from torch_utils.ops.resize import resize
from training.discriminators.multi_input import MinibatchStdLayer, MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator
from training.networks.decoders import OSGDecoder
from training.networks.layers import Conv2dLayer, FullyConnectedLayer, MappingNetwork
from training.networks.stylegan2 import SynthesisLayer, SynthesisNetwork
from training.networks.superresolution import SPECS, SuperResolution, default_module
from training.representations.planes import PLANE_AXES, sample_planes
from training.volumetric_rendering.rays import camera_rays
from training.volumetric_rendering.renderer import render_rays


# ---------------------------------------------------------------------------------------------------------------------
# Layers.

def test_layers_have_equalised_rates():
    """Whatever the multiplier, a new layer does the same; its steps are as much smaller as the multiplier says."""
    layer, conv = FullyConnectedLayer(400, 300, lr_multiplier=0.01), Conv2dLayer(100, 50, 3)
    x = torch.randn(500, 400)
    with torch.no_grad():
        assert layer(x).std() == pytest.approx(1, abs=0.02)
        assert conv(torch.randn(4, 100, 8, 8))[..., 1:-1, 1:-1].std() == pytest.approx(1, abs=0.05)
    layer(x).sum().backward()
    assert layer.bias.grad[0] == pytest.approx(500 * 0.01)


def test_conv_layer_clamps_with_its_gain():
    conv = Conv2dLayer(1, 1, 1, conv_clamp=2)
    conv.weight.data.fill_(1)
    assert conv(torch.full([1, 1, 1, 1], 100.0), gain=0.5).item() == 1.0


@pytest.fixture
def mapping():
    return MappingNetwork(4, 3, 6, num_ws=5, num_layers=2)


def test_mapping_ignores_the_length_of_its_inputs(mapping):
    z, c = torch.randn(2, 4), torch.randn(2, 3)
    torch.testing.assert_close(mapping(z * 7, c), mapping(z, c))
    assert not torch.allclose(mapping(z, c.roll(1, 0)), mapping(z, c))


def test_truncation(mapping):
    z, c = torch.randn(2, 4), torch.randn(2, 3)
    mapping.w_avg.copy_(torch.randn(6))
    ws = mapping(z, c)
    assert (ws == ws[:, :1]).all()
    torch.testing.assert_close(mapping(z, c, truncation_psi=0.25), mapping.w_avg * 0.75 + ws * 0.25)
    assert (mapping(z, c, truncation_psi=0) == mapping.w_avg).all()
    half = mapping(z, c, truncation_psi=0, truncation_cutoff=2)
    assert (half[:, :2] == mapping.w_avg).all() and (half[:, 2:] == ws[:, 2:]).all()


def test_running_mean_of_the_latents(mapping):
    z, c = torch.randn(8, 4), torch.randn(8, 3)
    mean = mapping(z, c)[:, 0].mean(dim=0)
    assert mapping.w_avg.abs().sum() == 0
    mapping(z, c, update_emas=True)
    torch.testing.assert_close(mapping.w_avg, mean * (1 - 0.998))


def test_mapping_without_a_mean_refuses_truncation():
    bare = MappingNetwork(4, 0, 6, num_ws=2, num_layers=1, w_avg_beta=None)
    with pytest.raises(ValueError, match='truncation_psi'):
        bare(torch.randn(1, 4), None, truncation_psi=0.5)


def test_noise_modes():
    layer = SynthesisLayer(2, 3, 4, resolution=8)
    x, w = torch.randn(2, 2, 8, 8), torch.randn(2, 4)
    silent = layer(x, w, 'none')
    assert (layer(x, w, 'random') == silent).all()          # noise begins with no strength
    layer.noise_strength.data.fill_(1)
    assert (layer(x, w, 'const') == layer(x, w, 'const')).all() and not (layer(x, w, 'const') == silent).any(dim=1).all()
    assert not torch.allclose(layer(x, w, 'random'), layer(x, w, 'random'))
    with pytest.raises(ValueError, match='pink'):
        layer(x, w, 'pink')


def test_synthesis_network_uses_every_latent():
    network = SynthesisNetwork(4, 16, 3, channel_base=128, channel_max=8)
    ws = torch.randn(1, network.num_ws, 4, requires_grad=True)
    image = network(ws, 'const')
    assert image.shape == (1, 3, 16, 16) and network.num_ws == 6
    image.square().sum().backward()
    assert (ws.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize('resolution', [2, 24])
def test_synthesis_network_wants_a_power_of_two(resolution):
    with pytest.raises(ValueError, match=str(resolution)):
        SynthesisNetwork(4, resolution, 3, channel_base=128, channel_max=8)


def test_no_network_without_channels():
    with pytest.raises(ValueError, match='channel_base 16'):
        SynthesisNetwork(4, 32, 3, channel_base=16, channel_max=8)


@pytest.mark.parametrize('name', SPECS)
@pytest.mark.parametrize('size', [16, 256])
def test_superresolution_sizes(name, size):
    with torch.device('meta'):
        network = SuperResolution(8, 'a.module.path.' + name, w_dim=4)
        # the 4X module takes larger inputs as they are
        factor = size / network.input_resolution if not SPECS[name].resize_larger and size > network.input_resolution else 1
        image = network(torch.randn(1, 3, size, size), torch.randn(1, 8, size, size), torch.randn(1, 5, 4))
    assert image.shape == (1, 3, *[SPECS[name].img_resolution * factor] * 2)


def test_superresolution_listens_to_the_last_latent_only():
    network = SuperResolution(4, 'SuperresolutionHybrid32', w_dim=4, channel_scale=0.25)
    rgb, features, ws = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 16, 16), torch.randn(1, 5, 4)
    image = network(rgb, features, ws)
    assert (network(rgb, features, torch.cat([ws[:, :4] + 1, ws[:, 4:]], dim=1)) == image).all()
    assert not torch.allclose(network(rgb, features, torch.cat([ws[:, :4], ws[:, 4:] + 1], dim=1)), image)


def test_superresolution_refusals():
    with pytest.raises(ValueError, match='Hybrid3X'):
        SuperResolution(4, 'SuperresolutionHybrid3X')
    with pytest.raises(ValueError, match='got 16'):
        default_module(16)
    assert {SPECS[default_module(size)].img_resolution for size in (32, 64, 128, 256, 512)} == {32, 64, 128, 256, 512}


@torch.no_grad()
def test_decoder_activations():
    x = torch.randn(1, 50, 4) * 100
    outputs = {}
    for activation in ('none', 'sigmoid', 'lrelu'):
        torch.manual_seed(1)
        outputs[activation] = OSGDecoder(4, 6, activation)(x)
    density, colour = outputs['none']
    assert density.shape == (1, 50, 1) and colour.shape == (1, 50, 6)
    assert all((other[0] == density).all() for other in outputs.values())
    assert outputs['sigmoid'][1].min().item() == pytest.approx(-0.001, abs=1e-5)
    assert outputs['sigmoid'][1].max().item() == pytest.approx(1.001, abs=1e-5)
    torch.testing.assert_close(outputs['lrelu'][1], torch.where(colour > 0, colour, colour * 0.2) * math.sqrt(2))
    with pytest.raises(ValueError, match='relu6'):
        OSGDecoder(4, 6, 'relu6')


# ---------------------------------------------------------------------------------------------------------------------
# Planes.

def planes_changed_by(axis, plane_axes):
    """How many of the three planes notice that a point moves along a world axis."""
    point = torch.tensor([[[0.1, -0.2, 0.15]]])
    moved = point.clone()
    moved[..., axis] += 0.1
    noticed = 0
    for plane in range(3):
        planes = torch.zeros(1, 3, 1, 1, 8, 8)
        planes[:, plane] = torch.randn(1, 1, 1, 8, 8)
        before, after = (sample_planes(planes, p, 1.0, plane_axes, trilinear=False) for p in (point, moved))
        noticed += int((before - after).abs() > 1e-6)
    return noticed


def test_each_axis_moves_two_of_the_orthogonal_planes():
    assert [planes_changed_by(axis, 'orthogonal') for axis in range(3)] == [2, 2, 2]


def test_released_planes_of_eg3d_lack_a_yz_plane():
    assert [planes_changed_by(axis, 'eg3d') for axis in range(3)] == [3, 1, 2]


@pytest.mark.parametrize('plane_axes', PLANE_AXES)
@pytest.mark.parametrize('box', [1.0, 1.6])
def test_one_layer_fades_off_its_plane(plane_axes, box):
    planes = torch.ones(1, 3, 2, 1, 8, 8)
    points = (torch.rand(1, 20, 3) - 0.5) * 0.8 * box          # inside the outermost cell centres
    depth_axes = [axes[2] for axes in PLANE_AXES[plane_axes]]
    t = points[..., depth_axes] * 2 / box
    expected = (1 - t.abs() / 2).mean(dim=-1, keepdim=True).expand(-1, -1, 2)
    torch.testing.assert_close(sample_planes(planes, points, box, plane_axes), expected)
    assert (sample_planes(planes, points, box, plane_axes, trilinear=False) == 1).all()


def test_layers_of_a_grid_lie_along_the_third_axis():
    """Layer centres of a three-layer plane lie at -2/3, 0 and 2/3 of the half box."""
    planes = torch.zeros(1, 3, 1, 3, 8, 8)
    planes[:, 0, :, :] = torch.tensor([1.0, 10.0, 100.0])[:, None, None]      # plane 0: z is its depth
    z = torch.tensor([-2 / 3, -1 / 3, 0.0, 2 / 3]) * 0.5
    points = torch.stack([torch.zeros(4), torch.zeros(4), z], dim=-1)[None]
    torch.testing.assert_close(sample_planes(planes, points, 1.0).flatten() * 3, torch.tensor([1.0, 5.5, 10.0, 100.0]))


def test_width_and_height_of_a_plane():
    planes = torch.zeros(1, 3, 1, 1, 4, 4)
    planes[0, 0, 0, 0, 3, 0] = 3.0                                            # last row, first column
    corner = torch.tensor([[[-0.375, 0.375, 0.0]]])                           # x runs along the columns, y along the rows
    assert sample_planes(planes, corner, 1.0, trilinear=False).item() == pytest.approx(1.0)


def test_nothing_lies_outside_the_planes():
    points = torch.tensor([[[0.7, 0.7, 0.7]]])
    assert sample_planes(torch.ones(1, 3, 1, 1, 4, 4), points, 1.0).item() == 0


def test_bilinear_planes_have_one_layer():
    with pytest.raises(ValueError, match='got 3'):
        sample_planes(torch.ones(1, 3, 1, 3, 4, 4), torch.zeros(1, 1, 3), 1.0, trilinear=False)


# ---------------------------------------------------------------------------------------------------------------------
# Discriminator.

def test_minibatch_std_by_hand():
    x = torch.tensor([0.0, 1.0, 4.0, 7.0])[:, None, None, None].expand(4, 2, 4, 4)
    # groups are every other image: {0, 4} and {1, 7}, deviations 2 and 3
    y = MinibatchStdLayer(2)(x)
    assert y.shape == (4, 3, 4, 4) and (y[:, :2] == x).all()
    torch.testing.assert_close(y[:, 2, 0, 0], torch.tensor([2.0, 3.0, 2.0, 3.0]))
    torch.testing.assert_close(MinibatchStdLayer(None)(x)[:, 2, 0, 0], x[:, 0, 0, 0].std(correction=0).expand(4))
    with pytest.raises(ValueError, match='mbstd-group'):
        MinibatchStdLayer(3)(x)


# Small networks.
SMALL_D = dict(img_resolution=32, channel_base=128, channel_max=8, mapping_layers=1, mbstd_group_size=2)
VARIANTS = {'dual': dict(inputs=('image', 'image_raw')), 'v2': dict(),
            'v1': dict(inputs=('image', 'image_raw'), mask_trunk_resolution=16)}


def pictures(num=2):
    return {'image': torch.randn(num, 3, 32, 32), 'image_raw': torch.randn(num, 3, 8, 8), 'image_mask': torch.rand(num, 1, 8, 8)}


@pytest.mark.parametrize('variant', VARIANTS)
def test_discriminator_sees_what_it_wants(variant):
    d = MultiInputDiscriminator(**SMALL_D, **VARIANTS[variant])
    images, c = pictures(), torch.randn(2, 25)
    assert set(d.wanted) == ({'image', 'image_raw'} if variant == 'dual' else {'image', 'image_raw', 'image_mask'})
    logits = d(images, c)
    assert logits.shape == (2, 1)
    for name in images:
        changed = d({**images, name: images[name].flip(-1)}, c)
        assert torch.allclose(changed, logits) == (name not in d.wanted)
    assert not torch.allclose(d(images, c.roll(1, 0)), logits)


def test_mask_is_shown_on_the_scale_of_images(monkeypatch):
    d = MultiInputDiscriminator(**SMALL_D)
    seen = []
    monkeypatch.setattr(d.b32, 'forward', lambda x, img, fp32=False: seen.append(img) or torch.zeros(len(img), 4, 16, 16))
    monkeypatch.setattr(d.b16, 'forward', lambda *args: torch.zeros(2, 8, 8, 8))
    d({**pictures(), 'image_mask': torch.ones(2, 1, 32, 32)}, torch.randn(2, 25))
    d({**pictures(), 'image_mask': torch.zeros(2, 1, 32, 32)}, torch.randn(2, 25))
    assert (seen[0][:, 6] == 1).all() and (seen[1][:, 6] == -1).all()


def test_label_noise_leaves_the_callers_labels_alone():
    d = MultiInputDiscriminator(**SMALL_D, disc_c_noise=1.0)
    c = torch.randn(2, 25)
    kept, images = c.clone(), pictures()
    assert not torch.allclose(d(images, c), d(images, c))
    assert (c == kept).all()
    same = c[:1].expand(2, -1)                                   # entries that do not vary get no noise
    torch.testing.assert_close(d(images, same), d(images, same))


@pytest.mark.parametrize('frozen', [0, 1, 4, 5, 100])
def test_freeze_d_takes_layers_from_the_input_on(frozen):
    free, d = (MultiInputDiscriminator(**SMALL_D, freeze_layers=n) for n in (0, frozen))
    assert list(free.state_dict()) == list(d.state_dict()) or set(free.state_dict()) == set(d.state_dict())
    layers = [f'b{r}.{name}' for r, first in ((32, True), (16, False), (8, False))
              for name in (('fromrgb',) if first else ()) + ('conv0', 'conv1', 'skip')]
    learning = {name.rpartition('.')[0] for name, _ in d.named_parameters()}
    assert [name for name in layers if name not in learning] == layers[:frozen]
    assert 'b4.conv' in learning


@pytest.mark.parametrize('kwargs, words', [
    (dict(inputs=('image', 'depth')), 'depth'), (dict(inputs=()), 'inputs'), (dict(mask_trunk_resolution=64), 'got 64'),
    (dict(mask_trunk_resolution=12), 'got 12')])
def test_discriminator_refuses(kwargs, words):
    with pytest.raises(ValueError, match=words):
        MultiInputDiscriminator(**SMALL_D, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# Generators.

SMALL_G = dict(z_dim=8, w_dim=12, img_resolution=32, channel_base=256, channel_max=8, plane_resolution=16,
               neural_rendering_resolution=8, sr_channel_scale=0.125,
               rendering={'depth_resolution': 8, 'depth_resolution_importance': 8})
FAMILIES = {'panohead': lambda **kwargs: PanoHeadGenerator(features=4, **SMALL_G, **kwargs),
            'eg3d': lambda **kwargs: EG3DGenerator(**SMALL_G, **kwargs)}


@pytest.fixture(params=FAMILIES)
def generator(request):
    return FAMILIES[request.param]().eval().requires_grad_(False)


@pytest.fixture
def latents():
    return torch.randn(2, 8), camera_utils.label_from_yaw((10.0, -60.0))


def test_output_reads_as_attributes_and_as_a_dict(generator, latents):
    out = generator(*latents)
    shapes = {'image': (2, 3, 32, 32), 'image_raw': (2, 3, 8, 8), 'image_depth': (2, 1, 8, 8), 'image_mask': (2, 1, 8, 8)}
    for name, shape in shapes.items():
        assert out[name].shape == shape and out[name] is getattr(out, name) and out[name].isfinite().all()
    assert set(shapes) <= set(out.keys()) and ('camera_offset' in out.keys()) == (generator.t_mapping is not None)
    with pytest.raises(KeyError):
        out['teapot']


@torch.no_grad()
def test_same_picture_twice_and_jitter_only_on_request(generator, latents):
    first, second = generator(*latents), generator(*latents)
    assert all((first[name] == second[name]).all() for name in first.keys())
    jittered = [generator(*latents, options=dataclasses.replace(generator.rendering, jitter=True)) for _ in range(2)]
    assert not (jittered[0].image_raw == jittered[1].image_raw).all()


def test_one_backbone_run_however_many_cameras(generator, latents):
    runs = []
    generator.backbone.synthesis.register_forward_hook(lambda *_: runs.append(1))
    z, c = latents
    ws = generator.mapping(z, c)
    field = generator.build_field(ws)
    views = [generator.render(field, ws, camera_utils.label_from_yaw((yaw, yaw))).image for yaw in (0.0, 90.0, 180.0)]
    assert len(runs) == 1
    assert not torch.allclose(views[0], views[2])
    torch.testing.assert_close(generator.synthesis(ws, camera_utils.label_from_yaw((0.0, 0.0))).image, views[0])


def test_field_of_one_among_several(generator, latents):
    z, c = latents
    ws = generator.mapping(z, c)
    field = generator.build_field(ws)
    both = generator.render(field, ws, c).image
    torch.testing.assert_close(generator.render(field[1:], ws[1:], c[1:]).image, both[1:], rtol=1e-4, atol=1e-5)
    twice = generator.render(field[:1].expand(2), ws[:1].expand(2, -1, -1), c).image
    torch.testing.assert_close(twice[:1], both[:1], rtol=1e-4, atol=1e-5)
    shared = generator.render(field[:1], ws[:1].expand(2, -1, -1), c, ws_bcg=ws[:1])       # the field of one, seen twice
    alone = generator.render(field[:1], ws[:1], c[1:])
    for name in alone.keys():     # noqa: SIM118, an output is no dict
        torch.testing.assert_close(shared[name][1:], alone[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.image, twice, rtol=1e-4, atol=1e-5)


def test_resolution_is_an_argument_and_nothing_is_left_behind(generator, latents):
    before = copy.deepcopy(generator.__dict__['neural_rendering_resolution']), generator.rendering
    assert generator(*latents, resolution=16).image_raw.shape[-1] == 16
    assert generator(*latents).image_raw.shape[-1] == 8
    assert before == (generator.neural_rendering_resolution, generator.rendering)


@pytest.mark.parametrize('family', FAMILIES)
def test_pose_conditioning(family):
    z, c = torch.randn(2, 8), camera_utils.label_from_yaw((10.0, -60.0))
    blind = FAMILIES[family](c_gen_conditioning_zero=True).eval()
    assert (blind.mapping(z, c) == blind.mapping(z, c.roll(1, 0))).all()
    seeing, scaled = FAMILIES[family]().eval(), FAMILIES[family](c_scale=0.5).eval()
    scaled.load_state_dict(seeing.state_dict())
    assert not torch.allclose(seeing.mapping(z, c), seeing.mapping(z, c.roll(1, 0)))
    torch.testing.assert_close(scaled.mapping(z, c * 2), seeing.mapping(z, c))


def test_camera_moves_by_the_learned_translation():
    g = FAMILIES['panohead']().eval().requires_grad_(False)
    z, c = torch.randn(2, 8), camera_utils.label_from_yaw((10.0, -60.0))
    offset = g.camera_offset(z, c)
    moved = g.move_camera(c, offset)
    changed = (moved != c).any(dim=0).nonzero().flatten().tolist()
    assert changed == [3, 7, 11]
    torch.testing.assert_close(moved[:, [3, 7, 11]] - c[:, [3, 7, 11]], offset)
    out = g(z, c)
    assert (out.camera_offset == offset).all()
    torch.testing.assert_close(out.image, g.synthesis(g.mapping(z, c), moved).image)
    assert FAMILIES['panohead'](adaptive_camera=False).camera_offset(z, c) is None


def test_background_shows_where_the_head_does_not():
    g = FAMILIES['panohead'](use_torgb_raw=False).eval().requires_grad_(False)
    z, c = torch.randn(2, 8), camera_utils.label_from_yaw((10.0, -60.0))
    ws = g.mapping(z, c)
    own, swapped = g.synthesis(ws, c), g.synthesis(ws, c, ws_bcg=ws.roll(1, 0))
    assert (own.image_mask == swapped.image_mask).all()
    opacity = (own.image_mask + 0.001) / 1.002
    difference = (resize(g.background(ws.roll(1, 0)), 8) - resize(g.background(ws), 8))[:, :3]
    torch.testing.assert_close(swapped.image_raw - own.image_raw, (1 - opacity) * difference, rtol=1e-4, atol=1e-5)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize('cls', [PanoHeadGenerator, EG3DGenerator, MultiInputDiscriminator])
def test_unknown_argument_is_a_type_error(cls):
    with pytest.raises(TypeError, match='teapot'):
        cls(img_resolution=32, channel_base=256, channel_max=8, teapot=1)


@pytest.mark.parametrize('kwargs, words', [
    ({'c_dim': 7}, 'c_dim'), ({'rendering': {'ray_start': 4.0}}, 'ray_start'), ({'decoder_activation': 'relu6'}, 'relu6'),
    ({'plane_resolution': 12}, '12'), ({'img_resolution': 48}, 'got 48')])
def test_generator_refuses(kwargs, words):
    with pytest.raises(ValueError, match=words):
        PanoHeadGenerator(**{**SMALL_G, 'features': 4, **kwargs})


def test_options_of_rendering_are_named():
    with pytest.raises(TypeError, match='teapot'):
        PanoHeadGenerator(**{**SMALL_G, 'rendering': {'teapot': 1}})


@torch.no_grad()
def test_point_colours_are_those_of_the_raw_image(generator, latents):
    """A composited feature, coloured as a surface point, has the colour of its pixel in the raw image."""
    z, c = latents
    ws = generator.mapping(z, c)
    field = generator.build_field(ws)
    features = render_rays(field, camera_rays(*camera_utils.split_label(c), 8), generator.rendering).features
    if generator.bcg_synthesis is not None:
        weight = (generator.render(field, ws, c).image_mask + 0.001) / 1.002
        features = features + ((1 - weight) * resize(generator.background(ws), 8)).flatten(2).transpose(1, 2)
    raw = generator.render(field, ws, c).image_raw.flatten(2).transpose(1, 2)
    torch.testing.assert_close(generator.point_colors(features, ws), ((raw + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)
