"""Inversion: schedules and losses as published, a network's own picture found again, results that can be reproduced and read
back, and projector.py with what users may get wrong."""

import json
import os
import warnings
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import camera_utils
import gen_samples
import gen_videos
import projector
from dnnlib import UserError
from inference import images, inversion, trajectories
from inference.inversion import InversionOptions, invert
from inference.perceptual import StructuralFeatures, load_features, squared_distance
from inference.session import Session
from inference.targets import Target, load_target
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator
from training.snapshot import load_network, save_snapshot

SMALL = dict(img_resolution=32, z_dim=16, w_dim=32, channel_base=512, channel_max=16, plane_resolution=16,
             neural_rendering_resolution=16, rendering={'depth_resolution': 8, 'depth_resolution_importance': 8})
SHORT = InversionOptions(steps_w=12, steps_g=6, num_statistics=200)
LABEL = camera_utils.label_from_yaw(20.0, lookat=(0, 0, 0))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with snapshots of two small untrained networks and crops/, three pictures with labels."""
    folder = tmp_path_factory.mktemp('inversion')
    torch.manual_seed(0)
    save_snapshot(folder / 'small.pkl', {'G_ema': PanoHeadGenerator(**SMALL)}, {})
    save_snapshot(folder / 'unlabelled.pkl', {'G_ema': EG3DGenerator(c_dim=0, **SMALL)}, {})
    (folder / 'crops').mkdir()
    labels = []
    for i, size in enumerate([(40, 40), (64, 48), (32, 32)]):
        name = f'{"cab"[i]}.png'
        Image.fromarray(np.random.RandomState(i).randint(0, 256, [*size, 3], dtype=np.uint8)).save(folder / 'crops' / name)
        labels.append([name, camera_utils.label_from_yaw(10.0 * i, lookat=(0, 0, 0))[0].tolist()])
    (folder / 'crops' / 'dataset.json').write_text(json.dumps({'labels': labels}))
    return folder


def network(files, name='small'):
    return load_network(str(files / f'{name}.pkl'))


def own_target(generator, seed=5, label=LABEL):
    """The generator's picture of a seed from `label`, as 8-bit values."""
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, generator.z_dim).astype(np.float32))
    with torch.no_grad():
        image = generator.synthesis(generator.mapping(z, label[:, :generator.c_dim]), label).image
    image = (image * 127.5 + 127.5).round().clamp(0, 255) / 127.5 - 1
    return Target(image, label, 'own', 'own.png')


# ---------------------------------------------------------------------------------------------------------------------
# The recipe.

def test_schedules():
    options = InversionOptions()
    rates = [inversion.learning_rate(t, options) for t in (0, 0.025, 0.05, 0.5, 0.75, 0.875, 0.999)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.1, 0.1, 0.05, 3.95e-6], rel=1e-2, abs=1e-12)
    noise = [inversion.noise_factor(t, options) for t in (0, 0.375, 0.75, 0.9)]
    assert noise == pytest.approx([0.05, 0.0125, 0, 0])


def test_statistics(files):
    generator = network(files)
    w_avg, w_std, z_avg = inversion.latent_statistics(generator, 1500, 'cpu')
    z = torch.from_numpy(np.random.RandomState(123).randn(1500, 16).astype(np.float32))
    front = camera_utils.make_label(camera_utils.look_at_pose(np.pi / 2, np.pi / 2, (0, 0, 0), 2.7))
    w = generator.mapping(z, front.repeat(1500, 1))[:, 0]
    torch.testing.assert_close(w_avg, w.mean(0)[None, None])
    torch.testing.assert_close(z_avg, z.mean(0)[None])
    assert w_std == pytest.approx(w.var(dim=0, correction=0).sum().sqrt().item(), rel=1e-4)


def test_camera_is_moved_once_by_the_learned_translation(files):
    generator = network(files)
    z = torch.randn(1, 16)
    moved = inversion.corrected_label(generator, z, LABEL) - LABEL
    assert moved[0, [3, 7, 11]].tolist() == pytest.approx(generator.camera_offset(z, LABEL)[0].tolist(), abs=1e-6)
    assert moved.abs().sum() > 1e-4 and moved[0, [i for i in range(25) if i not in (3, 7, 11)]].abs().sum() == 0
    plain = network(files, 'unlabelled')
    assert inversion.corrected_label(plain, z, LABEL) is LABEL


