"""The dataset reader: what an item is, filters, repeats, mirroring, workers, and the order of the sampler."""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch

import camera_utils
from dnnlib import UserError
from tests.small_sets import YAWS, edit_json, image_of, labels_at, mask_of, write_set
from training.dataset import HeadDataset, InfiniteSampler, iterate_batches
from training.dataset_labels import angles_deg, within_angles, yaw_histogram
from training.dataset_store import ImageStore
from training.dataset_writer import DatasetWriter


@pytest.fixture(params=['', '.zip'], ids=['folder', 'zip'])
def paths(request, tmp_path):
    img, seg = tmp_path / f'heads{request.param}', tmp_path / f'masks{request.param}'
    write_set(img, seg)
    return img, seg


def indices(data):
    """Which image of the set each item is."""
    known = {image_of(i).tobytes(): i for i in range(len(YAWS))}
    return [known[np.ascontiguousarray(data[i]['image'].transpose(1, 2, 0)).tobytes()] for i in range(len(data))]


def test_items_are_what_was_written(paths):
    data = HeadDataset(*paths)
    assert (len(data), data.name, data.resolution, data.num_channels, data.label_dim) == (4, 'heads', 16, 3, 25)
    assert data.has_labels and data.has_masks
    for i, label in enumerate(labels_at()):
        item = data[i]
        assert item['image'].dtype == item['mask'].dtype == np.uint8 and item['label'].dtype == np.float32
        np.testing.assert_array_equal(item['image'], image_of(i).transpose(2, 0, 1))
        np.testing.assert_array_equal(item['mask'], mask_of(i)[None])
        np.testing.assert_array_equal(item['label'], label)
        np.testing.assert_array_equal(data.get_label(i), label)
    np.testing.assert_array_equal(data.get_labels(), labels_at())


def test_images_alone(tmp_path):
    write_set(tmp_path / 'A', labels=False)
    data = HeadDataset(tmp_path / 'A')
    assert set(data[0]) == {'image', 'label'} and data[0]['label'].shape == (0,)
    assert data.label_dim == 0 and data.get_labels().shape == (4, 0) and not data.has_masks
    (tmp_path / 'A' / 'dataset.json').unlink()
    assert HeadDataset(tmp_path / 'A').label_dim == 0


def test_labels_as_strings(tmp_path):
    write_set(tmp_path / 'A')
    edit_json(tmp_path / 'A', lambda meta: {'labels': [[name, [str(x) for x in row]] for name, row in meta['labels'][::-1]]})
    np.testing.assert_array_equal(HeadDataset(tmp_path / 'A').get_labels(), labels_at())


def test_names_are_sorted_and_masks_found_by_stem(tmp_path):
    """Other layouts than the writer's: nested names, JPEG images with PNG masks, hidden files and notes in between."""
    (tmp_path / 'A' / 'sub').mkdir(parents=True)
    (tmp_path / 'B' / 'sub').mkdir(parents=True)
    for value, stem in ((90, 'sub/a'), (60, 'b'), (30, '10')):
        PIL.Image.new('RGB', (16, 16), (value,) * 3).save(tmp_path / 'A' / f'{stem}.JPG', 'JPEG')
        PIL.Image.new('L', (16, 16), value + 128).save(tmp_path / 'B' / f'{stem}.png')
    (tmp_path / 'A' / '.hidden.png').write_text('no image')
    (tmp_path / 'A' / 'notes.txt').write_text('no image')
    data = HeadDataset(tmp_path / 'A', tmp_path / 'B')
    assert [item['image'][0, 0, 0] for item in (data[0], data[1], data[2])] == [30, 60, 90]
    assert [item['mask'][0, 0, 0] for item in (data[0], data[1], data[2])] == [158, 188, 218]


def test_mirrored_half(paths):
    data = HeadDataset(*paths, xflip=True)
    assert len(data) == 8
    for i in range(4):
        plain, mirrored = data[i], data[i + 4]
        np.testing.assert_array_equal(mirrored['image'], plain['image'][:, :, ::-1])
        np.testing.assert_array_equal(mirrored['mask'], plain['mask'][:, :, ::-1])
        np.testing.assert_array_equal(mirrored['label'], camera_utils.flip_label(torch.from_numpy(plain['label'])))
    labels = data.get_labels()
    np.testing.assert_array_equal(labels, np.stack([data[i]['label'] for i in range(8)]))
    yaw, _ = angles_deg(labels)
    np.testing.assert_allclose(yaw[5:7], -yaw[1:3], atol=1e-2)


