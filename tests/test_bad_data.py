"""Every fault of an image set is reported by file and value: by the check command (exit code 2) and before training."""

import json
import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import dataset_tool_seg
import train
from dnnlib import UserError
from tests.small_sets import edit_json, write_set
from training.dataset import HeadDataset, InfiniteSampler, iterate_batches
from training.dataset_check import FAULTS_SHOWN, check_dataset, faults_error

SECOND = '00000/img00000001.png'


@pytest.fixture
def folders(tmp_path):
    img, seg = tmp_path / 'A', tmp_path / 'B'
    write_set(img, seg)
    return img, seg


def set_label(position, value):
    """A breaker that puts `value` (or what the callable makes of the old) into that place of the second image's label."""
    def apply(img, seg):
        def change(meta):
            label = meta['labels'][1][1]
            label[position] = value(label[position]) if callable(value) else value
            return meta
        edit_json(img, change)
    return apply


def change_entries(function):
    """A breaker that changes the list meta['labels'] in place."""
    def apply(img, seg):
        def change(meta):
            function(meta['labels'])
            return meta
        edit_json(img, change)
    return apply


def write_json(text):
    return lambda img, seg: (img / 'dataset.json').write_text(text)


def write_image(where, size, mode='RGB', value=128, name=SECOND):
    """A breaker that puts another image in the place of the second image (where 0) or mask (where 1)."""
    def apply(*folders):
        PIL.Image.new(mode, size, value).save(folders[where] / name)
    return apply


def truncate(where):
    def apply(*folders):
        file = folders[where] / SECOND
        file.write_bytes(file.read_bytes()[:300])
    return apply


def remove(where, name=SECOND):
    return lambda *folders: (folders[where] / name).unlink()


def duplicate(where, name='00000/img00000001.jpg'):
    return lambda *folders: PIL.Image.new('RGB' if where == 0 else 'L', (16, 16), 200).save(folders[where] / name)


def left_handed(label):
    for position in (0, 4, 8):
        label[position] *= -1


def look_away(label):
    for position in (1, 2, 5, 6, 9, 10):
        label[position] *= -1


def inside(label):
    for position in (3, 7, 11):
        label[position] *= 0.1


def on_label(function):
    return change_entries(lambda entries: function(entries[1][1]))


