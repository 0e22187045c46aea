"""dataset_tool_seg.py: conversion, what is left out and why, crops, modes of pictures, and wrong command lines."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import dataset_tool_seg
import training.dataset_convert
from tests.small_sets import image_of, labels_at
from training.dataset import HeadDataset
from training.dataset_convert import convert_dataset

SAMPLE = Path(os.environ.get('SHARED_DATA') or Path(__file__).resolve().parents[2] / 'shared' / 'data') / 'panohead_sample'


def run(*args, exit_code=0):
    """Output of the tool, which must end with that exit code and never with a traceback."""
    result = CliRunner().invoke(dataset_tool_seg.main, [str(arg) for arg in args])
    assert result.exit_code == exit_code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert 'Traceback' not in result.output
    return result.output


class Source:
    """A folder of pictures A, one of masks B, and their labels, to be filled by hand."""

    def __init__(self, root):
        self.root, self.img, self.seg, self.labels = root, root / 'A', root / 'B', []
        self.img.mkdir()
        self.seg.mkdir()

    def picture(self, name, image, label=None):
        (self.img / name).parent.mkdir(exist_ok=True)
        image.save(self.img / name)
        if label is not None:
            self.labels.append([name, [str(x) for x in label]])
            (self.img / 'dataset.json').write_text(json.dumps({'labels': self.labels}))

    def mask(self, name, image):
        (self.seg / name).parent.mkdir(exist_ok=True)
        image.save(self.seg / name)

    def fill(self, count, size=20):
        for i, label in enumerate(labels_at(range(0, 30 * count, 30))):
            self.picture(f'p{i}.jpg', PIL.Image.fromarray(image_of(i, size)), label)
            self.mask(f'p{i}.png', PIL.Image.new('L', (size, size), 255))

    def args(self, *more, suffix='.zip'):
        return ('--img_source', self.img, '--seg_source', self.seg, '--img_dest', self.root / f'C{suffix}',
                '--seg_dest', self.root / f'D{suffix}', *more)

    def result(self, suffix='.zip', **kwargs):
        return HeadDataset(self.root / f'C{suffix}', self.root / f'D{suffix}', **kwargs)


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def convert_one(source, image, mask=None, **kwargs):
    """(image [H, W, 3], mask [H, W] or None) of one picture after conversion."""
    source.picture('x.png', image)
    if mask is not None:
        source.mask('x.png', mask)
        kwargs.update(seg_source=source.seg, seg_dest=source.root / 'D')
    convert_dataset(source.img, source.root / 'C', **kwargs)
    with_masks = 'seg_dest' in kwargs
    item = HeadDataset(source.root / 'C', source.root / 'D' if with_masks else None)[0]
    return item['image'].transpose(1, 2, 0), item['mask'][0] if with_masks else None


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f'no sample photographs in {SAMPLE}; set SHARED_DATA')
def test_sample_photographs(tmp_path):
    run('--img_source', SAMPLE / 'testdata_img', '--seg_source', SAMPLE / 'testdata_seg', '--img_dest', tmp_path / 'a.zip',
        '--seg_dest', tmp_path / 'b.zip', '--resolution', '128x128')
    data = HeadDataset(tmp_path / 'a.zip', tmp_path / 'b.zip')
    original = json.loads((SAMPLE / 'testdata_img' / 'dataset.json').read_text())['labels']
    np.testing.assert_array_equal(data.get_labels(), np.array([row for _, row in sorted(original)], dtype=np.float32))
    photo = PIL.Image.open(SAMPLE / 'testdata_img' / '000134.jpg').resize((8, 8), PIL.Image.Resampling.BOX)
    small = PIL.Image.fromarray(data[0]['image'].transpose(1, 2, 0)).resize((8, 8), PIL.Image.Resampling.BOX)
    assert np.abs(np.asarray(photo, dtype=int) - np.asarray(small)).mean() < 3
    assert 0.2 < (data[0]['mask'] > 127).mean() < 0.8
    assert 'No faults.' in run('--check', '--img_source', tmp_path / 'a.zip', '--seg_source', tmp_path / 'b.zip')


@pytest.mark.parametrize('suffix', ['', '.zip'])
@pytest.mark.parametrize('ext', ['png', 'jpg'])
def test_conversion(source, suffix, ext):
    source.fill(3)
    output = run(*source.args('--resolution', '16x16', '--ext', ext, suffix=suffix))
    assert '3 images' in output
    data = source.result(suffix)
    assert len(data) == 3 and data.resolution == 16
    np.testing.assert_allclose(data.get_labels(), labels_at([0, 30, 60]), atol=1e-6)
    files = zipfile.ZipFile(source.root / 'C.zip').namelist() if suffix else \
        sorted(path.relative_to(source.root / 'C').as_posix() for path in (source.root / 'C').rglob('*.*'))
    assert files == [*(f'00000/img0000000{i}.{ext}' for i in range(3)), 'dataset.json']


def test_zips_as_sources(source):
    source.fill(2, size=16)
    run(*source.args())
    run('--img_source', source.root / 'C.zip', '--seg_source', source.root / 'D.zip', '--img_dest', source.root / 'E',
        '--seg_dest', source.root / 'F')
    for i in range(2):
        again = HeadDataset(source.root / 'E', source.root / 'F')[i]
        for key, value in source.result()[i].items():
            np.testing.assert_array_equal(again[key], value)


def test_unusable_pictures_are_reported_and_left_out(source):
    source.fill(10)
    (source.seg / 'p1.png').unlink()
    source.labels.pop(2)
    source.labels[2][1][3] = 'nan'  # that of p3, now third
    source.picture('p4.jpg', PIL.Image.new('RGB', (20, 10)), None)
    source.mask('p5.png', PIL.Image.new('L', (10, 10), 255))
    source.mask('p6.png', PIL.Image.new('L', (20, 20), 0))
    (source.img / 'p7.jpg').write_bytes((source.img / 'p7.jpg').read_bytes()[:400])
    source.mask('p8.png', PIL.Image.new('RGB', (20, 20), (255, 0, 0)))
    source.labels.append(['gone.png', source.labels[0][1]])
    (source.img / 'dataset.json').write_text(json.dumps({'labels': source.labels}))
    output = run(*source.args('--resolution', '16x16'))
    for kind, name in [('mask-missing', 'p1.jpg'), ('label-missing', 'p2.jpg'), ('label-numbers', 'p3.jpg'),
                       ('mask-size', 'p5.jpg'), ('mask-empty', 'p6.jpg'), ('image-damaged', 'p7.jpg'),
                       ('mask-channels', 'p8.jpg'), ('label-absent-file', 'gone.png')]:
        assert any(f'[{kind}]' in line and name in line for line in output.splitlines()), (kind, output)
    assert '9 faults' in output and 'p4.jpg' in output
    meta = json.loads(zipfile.ZipFile(source.root / 'C.zip').read('dataset.json'))
    assert [old for _, old in meta['fnames']] == ['p0.jpg', 'p9.jpg']
    np.testing.assert_allclose(source.result().get_labels(), labels_at([0, 270]), atol=1e-6)


def test_nothing_is_written_when_nothing_is_left(source):
    source.fill(2, size=20)
    output = run(*source.args(), exit_code=2)
    assert '20x20, not a power of two' in output and 'p1.jpg' in output
    assert not (source.root / 'C.zip').exists() and not (source.root / 'D.zip').exists()
    assert sorted(path.name for path in source.root.iterdir()) == ['A', 'B']


def test_interruption_leaves_nothing(source, monkeypatch):
    source.fill(3)
    fit, calls = training.dataset_convert.fit, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args)
    monkeypatch.setattr(training.dataset_convert, 'fit', interrupted)
    run(*source.args('--resolution', '16x16'), exit_code=1)
    assert sorted(path.name for path in source.root.iterdir()) == ['A', 'B']


def test_mixed_sizes_need_a_resolution(source):
    source.fill(1, size=16)
    source.picture('q.png', PIL.Image.fromarray(image_of(9, 32)), labels_at([50])[0])
    source.mask('q.png', PIL.Image.new('L', (32, 32), 255))
    assert '[image-mixed]' in run(*source.args()) and len(source.result()) == 1
    run(*source.args('--resolution', '16x16', suffix=''))
    assert len(source.result('')) == 2


def test_max_images_and_images_alone(source):
    source.fill(5)
    run('--img_source', source.img, '--img_dest', source.root / 'C', '--resolution', '16x16', '--max-images', 2)
    data = HeadDataset(source.root / 'C')
    assert len(data) == 2 and data.has_labels and not data.has_masks


def test_use_basename(source):
    label = labels_at([10])[0]
    source.picture('deep/x.png', PIL.Image.fromarray(image_of(0)))
    source.mask('other/x.png', PIL.Image.new('L', (16, 16), 255))
    (source.img / 'dataset.json').write_text(json.dumps({'labels': [['x.png', label.tolist()]]}))
    assert '[label-missing]' in run(*source.args(), exit_code=2)
    run(*source.args('--use_basename', 'true'))
    np.testing.assert_array_equal(source.result()[0]['label'], label)
    source.picture('also/x.png', PIL.Image.fromarray(image_of(1)))
    assert '[name-duplicate]' in run(*source.args('--use_basename', 'true', suffix=''), exit_code=2)


def gradient(width, height):
    """A picture whose red is the column and whose green is the row."""
    array = np.zeros([height, width, 3], dtype=np.uint8)
    array[..., 0], array[..., 1] = np.arange(width), np.arange(height)[:, None]
    return PIL.Image.fromarray(array)


def test_center_crop(source):
    image, mask = convert_one(source, gradient(48, 32), PIL.Image.fromarray(np.asarray(gradient(48, 32))[..., 0] * 5),
                              resolution=(32, 32), transform='center-crop')
    np.testing.assert_array_equal(image, np.asarray(gradient(48, 32))[:, 8:40])
    np.testing.assert_array_equal(mask, image[..., 0] * 5)


def test_center_crop_wide(source):
    image, mask = convert_one(source, gradient(64, 64), PIL.Image.new('L', (64, 64), 255), resolution=(32, 16),
                              transform='center-crop-wide')
    assert image.shape == (32, 32, 3)
    assert not image[:8].any() and not image[24:].any() and not mask[:8].any() and not mask[24:].any()
    assert (mask[8:24] == 255).all()
    # Rows 16..47 of the source shrink by two.
    np.testing.assert_allclose(image[10:22, 0, 1], 16.5 + 2 * np.arange(2, 14), atol=1)


def test_a_mask_shrinks_by_area(source):
    mask = np.zeros([32, 32], dtype=np.uint8)
    mask[:, :17] = 255
    _, small = convert_one(source, gradient(32, 32), PIL.Image.fromarray(mask), resolution=(16, 16))
    np.testing.assert_array_equal(small[0], [255] * 8 + [128] + [0] * 7)


def test_exif_orientation(source):
    image = gradient(16, 16)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise for viewing
    image.save(source.img / 'x.png', exif=exif)
    convert_dataset(source.img, source.root / 'C')
    turned = HeadDataset(source.root / 'C')[0]['image'].transpose(1, 2, 0)
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize('image, expected', [
    (PIL.Image.new('L', (16, 16), 77), (77, 77, 77)),
    (PIL.Image.new('1', (16, 16), 1), (255, 255, 255)),
    (PIL.Image.fromarray(np.full([16, 16], 65535 // 5, dtype=np.uint16)), (51, 51, 51)),
    (PIL.Image.new('RGBA', (16, 16), (10, 20, 30, 0)), (255, 255, 255)),
    (PIL.Image.new('RGBA', (16, 16), (10, 20, 30, 255)), (10, 20, 30)),
    (PIL.Image.new('LA', (16, 16), (100, 255)), (100, 100, 100)),
    (PIL.Image.new('RGB', (16, 16), (9, 8, 7)).convert('P', palette=PIL.Image.Palette.ADAPTIVE), (9, 8, 7)),
], ids=['grey', 'one-bit', '16-bit', 'transparent', 'opaque', 'grey-alpha', 'palette'])
def test_modes_become_rgb(source, image, expected):
    converted, _ = convert_one(source, image)
    assert (converted == expected).all()


@pytest.mark.parametrize('mask', [
    PIL.Image.new('1', (16, 16), 1), PIL.Image.new('L', (16, 16), 1), PIL.Image.new('RGB', (16, 16), (255, 255, 255)),
    PIL.Image.new('RGBA', (16, 16), (255, 255, 255, 0)), PIL.Image.fromarray(np.full([16, 16], 65535, dtype=np.uint16)),
], ids=['one-bit', '0-1', 'rgb', 'rgba', '16-bit'])
def test_modes_of_masks(source, mask):
    _, converted = convert_one(source, gradient(16, 16), mask)
    assert (converted == 255).all()


def test_a_transparent_black_mask_stays_black(source):
    mask = PIL.Image.new('RGBA', (16, 16), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 8, 16))
    _, converted = convert_one(source, gradient(16, 16), mask)
    np.testing.assert_array_equal(converted[0], [255] * 8 + [0] * 8)


def test_alpha_becomes_the_mask(source):
    image = gradient(16, 16)
    alpha = PIL.Image.new('L', (16, 16), 0)
    alpha.paste(255, (4, 0, 12, 16))
    image.putalpha(alpha)
    converted, mask = convert_one(source, image, seg_dest=source.root / 'D')
    np.testing.assert_array_equal(mask, np.asarray(alpha))
    assert (converted[:, :4] == 255).all() and (converted[:, 4:12] == np.asarray(gradient(16, 16))[:, 4:12]).all()


@pytest.mark.parametrize('args, text', [
    ((), '--img_source is missing'),
    (('--img_source', 'A'), '--img_dest is missing'),
    (('--img_source', 'A', '--img_dest', 'C', '--seg_source', 'B'), '--seg_source is given without --seg_dest'),
    (('--img_source', 'A', '--img_dest', 'C', '--resolution', '100x100'), '--resolution 100x100'),
    (('--img_source', 'A', '--img_dest', 'C', '--resolution', '64x32'), 'must be square'),
    (('--img_source', 'A', '--img_dest', 'C', '--resolution', '64'), "'64'"),
    (('--img_source', 'A', '--img_dest', 'C', '--resolution', '0x0'), "'0x0'"),
    (('--img_source', 'A', '--img_dest', 'C', '--transform', 'center-crop'), 'needs --resolution'),
    (('--img_source', 'A', '--img_dest', 'C', '--transform', 'stretch'), 'stretch'),
    (('--img_source', 'A', '--img_dest', 'C', '--max-images', '0'), '--max-images'),
    (('--img_source', 'A', '--img_dest', 'C', '--ext', 'gif'), 'gif'),
    (('--img_source', 'nowhere', '--img_dest', 'C'), 'nowhere: no such folder or zip'),
    (('--img_source', 'A', '--img_dest', 'C', '--seed', '1'), '--seed 1 goes with --synthetic only'),
    (('--img_source', 'A', '--img_dest', 'C', '--min_yaw', '1'), '--min_yaw 1.0 goes with --check only'),
    (('--check', '--synthetic', '3'), '--check and --synthetic'),
    (('--check', '--img_source', 'A', '--min_yaw', 'nan'), 'nan'),
    (('--synthetic', '3', '--img_dest', 'C', '--seg_dest', 'D'), '--resolution is missing'),
    (('--synthetic', '0'), '--synthetic'),
    (('--synthetic', '3', '--resolution', '64x32', '--img_dest', 'C', '--seg_dest', 'D'), 'same power of two'),
    (('--synthetic', '3', '--resolution', '64x64', '--img_dest', 'C', '--seg_dest', 'D', '--img_source', 'A'), '--img_source'),
])
def test_wrong_command_lines(args, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text in run(*args, exit_code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text, message', [('{"labels"', 'not readable as JSON'), ('[]', 'holds a list')])
def test_malformed_json_stops_the_conversion(source, text, message):
    source.fill(1)
    (source.img / 'dataset.json').write_text(text)
    assert message in run(*source.args('--resolution', '16x16'), exit_code=2)


@pytest.mark.parametrize('which', ['A', 'B'])
def test_truncated_source_zip(source, which):
    source.fill(2, size=16)
    run(*source.args())
    broken = source.root / ('C.zip' if which == 'A' else 'D.zip')
    broken.write_bytes(broken.read_bytes()[:-100])
    output = run('--img_source', source.root / 'C.zip', '--seg_source', source.root / 'D.zip', '--img_dest', source.root / 'E',
                 '--seg_dest', source.root / 'F', exit_code=2)
    assert f'{broken}: damaged or truncated zip' in output


def test_destination_in_use(source):
    source.fill(1, size=16)
    run(*source.args())
    assert 'exists already' in run(*source.args(), exit_code=2)


def test_destination_not_writable(source):
    source.fill(1, size=16)
    (source.root / 'file').write_text('x')
    output = run('--img_source', source.img, '--img_dest', source.root / 'file' / 'C.zip', exit_code=2)
    assert f'{source.root / "file" / "C.zip"}: cannot write there' in output


def test_synthetic_set(tmp_path):
    pytest.importorskip('training.synthetic.write')
    run('--synthetic', 3, '--resolution', '32x32', '--seed', 4, '--img_dest', tmp_path / 'C.zip',
        '--seg_dest', tmp_path / 'D.zip')
    data = HeadDataset(tmp_path / 'C.zip', tmp_path / 'D.zip')
    assert len(data) == 3 and data.resolution == 32 and data.has_labels
    run('--check', '--img_source', tmp_path / 'C.zip', '--seg_source', tmp_path / 'D.zip')
