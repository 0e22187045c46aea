"""What the published families' networks share: arguments of generators and of discriminators in our terms.

Parameters have the same names and shapes as ours (tests/test_reference_values.py), so that a key map is about arguments:
the constructor's, those in `rendering_kwargs`, and the axes that the renderer carries along.
"""

from dnnlib import UserError
from legacy.published import Settings, Translation, arguments, other_attributes, submodule, tensors_of
from legacy.reader import Tensor, plain
from training.discriminators.multi_input import MultiInputDiscriminator
from training.representations.planes import PLANE_AXES

# Of training alone: they do not change what a finished network computes.
TRAINING_KEYS = ('image_resolution', 'gpc_reg_prob', 'gpc_reg_fade_kimg', 'density_reg', 'density_reg_p_dist', 'reg_type',
                 'density_noise', 'density_noise_fade_kimg', 'trans_reg', 'blur_fade_kimg', 'bcg_reg_prob')
GENERATOR_ATTRIBUTES = ('rendering_kwargs', 'neural_rendering_resolution')
# What a discriminator's constructor keeps of its arguments.
DISCRIMINATOR_ATTRIBUTES = ('c_dim', 'img_resolution', 'img_resolution_log2', 'img_channels', 'block_resolutions', 'seg_resolution',
                            'seg_channels', 'disc_c_noise')


def rendering_of(module):
    """The `rendering_kwargs` of a generator's Module, a dict."""
    values = plain(module.state.get('rendering_kwargs'), 'rendering_kwargs')
    if type(values) is not dict:
        raise UserError('its generator has no rendering_kwargs; use the code that wrote the file')
    return values


def generator(module, family, cls, plane_axes, own):
    """The Translation of a generator's Module to `cls`. `plane_axes`: for files whose renderer carries none; `own(rendering,
    tensors)`: the family's arguments beyond the common ones, from its Settings and tensors."""
    init, rendering, tensors = arguments(module), Settings(rendering_of(module), 'rendering_kwargs'), tensors_of(module)
    init.take('rendering_kwargs', None)
    kwargs = {**_common(init, rendering, module.state), 'plane_axes': _plane_axes(module, plane_axes), **own(rendering, tensors)}
    for name in TRAINING_KEYS:
        rendering.take(name, None)
    left_out = {**init.rest(), **rendering.rest(), **other_attributes(module, GENERATOR_ATTRIBUTES)}
    return Translation(family, cls, kwargs, tensors, left_out)


def _common(init, rendering, state):
    """Arguments that all generators share."""
    init.require('img_channels', 3)
    init.require('architecture', 'skip')
    rendering.require('disparity_space_sampling', False)
    rendering.require('clamp_mode', 'softplus')
    for name in ('sr_kwargs', 'conv_clamp', 'fused_modconv_default'):    # how it was computed, not what
        init.take(name, None)
    mapping = Settings(init.take('mapping_kwargs', {}), 'mapping_kwargs')
    box = {name: rendering.take(name) for name in ('ray_start', 'ray_end', 'depth_resolution', 'depth_resolution_importance', 'box_warp')}
    return dict(
        z_dim=init.take('z_dim'), c_dim=init.take('c_dim'), w_dim=init.take('w_dim'), img_resolution=init.take('img_resolution'),
        mapping_layers=mapping.take('num_layers', 8), channel_base=init.take('channel_base', 32768),
        channel_max=init.take('channel_max', 512), num_fp16_res=init.take('num_fp16_res', 0),
        sr_num_fp16_res=init.take('sr_num_fp16_res', 0), sr_module=rendering.take('superresolution_module'),
        sr_noise_mode=rendering.take('superresolution_noise_mode', 'none'), sr_antialias=bool(rendering.take('sr_antialias', True)),
        decoder_lr_mul=rendering.take('decoder_lr_mul', 1), c_scale=rendering.take('c_scale', 1),
        c_gen_conditioning_zero=bool(rendering.take('c_gen_conditioning_zero', False)),
        neural_rendering_resolution=plain(state.get('neural_rendering_resolution', 64)),
        # With its slip: published weights saw it.
        rendering=dict(box, white_back=bool(rendering.take('white_back', False)), missed_rays_end_near=True),
        camera=dict(radius=rendering.take('avg_camera_radius', 2.7), pivot=list(rendering.take('avg_camera_pivot', (0.0, 0.0, 0.2)))))


def _plane_axes(module, default):
    """The key of PLANE_AXES for the axes that the renderer carries; `default` where it carries none.

    The tensor [3 planes, 3, 3] has a plane's axes as rows, unit vectors along its width, height and depth."""
    values = submodule(module, 'renderer').state.get('plane_axes')
    if values is None:
        return default
    rows = values.to_torch().tolist() if type(values) is Tensor and values.shape == (3, 3, 3) else []
    axes = tuple(tuple(row.index(1) if sorted(row) == [0, 0, 1] else None for row in plane) for plane in rows)
    for name, known in PLANE_AXES.items():
        if axes == known:
            return name
    raise UserError(f'its planes lie along the axes {axes}, known are {", ".join(PLANE_AXES)}; use the code that wrote the file')


def discriminator(module, family, inputs, mask_trunk=False):
    """The Translation of a discriminator's Module to MultiInputDiscriminator with these `inputs`, and with a trunk for masks."""
    init, tensors = arguments(module), tensors_of(module)
    init.require('architecture', 'resnet')
    for name in ('img_channels', 'seg_channels', 'conv_clamp', 'cmap_dim', 'sr_upsample_factor'):
        init.take(name, None)
    block, epilogue, mapping = (Settings(init.take(name, {}), name) for name in ('block_kwargs', 'epilogue_kwargs', 'mapping_kwargs'))
    trunk = init.take('seg_resolution', 128)
    kwargs = dict(
        c_dim=init.take('c_dim'), img_resolution=init.take('img_resolution'), inputs=list(inputs),
        mask_trunk_resolution=trunk if mask_trunk else None, channel_base=init.take('channel_base', 32768),
        channel_max=init.take('channel_max', 512), num_fp16_res=init.take('num_fp16_res', 4), mapping_layers=mapping.take('num_layers', 8),
        mbstd_group_size=init.take('mbstd_group_size', epilogue.take('mbstd_group_size', 4)),
        disc_c_noise=init.take('disc_c_noise', 0) or 0, freeze_layers=block.take('freeze_layers', 0))
    left_out = {**init.rest(), **block.rest(), **epilogue.rest(), **mapping.rest()}
    return Translation(family, MultiInputDiscriminator, kwargs, tensors, {**left_out, **other_attributes(module, DISCRIMINATOR_ATTRIBUTES)})
