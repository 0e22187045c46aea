"""Our float32 results against values computed with the published networks. Any further file of these patterns counts."""

import dataclasses
import json

import pytest
import torch

import camera_utils
import reference
from reference import assert_within
from torch_utils.ops import bias_act, conv2d_resample, resize, upfirdn2d
from training.discriminators.multi_input import MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator
from training.losses import adversarial
from training.schedules import Schedule
from training.volumetric_rendering import renderer
from training.volumetric_rendering.rays import camera_rays


@pytest.mark.parametrize('path', reference.files('ops*.npz'))
def test_ops(path):
    v, _ = reference.load(path)
    x, sq, w = v['x'], v['sq'], v['w']
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    results = {
        'filter': f,
        'up2': upfirdn2d.upsample2d(x, f),
        'down2': upfirdn2d.downsample2d(x, f),
        'filter2d': upfirdn2d.filter2d(x, f),
        'mixed': upfirdn2d.upfirdn2d(x, f, up=(2, 3), down=(3, 1), padding=(2, 1, 0, 3), gain=2),
        'conv_resample_up': conv2d_resample.conv2d_resample(sq, w, f, up=2, padding=1),
        'conv_resample_down': conv2d_resample.conv2d_resample(sq, w, f, down=2, padding=1),
        'modconv': conv2d_resample.modulated_conv2d(sq, w, v['styles'], padding=1),
        'modconv_up': conv2d_resample.modulated_conv2d(sq, w, v['styles'], up=2, padding=1, resample_filter=f),
        'modconv_nodemod': conv2d_resample.modulated_conv2d(sq, w[:, :, :1, :1], v['styles'], demodulate=False),
        'resize_8': resize.resize(sq, 8),
        'resize_32': resize.resize(sq, 32),
    }
    bias = torch.linspace(-1, 1, x.shape[1])
    results.update({f'bias_act_{act}': bias_act.bias_act(x, bias, act=act, gain=1.3, clamp=0.9) for act in bias_act.ACTIVATIONS})
    expected = set(v) - {'x', 'sq', 'w', 'styles'}
    assert expected <= set(results), f'no result for {expected - set(results)}'
    for name in expected:
        assert_within(results[name], v[name], name)


@pytest.mark.parametrize('path', reference.files('camera*.npz'))
def test_camera(path):
    v, _ = reference.load(path)
    poses = camera_utils.look_at_pose(v['hv'][:, 0], v['hv'][:, 1], v['lookat'], float(v['radius']))
    assert_within(poses, v['cam2world'], 'cam2world')
    intrinsics = torch.stack([camera_utils.fov_to_intrinsics(float(fov)) for fov in v['fov']])
    assert_within(intrinsics, v['intrinsics'], 'intrinsics')
    angles = camera_utils.label_angles_deg(camera_utils.make_label(poses))
    difference = (angles - v['yaw_pitch_roll_deg'] + 180) % 360 - 180
    assert difference.abs().max() < 0.02


@pytest.mark.parametrize('path', reference.files('generator_*.npz'))
@torch.no_grad()
def test_generator(path):
    v, config = reference.load(path)
    g = reference.build_generator(config, panohead='panohead' in path.stem)
    z, c = v['z'], v['c']
    ws = g.mapping(z, c)
    assert_within(ws, v['ws'], 'ws')
    assert_within(g.mapping(z, c, truncation_psi=0.7), v['ws_trunc'], 'ws_trunc')
    offset = g.camera_offset(z, c)
    assert (offset is not None) == ('delta_c' in v)
    if offset is not None:
        assert_within(offset, v['delta_c'], 'delta_c')
        c = g.move_camera(c, offset)

    field = g.build_field(ws)
    planes = field.planes.flatten(2, 3)
    assert_within(planes[:, :, ::8, ::4, ::4], v['planes_slice'], 'planes')
    assert abs(planes.std() - v['planes_std']) < 1e-4 * v['planes_std']
    sample = field.query(v['points'])
    assert_within(sample.density, v['points_sigma'], 'density at points')
    assert_within(sample.features, v['points_rgb'], 'colour at points')

    rays = camera_rays(*camera_utils.split_label(c), g.neural_rendering_resolution)
    assert_within(rays.directions, v['rays_d'], 'ray directions')
    composite = renderer.render_rays(field, rays, g.rendering)
    features = composite.features * 2 - 1 if g.feature_range == 'unit' else composite.features
    assert_within(features, v['features'], 'features')
    assert_within(composite.depth, v['depths'], 'depths')
    assert_within(composite.weights.sum(-1, keepdim=True), v['weights'], 'weights')

    out = g.synthesis(ws, c)
    stride = int(v['image_stride'])
    assert_within(out.image[:, :, ::stride, ::stride], v['image'], 'image')
    for name in {'image_raw', 'image_depth', 'image_mask'} & set(v):
        assert_within(out[name], v[name], name)
    if 'image_raw_bcg_swapped' in v:
        assert_within(g.synthesis(ws, c, ws_bcg=ws.roll(1, 0)).image_raw, v['image_raw_bcg_swapped'], 'swapped background')
    assert_within(g(z, v['c']).image, out.image, 'forward')


