"""What a user may get wrong on the command line: every case ends with exit code 2, a message that names the flag or the
file and the value, no traceback, and no run folder left behind. Faults of image sets have tests of their own."""

import pytest
import torch

import calc_metrics
import gen_interpolation
import gen_samples
import gen_videos
import train
from small_sets import write_set
from tiny_runs import PANOHEAD_ONLY, TINY, invoke
from training.discriminators.multi_input import MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator
from training.snapshot import save_snapshot

SMALL_G = dict(z_dim=8, w_dim=12, channel_base=256, channel_max=8, plane_resolution=16, neural_rendering_resolution=8,
               sr_channel_scale=0.125, rendering={'ray_start': 2.3, 'depth_resolution': 6, 'depth_resolution_importance': 4})
SMALL_D = dict(channel_base=256, channel_max=8, mapping_layers=2)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with image sets, snapshots and broken files by the names the cases use."""
    folder = tmp_path_factory.mktemp('files')
    torch.manual_seed(0)
    write_set(folder / 'img', folder / 'seg', size=32)
    write_set(folder / 'img16', size=16)
    write_set(folder / 'unlabelled', size=32, labels=False)
    G = PanoHeadGenerator(img_resolution=32, features=4, **SMALL_G)
    D = MultiInputDiscriminator(img_resolution=32, **SMALL_D)
    save_snapshot(folder / 'whole.pkl', {'G': G, 'D': D, 'G_ema': G})
    save_snapshot(folder / 'ema.pkl', {'G_ema': G})
    save_snapshot(folder / 'undisturbed.pkl', {'G': G, 'D': None, 'G_ema': G})
    save_snapshot(folder / 'other.pkl', {'G': EG3DGenerator(img_resolution=32, **SMALL_G), 'D': D, 'G_ema': G})
    save_snapshot(folder / 'shared.safetensors', {'G_ema': G})
    whole = (folder / 'whole.pkl').read_bytes()
    (folder / 'truncated.pkl').write_bytes(whole[:len(whole) // 2])
    (folder / 'empty.pkl').touch()
    (folder / 'text.pkl').write_text('not a network')
    return folder


def assert_refused(result, words):
    """Exit code 2 and a message with all of `words`."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert 'Traceback' not in result.output
    # click folds long messages
    message = ' '.join(result.output.replace('│', ' ').split())
    for word in words.split(' & '):
        assert word in message, f'{word!r} is not in {message!r}'