@pytest.mark.parametrize('options, expected', [
    ({'min_yaw': 60}, [1, 2, 3]),
    ({'max_yaw': 120}, [0, 1, 2]),
    ({'min_yaw': 90, 'max_yaw': 150}, [2]),
    ({'back_repeat': 3}, [0, 1, 2, 2, 2, 3, 3, 3]),
    ({'back_repeat': 2, 'max_yaw': 150}, [0, 1, 2, 2]),
    ({'back_repeat': 2, 'min_yaw': 150}, [3, 3]),
    ({'max_pitch': 1}, [0, 1, 2, 3]),
])
def test_filters_and_repeats(paths, options, expected):
    assert indices(HeadDataset(*paths, **options)) == expected


def test_bounds_forgive_rounding():
    label = labels_at([50])
    yaw = abs(float(angles_deg(label)[0][0]))
    assert within_angles(label, max_yaw=yaw - 5e-4).all() and within_angles(label, min_yaw=yaw + 5e-4).all()
    assert not within_angles(label, max_yaw=yaw - 0.01).any() and not within_angles(label, min_yaw=yaw + 0.01).any()


def test_max_pitch(tmp_path):
    poses = camera_utils.look_at_pose([1.57, 1.57, 4.5], [1.57, 0.9, 2.3], lookat=(0.0, 0.0, 0.0))
    labels = camera_utils.make_label(poses).numpy()
    with DatasetWriter(tmp_path / 'A.zip') as writer:
        for i, label in enumerate(labels):
            writer.add(image_of(i), None, label, 'x')
    assert indices(HeadDataset(tmp_path / 'A.zip', max_pitch=10)) == [0]
    assert indices(HeadDataset(tmp_path / 'A.zip', max_pitch=80)) == [0, 1, 2]


def test_max_size_is_drawn_by_seed(paths):
    chosen = [indices(HeadDataset(*paths, max_size=2, random_seed=seed)) for seed in range(12)]
    assert all(len(c) == 2 and c == sorted(c) for c in chosen)
    assert len({tuple(c) for c in chosen}) > 2
    assert chosen[3] == indices(HeadDataset(*paths, max_size=2, random_seed=3))
    assert len(HeadDataset(*paths, max_size=2, xflip=True)) == 4
    assert len(HeadDataset(*paths, max_size=100)) == 4


def test_pickle_and_close(paths):
    data = HeadDataset(*paths)
    before = data[2]
    copy = pickle.loads(pickle.dumps(data))
    data.close()
    for other in (copy, data):
        np.testing.assert_array_equal(other[2]['image'], before['image'])
    data.close()


@pytest.mark.parametrize('paths, method', [('.zip', 'fork'), ('.zip', 'spawn'), ('', 'fork')], indirect=['paths'])
def test_workers_read_the_same(paths, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f'no {method} on this system')
    data = HeadDataset(*paths, xflip=True)
    assert data[0]['image'].shape == (3, 16, 16)  # the parent holds an open zip before workers start
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=method)
    batches = list(loader)
    images = np.stack([data[i]['image'] for i in range(8)])
    np.testing.assert_array_equal(torch.cat([batch['image'] for batch in batches]), images)
    np.testing.assert_array_equal(torch.cat([batch['label'] for batch in batches]), data.get_labels())


def test_another_process_opens_the_zip_for_itself(tmp_path, monkeypatch):
    write_set(tmp_path / 'A.zip')
    store = ImageStore(tmp_path / 'A.zip')
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, path):
            opened.append(path)
            super().__init__(path)
    monkeypatch.setattr(zipfile, 'ZipFile', Counted)
    store.read(store.names[0])
    assert not opened
    # A forked worker inherits the handle and with it the parent's position in the file.
    pid = os.getpid()
    monkeypatch.setattr(os, 'getpid', lambda: pid + 1)
    store.read(store.names[0])
    store.read(store.names[1])
    assert len(opened) == 1


