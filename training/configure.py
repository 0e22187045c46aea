"""Preset and flags -> configuration tree: class names with their arguments, plain values only; the one place that knows
class names."""

import json
import math
import re

import dnnlib
from training.augment import PRESETS as AUGMENT_PRESETS
from training.losses.regularizers import TYPES as REGULARIZER_TYPES
from training.networks.decoders import DECODER_ACTIVATIONS
from training.networks.precision import PRECISIONS
from training.networks.stylegan2 import NOISE_MODES
from training.networks.superresolution import SPECS
from training.presets import CFGS, DEFAULTS, PRESETS
from training.representations.planes import PLANE_AXES

GENERATORS = {'panohead': 'training.generators.panohead.PanoHeadGenerator', 'eg3d': 'training.generators.eg3d.EG3DGenerator'}
DISCRIMINATOR = 'training.discriminators.multi_input.MultiInputDiscriminator'
DATASET = 'training.dataset.HeadDataset'
JOINED_DATASET = 'training.dataset_joined.JoinedDataset'
DISC_MODULES = ('DualDiscriminator', 'MaskDualDiscriminator', 'MaskDualDiscriminatorV2')
AUGMENTATION_MODES = ('noaug', 'ada', 'fixed')
CHOICES = {
    'cfg': tuple(CFGS), 'generator': tuple(GENERATORS), 'disc_module': DISC_MODULES, 'aug': AUGMENTATION_MODES,
    'augpipe': tuple(AUGMENT_PRESETS), 'reg_type': REGULARIZER_TYPES, 'decoder_activation': DECODER_ACTIVATIONS,
    'precision': PRECISIONS, 'sr_noise_mode': NOISE_MODES, 'noise_mode': NOISE_MODES, 'sr_module': tuple(SPECS),
    'plane_axes': tuple(PLANE_AXES),
}
HALF_RESOLUTIONS = 4   # of each network: as many as the published discriminators have in 16 bits
# Flags that only make sense within bounds: (lowest, highest), None for open.
BOUNDS = {
    'gamma': (0, None), 'gamma_seg': (0, None), 'glr': (0, None), 'dlr': (0, None), 'trans_reg': (0, None), 'density_reg': (0, None),
    'bcg_reg_prob': (0, 1), 'gpc_reg_prob': (0, 1), 'style_mixing_prob': (0, 1), 'p': (0, 1), 'target': (0, 1), 'batch': (1, None),
    'batch_gpu': (1, None), 'gpus': (1, None), 'kimg': (0, None), 'tick': (0, None), 'snap': (0, None), 'workers': (0, None),
    'mbstd_group': (1, None), 'triplane_depth': (1, 64), 'triplane_size': (4, 2048), 'min_yaw': (0, 180), 'max_yaw': (0, 180),
    'back_repeat': (1, None), 'map_depth': (1, 64), 'freezed': (0, None), 'density_reg_every': (1, None), 'cbase': (1, None),
    'cmax': (1, None), 'density_noise_fade_kimg': (0, None), 'blur_fade_kimg': (0, None), 'seed': (0, 2 ** 31),
    'neural_rendering_resolution_initial': (4, 1024), 'neural_rendering_resolution_final': (4, 1024),
    'neural_rendering_resolution_fade_kimg': (0, None), 'gpc_reg_fade_kimg': (0, None), 'resume_kimg': (0, None), 'c_noise': (0, None),
    'disc_c_noise': (0, None), 'density_reg_p_dist': (0, None), 'decoder_lr_mul': (1e-6, None), 'max_pitch': (0, 90),
    'extra_repeat': (1, None), 'max_size': (1, None),
    'state_minutes': (0, None), 'state_ticks': (0, None), 'keep_states': (1, None), 'prior_yaw': (0, 180),
    'prior_pitch': (0, 80),
}


def flag_name(key):
    """How the user writes a value's flag."""
    return '--' + key


def merge_options(given):
    """All values of a run: defaults, then --cfg's, then the preset's, then what was `given` (None: not given).
    Raises UserError for unknown presets and values out of their choices or bounds."""
    preset = given.get('preset')
    if preset is not None and preset not in PRESETS:
        raise dnnlib.UserError(f'--preset {preset}: unknown; one of {", ".join(PRESETS)}')
    row = PRESETS.get(preset, {})
    given = {key: value for key, value in given.items() if value is not None}
    cfg = given.get('cfg', row.get('cfg', 'ffhq'))
    if cfg not in CFGS:
        raise dnnlib.UserError(f'--cfg {cfg}: unknown; one of {", ".join(CFGS)}')
    options = dnnlib.EasyDict({**DEFAULTS, 'resume': None, 'resume_kimg': 0.0, 'gpus': 1, 'seg_data': None, 'desc': None, 'device': 'auto',
                               'nobench': False, **CFGS[cfg], **row, **given, 'cfg': cfg})
    for key in ('disc_module', 'sr_module'):
        if options[key] is not None:
            options[key] = options[key].rpartition('.')[2]
    check_values(options)
    return options