# Flags after a sound command line, and what the message must hold.
TRAIN = [
    ('--preset mona', '--preset mona & synthetic-64'),
    ('--cfg dogs', '--cfg dogs & shapenet'),
    ('--disc_module TripleDiscriminator', '--disc_module TripleDiscriminator & MaskDualDiscriminatorV2'),
    ('--metrics fid51k', '--metrics fid51k & frechet_seeded'),
    ('--generator stylegan', '--generator stylegan & eg3d'),
    ('--reg_type tv', '--reg_type tv & monotonic-detach'),
    ('--decoder_activation relu', '--decoder_activation relu & lrelu'),
    ('--sr-module SuperresolutionHybrid3X', '--sr_module SuperresolutionHybrid3X & SuperresolutionHybrid4X'),
    ('--sr_noise_mode pink', '--sr_noise_mode pink & random'),
    ('--aug some', '--aug some & ada'),
    ('--augpipe bgx', '--augpipe bgx & bgc'),
    ('--device abacus', '--device abacus'),
    ('--batch 5 --gpus 2', '--batch 5 & --gpus 2'),
    ('--batch 4 --batch-gpu 3', '--batch-gpu 3'),
    ('--batch 6 --mbstd-group 4', '--mbstd-group 4 & --batch-gpu 6'),
    ('--batch 0', '--batch 0'),
    ('--gpus 0', '--gpus 0'),
    ('--batch four', '--batch & four'),
    ('--gamma nan', '--gamma & nan'),
    ('--gamma -1', '--gamma -1'),
    ('--gamma_seg inf', '--gamma_seg & inf'),
    ('--glr -0.1', '--glr -0.1'),
    ('--kimg -1', '--kimg -1'),
    ('--resume_kimg -1', '--resume_kimg -1'),
    ('--resume_kimg 5', '--resume_kimg 5'),
    ('--set run.batch_gpu=3', 'run.batch_gpu=3'),
    ('--set ema.halfkimg=-1.0', 'ema.halfkimg=-1.0'),
    ('--set G.z_dim=0', 'z_dim'),
    ('--preset panohead-512-stage2', '--resume_kimg 1000'),
    ('--gpc_reg_prob 1.5', '--gpc_reg_prob 1.5'),
    ('--gpc_reg_fade_kimg -1', '--gpc_reg_fade_kimg -1'),
    ('--neural_rendering_resolution_fade_kimg -1', '--neural_rendering_resolution_fade_kimg -1'),
    ('--neural_rendering_resolution_initial 2', '--neural_rendering_resolution_initial 2'),
    ('--blur_fade_kimg -1', '--blur_fade_kimg -1'),
    ('--decoder_lr_mul 0', '--decoder_lr_mul 0'),
    ('--density_reg_p_dist -1', '--density_reg_p_dist -1'),
    ('--disc_c_noise -1', '--disc_c_noise -1'),
    ('--batch 1 --disc_c_noise 0.1', '--disc_c_noise 0.1 & --batch-gpu 1'),
    ('--batch 4 --batch-gpu 1 --c-noise 0.1', '--c_noise 0.1 & --batch-gpu 1'),
    ('--aug ada --target 0', '--target 0'),
    ('--aug fixed --p 2', '--p 2'),
    ('--min_yaw 100 --max_yaw 90', '--min_yaw 100 & --max_yaw 90'),
    ('--max_yaw 270', '--max_yaw 270'),
    ('--max_pitch 100', 'max_pitch & 100'),
    ('--max_size 0', 'max_size & 0'),
    ('--back_repeat 0', '--back_repeat 0'),
    ('--seed -1', '--seed -1'),
    ('--mirror maybe', '--mirror & maybe'),
    ('--ray_start 3.5', 'ray_start & 3.5'),
    ('--ray_start auto', "ray_start & 'auto'"),
    ('--ray_end far', '--ray_end & far'),
    ('--triplane_size 24', '24'),
    ('--triplane_depth 0', '--triplane_depth 0'),
    ('--cbase 16', 'cbase & 16'),
    ('--disc_module MaskDualDiscriminator --seg_resolution 128', 'seg_resolution & 128'),
    ('--disc_module MaskDualDiscriminator --seg_resolution 24', 'seg_resolution & 24'),
    ('--desc a/b', '--desc a/b'),
    ('--set G.rendering.teapot=1', '--set G.rendering.teapot=1'),
    ('--set G.teapot=1', 'teapot'),
    ('--set teapot=1', '--set teapot=1'),
    ('--set G=1', '--set G=1'),
    ('--set G.rendering=1', '--set G.rendering=1'),
    ('--set G.z_dim', '--set G.z_dim'),
    ('--set G.z_dim=many', '--set G.z_dim=many'),
    ('--set run.batch_size=1.5', '--set run.batch_size=1.5'),
    ('--set D_opt.betas=[0,2]', 'beta'),
    ('--resume absent.pkl', 'absent.pkl'),
    ('--resume empty.pkl', 'empty.pkl & empty'),
    ('--resume text.pkl', 'text.pkl & not a network'),
    ('--resume truncated.pkl', 'truncated.pkl & too early'),
    ('--resume ema.pkl --cmax 16', '--resume & ema.pkl & other shapes'),
    ('--resume undisturbed.pkl', '--resume & undisturbed.pkl & D'),
    ('--resume shared.safetensors --cmax 16', '--resume & shared.safetensors & other shapes'),
    ('--resume other.pkl', '--resume & other.pkl & missing'),
    ('--resume whole.pkl --cmax 16', '--resume & whole.pkl & other shapes'),
    ('--resume whole.pkl --set D.mask_trunk_resolution=32',
     '--resume & whole.pkl & missing'),
    ('--outdir img/dataset.json/runs', '--outdir & dataset.json/runs'),
    ('--outdir img/dataset.json', '--outdir & dataset.json'),
    ('--img_data absent.zip', 'absent.zip'),
    ('--seg_data absent.zip', 'absent.zip'),
    ('--img_data unlabelled --metrics frechet_seeded', '--cond=False & labels'),
    ('--cond False --metrics frechet_seeded', '--metrics frechet_seeded & --cond'),
]