@pytest.mark.parametrize('path', reference.files('discriminator_*.npz'))
def test_discriminator(path):
    v, config = reference.load(path)
    d = reference.build_discriminator(**config)
    images = {name: v[name].float().requires_grad_(True) for name in d.wanted}
    logits = d(images, v['c'])
    assert_within(logits, v['logits'], 'logits')
    for name, gradient in zip(images, torch.autograd.grad(logits.sum(), list(images.values()))):
        torch.testing.assert_close(gradient.square().sum(dim=[1, 2, 3]), v[f'r1_{name}'], rtol=1e-3, atol=0)


@pytest.fixture
def midpoint_rays(monkeypatch):
    """Training renders with the mid-points of its bins, as the reference did."""
    draw = renderer.draw_noise
    monkeypatch.setattr(renderer, 'draw_noise', lambda rays, options: draw(rays, dataclasses.replace(options, jitter=False)))


@pytest.fixture
def reported(monkeypatch):
    """Statistics the loss reports, by name."""
    stats = {}
    monkeypatch.setattr(adversarial.training_stats, 'report',
                        lambda name, value: stats.update({name: torch.as_tensor(value).float().mean()}))
    return stats


@pytest.mark.parametrize('phase,network', [('Gmain', 'G'), ('Dmain', 'D'), ('Dreg', 'D')])
@pytest.mark.parametrize('path', reference.files('losses_panohead*.npz'))
def test_losses(path, phase, network, midpoint_rays, reported):
    v, config = reference.load(path)
    r = config['rendering_kwargs']
    size = {'img_resolution': r['image_resolution'], 'channel_base': 1024, 'channel_max': 32}
    g = reference.build_generator({'z_dim': v['gen_z'].shape[1], 'c_dim': 25, 'w_dim': 512, 'map_depth': 2, **size,
                                   'neural_rendering_resolution': config['neural_rendering_resolution'], **config}, panohead=True)
    d = reference.build_discriminator('MaskDualDiscriminatorV2', **size)
    networks = {'G': g.train(), 'D': d.train()}
    options = adversarial.LossOptions(config['r1_gamma'], config['r1_gamma_seg'], trans_reg=r['trans_reg'], noise_mode='none')
    loss = adversarial.AdversarialLoss(g, d, options)
    batch = adversarial.Batch({'image': v['real'].float(), 'image_mask': v['seg'].float()}, v['real_c'], v['gen_z'], v['gen_c'])
    networks[network].requires_grad_(True)
    loss.accumulate(phase, batch, Schedule(0.0, 0.0, config['neural_rendering_resolution'], 0.0), config['gain'])

    prefix = f'{phase}_stat_'
    for name in [name for name in v if name.startswith(prefix)]:
        assert float(reported[name[len(prefix):]]) == pytest.approx(float(v[name]), rel=1e-3, abs=1e-6), name
    parameters = dict(networks[network].named_parameters())
    for name, expected in zip(v[f'{phase}_names'].tolist(), v[f'{phase}_grad_norms'].tolist()):
        gradient = parameters[name].grad
        norm = 0.0 if gradient is None else float(gradient.norm())
        assert norm == pytest.approx(expected, rel=1e-3, abs=1e-8), name
    others = [name for name, p in parameters.items() if p.grad is not None and p.grad.norm() > 0 and name not in v[f'{phase}_names']]
    assert not others, f'gradients where the reference has none: {others}'


def _networks():
    return {
        ('panohead', 'G'): PanoHeadGenerator,
        ('eg3d', 'G'): EG3DGenerator,
        ('panohead', 'D_MaskDualDiscriminatorV2'): MultiInputDiscriminator,
        ('panohead', 'D_MaskDualDiscriminator'): lambda: MultiInputDiscriminator(inputs=('image', 'image_raw'), mask_trunk_resolution=128),
        ('eg3d', 'D_DualDiscriminator'): lambda: MultiInputDiscriminator(inputs=('image', 'image_raw')),
    }


@pytest.mark.parametrize('path', reference.files('parameters_*_512.json'))
def test_parameter_names_and_shapes(path):
    published = json.loads(path.read_text())
    family = path.stem.split('_')[1]
    for key, parameters in published.items():
        with torch.device('meta'):
            ours = {name: list(value.shape) for name, value in _networks()[family, key]().state_dict().items()}
        assert ours == parameters, f'{family} {key}'