def check_values(options):
    """UserError naming the first flag whose value is not among its choices or bounds."""
    for key, choices in CHOICES.items():
        if options.get(key) is not None and options[key] not in choices:
            raise dnnlib.UserError(f'{flag_name(key)} {options[key]}: must be one of {", ".join(choices)}')
    for key, (low, high) in BOUNDS.items():
        value = options.get(key)
        if value is not None and not ((low is None or value >= low) and (high is None or value <= high)):
            raise dnnlib.UserError(f'{flag_name(key)} {value}: must be at least {low}' + ('' if high is None else f' and at most {high}'))
    if options.aug == 'ada' and options.target == 0:
        raise dnnlib.UserError('--target 0: must be above 0 for --aug=ada')
    if options.desc and not re.fullmatch(r'[\w.,=+@-]+', options.desc):
        raise dnnlib.UserError(f'--desc {options.desc}: becomes part of a folder name; use letters, digits and . , = + @ - _')


def check_batch(options):
    """UserError naming --batch, --gpus, --batch-gpu or --mbstd-group where they do not divide."""
    if options.batch is None:
        raise dnnlib.UserError('--batch is missing; give it, or a --preset')
    if options.batch % options.gpus:
        raise dnnlib.UserError(f'--batch {options.batch}: must be a multiple of --gpus {options.gpus}')
    per_gpu = options.batch // options.gpus
    options.batch_gpu = options.batch_gpu or per_gpu
    if per_gpu % options.batch_gpu:
        raise dnnlib.UserError(f'--batch-gpu {options.batch_gpu}: must divide --batch / --gpus = {per_gpu}')
    group = min(options.mbstd_group, options.batch_gpu)
    if options.batch_gpu % group:
        raise dnnlib.UserError(f'--mbstd-group {options.mbstd_group}: must divide --batch-gpu {options.batch_gpu}')
    for key in ('c_noise', 'disc_c_noise'):
        if options[key] > 0 and options.batch_gpu < 2:   # a deviation over one label is none
            raise dnnlib.UserError(f'{flag_name(key)} {options[key]}: measures the labels\' deviation over --batch-gpu '
                                   f'{options.batch_gpu}, which must be at least 2')


def check_discriminator(options):
    """Choose the discriminator for the data, or UserError where it wants masks that are not there."""
    if options.disc_module is None:
        options.disc_module = 'DualDiscriminator' if options.seg_data is None else 'MaskDualDiscriminatorV2'
    if options.disc_module != 'DualDiscriminator' and options.seg_data is None:
        raise dnnlib.UserError(f'--disc_module {options.disc_module} looks at masks: give --seg_data, or --disc_module DualDiscriminator')


def set_half_resolutions(options):
    """Put what --precision says into the numbers of resolutions that compute in 16 bits: none for float32 and tf32, at
    least HALF_RESOLUTIONS of each network for bf16 and fp16; 'auto' leaves the recipe's."""
    for key in ('g_num_fp16_res', 'sr_num_fp16_res', 'd_num_fp16_res'):
        if options.precision in ('float32', 'tf32'):
            options[key] = 0
        elif options.precision in ('bf16', 'fp16'):
            options[key] = max(options[key], HALF_RESOLUTIONS)


