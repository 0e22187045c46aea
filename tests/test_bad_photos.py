"""Whatever users call a photograph is prepared or refused in words, and never stops the others."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest

from dnnlib import UserError
from photo_samples import FOLDER, WEIGHTS, needs_samples, picture, tools
from preprocessing import load_tools, prepare_photo
from preprocessing import weights as weight_files
from preprocessing.batch import Batch, CropSet, Photos, output_stem, write_lines
from preprocessing.landmark_files import read_landmarks
from preprocessing.numpy_pickle import load_numbers
from preprocessing.photos import read_photo
from preprocessing.prepare import PhotoOptions
from training.dataset import HeadDataset


def man(size=400):
    """The sample photograph as a PIL image."""
    return PIL.Image.fromarray(picture('photos/man.jpg')).resize((size, size))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def huge_png(width, height):
    """A one-bit PNG of that many pixels in a few kilobytes, as an attacker or a scanner makes it."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    row = b'\0' + b'\0' * ((width + 7) // 8)
    compressor = zlib.compressobj(9)
    body = b''.join([compressor.compress(row) for _ in range(height)] + [compressor.flush()])
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)) + chunk(b'IDAT', body)
            + chunk(b'IEND', b''))


def exif_turned(image, orientation):
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    return encoded(image, 'JPEG', exif=exif.tobytes())


def with_alpha(image, opacity):
    image = image.convert('RGBA')
    image.putalpha(PIL.Image.fromarray(opacity))
    return image


