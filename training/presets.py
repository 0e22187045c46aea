"""Recipes of train.py: one row each, as values of its flags (explicit flags win).

`figure` is what the row was seen to reach, or the published figure with its source.
"""

# Flags that nothing sets; as in the published train.py where it has the flag.
DEFAULTS = dict(
    # data and conditioning
    cond=True, mirror=False, min_yaw=0, max_yaw=180, max_pitch=90, back_repeat=1, max_size=None,
    extra_data=None, extra_seg=None, extra_repeat=1,
    gen_pose_cond=False, c_scale=1.0, c_noise=0.0, gpc_reg_prob=0.5, gpc_reg_fade_kimg=1000.0,
    prior_yaw=180.0, prior_pitch=15.0,
    # generator
    generator='panohead', z_dim=512, w_dim=512, features=32, cbase=32768, cmax=512, map_depth=2,
    triplane_size=256, triplane_depth=1, plane_axes='orthogonal', decoder_activation='none', decoder_lr_mul=1.0,
    use_torgb_raw=False, use_background=True, trans_reg=0.0, bcg_reg_prob=0.0, style_mixing_prob=0.0, noise_mode='random',
    sr_module=None, sr_noise_mode='none', sr_antialias=True, sr_channel_scale=1.0, sr_num_fp16_res=4, g_num_fp16_res=0,
    # rendering
    ray_start=2.25, ray_end=3.3, depth_resolution=48, depth_resolution_importance=48, box_warp=1.0, crop_margin=0.1,
    white_back=False, radius=2.7, pivot=(0.0, 0.0, 0.2),
    neural_rendering_resolution_initial=64, neural_rendering_resolution_final=None, neural_rendering_resolution_fade_kimg=1000.0,
    precision='auto',
    # discriminator
    disc_module=None, seg_resolution=128, d_cbase=None, d_cmax=None, d_map_depth=8, mbstd_group=4, disc_c_noise=0.0, freezed=0,
    d_num_fp16_res=4,
    # losses and schedules
    gamma=None, gamma_seg=None, density_reg=0.25, density_reg_every=4, density_reg_p_dist=0.004, reg_type='l1',
    density_noise_fade_kimg=0.0, blur_fade_kimg=200.0, blur_init_sigma=10.0, resume_blur=False, d_reg_every=16,
    # optimisers, augmentation, length
    batch=None, batch_gpu=None, glr=0.0025, dlr=0.002, adam_beta2=0.99, ema_kimg=None, aug='noaug', p=0.2, target=0.6,
    augpipe='head', kimg=25000.0, tick=4.0, snap=50, state_minutes=10.0, state_ticks=0, keep_states=3, seed=0, workers=3, metrics='none', metrics_num=None, metrics_features=None,
)

CFGS = {
    'ffhq':     dict(),
    'afhq':     dict(pivot=(0.0, 0.0, -0.06)),
    'shapenet': dict(depth_resolution=64, depth_resolution_importance=64, ray_start=0.1, ray_end=2.6, box_warp=1.6, white_back=True,
                     radius=1.7, pivot=(0.0, 0.0, 0.0), crop_margin=None),
}

_PANOHEAD = dict(
    cfg='ffhq', batch=32, gamma=1.0, gamma_seg=1.0, gen_pose_cond=True, mirror=True, use_torgb_raw=True, decoder_activation='none',
    disc_module='MaskDualDiscriminatorV2', bcg_reg_prob=0.2, triplane_depth=3, density_noise_fade_kimg=200.0, density_reg=0.0,
    back_repeat=4, trans_reg=10.0, gpc_reg_prob=0.7)
_EG3D = dict(
    cfg='ffhq', generator='eg3d', batch=32, gamma=1.0, gen_pose_cond=True, mirror=True, disc_module='DualDiscriminator', gpc_reg_prob=0.8)
# Small machines: two processor cores, minutes to hours. Everything narrow, few samples, no slow fades, 16 bits where they pay.
_SMALL = dict(
    cfg='ffhq', gen_pose_cond=True, use_torgb_raw=True, disc_module='MaskDualDiscriminatorV2', bcg_reg_prob=0.2,
    density_reg=0.0, gpc_reg_prob=0.7, gpc_reg_fade_kimg=5.0, blur_fade_kimg=0.0, z_dim=64, w_dim=128, features=16,
    triplane_size=64, triplane_depth=3, map_depth=2, d_map_depth=2, depth_resolution=16, depth_resolution_importance=12,
    ray_start=2.25, ray_end=3.15, pivot=(0.0, 0.0, 0.0), g_num_fp16_res=4, noise_mode='none', workers=0)

# Fine-tuning on a set joined with one of good back views (--extra_data): everything that fades in is there already.
_BACKS = dict(resume_kimg=1000.0, kimg=2000.0, blur_fade_kimg=0.0, gpc_reg_fade_kimg=0.0, density_noise_fade_kimg=0.0, snap=10)

PRESETS = {
    # name                 base            differences                                                          figure
    'panohead-512':        {**_PANOHEAD},                                                                     # FID 5.37 (PanoHead, FFHQ-F)
    'panohead-512-stage2': {**_PANOHEAD, **dict(neural_rendering_resolution_final=128, resume_kimg=1000.0)},  # same, after --resume
    'panohead-512-backs':  {**_PANOHEAD, **_BACKS, **dict(neural_rendering_resolution_final=128)},
    'panohead-256':        {**_PANOHEAD, **dict(sr_module='SuperresolutionHybrid4X')},
    'panohead-128':        {**_PANOHEAD, **dict(cbase=8192, cmax=256, triplane_size=64, neural_rendering_resolution_initial=32)},
    'eg3d-512':            {**_EG3D},                                                                         # FID 4.7 (EG3D, FFHQ)
    'eg3d-128':            {**_EG3D, **dict(cbase=8192, cmax=256, neural_rendering_resolution_initial=32)},
    'synthetic-64':        {**_SMALL, **dict(batch=8, gamma=0.1, gamma_seg=0.1, cbase=2048, cmax=64, d_cbase=2048, d_cmax=128,
                                             sr_channel_scale=0.5, neural_rendering_resolution_initial=32,
                                             ema_kimg=1.0, kimg=12.0, tick=1.0, snap=2)},
    'synthetic-64-backs':  {**_SMALL, **_BACKS, **dict(batch=8, gamma=0.1, gamma_seg=0.1, cbase=2048, cmax=64, d_cbase=2048, d_cmax=128,
                                             sr_channel_scale=0.5, neural_rendering_resolution_initial=32, gen_pose_cond=False,
                                             ema_kimg=1.0, resume_kimg=88.0, kimg=96.0, tick=1.0, snap=2)},
    'synthetic-128':       {**_SMALL, **dict(batch=8, gamma=0.4, gamma_seg=0.4, cbase=4096, cmax=128, d_cbase=4096, d_cmax=256,
                                             sr_channel_scale=0.5, neural_rendering_resolution_initial=64,
                                             ema_kimg=2.0, kimg=200.0, tick=2.0, snap=5)},
}