def generator_config(o):
    """The generator's class and arguments, less what the data decide (c_dim, img_resolution)."""
    config = dict(
        class_name=GENERATORS[o.generator], z_dim=o.z_dim, w_dim=o.w_dim, mapping_layers=o.map_depth, channel_base=o.cbase,
        channel_max=o.cmax, num_fp16_res=o.g_num_fp16_res, plane_resolution=o.triplane_size, plane_axes=o.plane_axes,
        decoder_lr_mul=o.decoder_lr_mul, neural_rendering_resolution=o.neural_rendering_resolution_initial,
        rendering=dict(ray_start=o.ray_start, ray_end=o.ray_end, depth_resolution=o.depth_resolution,
                       depth_resolution_importance=o.depth_resolution_importance, box_warp=o.box_warp, white_back=o.white_back),
        camera=dict(radius=o.radius, pivot=list(o.pivot)), sr_module=o.sr_module, sr_num_fp16_res=o.sr_num_fp16_res,
        sr_noise_mode=o.sr_noise_mode, sr_antialias=o.sr_antialias, sr_channel_scale=o.sr_channel_scale, c_scale=o.c_scale,
        c_gen_conditioning_zero=not o.gen_pose_cond)
    if o.generator == 'panohead':
        config['rendering']['crop_margin'] = o.crop_margin
        config.update(features=o.features, plane_depth=o.triplane_depth, decoder_activation=o.decoder_activation,
                      use_torgb_raw=o.use_torgb_raw, use_background=o.use_background, adaptive_camera=o.trans_reg > 0)
    return config


def discriminator_config(o):
    """The discriminator's class and arguments, less what the data decide."""
    stacked = ['image', 'image_raw'] + (['image_mask'] if o.disc_module == 'MaskDualDiscriminatorV2' else [])
    return dict(
        class_name=DISCRIMINATOR, inputs=stacked,
        mask_trunk_resolution=o.seg_resolution if o.disc_module == 'MaskDualDiscriminator' else None,
        channel_base=o.d_cbase or o.cbase, channel_max=o.d_cmax or o.cmax, num_fp16_res=o.d_num_fp16_res, mapping_layers=o.d_map_depth,
        mbstd_group_size=min(o.mbstd_group, o.batch_gpu), disc_c_noise=o.disc_c_noise, freeze_layers=o.freezed)


def group_size(options):
    """Samples that count as one batch where a batch's mean or neighbours matter: the minibatch-std group, so that nothing
    depends on how --gpus and --batch-gpu split the batch."""
    group = min(options.mbstd_group, options.batch_gpu)
    return options.batch_gpu if group == 1 else group


def training_config(given):
    """Configuration tree of a run from the flags `given` (dict; None: not given). Raises UserError naming the flag."""
    o = merge_options(given)
    check_batch(o)
    check_discriminator(o)
    set_half_resolutions(o)
    if o.gamma is None:
        raise dnnlib.UserError('--gamma is missing; give the R1 weight, or a --preset')
    if o.min_yaw > o.max_yaw:
        raise dnnlib.UserError(f'--min_yaw {o.min_yaw}: must not exceed --max_yaw {o.max_yaw}')
    if o.resume_kimg and o.resume is None:
        raise dnnlib.UserError(f'--resume_kimg {o.resume_kimg:g}: counts the images a snapshot has seen; give --resume too')
    if o.resume is not None and o.resume_kimg > o.kimg:
        raise dnnlib.UserError(f'--resume_kimg {o.resume_kimg:g}: leaves nothing of --kimg {o.kimg:g} to train; raise --kimg')
    return dict(
        G=generator_config(o),
        D=discriminator_config(o),
        G_opt=dict(lr=o.glr, betas=[0.0, o.adam_beta2], eps=1e-8),
        D_opt=dict(lr=o.dlr, betas=[0.0, o.adam_beta2], eps=1e-8),
        loss=dict(group_size=group_size(o), r1_gamma=o.gamma, r1_gamma_seg=o.gamma if o.gamma_seg is None else o.gamma_seg,
                  trans_reg=o.trans_reg, bcg_reg_prob=o.bcg_reg_prob, style_mixing_prob=o.style_mixing_prob,
                  noise_mode=o.noise_mode, c_noise=o.c_noise, g_reg_interval=o.density_reg_every,
                  d_reg_interval=o.d_reg_every),
        density_reg=dict(reg_type=o.reg_type, weight=o.density_reg, p_dist=o.density_reg_p_dist, interval=o.density_reg_every),
        schedule=dict(batch_size=o.batch, blur_init_sigma=o.blur_init_sigma, blur_fade_kimg=o.blur_fade_kimg,
                      gpc_reg_prob=o.gpc_reg_prob if o.gen_pose_cond else None, gpc_reg_fade_kimg=o.gpc_reg_fade_kimg,
                      neural_rendering_resolution_initial=o.neural_rendering_resolution_initial,
                      neural_rendering_resolution_final=o.neural_rendering_resolution_final,
                      neural_rendering_resolution_fade_kimg=o.neural_rendering_resolution_fade_kimg,
                      density_noise_fade_kimg=o.density_noise_fade_kimg, resumed=o.resume is not None, resume_blur=o.resume_blur),
        augment=None if o.aug == 'noaug' else dict(
            strengths=AUGMENT_PRESETS[o.augpipe], p=o.p if o.aug == 'fixed' else 0.0, target=o.target if o.aug == 'ada' else None),
        ema=dict(halfkimg=o.batch * 10 / 32 if o.ema_kimg is None else o.ema_kimg, rampup=None if o.resume else 0.05),
        training_set=training_set(o),
        # Cameras of fakes where images have no labels: uniform within these angles in degrees.
        camera_prior=dict(yaw=o.prior_yaw, pitch=o.prior_pitch),
        run=dict(batch_size=o.batch, batch_gpu=o.batch_gpu, num_gpus=o.gpus, device=o.device, total_kimg=o.kimg, kimg_per_tick=o.tick,
                 snapshot_ticks=o.snap, state_minutes=o.state_minutes, state_ticks=o.state_ticks, keep_states=o.keep_states,
                 seed=o.seed, workers=o.workers, resume=o.resume, resume_kimg=o.resume_kimg,
                 metrics=[m.strip() for m in o.metrics.split(',') if m.strip() not in ('', 'none')], metrics_num=o.metrics_num,
                 metrics_features=o.metrics_features and [name.strip() for name in o.metrics_features.split(',')],
                 cudnn_benchmark=not o.nobench, precision=o.precision),
    )