def bad_files():
    """Dict of file name -> (bytes, status wanted)."""
    good = man()
    disk = ((np.hypot(*(np.mgrid[:400, :400] - 200)) < 190) * 255).astype(np.uint8)
    jpeg, png = encoded(good, 'JPEG'), encoded(good, 'PNG')
    grey16 = PIL.Image.fromarray(np.asarray(good.convert('L')).astype(np.uint16) * 257)
    floats = PIL.Image.fromarray(np.asarray(good.convert('L')).astype(np.float32))
    far = PIL.Image.new('RGB', (900, 900), (40, 80, 120))
    far.paste(good.resize((110, 110)), (400, 400))
    crowd = PIL.Image.fromarray(picture('photos/trump_hillary.jpg'))
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    return {
        'text.jpg': (b'this is no picture', 'unreadable'), 'empty.jpg': (b'', 'unreadable'),
        'html.png': (b'<!DOCTYPE html><html>not found</html>', 'unreadable'), 'cut.jpg': (jpeg[:len(jpeg) // 2], 'unreadable'),
        'cut.png': (png[:len(png) // 2], 'unreadable'), 'header.png': (png[:40], 'unreadable'),
        'film.mp4': (b'\0\0\0 ftypisom', 'unreadable'), 'floats.tiff': (encoded(floats, 'TIFF'), 'unreadable'),
        'bomb.png': (huge_png(20000, 20000), 'unreadable'), 'large.png': (huge_png(10500, 10500), 'unreadable'),
        'cmyk.jpg': (encoded(good.convert('CMYK'), 'JPEG'), 'ok'), 'deep.png': (encoded(grey16, 'PNG'), 'ok'),
        'grey.jpg': (encoded(good.convert('L'), 'JPEG'), 'ok'), 'palette.png': (encoded(good.quantize(128), 'PNG'), 'ok'),
        'turned3.jpg': (exif_turned(good.rotate(180), 3), 'ok'), 'turned6.jpg': (exif_turned(good.rotate(90), 6), 'ok'),
        'lies.jpg': (png, 'ok'), 'bitmap.bmp': (encoded(good, 'BMP'), 'ok'), 'web.webp': (encoded(good, 'WEBP'), 'ok'),
        'clear.png': (encoded(with_alpha(good, disk), 'PNG'), 'ok'),
        'nothing.png': (encoded(with_alpha(good, disk * 0), 'PNG'), 'no face'),
        'film.gif': (encoded(good, 'GIF', save_all=True, append_images=[good.rotate(10)] * 3), 'ok'),
        'grey and clear.png': (encoded(good.convert('LA'), 'PNG'), 'ok'), 'größe 1.jpg': (jpeg, 'ok'),
        'dot.png': (encoded(good.resize((1, 1)), 'PNG'), 'too small'), 'line.png': (encoded(good.resize((3000, 2)), 'PNG'), 'too small'),
        'icon.png': (encoded(good.resize((90, 90)), 'PNG'), 'too small'), 'far.jpg': (encoded(far, 'JPEG'), 'too small'),
        'noise.jpg': (encoded(noise, 'JPEG'), 'no face'), 'flat.png': (encoded(PIL.Image.new('RGB', (300, 300)), 'PNG'), 'no face'),
        'strip.png': (encoded(good.resize((4000, 20)), 'PNG'), 'no face'),
        'half.jpg': (encoded(crowd.crop((0, 0, 345, 689)), 'JPEG'), ('low confidence', 'no face', 'out of range', 'too small')),
        'same.jpg': (jpeg, 'ok'), 'same.png': (png, 'ok'),
    }


@needs_samples
def test_thirty_bad_inputs_in_one_batch(tmp_path):
    """Each gets its line with the status it deserves, good ones among them are written, and the set that results loads."""
    source, out = tmp_path / 'in', tmp_path / 'out' / 'img'
    files = bad_files()
    assert len(files) >= 30
    (source / 'folder.jpg').mkdir(parents=True)
    for name, (data, _) in files.items():
        (source / name).write_bytes(data)
    os.symlink(source / 'gone.jpg', source / 'link.jpg')
    lines, tiles = Batch(tools(), PhotoOptions(matting='none')).run(Photos(source), sets := [CropSet(out, ext='png', size=64)], str)
    sets[0].close()
    write_lines(out, lines)
    status = {line.source: line.status for line in lines}
    wanted = {name: want for name, (_, want) in files.items()} | {'link.jpg': 'unreadable'}
    assert set(status) == set(wanted)
    wrong = {name: (status[name], want) for name, want in wanted.items() if status[name] not in np.atleast_1d(want)}
    assert wrong == {}
    for line in lines:
        assert line.name or line.messages, line      # what gives no head says why
    assert len({line.name for line in lines if line.name}) == sum(line.name is not None for line in lines)
    messages = {line.source: ' '.join(line.messages) for line in lines}
    for name, words in (('bomb.png', 'too large|megapixels'), ('turned6.jpg', 'EXIF'), ('film.gif', 'frames, took the first'),
                        ('cmyk.jpg', 'CMYK'), ('clear.png', 'transparent'), ('dot.png', '1x1')):
        assert any(word in messages[name] for word in words.split('|')), (name, messages[name])
    dataset = HeadDataset(str(out))
    assert len(dataset) == sum(line.name is not None for line in lines) and dataset[0]['label'].shape == (25,)
    assert len(json.loads((out / 'prepare.json').read_text())['photos']) == len(lines) == len(tiles)
    yaws = [line.angles[0] for line in lines if line.status == 'ok']
    assert np.ptp(yaws) < 12     # the same face all the time


@pytest.mark.parametrize('side', [10500, 20000])
def test_memory_stays_bounded(tmp_path, monkeypatch, side):
    """A few kilobytes that would unpack to hundreds of megapixels are refused by their header: nothing is decoded."""
    (tmp_path / 'bomb.png').write_bytes(huge_png(side, side))
    monkeypatch.setattr(PIL.ImageFile.ImageFile, 'load', lambda self: pytest.fail('decoded'))
    with pytest.raises(UserError, match='bomb.png.*smaller than 100 megapixels'):
        read_photo(tmp_path / 'bomb.png')


@needs_samples
def test_exif_and_depth_do_not_change_the_head(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(exif_turned(man().rotate(90), 6))
    assert np.abs(read_photo(tmp_path / 'a.jpg').image.astype(int) - np.asarray(man())).mean() < 4
    grey = np.asarray(man().convert('L'))
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'b.png')
    assert np.abs(read_photo(tmp_path / 'b.png').image[..., 1].astype(int) - grey).max() <= 1


@needs_samples
def test_alpha_is_the_mask(tmp_path):
    disk = ((np.hypot(*(np.mgrid[:400, :400] - 200)) < 150) * 255).astype(np.uint8)
    with_alpha(man(), disk).save(tmp_path / 'a.png')
    head, = prepare_photo(tmp_path / 'a.png', tools=tools())
    assert head.mask_source == 'alpha channel'
    share = (head.mask > 127).sum() * (head.quality['side'] / 511) ** 2
    assert share == pytest.approx((disk > 0).sum(), rel=0.03)


@needs_samples
def test_given_masks(tmp_path):
    mask = np.zeros((400, 400), np.uint8)
    mask[100:300, 50:350] = 255
    head, = prepare_photo(np.asarray(man()), tools=tools(), mask=mask)
    assert head.mask_source == 'given' and (head.mask > 127).sum() * (head.quality['side'] / 511) ** 2 == pytest.approx(60000, rel=0.03)
    for wrong in (mask[:200], mask.astype(float)):
        with pytest.raises(UserError, match='same size'):
            prepare_photo(np.asarray(man()), tools=tools(), mask=wrong)
    PIL.Image.fromarray(mask[:, ::2]).save(tmp_path / 'm.png')
    with pytest.raises(UserError, match='m.png.*same size'):
        prepare_photo(np.asarray(man()), tools=tools(), mask=tmp_path / 'm.png')


def test_folders_and_zips(tmp_path):
    for path, message in ((tmp_path / 'absent', 'no such'), (tmp_path, 'no pictures')):
        with pytest.raises(UserError, match=message):
            Photos(path)
    (tmp_path / 'broken.zip').write_bytes(b'PK\3\4 nothing')
    with pytest.raises(UserError, match='broken.zip'):
        Photos(tmp_path / 'broken.zip')
    with zipfile.ZipFile(tmp_path / 'good.zip', 'w') as file:
        file.writestr('a/x.png', encoded(PIL.Image.new('RGB', (20, 20)), 'PNG'))
    photos = Photos(tmp_path / 'good.zip')
    assert photos.names == ['a/x.png'] and photos.read('a/x.png').image.shape == (20, 20, 3)
    for name in ('../../x.png', '/etc/x.png', 'C:/x.png', '\\'.join(('C:', 'y', 'x.png')), '..\\x.png'):
        assert output_stem(name) == 'x'
    assert output_stem('a/b/x.png') == 'a/b/x'


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='needs a user who can be refused')
def test_folder_that_cannot_be_read(tmp_path):
    (tmp_path / 'closed').mkdir(mode=0)
    with pytest.raises(UserError, match='permissions'):
        Photos(tmp_path / 'closed')


def copied(folder, names=tuple(weight_files.FILES)):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((WEIGHTS / name).read_bytes())
    return folder


@needs_samples
def test_weights_missing_damaged_or_other(tmp_path):
    with pytest.raises(UserError, match='--weights.*no such folder.*python -m preprocessing.weights'):
        load_tools(tmp_path / 'absent')
    with pytest.raises(UserError, match='FaceBoxesProd.pth.*python -m preprocessing.weights'):
        load_tools(tmp_path)
    for number, name in enumerate(weight_files.FILES):
        folder = copied(tmp_path / str(number))
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=f'{name}.*SHA-256'):
            load_tools(folder)
    folder = copied(tmp_path / 'other')
    (folder / 'mb1_120x120.pth').write_bytes((folder / 'mb05_120x120.pth').read_bytes())
    with pytest.raises(UserError, match='mb1_120x120.pth: weights do not fit'):
        load_tools(folder)
    assert load_tools(folder, architecture='mb05').description.startswith('FaceBoxes and mb05')
    (folder / 'mb1_120x120.pth').write_bytes(b'garbage')
    with pytest.raises(UserError, match='mb1_120x120.pth: not a file of weights'):
        load_tools(folder)


@needs_samples
def test_missing_weights_are_asked_for_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path))
    with pytest.raises(UserError, match='python -m preprocessing.weights'):
        prepare_photo(FOLDER / 'photos/man.jpg')


