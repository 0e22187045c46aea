"""projector.py and the pictures it takes: what it writes, what other scripts make of it, what users may get wrong."""

import json
import os
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import camera_utils
import gen_interpolation
import gen_samples
import gen_videos
import projector
from inference import images, trajectories
from inference.heads import load_head
from inference.session import Session
from inference.targets import load_target
from inversion_cases import LABEL, network, write_files, write_vgg
from photo_samples import WEIGHTS, front_and_back, needs_samples


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp('projector'))


@pytest.fixture
def vgg(tmp_path):
    return write_vgg(tmp_path / 'vgg.pt')


# ---------------------------------------------------------------------------------------------------------------------
# Targets.

@needs_samples
def test_front_and_back_of_one_person_as_photographs(files, tmp_path):
    """One command for a photograph with a face and one without: the back is cropped as the front tells, in whatever order."""
    photos = front_and_back(tmp_path / 'in')
    (tmp_path / 'angles.csv').write_text('back.png,162\n')
    (tmp_path / 'masks').mkdir()
    mask = Image.open(photos / 'back.png').getchannel('A')
    mask.save(tmp_path / 'masks' / 'back.png')
    Image.open(photos / 'back.png').convert('RGB').save(photos / 'back.png')
    written = run(projector, f'{photos}/back.png {photos}/front.png --network {files}/small.pkl --outdir {tmp_path}/out --together '
                             f'--num-steps 1 --num-steps-pti 0 --save-video false --orbit-frames 0 --weights {WEIGHTS} '
                             f'--angles {tmp_path}/angles.csv --target_seg {tmp_path}/masks').output.splitlines()
    assert 'back.png: ' in written[0] and 'yaw 162, pitch 0, roll 0 degrees (given), mask: given' in written[0]
    assert 'front.png: ' in written[1] and '(measured)' in written[1] and 'and 1 view more' in written[2]
    folder = tmp_path / 'out' / 'small' / 'back'
    assert (folder / 'target.png').is_file() and (folder / 'target_1.png').is_file()


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
                         f'--recipe panohead --orbit-frames 2 '
                         f'--num-steps-pti 3 --outdir {tmp_path} --device cpu --shapes true --shape-res 16').output
    assert 'built-in multi-scale structural distance' in out and 'masks are not used' in out
    folder = tmp_path / 'small' / '1'
    assert sorted(p.name for p in folder.iterdir()) == [
        'finetuned_generator.pkl', 'fintuned_generator.pkl', 'geometry.mrc', 'head.safetensors', 'orbit.mp4', 'pre.png', 'proj.mp4',
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


def test_perceptual_file_is_named_and_one_picture_suffices(files, vgg, tmp_path):
    out = run(projector, f'--network {files}/small.pkl --target_img {files}/crops/c.png --num-steps 1 --num-steps-pti 0 '
                         f'--outdir {tmp_path} --device cpu --save-video false --perceptual {vgg}').output
    assert f'VGG features of {vgg}' in out
    assert (tmp_path / 'small' / 'c' / 'projected_w.npz').is_file() and not (tmp_path / 'small' / 'c' / 'proj.mp4').exists()


def test_same_command_same_file(files, tmp_path):
    """And once it is done it is not done again, unless asked."""
    command = f'--network {files}/small.pkl --target_img {files}/crops --idx 0,2 --num-steps 4 --num-steps-pti 2 --device cpu'
    outs = [run(projector, f'{command} --outdir {tmp_path}/{name} --orbit-frames 0').output for name in 'aba']
    for number in '02':
        one, two = ((tmp_path / name / 'small' / number / 'head.safetensors').read_bytes() for name in 'ab')
        assert one == two
    assert 'was done before' not in outs[1] and outs[2].count('was done before') == 2
    # What it left out then is made of the head it left.
    more = '--orbit-frames 2 --shapes true --shape-res 16'
    assert run(projector, f'{command} --outdir {tmp_path}/a {more}').output.count('was done before') == 2
    assert 'was done before' not in run(projector, f'{command} --outdir {tmp_path}/c {more}').output
    for name in ('orbit.mp4', 'geometry.mrc'):
        assert (tmp_path / 'a/small/2' / name).read_bytes() == (tmp_path / 'c/small/2' / name).read_bytes()
    assert 'done before' not in run(projector, f'{command} --outdir {tmp_path}/a --orbit-frames 0 --restart').output
    assert 'done before' not in run(projector, f'{command} --outdir {tmp_path}/b --orbit-frames 0 --seed 1').output
    with np.load(tmp_path / 'a/small/0/projected_w.npz') as a, np.load(tmp_path / 'b/small/0/projected_w.npz') as b:
        assert a['w'].shape == b['w'].shape


def test_pictures_that_cannot_be_used_do_not_stop_the_others(files, tmp_path):
    shutil.copytree(files / 'crops', tmp_path / 'crops')
    (tmp_path / 'crops' / 'b.png').write_bytes(b'no picture')
    out = run(projector, f'--network {files}/small.pkl --target_img {tmp_path}/crops --idx 0-2 --num-steps 1 --num-steps-pti 0 '
                         f'--outdir {tmp_path}/o --device cpu --orbit-frames 0 --save-video false', expect=2).output
    assert '1 picture gave no head' in out and 'b.png' in out
    assert sorted(p.name for p in (tmp_path / 'o' / 'small').iterdir()) == ['0', '2']


def test_head_is_filmed_with_its_network_alone(files, tmp_path):
    run(projector, f'--network {files}/small.pkl --target_img {files}/crops --num-steps 4 --num-steps-pti 3 --outdir {tmp_path} '
                   '--device cpu --orbit-frames 0 --save-video false')
    head = tmp_path / 'small' / '0' / 'head.safetensors'
    run(gen_samples, f'--network {files}/small.pkl --latent {head} --views 1 --outdir {tmp_path}/s --device cpu')
    assert [p.name for p in (tmp_path / 's').iterdir()] == ['head0000.png']
    mixed = f'--latent {head} --seeds 2 --outdir {tmp_path}/i --device cpu'
    run(gen_interpolation, f'--network {files}/small.pkl {mixed}')
    cells = np.asarray(Image.open(tmp_path / 'i' / 'interpolation-head0000-0002.png'))
    session = Session.open(str(files / 'small.pkl'), 'cpu')
    first, second = session.given_ws(load_head(head)), session.seeds_to_ws([2])      # the head's changes of the network act on both
    ws = gen_interpolation.latents.mix_styles(first, second, gen_interpolation.COLUMN_LAYERS[2])
    front = trajectories.turned(session.camera(), 0, pivot=trajectories.ORIGIN)
    assert (cells[:32, 64:96] == images.frames(session.view(session.identity(ws), front))[0]).all()
    assert run(gen_interpolation, f'--network {files}/unlabelled.pkl {mixed}', expect=2).output.count('--latent')
    result = run(gen_videos, f'--network {files}/unlabelled.pkl --latent {head} --outdir {tmp_path}/v --device cpu', expect=2)
    assert 'small.pkl' in result.output or 'layers of' in result.output


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
    ('--target_img {files}/crops --recipe best', '--recipe'),
    ('--target_img {files}/crops photo.jpg', 'one of the two'),
    ('--target_img {files}/crops --idx 1-', '--idx'),
    ('--target_img {files}/crops --target_seg {files}/crops', 'several different channels'),
    ('--target_img {files}/crops --target_img_back {files}/crops', '--recipe pso'),
    ('--target_img {files}/crops --recipe pso --target_img_back absent', 'absent'),
    ('--target_img {files}/crops --orbit-frames -1', '--orbit-frames'),
    ('absent.jpg --route silhouette --yaw 180', 'absent.jpg'),
    ('{files}/small.pkl --route silhouette --yaw 180', 'small.pkl'),
    ('{files}/crops/a.png --route silhouette --yaw 200', '--yaw'),
    ('{files}/crops/a.png --weights {files}/absent', 'absent'),
    ('{files}/crops/a.png --route silhouette --yaw 180 --face first', '--face'),
    ('{files}/crops/a.png --route silhouette --angles absent.csv', '--angles absent.csv'),
    ('{files}/crops/a.png --route silhouette --yaw 0 --label absent.json', '--label'),
    ('{files}/crops/a.png --route silhouette --yaw 0 --idx 3', '--idx'),
    ('{files}/crops/a.png --route silhouette --yaw 0 --target_seg absent', 'absent'),
    ('{files}/crops/a.png {files}/crops/b.png --together --route silhouette --yaw 0', '--angles'),
    ('{files}/crops/a.png {files}/crops/b.png --together --face all', '--face all'),
    ('--target_img {files}/crops --yaw 90', '--yaw'),
    ('--target_img {files}/crops --weights absent', '--weights'),
    ('{files}/crops/a.png --route silhouette --angles {bad}/others.csv', 'names none of the photographs'),
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
    (folder / 'others.csv').write_text('name,yaw\nb.png,180\n')
    return folder


@pytest.mark.parametrize('arguments, message', BAD_ARGUMENTS, ids=[a for a, _ in BAD_ARGUMENTS])
def test_bad_arguments(files, bad, arguments, message, tmp_path):
    arguments = f'--network {files}/small.pkl --outdir {tmp_path} {arguments.format(files=files, bad=bad)}'
    result = run(projector, arguments, expect=2)
    assert message in result.output and 'Traceback' not in result.output


@pytest.mark.parametrize('script', [gen_samples, gen_videos, gen_interpolation])
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
    if script is gen_interpolation:
        del cases[-1]                                                    # there seeds are the second heads
    for arguments, message in cases:
        result = run(script, f'--network {files}/small.pkl --outdir {tmp_path}/o --latent {tmp_path}/{arguments}', expect=2)
        assert message in result.output and 'Traceback' not in result.output