# id, what breaks the set, kind of fault, what the message must hold
FAULTS = [
    ('label-missing', change_entries(lambda e: e.pop(1)), 'label-missing', SECOND),
    ('label-24-numbers', on_label(lambda row: row.pop()), 'label-numbers', '24 entries'),
    ('label-26-numbers', on_label(lambda row: row.append(0)), 'label-numbers', '26 entries'),
    ('label-null', change_entries(lambda e: e[1].__setitem__(1, None)), 'label-numbers', 'None'),
    ('label-a-class', change_entries(lambda e: e[1].__setitem__(1, 7)), 'label-numbers', '7'),
    ('label-word', set_label(3, 'left'), 'label-numbers', "entry 3 is 'left'"),
    ('label-nested', set_label(3, [1.0]), 'label-numbers', 'entry 3 is [1.0]'),
    ('label-nan', set_label(3, float('nan')), 'label-numbers', 'entry 3 is nan'),
    ('label-nan-string', set_label(3, 'nan'), 'label-numbers', 'entry 3 is nan'),
    ('label-infinite', set_label(11, float('inf')), 'label-numbers', 'entry 11 is inf'),
    ('label-beyond-float32', set_label(11, -1e300), 'label-numbers', 'entry 11 is -1e+300'),
    ('label-beyond-float64', set_label(11, 10 ** 400), 'label-numbers', 'entry 11 is 1000'),
    ('label-scaled', set_label(0, lambda x: x * 1.2), 'label-rotation', 'not orthonormal'),
    ('label-zeros', on_label(lambda row: row.__setitem__(slice(0, 3), [0, 0, 0])), 'label-rotation', 'not orthonormal'),
    ('label-left-handed', on_label(left_handed), 'label-handedness', 'left-handed'),
    ('label-inside', on_label(inside), 'label-inside', 'inside the box'),
    ('label-away', on_label(look_away), 'label-direction', 'looks away'),
    ('label-last-row', set_label(15, 2.0), 'label-pose', '0 0 0 1'),
    ('label-focal', set_label(16, 0.0), 'label-intrinsics', 'positive focal length'),
    ('label-centre-in-pixels', set_label(18, 256.0), 'label-intrinsics', '256.0'),
    ('label-twice', change_entries(lambda e: e.append(e[1])), 'label-duplicate', SECOND),
    ('label-of-absent-file', change_entries(lambda e: e.append(['gone.png', e[1][1]])), 'label-absent-file', 'gone.png'),
    ('image-removed', remove(0), 'label-absent-file', SECOND),
    ('json-broken', write_json('{"labels": [['), 'json', 'not readable as JSON'),
    ('json-binary', lambda img, seg: (img / 'dataset.json').write_bytes(b'\xff\xfe\x00'), 'json', 'not readable as JSON'),
    ('json-nested-deeply', write_json('[' * 100000), 'json', 'not readable as JSON'),
    ('json-list', write_json('[1, 2]'), 'json', 'holds a list'),
    ('json-labels-number', write_json('{"labels": 3}'), 'json', 'entry of "labels" is 3'),
    ('json-entry-short', change_entries(lambda e: e.__setitem__(1, ['only a name'])), 'json', 'only a name'),
    ('mask-missing', remove(1), 'mask-missing', SECOND),
    ('mask-size', write_image(1, (8, 8), 'L'), 'mask-size', 'mask is 8x8, its image 16x16'),
    ('mask-rgb', write_image(1, (16, 16), 'RGB', (255, 255, 255)), 'mask-channels', 'mode RGB with 3'),
    ('mask-one-bit', write_image(1, (16, 16), '1', 1), 'mask-channels', 'mode 1'),
    ('mask-16-bit', write_image(1, (16, 16), 'I;16', 65535), 'mask-channels', 'mode I'),
    ('mask-empty', write_image(1, (16, 16), 'L', 0), 'mask-empty', SECOND),
    ('mask-0-1', write_image(1, (16, 16), 'L', 1), 'mask-range', 'reaches only 1'),
    ('mask-truncated', truncate(1), 'mask-damaged', 'truncated'),
    ('mask-twice', duplicate(1), 'mask-duplicate', 'img00000001.jpg'),
    ('image-not-square', write_image(0, (16, 8)), 'image-square', '16x8 is not square'),
    ('image-not-power', write_image(0, (12, 12)), 'image-power', '12x12 is not a power of two'),
    ('image-other-size', write_image(0, (32, 32)), 'image-mixed', '32x32, most others are 16x16'),
    ('image-grey', write_image(0, (16, 16), 'L'), 'image-channels', 'mode L with 1'),
    ('image-rgba', write_image(0, (16, 16), 'RGBA'), 'image-channels', 'mode RGBA with 4'),
    ('image-truncated', truncate(0), 'image-damaged', 'truncated'),
    ('image-empty-file', lambda img, seg: (img / SECOND).write_bytes(b''), 'image-damaged', 'not an image'),
    ('image-is-text', lambda img, seg: (img / SECOND).write_text('hello'), 'image-damaged', 'not an image'),
    ('image-twice', duplicate(0), 'name-duplicate', 'img00000001.jpg'),
    ('no-images', lambda img, seg: shutil.rmtree(img / '00000'), 'empty', 'holds no images'),
    ('no-folder', lambda img, seg: shutil.rmtree(img), 'store', 'no such folder'),
    ('no-mask-folder', lambda img, seg: shutil.rmtree(seg), 'store', 'no such folder'),
]
CASES = [pytest.param(*fault[1:], id=fault[0]) for fault in FAULTS]