@pytest.mark.parametrize('flags, words', TRAIN, ids=[flags for flags, _ in TRAIN])
def test_train_refuses(files, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(files)
    sound = f'--outdir {tmp_path / "runs"} --img_data img --seg_data seg {TINY} {PANOHEAD_ONLY}'
    assert_refused(invoke(train, f'{sound} {flags}'), words)
    assert not (tmp_path / 'runs').exists() or not list((tmp_path / 'runs').iterdir())


# Whole command lines, without those of a sound run.
WITHOUT = [
    ('--img_data img', '--outdir'),
    ('--outdir runs', '--img_data'),
    ('--outdir runs --img_data img --gamma 1', '--batch is missing & --preset'),
    ('--outdir runs --img_data img --batch 4', '--gamma is missing & --preset'),
    ('--outdir runs --img_data img --preset panohead-512', '--disc_module MaskDualDiscriminatorV2 & --seg_data'),
    ('--outdir runs --img_data img16 --preset eg3d-512 --workers 0', 'img_resolution & 16'),
    ('--outdir runs --img_data img --preset eg3d-512 --teapot 1', '--teapot'),
]


@pytest.mark.parametrize('flags, words', WITHOUT, ids=[flags for flags, _ in WITHOUT])
def test_train_wants(files, monkeypatch, flags, words):
    monkeypatch.chdir(files)
    assert_refused(invoke(train, flags), words)
    assert not (files / 'runs').exists()


def test_sound_command_passes(files, tmp_path, monkeypatch):
    """The command that the cases above spoil is not refused by itself, nor with the snapshot that fits it."""
    monkeypatch.chdir(files)
    sound = f'--outdir {tmp_path} --img_data img --seg_data seg {TINY} {PANOHEAD_ONLY} --resume whole.pkl --dry-run'
    assert invoke(train, sound).exit_code == 0


GENERATION = [
    (gen_samples, '--network truncated.pkl --outdir out', 'truncated.pkl & too early'),
    (gen_videos, '--network truncated.pkl --outdir out', 'truncated.pkl & too early'),
    (gen_interpolation, '--network truncated.pkl --outdir out', 'truncated.pkl & too early'),
    (gen_samples, '--network img --outdir out', 'img'),
    (gen_samples, '--outdir out', '--network'),
    (gen_videos, '--network whole.pkl --outdir out --trunc much', '--trunc & much'),
    (gen_videos, '--network whole.pkl --outdir out --seeds 1,,2', '--seeds & 1,,2'),
    (gen_videos, '--network whole.pkl --outdir out --seeds 0-2 --grid 2x1', '--seeds & --grid'),
    (gen_videos, '--network whole.pkl --outdir out --grid 2x-1', '--grid & 2x-1'),
    (gen_interpolation, '--network whole.pkl --outdir out --seeds -1', '--seeds & -1'),
    (gen_interpolation, '--network whole.pkl --outdir img/dataset.json', '--outdir & dataset.json'),
    (calc_metrics, '--network text.pkl --data img', 'text.pkl & not a network'),
    (calc_metrics, '--network empty.pkl --data img', 'empty.pkl & empty'),
    (calc_metrics, '--network truncated.pkl --data img', 'truncated.pkl & too early'),
    (calc_metrics, '--network whole.pkl --data img --metrics frechet_seeded,', '--metrics'),
    (calc_metrics, '--network whole.pkl --data img16', '--data & 16 pixels'),
    (calc_metrics, '--network whole.pkl --data unlabelled', '--data & labels'),
    (calc_metrics, '--network whole.pkl --data img --seed -1', '--seed & -1'),
]


@pytest.mark.parametrize('script, flags, words', GENERATION, ids=[f'{s.__name__} {flags}' for s, flags, _ in GENERATION])
def test_generation_refuses(files, monkeypatch, script, flags, words):
    monkeypatch.chdir(files)
    assert_refused(invoke(script, flags), words)
    assert not list(files.glob('out/*'))