@needs_samples
def test_download(tmp_path, monkeypatch):
    """From a folder laid out as the source; a second run keeps what is there, a damaged source writes nothing."""
    source = tmp_path / 'source'
    for name, known in weight_files.FILES.items():
        (source / known.place).parent.mkdir(parents=True, exist_ok=True)
        (source / known.place).write_bytes((WEIGHTS / name).read_bytes())
    monkeypatch.setenv('OMNIHEAD_CACHE', str(tmp_path / 'cache'))
    lines = weight_files.download(weight_files.default_folder(), source.as_uri())
    assert len(lines) == 3 and all('checksum good' in line for line in lines)
    assert load_tools().description.startswith('FaceBoxes and mb05')
    assert all('is there' in line for line in weight_files.download(weight_files.default_folder(), 'file:///nowhere'))
    (source / 'weights/mb05_120x120.pth').write_bytes(b'<html>quota exceeded</html>')
    with pytest.raises(UserError, match='SHA-256'):
        weight_files.download(tmp_path / 'fresh', source.as_uri())
    assert sorted(path.name for path in (tmp_path / 'fresh').iterdir()) == ['FaceBoxesProd.pth']
    with pytest.raises(UserError, match='by hand'):
        weight_files.download(tmp_path / 'fresh', (tmp_path / 'nowhere').as_uri())