def training_set(options):
    """The image set of --img_data and --seg_data, joined with that of --extra_data and --extra_seg where given."""
    o = options
    base = dict(class_name=DATASET, path=str(o.img_data), seg_path=None if o.seg_data is None else str(o.seg_data),
                use_labels=o.cond, xflip=o.mirror, min_yaw=o.min_yaw, max_yaw=o.max_yaw, max_pitch=o.max_pitch,
                back_repeat=o.back_repeat, max_size=o.max_size, random_seed=o.seed)
    if o.extra_data is None:
        if o.extra_seg is not None or o.extra_repeat != 1:
            raise dnnlib.UserError('--extra_seg and --extra_repeat belong to --extra_data, which is missing')
        return base
    if (o.seg_data is None) != (o.extra_seg is None):
        raise dnnlib.UserError('--seg_data and --extra_seg: give masks for both sets or for none')
    return {**base, **dict(class_name=JOINED_DATASET, extra_path=str(o.extra_data), extra_repeat=o.extra_repeat,
                           extra_seg_path=None if o.extra_seg is None else str(o.extra_seg))}


def describe_run(config, options):
    """Name of a run's folder after its number: cfg-dataset-gpusX-batchY-gammaZ[-desc]."""
    dataset = config['training_set']['path'].rstrip('/').rpartition('/')[2].removesuffix('.zip')
    run = config['run']
    name = f'{options.get("cfg") or "ffhq"}-{dataset}-gpus{run["num_gpus"]}-batch{run["batch_size"]}-gamma{config["loss"]["r1_gamma"]:g}'
    return name + (f'-{options["desc"]}' if options.get('desc') else '')


def set_values(config, assignments):
    """Enter each 'G.path=value' of --set into the configuration. Raises UserError for paths that are not there, except new
    arguments of G and D, which their constructors judge, and for values of another kind."""
    for text in assignments:
        path, equals, value = text.partition('=')
        *parents, last = path.split('.')
        node = config
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if not equals:
            raise dnnlib.UserError(f'--set {text}: write PATH=VALUE, e.g. --set G.features=16')
        if not parents or not isinstance(node, dict) or (last not in node and parents not in (['G'], ['D'])):
            raise dnnlib.UserError(f'--set {text}: no such entry; --dry-run shows them all')
        if parents[0] == 'run':
            raise dnnlib.UserError(f'--set {text}: the run is set by flags of train.py, which are checked; see --help')
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            pass   # a string without quotes
        if not _same_kind(node.get(last), value):
            raise dnnlib.UserError(f'--set {text}: the entry is {node[last]!r}, the new value must be of that kind')
        node[last] = value


def _same_kind(old, new):
    """Whether a configuration's value may be replaced by the other; None stands for any."""
    if isinstance(new, float) and not math.isfinite(new):
        return False
    if old is None or new is None or (isinstance(old, (int, float)) and new == 'auto'):
        return True
    if isinstance(old, float):
        return isinstance(new, (int, float)) and not isinstance(new, bool)
    return type(old) is type(new)