def test_near_plane_is_that_of_the_published_heads(files):
    assert inversion.inversion_rendering(network(files), SHORT).ray_start == 2.35
    far = PanoHeadGenerator(**SMALL, camera={'radius': 1.7})
    assert inversion.inversion_rendering(far, SHORT) == far.rendering


def test_loss_is_the_published_sum():
    features = StructuralFeatures()
    image, target = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    expected = 0.1 * (image - target).square().mean() + squared_distance(features.encode(image), features.encode(target))
    torch.testing.assert_close(inversion.PictureLoss(target, features, InversionOptions())(image), expected)


def test_stage_1_pulls_towards_the_mean():
    """With nothing to see, the prior alone decides: the latents stay where they start."""
    w_avg = torch.randn(1, 1, 4)
    ws, losses = inversion.optimize_latents(lambda ws: ws.sum() * 0, lambda image: image, w_avg, 0.0, 3, SHORT)
    torch.testing.assert_close(ws, w_avg.repeat(1, 3, 1))
    assert losses == [0] * SHORT.steps_w


# ---------------------------------------------------------------------------------------------------------------------
# Perceptual distance.

def test_structural_distance_orders_damage():
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, [8, 8, 3], dtype=np.uint8)).resize((64, 64))
    image = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    features = StructuralFeatures()

    def distance(other):
        return squared_distance(features.encode(other), features.encode(image)).item()

    blurred = [torch.nn.functional.avg_pool2d(image, k, 1, k // 2, count_include_pad=False) for k in (3, 7)]
    shifted = image.roll(8, dims=3)
    assert distance(image) == 0
    assert 0 < distance(image + 0.05) < 0.01                                        # a little brighter: the same structure
    assert distance(blurred[0]) < distance(blurred[1]) < distance(shifted)
    assert distance(image.flip(2)) > 10 * distance(image + 0.05)


def test_pictures_beyond_256_pixels_are_reduced():
    image = torch.rand(1, 3, 256, 256) * 2 - 1
    large = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(StructuralFeatures().encode(large), StructuralFeatures().encode(image))


class FakeVGG(torch.nn.Module):
    """The interface of the TorchScript file of the literature; its features say what it was given."""

    def forward(self, x, resize_images: bool = True, return_lpips: bool = False):
        if resize_images or not return_lpips:
            raise RuntimeError('wrong call')
        return torch.stack([x.amin(dim=[1, 2, 3]), x.amax(dim=[1, 2, 3]), torch.full([x.shape[0]], float(x.shape[3]))], dim=1)


@pytest.fixture
def vgg(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(FakeVGG()).save(str(tmp_path / 'vgg.pt'))
    return str(tmp_path / 'vgg.pt')


def test_vgg_file(vgg):
    features = load_features(vgg)
    assert vgg in features.description
    image = torch.zeros(1, 3, 512, 512)
    image[:, :, :8, :8], image[:, :, -8:, -8:] = -1, 1
    assert features.encode(image).tolist() == [[0, 255, 256]]
    assert squared_distance(torch.zeros(2, 3), torch.ones(2, 3)) == 3


@pytest.mark.parametrize('content', [b'', b'no network', None])
def test_perceptual_file_that_is_none(content, tmp_path):
    if content is not None:
        (tmp_path / 'vgg.pt').write_bytes(content)
    with pytest.raises(UserError, match='vgg.pt'):
        load_features(str(tmp_path / 'vgg.pt'))


# ---------------------------------------------------------------------------------------------------------------------
# Whole inversions.

def test_own_picture_is_found_again(files):
    generator = network(files)
    target = own_target(generator)
    options = InversionOptions(steps_w=60, steps_g=40, num_statistics=500)
    seen = []
    result = invert(generator, target, StructuralFeatures(), options, observe=lambda *args: seen.append(args[:2]))
    assert seen == [('latents', i) for i in range(60)] + [('generator', i) for i in range(41)]
    start = inversion.psnr(network(files).synthesis(inversion.latent_statistics(generator, 500, 'cpu')[0].repeat(
        1, generator.num_ws, 1), LABEL).image, target.image)
    pre, post = (inversion.psnr(image, target.image) for image in (result.pre, result.post))
    assert result.losses_w[-1] < result.losses_w[0] / 4
    assert min(result.losses_g) < result.losses_g[0] / 2
    assert start + 0.5 < pre and pre + 3 < post
    assert not any(p.requires_grad for p in generator.parameters())


def test_same_seed_same_result(files):
    def run(seed):
        generator = network(files)
        options = InversionOptions(5, 3, num_statistics=50, seed=seed)
        result = invert(generator, own_target(generator), StructuralFeatures(), options)
        return [result.ws, result.post, *generator.parameters()]

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize('keep', ['best', 'last'])
def test_which_weights_are_kept(keep):
    """A weight goes from 0 to 1, where the loss is 0, and by its momentum on."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    visited = []
    options = InversionOptions(steps_g=3, lr_g=1.0, keep=keep)
    losses = inversion.tune_generator(layer, lambda: layer.weight + 0, lambda weight: (weight - 1).abs().sum(), options,
                                      lambda *args: visited.append(args[2].item()))
    assert losses == pytest.approx([abs(weight - 1) for weight in visited]) and len(losses) == 4
    assert visited[:2] == pytest.approx([0, 1]) and visited[3] > 1.5
    assert layer.weight.item() == visited[1 if keep == 'best' else 3]


def test_network_without_labels(files):
    generator = network(files, 'unlabelled')
    result = invert(generator, own_target(generator), StructuralFeatures(), SHORT)
    assert result.ws.shape == (1, generator.num_ws, 32) and torch.equal(result.label, LABEL)
    assert result.losses_g[-1] < result.losses_g[0]


def test_without_tuning_the_generator_stays(files):
    generator = network(files)
    result = invert(generator, own_target(generator), StructuralFeatures(), InversionOptions(3, 0, num_statistics=50))
    assert result.losses_g == [] and result.post is result.pre
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), network(files).parameters(), strict=True))


def test_picture_that_is_not_finite_ends_it(files):
    generator = network(files)
    target = own_target(generator)
    generator.torgb.bias.data[:] = float('nan')
    with pytest.raises(UserError, match='loss is nan at step 0'):
        invert(generator, target, StructuralFeatures(), SHORT)


# ---------------------------------------------------------------------------------------------------------------------
# Targets.

def test_pictures_of_a_folder_in_name_order(files):
    for index, name in enumerate('abc'):
        target = load_target(files / 'crops', 32, index)
        assert target.source.endswith(f'{name}.png') and target.name == str(index)
        torch.testing.assert_close(target.label, camera_utils.label_from_yaw(10.0 * 'cab'.index(name), lookat=(0, 0, 0)))
    exact = np.asarray(Image.open(files / 'crops' / 'b.png'))
    assert ((load_target(files / 'crops', 32, 1).image + 1) * 127.5)[0].permute(1, 2, 0).round().int().tolist() == exact.tolist()


def test_middle_of_an_oblong_picture(tmp_path):
    picture = np.zeros([32, 64, 3], np.uint8)
    picture[:, 16:48] = 255
    Image.fromarray(picture).save(tmp_path / 'x.png')
    (tmp_path / 'label.json').write_text(json.dumps(LABEL[0].tolist()))
    target = load_target(tmp_path / 'x.png', 16, label_file=tmp_path / 'label.json')
    assert (target.image == 1).all() and target.image.shape == (1, 3, 16, 16)
    assert torch.equal(target.label, LABEL) and target.name == 'x'


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK', 'I;16'])
def test_any_kind_of_picture(mode, tmp_path):
    picture = Image.new(mode, (16, 16)) if mode != 'RGBA' else Image.new(mode, (16, 16), (0, 0, 0, 255))
    path = tmp_path / ('x.tif' if mode in ('CMYK', 'I;16') else 'x.png')
    picture.save(path)
    (tmp_path / 'dataset.json').write_text(json.dumps({'labels': [[path.name, LABEL[0].tolist()]]}))
    assert (load_target(path, 16).image == (1 if mode == 'CMYK' else -1)).all()


def test_published_sample():
    shared = Path(os.environ.get('SHARED_DATA') or Path(__file__).resolve().parents[2] / 'shared' / 'data')
    folder = shared / 'panohead_sample' / 'testdata_img'
    if not folder.is_dir():
        pytest.skip(f'no sample pictures in {folder}; set SHARED_DATA')
    target = load_target(folder, 64, 1)
    assert target.source.endswith('000157.jpg') and target.label[0, 3].item() == pytest.approx(-0.598652)


# ---------------------------------------------------------------------------------------------------------------------
# The scripts.

def run(script, arguments, expect=0):
    result = CliRunner().invoke(script.main, arguments.split())
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, result.output
    return result


def test_projector_writes_what_the_family_reads(files, tmp_path):
    out = run(projector, f'--network {files}/small.pkl --target_img {files}/crops --target_seg none --idx 1 --num-steps 9 '
                         f'--num-steps-pti 3 --outdir {tmp_path} --device cpu --shapes true --shape-res 16').output
    assert 'built-in multi-scale structural distance' in out and 'masks are not used' in out
    folder = tmp_path / 'small' / '1'
    assert sorted(p.name for p in folder.iterdir()) == ['fintuned_generator.pkl', 'geometry.mrc', 'pre.png', 'proj.mp4',
                                                        'proj.png', 'projected_w.npz', 'settings.json', 'target.png']
    assert (np.asarray(Image.open(folder / 'target.png')) == np.asarray(Image.open(files / 'crops' / 'b.png'))).all()
    with np.load(folder / 'projected_w.npz') as data:
        w, c = data['w'], torch.from_numpy(data['c'])
    generator = network(files)
    assert w.shape == (1, generator.num_ws, 32) and w.dtype == np.float32
    settings = json.loads((folder / 'settings.json').read_text())
    assert len(settings['losses_w']) == 9 and len(settings['losses_g']) == 4 and settings['psnr_post'] > settings['psnr_pre']

    # A fresh load renders the very picture, and the old network the one from before.
    for name, path in (('proj', folder / 'fintuned_generator.pkl'), ('pre', files / 'small.pkl')):
        session = Session.open(str(path), 'cpu')
        image = session.view(session.identity(torch.from_numpy(w)), c).image
        same = (np.asarray(Image.open(folder / f'{name}.png')) == images.to_uint8(image)[0]).all()
        assert same == (name == 'proj')      # the old network's rays start elsewhere


def test_inverted_heads_are_filmed(files, tmp_path):
    ws = torch.randn(2, network(files).num_ws, 32) * 3
    np.savez(tmp_path / 'heads.npz', w=ws.numpy())
    head = f'--network {files}/small.pkl --latent {tmp_path}/heads.npz --trunc 0.7 --device cpu'
    run(gen_samples, f'{head} --outdir {tmp_path}/s --views 1')
    run(gen_videos, f'{head} --outdir {tmp_path}/v --w-frames 1 --grid 2x1')
    assert sorted(p.name for p in (tmp_path / 's').iterdir()) == ['heads0000.png', 'heads0001.png']
    assert [p.name for p in (tmp_path / 'v').iterdir()] == ['heads0000-0001.mp4']
    reader = imageio_ffmpeg.read_frames(str(tmp_path / 'v' / 'heads0000-0001.mp4'))
    next(reader)
    filmed = np.frombuffer(next(reader), np.uint8).reshape(32, 64, 3).astype(float)
    session = Session.open(str(files / 'small.pkl'), 'cpu')
    camera = session.camera()
    side = trajectories.turned(camera, 0, gen_samples.SIDE_VERTICAL, trajectories.ORIGIN)
    for i, row in enumerate(ws.split(1)):
        identity = session.identity(row)
        view = images.frames(session.view(identity, side))[0]
        assert (np.asarray(Image.open(tmp_path / 's' / f'heads{i:04d}.png')) == view).all()
        frame = images.frames(session.view(identity, trajectories.orbit('Head', 1, camera)))[0].astype(float)
        own, other = (np.abs(filmed[:, 32 * k:32 * k + 32] - frame).mean() for k in (i, 1 - i))
        assert own < other / 3


def test_saved_result_renders_bit_equal(files, tmp_path):
    generator = network(files)
    target = own_target(generator)
    result = invert(generator, target, StructuralFeatures(), SHORT)
    inversion.save_inversion(tmp_path, generator, result, target, {})
    loaded = Session.open(str(tmp_path / 'fintuned_generator.pkl'), 'cpu')
    with np.load(tmp_path / 'projected_w.npz') as data:
        image = loaded.view(loaded.identity(torch.from_numpy(data['w'])), torch.from_numpy(data['c'])).image
    assert torch.equal(image, result.post) and not torch.equal(image, result.pre)
    untuned = Session.open(str(files / 'small.pkl'), 'cpu')
    untuned.options = result.rendering
    assert torch.equal(untuned.view(untuned.identity(result.ws), result.label).image, result.pre)


def test_perceptual_file_is_named_and_one_picture_suffices(files, vgg, tmp_path):
    out = run(projector, f'--network {files}/small.pkl --target_img {files}/crops/c.png --num-steps 1 --num-steps-pti 0 '
                         f'--outdir {tmp_path} --device cpu --save-video false --perceptual {vgg}').output
    assert f'VGG features of {vgg}' in out
    assert (tmp_path / 'small' / 'c' / 'projected_w.npz').is_file() and not (tmp_path / 'small' / 'c' / 'proj.mp4').exists()


BAD_ARGUMENTS = [
    ('--target_img absent', 'absent'),
    ('--target_img {files}/small.pkl', 'small.pkl'),
    ('--target_img {files}/crops --idx 3', 'choose 0 to 2'),
    ('--target_img {files}/crops --idx -1', '--idx'),
    ('--target_img {files}/crops/a.png --idx 1', 'single image'),
    ('--target_img {files}/crops --label x.json', 'single image'),
    ('--target_img {files}/crops/a.png --label x.json', 'x.json'),
    ('--target_img {files}/crops/a.png --label {files}/small.pkl', 'small.pkl'),
    ('--target_img {bad}/nolabels', 'dataset.json'),
    ('--target_img {bad}/wrong', 'wrong'),
    ('--target_img {bad}/empty', 'no images'),
    ('--target_img {bad}/wrong/x.png --label {bad}/short.json', '25'),
    ('--target_img {files}/crops --num-steps 0', '--num-steps'),
    ('--target_img {files}/crops --num-steps-pti -1', '--num-steps-pti'),
    ('--target_img {files}/crops --seed -1', '--seed'),
    ('--target_img {files}/crops --fps nan', '--fps'),
    ('--target_img {files}/crops --device abacus', '--device abacus'),
    ('--target_img {files}/crops --perceptual absent.pt', 'absent.pt'),
    ('--target_img {files}/crops --perceptual {files}/small.pkl', '--perceptual'),
    ('--target_img {files}/crops --keep first', '--keep'),
    ('--target_img {files}/crops --outdir {files}/small.pkl/x', '--outdir'),
    ('', '--target_img'),
]


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
    """Folder of sets that cannot be used."""
    folder = tmp_path_factory.mktemp('bad')
    for name in ('nolabels', 'wrong', 'empty'):
        (folder / name).mkdir()
    (folder / 'empty' / 'dataset.json').write_text('{}')
    for name in ('nolabels', 'wrong'):
        Image.new('RGB', (8, 8)).save(folder / name / 'x.png')
    (folder / 'wrong' / 'dataset.json').write_text(json.dumps({'labels': [['x.png', [0.0] * 25]]}))
    (folder / 'short.json').write_text(json.dumps([1, 2, 3]))
    return folder


@pytest.mark.parametrize('arguments, message', BAD_ARGUMENTS, ids=[a for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(files, bad, arguments, message, tmp_path):
    arguments = f'--network {files}/small.pkl --outdir {tmp_path} {arguments.format(files=files, bad=bad)}'
    result = run(projector, arguments, expect=2)
    assert message in result.output and 'Traceback' not in result.output


@pytest.mark.parametrize('script', [gen_samples, gen_videos])
def test_bad_latents(files, script, tmp_path):
    np.savez(tmp_path / 'other.npz', w=np.zeros([1, 3, 7], np.float32))
    np.savez(tmp_path / 'flat.npz', w=np.zeros([7], np.float32))
    np.savez(tmp_path / 'noname.npz', v=np.zeros([1, 8, 32], np.float32))
    np.savez(tmp_path / 'object.npz', w=np.array([None], dtype=object))
    np.savez(tmp_path / 'good.npz', w=np.zeros([1, 8, 32], np.float32))
    np.save(tmp_path / 'array.npy', np.zeros([1, 8, 32], np.float32))
    (tmp_path / 'text.npz').write_text('no latents')
    cases = [('other.npz', '3 layers of 7'), ('flat.npz', 'flat.npz'), ('noname.npz', '"w"'), ('object.npz', '"w"'),
             ('array.npy', '"w"'), ('text.npz', 'text.npz'), ('absent.npz', 'absent.npz'), ('good.npz --seeds 1', '--seeds')]
    for arguments, message in cases:
        result = run(script, f'--network {files}/small.pkl --outdir {tmp_path}/o --latent {tmp_path}/{arguments}', expect=2)
        assert message in result.output and 'Traceback' not in result.output
