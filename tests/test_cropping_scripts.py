"""The family's cropping commands: flags, files, exit codes, and sets that the next tools take."""

import importlib.util
import json

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from photo_samples import FOLDER, WEIGHTS, needs_samples, picture
from preprocessing import cameras, poses
from preprocessing import weights as weight_files
from preprocessing.numpy_pickle import load_numbers
from project_files import ROOT
from readme_blocks import code_blocks, commands
from training.dataset_check import check_dataset


def script(name):
    """The click command of a script of 3DDFA_V2_cropping, which is no package's name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / '3DDFA_V2_cropping' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


RECROP, KPS = script('recrop_images'), script('dlib_kps')


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@needs_samples
def test_recrop_of_a_folder(tmp_path):
    (tmp_path / 'in' / 'sub').mkdir(parents=True)
    PIL.Image.fromarray(picture('photos/trump_hillary.jpg')).save(tmp_path / 'in' / 'two.png')
    (tmp_path / 'in' / 'sub' / 'man.jpg').write_bytes((FOLDER / 'photos/man.jpg').read_bytes())
    (tmp_path / 'in' / 'bad.jpg').write_bytes(b'nothing')
    out = tmp_path / 'crops' / 'img'
    result = run(RECROP, '-i', tmp_path / 'in', '--out_dir', out, '--weights', WEIGHTS, '--face', 'all', '-o', tmp_path / 'quads.pkl',
                 '--mode', 'cpu', '--size', '1024', '--config', 'configs/mb05_120x120.yml')
    assert result.exit_code == 0, result.output
    assert 'bad.jpg: unreadable' in result.output and '4 photographs or faces: 1 unreadable, 3 ok' in result.output
    assert '--size: taken for the sake of published commands' in result.output
    labels = json.loads((out / 'dataset.json').read_text())['labels']
    assert [name for name, _ in labels] == ['sub/man.jpg', 'two_0.jpg', 'two_1.jpg']
    assert all(isinstance(value, str) and len(value.split('.')[1]) == 6 for _, label in labels for value in label)
    turned = json.loads((out / 'data_rotate.json').read_text())['labels']
    for (name, label), (other, back) in zip(labels, turned, strict=True):
        assert name == other and np.allclose(poses.half_turn(np.float64(label)), np.float64(back), atol=2e-6)
    quads = load_numbers(tmp_path / 'quads.pkl')
    assert set(quads) == {name for name, _ in labels} and all(q.shape == (4, 2) and q.dtype == np.float32 for q in quads.values())
    for name, _ in labels:
        assert PIL.Image.open(out / name).size == (563, 563)
    assert check_dataset(tmp_path / 'crops/img512', tmp_path / 'crops/seg512', deep=True, need_labels=True) == []
    page = (out / 'report.html').read_text(encoding='utf-8')
    assert page.count('<img ') == 3 and 'unreadable' in page and 'bad.jpg' in page and 'http' not in page
    lines = json.loads((out / 'prepare.json').read_text())['photos']
    assert [line['status'] for line in lines] == ['unreadable', 'ok', 'ok', 'ok']


@needs_samples
def test_landmarks_then_recrop_as_published(tmp_path):
    """dlib_kps.py, then recrop_images.py on its data.pkl, gives what recrop_images.py gives alone."""
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'man.jpg').write_bytes((FOLDER / 'photos/man.jpg').read_bytes())
    (tmp_path / 'in' / 'flat.png').write_bytes(b'')
    result = run(KPS, '-i', tmp_path / 'in', '-o', tmp_path / 'data.pkl', '--weights', WEIGHTS, '--device', 'cpu')
    assert result.exit_code == 0 and '1 of 2 photographs' in result.output, result.output
    data = load_numbers(tmp_path / 'data.pkl')
    (points,) = data.values()
    assert isinstance(points, list) and len(points) == 68 and points[0].shape == (2,)
    for out, source in (('a', tmp_path / 'data.pkl'), ('b', tmp_path / 'in' / 'man.jpg')):
        result = run(RECROP, '-i', source, '--out_dir', tmp_path / out, '--weights', WEIGHTS, '--ready', '0', '--matting', 'none')
        assert result.exit_code == 0, result.output
    assert (tmp_path / 'a/dataset.json').read_text() == (tmp_path / 'b/dataset.json').read_text()
    assert np.array_equal(PIL.Image.open(tmp_path / 'a/man.jpg'), PIL.Image.open(tmp_path / 'b/man.jpg'))


@needs_samples
@pytest.mark.parametrize('arguments, message', [
    (['-i', 'absent.pkl'], 'absent.pkl'), (['-i', 'absent'], 'no such'), (['--face', 'both'], '--face both'),
    (['--yaw', '200'], '200'), (['--config', 'resnet.yml'], '--config resnet.yml'), (['--weights', 'absent'], '--weights absent'),
    (['--angles', 'absent.csv'], '--angles absent.csv'), (['--angles', 'x.csv', '--turntable', '0', '360'], 'give one of them'),
    (['--matting', 'absent.pt'], '--matting absent.pt'), (['--masks', 'absent'], 'absent'),
    (['-i', 'flat.png'], 'no photograph could be used'),
])
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    PIL.Image.new('RGB', (200, 200)).save('flat.png')
    (tmp_path / 'man.jpg').write_bytes((FOLDER / 'photos/man.jpg').read_bytes())
    result = run(RECROP, '-i', 'man.jpg', '--weights', WEIGHTS, *arguments)
    assert result.exit_code == 2 and message in result.output and 'Traceback' not in result.output, result.output


def test_back_view_needs_no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path / 'cache'))
    picture = np.full((500, 400, 3), 200, np.uint8)
    yy, xx = np.mgrid[:500, :400]
    picture[(((xx - 200) / 110) ** 2 + ((yy - 220) / 150) ** 2 < 1) | ((yy > 350) & (abs(xx - 200) < 60))] = (60, 40, 20)
    PIL.Image.fromarray(picture).save(tmp_path / 'back.png')
    result = run(RECROP, '-i', tmp_path / 'back.png', '--out_dir', tmp_path / 'img', '--route', 'silhouette', '--yaw', '175',
                 '--pitch', '10', '--format', 'png')
    assert result.exit_code == 0 and 'low confidence' in result.output, result.output
    label = np.float64(json.loads((tmp_path / 'img/dataset.json').read_text())['labels'][0][1])
    assert poses.camera_angles(label) == pytest.approx((175, 10, 0), abs=1e-3)
    mask = np.array(PIL.Image.open(tmp_path / 'seg/back.png')) > 127
    crop = np.array(PIL.Image.open(tmp_path / 'img/back.png'))[..., 0] < 130
    assert (mask & crop).sum() / (mask | crop).sum() > 0.95
    # A second run into the same folder adds to it.
    PIL.Image.fromarray(picture[:, ::-1].copy()).save(tmp_path / 'other.png')
    again = run(RECROP, '-i', tmp_path / 'other.png', '--out_dir', tmp_path / 'img', '--route', 'silhouette', '--yaw', '-175',
                '--format', 'png')
    assert again.exit_code == 0
    labels = json.loads((tmp_path / 'img/dataset.json').read_text())['labels']
    assert [name for name, _ in labels] == ['back.png', 'other.png'] and np.float64(labels[0][1]).tolist() == label.tolist()
    assert [line['source'] for line in json.loads((tmp_path / 'img/prepare.json').read_text())['photos']] == ['back.png', 'other.png']
    result = run(RECROP, '-i', tmp_path / 'back.png', '-j', '../evil.json', '--out_dir', tmp_path / 'img', '--route', 'silhouette')
    assert result.exit_code == 2 and '../evil.json' in result.output and not (tmp_path / 'evil.json').exists()
    result = run(RECROP, '-i', tmp_path / 'back.png', '--out_dir', tmp_path / 'img2')
    assert result.exit_code == 2 and 'python -m preprocessing.weights' in result.output


def test_commands_of_the_guide():
    """Every command there names a script and flags that exist."""
    guide = (ROOT / '3DDFA_V2_cropping/cropping_guide.md').read_text(encoding='utf-8')
    known = {'3DDFA_V2_cropping/recrop_images.py': RECROP, '3DDFA_V2_cropping/dlib_kps.py': KPS, 'preprocessing.cameras': cameras.main,
             'preprocessing.weights': weight_files.main}
    found = [words for block in code_blocks(guide, 'bash') for words in commands(block)]
    assert len(found) >= 10
    for words in found:
        name, *arguments = [word for word in words[1:] if word != '-m']
        command = known[name]
        command.make_context(name, arguments, resilient_parsing=False)


def test_camera_command(tmp_path):
    for arguments in ([], ['--labels', tmp_path], ['--cameras', tmp_path]):
        result = run(cameras.main, *arguments)
        assert result.exit_code == 2 and 'Traceback' not in result.output


def test_weights_command(tmp_path):
    result = run(weight_files.main, '--to', tmp_path / 'w', '--source', (tmp_path / 'nowhere').as_uri())
    assert result.exit_code == 2 and 'by hand' in result.output
    assert run(weight_files.main, '--check', tmp_path).exit_code == 2
    if WEIGHTS.is_dir():
        assert 'good' in run(weight_files.main, '--check', WEIGHTS).output
