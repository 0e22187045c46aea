"""What 16 bits cost: images of the reference networks against float32, losses and gradients of training."""

import math

import pytest
import torch

import camera_utils
import reference
from dnnlib import UserError
from torch_utils.misc import cpu_multiplies_bfloat16, half_dtype
from torch_utils.ops import winograd
from training.losses import adversarial
from training.networks.precision import INFERENCE_PRECISIONS, resolve_precision, set_half_type, set_precision
from training.networks.stylegan2 import SynthesisBlock
from training.schedules import Schedule
from training.snapshot import load_network

CPU = torch.device('cpu')
LEAST_PSNR = 45.0   # dB, over the range of float32's values
LEAST_OF_INTEGERS = 75.0


def psnr(image, expected):
    """Peak signal-to-noise ratio in dB over the expected image's range of values, at least that of a picture (2)."""
    span = max(float(expected.max() - expected.min()), 2.0)
    return 10 * math.log10(span ** 2 / max(float((image - expected).square().mean()), 1e-20))


def images(generator, ws, c, precision):
    """(image, field's planes) in a precision."""
    set_precision(generator, precision, CPU)
    with torch.inference_mode():
        field = generator.build_field(ws)
        return generator.render(field, ws, c).image, field.planes


@pytest.mark.parametrize('path', reference.files('generator_*.npz'))
def test_reference_networks(path):
    v, config = reference.load(path)
    generator = reference.build_generator(config, panohead='panohead' in path.stem)
    check(generator, v['ws'][:1], v['c'][:1])


def test_the_carried_network():
    generator = load_network('demo', 'G_ema', CPU)
    c = camera_utils.label_from_yaw([0.0, 160.0], lookat=(0, 0, 0), radius=generator.camera.radius)
    check(generator, generator.mapping(torch.randn(2, generator.z_dim), c[:1].expand(2, -1)), c)


@torch.no_grad()
def check(generator, ws, c):
    expected, planes = images(generator, ws, c, 'float32')
    # bfloat16 without its products takes a minute and a half for 512 pixels: there the smaller networks show it.
    bf16 = ['bf16'] if cpu_multiplies_bfloat16() or generator.img_resolution <= 256 else []
    wanted = {resolve_precision(name, CPU): name for name in (*bf16, *(['int16'] if winograd.multiplies('int16') else []), 'auto')}
    for precision in wanted.values():
        image, half_planes = images(generator, ws, c, precision)
        assert psnr(image, expected) > (LEAST_OF_INTEGERS if resolve_precision(precision, CPU) == 'int16' else LEAST_PSNR), precision
        if resolve_precision(precision, CPU) != 'float32':
            assert not torch.equal(planes, half_planes), 'the precision changed nothing'


@pytest.mark.skipif(not cpu_multiplies_bfloat16(), reason='this processor has no bfloat16 products')
def test_auto_takes_16_bits_where_they_pay():
    assert resolve_precision('auto', CPU) == 'bf16'
    assert resolve_precision('auto', torch.device('cuda')) == 'fp16'
    assert resolve_precision('auto', torch.device('mps')) == 'float32'


@pytest.mark.skipif(cpu_multiplies_bfloat16() or not winograd.integers_pay(), reason='products of integers are not the fastest here')
def test_auto_takes_integers_where_they_pay(monkeypatch):
    assert resolve_precision('auto', CPU) == 'int16'
    monkeypatch.setenv('OMNIHEAD_NATIVE', '0')
    assert resolve_precision('auto', CPU) == 'float32'
    with pytest.raises(UserError, match='--precision int16'):
        resolve_precision('int16', CPU)


@pytest.mark.parametrize('precision,device', [('tf32', 'cpu'), ('tf32', 'mps'), ('fp16', 'cpu'), ('half', 'cuda'), ('int16', 'cuda')])
def test_what_a_device_lacks_is_refused(precision, device):
    with pytest.raises(UserError, match=f'--precision {precision}'):
        resolve_precision(precision, torch.device(device))


def test_every_precision_is_kept_by_the_blocks():
    block = SynthesisBlock(8, 8, 16, 8, 3)
    for precision in INFERENCE_PRECISIONS:
        if precision in ('tf32', 'fp16') or (precision == 'int16' and not winograd.multiplies('int16')):
            continue
        set_precision(block, precision, CPU)
        x, _ = block(torch.randn(1, 8, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(1, 3, 16))
        wanted = {'float32': torch.float32, 'bf16': torch.bfloat16, 'int16': torch.float32, 'auto': half_dtype(CPU)}[precision]
        assert x.dtype == wanted, precision
        assert block.conv0.products == block.torgb.products == ('int16' if resolve_precision(precision, CPU) == 'int16' else None)


@pytest.mark.parametrize('path', reference.files('losses_panohead*.npz'))
def test_training_losses_and_gradients_agree(path):
    v, config = reference.load(path)
    r = config['rendering_kwargs']
    size = {'img_resolution': r['image_resolution'], 'channel_base': 1024, 'channel_max': 32}
    found = {}
    for precision in ('float32', 'bf16'):
        g = reference.build_generator({'z_dim': v['gen_z'].shape[1], 'c_dim': 25, 'w_dim': 512, 'map_depth': 2, **size,
                                       'neural_rendering_resolution': config['neural_rendering_resolution'], **config}, panohead=True)
        d = reference.build_discriminator('MaskDualDiscriminatorV2', num_fp16_res=4, **size)
        for network in (g, d):
            for block in network.modules():
                if hasattr(block, 'use_fp16'):
                    block.use_fp16 = True
            set_half_type(network, precision, CPU)
        found[precision] = gradients(g, d, v, config)
    for name, expected in found['float32'].items():
        cosine = torch.nn.functional.cosine_similarity(found['bf16'][name], expected, dim=0)
        assert cosine > 0.98, f'{name}: cosine {cosine:.4f}'
        assert float(found['bf16'][name].norm() / expected.norm()) == pytest.approx(1, abs=0.05), name


def gradients(g, d, v, config):
    """The gradient of each phase as one vector."""
    loss = adversarial.AdversarialLoss(g, d, adversarial.LossOptions(config['r1_gamma'], config['r1_gamma_seg'], noise_mode='none'))
    batch = adversarial.Batch({'image': v['real'].float(), 'image_mask': v['seg'].float()}, v['real_c'], v['gen_z'], v['gen_c'])
    found = {}
    for phase, network in (('Gmain', g), ('Dmain', d), ('Dreg', d)):
        network.train().requires_grad_(True).zero_grad(set_to_none=True)
        torch.manual_seed(0)
        loss.accumulate(phase, batch, Schedule(0.0, 0.0, config['neural_rendering_resolution'], 0.0), 1.0)
        found[phase] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        network.requires_grad_(False)
    return found
