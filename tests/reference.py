"""Reference values of the published networks: where they lie, how weights are filled, what belongs to a configuration."""

import json
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from training.discriminators.multi_input import MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator

FOLDER = Path(os.environ.get('REFERENCE_VALUES') or Path(__file__).resolve().parents[2] / 'shared' / 'golden')


def files(pattern):
    """pytest parameters of all files of that pattern, or one that skips and says why."""
    found = sorted(FOLDER.glob(pattern))
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    reason = f'no reference values {pattern} in {FOLDER}; set REFERENCE_VALUES'
    return [pytest.param(None, id='absent', marks=pytest.mark.skip(reason=reason))]


def load(path):
    """(tensors by name, configuration) of an .npz file."""
    with np.load(path, allow_pickle=False) as data:
        values = {k: data[k] for k in data.files}
    config = json.loads(str(values.pop('config'))) if 'config' in values else None
    return {k: torch.as_tensor(v) if v.dtype.kind == 'f' else v for k, v in values.items()}, config


def fill_weights(module):
    """Fill a network's parameters and buffers by the published rule (the README beside the values)."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        last = name.rpartition('.')[2]
        v = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tensor.shape)
        v = torch.as_tensor(np.asarray(v, dtype=np.float32))
        mapping = re.search(r'(^|\.)mapping\.fc\d+\.', name)
        if last == 'weight':
            factor = 100 if mapping else 0.3 if 't_mapping.' in name else 1
            value = factor * v
        elif last == 'bias':
            if name.endswith('affine.bias'):
                value = 1 + 0.1 * v
            else:
                value = (10 if mapping else 0.01 if 't_mapping.' in name else 0.1) * v
        elif last in ('noise_strength', 'w_avg'):
            value = 0.1 * v
        elif last in ('const', 'noise_const'):
            value = v
        else:
            continue
        with torch.no_grad():
            tensor.copy_(value)


def generator_kwargs(config, panohead):
    """Constructor arguments of our generators for a published configuration."""
    r = config['rendering_kwargs']
    rendering = {k: r[k] for k in ('ray_start', 'ray_end', 'depth_resolution', 'depth_resolution_importance', 'box_warp')}
    rendering.update(white_back=r.get('white_back', False), missed_rays_end_near=True)
    kwargs = dict(
        z_dim=config['z_dim'], c_dim=config['c_dim'], w_dim=config['w_dim'], img_resolution=config['img_resolution'],
        mapping_layers=config['map_depth'], channel_base=config['channel_base'], channel_max=config['channel_max'],
        neural_rendering_resolution=config['neural_rendering_resolution'], rendering=rendering,
        camera={'radius': r['avg_camera_radius'], 'pivot': r['avg_camera_pivot']}, sr_module=r['superresolution_module'],
        sr_noise_mode=r['superresolution_noise_mode'], sr_antialias=r['sr_antialias'], c_scale=r['c_scale'],
        c_gen_conditioning_zero=r['c_gen_conditioning_zero'], decoder_lr_mul=r['decoder_lr_mul'])
    if panohead:
        kwargs.update(plane_resolution=r['triplane_size'], plane_depth=r['triplane_depth'],
                      decoder_activation=r['decoder_activation'], use_torgb_raw=r['use_torgb_raw'],
                      use_background=r['use_background'], adaptive_camera=r['trans_reg'] > 0)
    else:
        kwargs.update(plane_axes='eg3d')
    return kwargs


def build_generator(config, panohead):
    """Our generator of a published configuration, filled by the rule."""
    generator = (PanoHeadGenerator if panohead else EG3DGenerator)(**generator_kwargs(config, panohead))
    fill_weights(generator)
    return generator.eval().requires_grad_(False)


def assert_within(value, expected, name, tolerance=1e-4):
    """Largest difference within `tolerance` of the expected values' range."""
    assert value.shape == expected.shape, f'{name}: shape {tuple(value.shape)}, expected {tuple(expected.shape)}'
    expected = expected.float()
    span = (expected.max() - expected.min()).clamp(min=1e-3)
    error = ((value - expected).abs().max() / span).item()
    assert error <= tolerance, f'{name}: off by {error:.2e} of the value range'


DISCRIMINATORS = {
    'DualDiscriminator': {'inputs': ('image', 'image_raw')},
    'MaskDualDiscriminator': {'inputs': ('image', 'image_raw')},
    'MaskDualDiscriminatorV2': {'inputs': ('image', 'image_raw', 'image_mask')},
}


def build_discriminator(cls, seg_resolution=None, **kwargs):
    """Our discriminator for a published class name, filled by the rule."""
    trunk = seg_resolution if cls == 'MaskDualDiscriminator' else None
    discriminator = MultiInputDiscriminator(mask_trunk_resolution=trunk, **DISCRIMINATORS[cls], **kwargs)
    fill_weights(discriminator)
    return discriminator.requires_grad_(False)