class Spy:
    """What a malicious pickle runs."""

    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_pickles_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = [np.array([float(k), 2.0 * k]) for k in range(68)]
    for protocol in range(6):
        (tmp_path / 'good.pkl').write_bytes(pickle.dumps({'a.jpg': points}, protocol=protocol))
        assert read_landmarks('good.pkl', 'x/')['x/a.jpg'][67].tolist() == [67, 134]
    for name, data in (('evil.pkl', pickle.dumps({'a.jpg': Spy()})), ('cut.pkl', pickle.dumps(points)[:50]), ('text.pkl', b'hello'),
                       ('empty.pkl', b'')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            load_numbers(name)
    assert not (tmp_path / 'ran').exists()
    for bad in ({}, [1], {'a.jpg': points[:5]}, {'a.jpg': 'text'}, {'a.jpg': [[float('nan')] * 2] * 68}):
        (tmp_path / 'bad.pkl').write_bytes(pickle.dumps(bad))
        with pytest.raises(UserError, match='bad.pkl'):
            read_landmarks('bad.pkl')


@needs_samples
def test_interrupted_batch_keeps_what_is_done(tmp_path):
    for name in ('a.jpg', 'b.jpg', 'c.jpg'):
        (tmp_path / name).write_bytes((FOLDER / 'photos/man.jpg').read_bytes())
    job = Batch(tools(), PhotoOptions(matting='none'))

    def interrupt(line):
        if line.source == 'b.jpg':
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(Photos(tmp_path), [crop_set := CropSet(tmp_path / 'out', size=64)], interrupt)
    assert [line.source for line in job.lines] == ['a.jpg', 'b.jpg'] and len(crop_set.labels) == 2


@needs_samples
def test_landmarks_that_miss_the_face():
    far = np.stack([np.linspace(5, 30, 68), np.tile([4.0, 20.0], 34)], axis=1)
    for landmarks in (far, np.zeros((68, 2)), np.zeros((5, 2))):
        found = Batch(tools(), PhotoOptions(matting='none'), landmarks={str(FOLDER / 'photos/man.jpg'): landmarks}).run(
            Photos([FOLDER / 'photos/man.jpg']), [], str)[0]
        assert [line.status for line in found] == ['no face']