def run_check(*args):
    """Output of the check command, which must end with exit code 2 and without a traceback."""
    result = CliRunner().invoke(dataset_tool_seg.main, ['--check', *(str(arg) for arg in args)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert 'Traceback' not in result.output
    return result.output


def test_sound_set_passes(folders):
    args = ['--check', '--img_source', str(folders[0]), '--seg_source', str(folders[1])]
    result = CliRunner().invoke(dataset_tool_seg.main, args)
    assert result.exit_code == 0, result.output
    assert 'No faults.' in result.output
    bars = [line for line in result.output.splitlines() if line.endswith('#')]
    assert len(bars) == 4
    assert check_dataset(*folders, deep=True) == []


@pytest.mark.parametrize('break_set, kind, text', CASES)
def test_check_reports(folders, break_set, kind, text):
    break_set(*folders)
    output = run_check('--img_source', folders[0], '--seg_source', folders[1])
    reported = [line for line in output.splitlines() if f'[{kind}]' in line]
    assert any(text in line for line in reported), output
    assert all(str(folders[0].parent) in line for line in reported)


@pytest.mark.parametrize('break_set, kind, text', CASES)
def test_dataset_refuses_before_training(folders, break_set, kind, text):
    break_set(*folders)
    with pytest.raises(UserError) as caught:
        HeadDataset(*folders)
    assert f'[{kind}]' in str(caught.value) and text in str(caught.value)


# Those that reading the one file brings to light.
READ_FAULTS = [case for case in CASES if case.id in (
    'mask-size', 'mask-rgb', 'mask-truncated', 'image-not-square', 'image-other-size', 'image-grey', 'image-truncated',
    'image-is-text', 'image-removed', 'mask-missing')]


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('break_set, kind, text', [READ_FAULTS[0], READ_FAULTS[-1]] + READ_FAULTS[4:5])
def test_file_that_breaks_during_training_is_named(folders, break_set, kind, text, num_workers):
    data = HeadDataset(*folders)
    break_set(*folders)
    with pytest.raises(UserError) as caught:
        for _, batch in zip(range(4), iterate_batches(data, 2, InfiniteSampler(len(data), shuffle=False), num_workers)):
            assert batch['image'].shape == (2, 3, 16, 16)
    assert SECOND in str(caught.value) and 'Traceback' not in str(caught.value)


@pytest.mark.parametrize('break_set, kind, text', READ_FAULTS)
def test_reading_names_the_file(folders, break_set, kind, text):
    data = HeadDataset(*folders)
    break_set(*folders)
    with pytest.raises(UserError, match=SECOND):
        data[1]
    assert data[0]['image'].shape == (3, 16, 16)


def test_every_fault_is_reported_at_once(folders):
    set_label(3, 'nan')(*folders)
    write_image(0, (12, 12), name='00000/img00000002.png')(*folders)
    remove(1, '00000/img00000003.png')(*folders)
    write_image(1, (16, 16), 'L', 0, name='00000/img00000000.png')(*folders)
    output = run_check('--img_source', folders[0], '--seg_source', folders[1])
    for kind in ('label-numbers', 'image-power', 'image-mixed', 'mask-missing', 'mask-size', 'mask-empty'):
        assert f'[{kind}]' in output
    assert '6 faults' in output


def test_many_faults_are_counted(folders):
    faults = check_dataset(*folders) + [fault for _ in range(50) for fault in check_dataset('nowhere')]
    message = str(faults_error(faults, 'A'))
    assert message.count('nowhere') == FAULTS_SHOWN and '30 more' in message and '50 faults' in message


@pytest.fixture
def zips(tmp_path):
    img, seg = tmp_path / 'A.zip', tmp_path / 'B.zip'
    write_set(img, seg)
    return img, seg


@pytest.mark.parametrize('which', [0, 1])
def test_truncated_zip(zips, which):
    zips[which].write_bytes(zips[which].read_bytes()[:-200])
    assert f'[store] {zips[which]}: damaged or truncated zip' in run_check('--img_source', zips[0], '--seg_source', zips[1])
    with pytest.raises(UserError, match='truncated zip'):
        HeadDataset(*zips)


def test_zip_with_damaged_member(zips):
    data = bytearray(zips[0].read_bytes())
    with zipfile.ZipFile(zips[0]) as archive:
        data[archive.getinfo(SECOND).header_offset + 200] ^= 255
    zips[0].write_bytes(data)
    assert f'[image-damaged] {zips[0]}/{SECOND}' in run_check('--img_source', zips[0], '--seg_source', zips[1])


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_zip_with_a_name_twice(zips):
    with zipfile.ZipFile(zips[0], 'a') as archive:
        archive.writestr(SECOND, archive.read(SECOND))
    assert f'[name-duplicate] {zips[0]}/{SECOND}' in run_check('--img_source', zips[0], '--seg_source', zips[1])


def test_not_a_zip_and_not_a_folder(tmp_path):
    (tmp_path / 'A.tar').write_text('x')
    assert 'neither a folder nor a .zip' in run_check('--img_source', tmp_path / 'A.tar')
    (tmp_path / 'A.zip').write_text('x')
    assert 'damaged or truncated zip' in run_check('--img_source', tmp_path / 'A.zip')


def test_empty_after_yaw_filter(folders):
    output = run_check('--img_source', folders[0], '--min_yaw', '70', '--max_yaw', '80')
    assert 'min_yaw 70, max_yaw 80' in output
    with pytest.raises(UserError, match='min_yaw 70 .* max_yaw 80'):
        HeadDataset(*folders, min_yaw=70, max_yaw=80)


@pytest.mark.parametrize('options, text', [
    ({'min_yaw': 100, 'max_yaw': 90}, 'min_yaw 100 and max_yaw 90'),
    ({'min_yaw': float('nan')}, 'min_yaw nan'),
    ({'max_pitch': -1}, 'max_pitch .* -1'),
    ({'back_repeat': 0}, 'back_repeat .* 0'),
    ({'max_size': 0}, 'max_size .* 0'),
    ({'resolution': 32}, 'images are 16x16, .* resolution 32'),
])
def test_dataset_options_that_do_not_fit(folders, options, text):
    with pytest.raises(UserError, match=text):
        HeadDataset(*folders, **options)


@pytest.mark.parametrize('option', [{'back_repeat': 2}, {'min_yaw': 10}, {'max_pitch': 10}])
def test_options_that_need_labels(tmp_path, option):
    write_set(tmp_path / 'A', labels=False)
    with pytest.raises(UserError, match='need labels'):
        HeadDataset(tmp_path / 'A', **option)


def test_measured_labels_are_not_faults(folders):
    """In-the-wild labels are rounded; 0.003 off orthonormal is what published sample data has."""
    set_label(0, lambda x: x + 0.003)(*folders)
    assert check_dataset(*folders, deep=True) == []
    edit_json(folders[0], lambda meta: {'labels': [[name, [f'{value:.4f}' for value in row]] for name, row in meta['labels']]})
    assert check_dataset(*folders, deep=True) == []
    assert np.isfinite(HeadDataset(*folders).get_labels()).all()


def test_labels_may_be_passed_over(folders):
    (folders[0] / 'dataset.json').write_text('{broken')
    assert not HeadDataset(*folders, use_labels=False).has_labels
    (folders[0] / 'dataset.json').write_text(json.dumps({'labels': None}))
    assert not HeadDataset(*folders).has_labels


def meta_as_folder(img):
    (img / 'dataset.json').unlink()
    (img / 'dataset.json').mkdir()


@pytest.mark.parametrize('break_set', [
    lambda img: (img / 'dataset.json').unlink(), meta_as_folder,
    lambda img: (img / 'dataset.json').write_text('{"labels": null}'),
], ids=['deleted', 'folder', 'null'])
def test_training_without_labels_is_a_choice(tmp_path, break_set):
    folders = tmp_path / 'A', tmp_path / 'B'
    write_set(*folders, size=64)
    break_set(folders[0])
    args = ['--outdir', str(tmp_path / 'runs'), '--img_data', str(folders[0]), '--seg_data', str(folders[1]),
            '--preset', 'synthetic-64', '-n']
    result = CliRunner().invoke(train.main, args)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert f'[label-none] {folders[0] / "dataset.json"}: ' in result.output and '--cond=False' in result.output
    assert check_dataset(*folders, need_labels=False) == []
    checked = CliRunner().invoke(dataset_tool_seg.main, ['--check', '--img_source', str(folders[0])])
    assert checked.exit_code == 0 and 'labels  none' in checked.output and '--cond=False' in checked.output
    result = CliRunner().invoke(train.main, [*args, '--cond=False'])
    assert result.exit_code == 0, result.output