def test_iterate_batches_follows_the_sampler(paths):
    data = HeadDataset(*paths)
    sampler = InfiniteSampler(len(data), seed=5)
    batches = list(itertools.islice(iterate_batches(data, 3, sampler), 4))
    order = list(itertools.islice(sampler, 12))
    np.testing.assert_array_equal(torch.cat([batch['label'] for batch in batches]), labels_at()[order])
    assert batches[0]['image'].dtype == torch.uint8 and batches[0]['mask'].shape == (3, 1, 16, 16)


def draw(count, *args, **kwargs):
    return list(itertools.islice(InfiniteSampler(*args, **kwargs), count))


def test_sampler_runs_in_permutations():
    order = draw(70, 10, seed=1)
    epochs = [order[i:i + 10] for i in range(0, 70, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 7
    assert draw(70, 10, seed=2) != order
    assert draw(25, 10, shuffle=False) == [i % 10 for i in range(25)]


@pytest.mark.parametrize('position', [0, 3, 10, 27])
def test_sampler_resumes(position):
    assert draw(40, 10, seed=1, position=position) == draw(40 + position, 10, seed=1)[position:]


@pytest.mark.parametrize('replicas', [2, 3])
def test_sampler_shares_among_ranks(replicas):
    """Ranks together draw what one rank would, also from a position on."""
    parts = [draw(12, 10, rank, replicas, seed=1, position=6) for rank in range(replicas)]
    together = [index for group in zip(*parts) for index in group]
    assert together == draw(12 * replicas, 10, seed=1, position=6)


@pytest.mark.parametrize('args', [(0,), (5, 2, 2), (5, -1, 2)])
def test_sampler_refuses(args):
    with pytest.raises(ValueError):
        InfiniteSampler(*args)


def test_yaw_histogram_counts_every_image():
    lines = yaw_histogram(labels_at([0.5, 1, 2, 179.9, -179.9, 180]))
    assert len(lines) == 24
    assert sum(int(line.split()[-2 if line.endswith('#') else -1]) for line in lines) == 6
    assert max(lines, key=len).count('#') == 40


def test_writer_format(tmp_path):
    write_set(tmp_path / 'A.zip', tmp_path / 'B')
    write_set(tmp_path / 'C.zip', tmp_path / 'D')
    assert (tmp_path / 'A.zip').read_bytes() == (tmp_path / 'C.zip').read_bytes()
    with zipfile.ZipFile(tmp_path / 'A.zip') as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        meta = json.loads(archive.read('dataset.json'))
        data = archive.read('00000/img00000003.png')
    assert meta['fnames'][3] == ['00000/img00000003.png', 'old3.png']
    assert [name for name, _ in meta['labels']] == [f'00000/img0000000{i}.png' for i in range(4)]
    assert all(len(label) == 25 for _, label in meta['labels'])
    assert len(data) > 16 * 16 * 3 and PIL.Image.open(io.BytesIO(data)).size == (16, 16)
    assert sorted(path.name for path in (tmp_path / 'B' / '00000').iterdir()) == [f'img0000000{i}.png' for i in range(4)]


@pytest.mark.parametrize('suffix', ['', '.zip'])
def test_writer_leaves_nothing_after_an_error(tmp_path, suffix):
    (tmp_path / 'there').mkdir()
    with pytest.raises(KeyboardInterrupt):
        with DatasetWriter(tmp_path / f'A{suffix}', tmp_path / 'there') as writer:
            writer.add(image_of(0), mask_of(0), None, 'x')
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ['there'] and not list((tmp_path / 'there').iterdir())


def leftovers(folder):
    return [path.name for path in folder.rglob('*') if '.partial' in path.name]


@pytest.mark.parametrize('suffix', ['', '.zip'])
def test_writer_takes_over_after_a_kill(tmp_path, suffix):
    """A killed process cannot clean up; what it leaves is in nobody's way and goes when the set is made again."""
    dest = tmp_path / f'A{suffix}'
    killed = DatasetWriter(dest)
    killed.add(image_of(0), None, None, 'x')
    assert leftovers(tmp_path)
    (tmp_path / 'A.zip.partial-notes').mkdir()  # somebody's own
    write_set(dest)
    assert leftovers(tmp_path) == ['A.zip.partial-notes'] and len(HeadDataset(dest)) == len(YAWS)


@pytest.mark.parametrize('suffix', ['', '.zip'])
def test_first_of_two_writers_wins(tmp_path, suffix):
    """Writers of one destination do not touch each other's files, and the later one is told."""
    dest = tmp_path / f'A{suffix}'
    first, second = DatasetWriter(dest), DatasetWriter(dest)
    for i, label in enumerate(labels_at()):
        first.add(image_of(i), None, label, 'x')
        second.add(image_of(0), None, label, 'y')
    first.close()
    with pytest.raises(UserError, match='exists already|not empty'):
        with second:
            second.add(image_of(0), None, labels_at()[0], 'y')
    assert indices(HeadDataset(dest)) == list(range(len(YAWS))) and not leftovers(tmp_path)


def test_loser_gives_up_both_destinations(tmp_path):
    writer = DatasetWriter(tmp_path / 'A.zip', tmp_path / 'B.zip')
    writer.add(image_of(0), mask_of(0), None, 'x')
    (tmp_path / 'B.zip').write_text('of another process')
    with pytest.raises(UserError, match='B.zip: exists already'):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ['B.zip']


@pytest.mark.parametrize('suffix', ['', '.zip'])
@pytest.mark.parametrize('which', [0, 1], ids=['images', 'masks'])
def test_full_disk_names_the_destination(tmp_path, suffix, which):
    resource = pytest.importorskip('resource')
    dests = tmp_path / f'A{suffix}', tmp_path / f'B{suffix}'
    size = 64 if which == 0 else 256  # of one file, which the limit below is less than
    image = np.zeros([size, size, 3], dtype=np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError) as caught:
            with DatasetWriter(*dests, ext='png' if which == 0 else 'jpg') as writer:
                # A limit on the size of a file fails as a full disk does: in writing, and again in closing.
                resource.setrlimit(resource.RLIMIT_FSIZE, (10000, before[1]))
                for _ in range(3):
                    writer.add(image, image[..., 0], None, 'x')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).startswith(f'{dests[which]}: cannot write there')
    assert not list(tmp_path.iterdir())


def test_labels_come_last_into_a_folder(tmp_path, monkeypatch):
    """Who sees dataset.json sees a whole set: an interruption between two moves must not leave labels without images."""
    moved, replace = [], os.replace

    def recorded(source, target):
        moved.append(os.path.basename(target))
        replace(source, target)
    monkeypatch.setattr(os, 'replace', recorded)
    write_set(tmp_path / 'A')
    assert moved == ['00000', 'dataset.json']


def test_writer_refuses_what_is_in_use(tmp_path):
    write_set(tmp_path / 'A.zip', tmp_path / 'B')
    for target, text in (('A.zip', 'exists already'), ('B', 'not empty')):
        with pytest.raises(UserError, match=text):
            DatasetWriter(tmp_path / 'new', tmp_path / target)
    with pytest.raises(UserError, match='two destinations'):
        DatasetWriter(tmp_path / 'new', tmp_path / 'new')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['A.zip', 'B']


@pytest.mark.parametrize('second', [
    (image_of(1, 8), mask_of(1, 8), labels_at()[1]),
    (image_of(1), None, labels_at()[1]),
    (image_of(1), mask_of(1), None),
    (image_of(1), mask_of(1)[:8], labels_at()[1]),
    (image_of(1) / 255, mask_of(1), labels_at()[1]),
    (image_of(1), mask_of(1), labels_at()[1][:16]),
    (image_of(1), mask_of(1), labels_at()[1] * np.nan),
])
def test_writer_keeps_sets_uniform(tmp_path, second):
    with pytest.raises(ValueError):
        with DatasetWriter(tmp_path / 'A', tmp_path / 'B') as writer:
            writer.add(image_of(0), mask_of(0), labels_at()[0], 'x')
            writer.add(*second, 'y')
