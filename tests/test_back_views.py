"""Enhanced sets of back views: what is judged good, where views come from, the tool, and a training stage on two sets."""

import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import camera_utils
import gen_backs
import train
from dnnlib import UserError
from inference import back_views
from inference.back_views import BackLimits, judge_back, mask_verdict, mirror_overlap
from inversion_cases import write_files
from small_sets import write_set
from training.configure import training_config
from training.dataset import HeadDataset
from training.dataset_joined import JoinedDataset
from training.dataset_writer import DatasetWriter
from training.snapshot import load_network, load_snapshot
from training.synthetic.write import write_dataset

LIMITS = BackLimits()


def disc(radius=20, size=64, at=(32, 32)):
    """uint8 mask of a disc."""
    y, x = np.mgrid[:size, :size]
    return ((np.hypot(y - at[0], x - at[1]) < radius) * 255).astype(np.uint8)


def test_masks_are_judged():
    assert mask_verdict(disc(), LIMITS) == back_views.OK
    assert mask_verdict(disc(3), LIMITS) == mask_verdict(disc() * 0, LIMITS) == mask_verdict(disc() | 255, LIMITS) == back_views.NO_HEAD
    assert mask_verdict(disc() | disc(5, at=(5, 5)), LIMITS) == back_views.PIECES
    assert mask_verdict(disc() & ~disc(4), LIMITS) == back_views.HOLES
    assert mask_verdict(disc(at=(32, 10)), LIMITS) == mask_verdict(disc(at=(10, 32)), LIMITS) == back_views.CUT
    neck = disc()
    neck[40:, 20:44] = 255
    assert mask_verdict(neck, LIMITS) == back_views.OK                       # below, the neck may leave the picture


def test_silhouettes_from_opposite_sides_mirror_each_other():
    left = disc(at=(32, 25))
    assert mirror_overlap(left, left[:, ::-1]) == 1
    assert mirror_overlap(left, left) < 0.6
    image = np.zeros([64, 64, 3], np.uint8)
    assert judge_back(image, left, lambda image: False, LIMITS, left[:, ::-1]) == back_views.OK
    assert judge_back(image, left, lambda image: False, LIMITS, left) == back_views.CROOKED
    assert judge_back(image, left, lambda image: True, LIMITS) == back_views.FACE


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.pkl and 24 synthetic heads: heads.zip, masks.zip."""
    folder = write_files(tmp_path_factory.mktemp('backs'))
    write_dataset(24, 64, str(folder / 'heads.zip'), str(folder / 'masks.zip'), progress=False)
    return folder


def run(command, arguments, expect=0):
    result = CliRunner().invoke(command.main, arguments.split())
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, result.output
    return result.output


def yaws_of(dataset):
    return camera_utils.label_angles_deg(torch.from_numpy(dataset.get_labels()))[:, 0].abs()


def test_fronts_that_pass_for_backs_are_left_out(files, tmp_path):
    """A set whose labels call every head a back: only those that are backs are taken."""
    heads = HeadDataset(files / 'heads.zip', files / 'masks.zip')
    yaws = yaws_of(heads)
    fronts, backs = [(yaws < 60).nonzero()[:, 0].tolist(), (yaws > 120).nonzero()[:, 0].tolist()]
    assert len(fronts) >= 4 and len(backs) >= 4
    label = camera_utils.label_from_yaw(180.0)[0].numpy()
    with DatasetWriter(tmp_path / 'all.zip', tmp_path / 'allmasks.zip') as writer:
        for i in fronts + backs:
            writer.add(heads[i]['image'].transpose(1, 2, 0), heads[i]['mask'][0], label, str(i))
    out = run(gen_backs, f'--img_source {tmp_path}/all.zip --seg_source {tmp_path}/allmasks.zip --img_dest {tmp_path}/b.zip '
                         f'--seg_dest {tmp_path}/m.zip --device cpu')
    found = HeadDataset(tmp_path / 'b.zip', tmp_path / 'm.zip')
    pictures = {found[i]['image'].tobytes() for i in range(len(found))}
    assert not pictures & {heads[i]['image'].tobytes() for i in fronts}
    assert pictures <= {heads[i]['image'].tobytes() for i in backs} and len(pictures) >= len(backs) / 2
    assert f'{len(fronts)} with a face' in out


def test_own_renders_from_behind(files, tmp_path, monkeypatch):
    monkeypatch.setattr(gen_backs, 'face_finder', lambda folder, device: lambda image: False)
    arguments = '--network demo --num 6 --device cpu --seed 5'
    for name in 'ab':
        run(gen_backs, f'{arguments} --img_dest {tmp_path}/{name}.zip --seg_dest {tmp_path}/{name}m.zip')
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()
    found = HeadDataset(tmp_path / 'a.zip', tmp_path / 'am.zip')
    assert len(found) == 6 and (yaws_of(found) >= 119).all()
    assert 0.08 < found[0]['mask'].mean() / 255 < 0.8


@pytest.mark.parametrize('arguments, message', [
    ('', 'one of the two'),
    ('--network demo --img_source {files}/heads.zip', 'one of the two'),
    ('--img_source {files}/heads.zip', '--seg_source'),
    ('--img_source {files}/heads.zip --seg_source {files}/masks.zip --min_yaw 60', '--min_yaw'),
    ('--img_source {files}/heads.zip --seg_source {files}/masks.zip --faces {files}/absent', 'absent'),
    ('--network {files}/small.pkl --num 2', 'is good'),
    ('--network absent.pkl', 'absent.pkl'),
])
def test_bad_arguments(files, tmp_path, arguments, message):
    arguments = f'{arguments.format(files=files)} --img_dest {tmp_path}/i.zip --seg_dest {tmp_path}/m.zip --device cpu'
    assert message in run(gen_backs, arguments, expect=2)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Two sets as one.

def test_joined_set(tmp_path):
    write_set(tmp_path / 'a.zip', tmp_path / 'am.zip')
    write_set(tmp_path / 'b.zip', tmp_path / 'bm.zip', yaws=(150, 170))
    sets = [HeadDataset(tmp_path / f'{name}.zip', tmp_path / f'{name}m.zip', xflip=True) for name in 'ab']
    joined = JoinedDataset(tmp_path / 'a.zip', tmp_path / 'am.zip', tmp_path / 'b.zip', tmp_path / 'bm.zip', extra_repeat=3, xflip=True)
    items = [sets[0][i] for i in range(8)] + 3 * [sets[1][i] for i in range(4)]
    assert len(joined) == len(items) == 20
    for i, item in enumerate(items):
        assert all((joined[i][key] == item[key]).all() for key in item) and (joined.get_label(i) == item['label']).all()
    assert (joined.get_labels() == np.stack([item['label'] for item in items])).all()
    assert (joined.resolution, joined.label_dim, joined.has_masks, joined.name) == (16, 25, True, 'a')
    assert joined.content_digest() not in (sets[0].content_digest(), sets[1].content_digest())
    with pytest.raises(IndexError):
        joined[20]
    assert (pickle.loads(pickle.dumps(joined))[19]['image'] == items[19]['image']).all()


def test_sets_that_do_not_go_together(tmp_path):
    write_set(tmp_path / 'a.zip', tmp_path / 'am.zip')
    write_set(tmp_path / 'large.zip', tmp_path / 'largem.zip', size=32)
    write_set(tmp_path / 'bare.zip', tmp_path / 'barem.zip', labels=False)
    base = {'path': tmp_path / 'a.zip', 'seg_path': tmp_path / 'am.zip'}
    for name, message in (('large', 'resolution 16'), ('bare', 'no labels')):
        with pytest.raises(UserError, match=message):
            JoinedDataset(**base, extra_path=tmp_path / f'{name}.zip', extra_seg_path=tmp_path / f'{name}m.zip')
    with pytest.raises(UserError, match='--extra_seg'):
        JoinedDataset(**base, extra_path=tmp_path / 'a.zip')
    flags = {'preset': 'synthetic-64', 'img_data': 'A', 'seg_data': 'B'}
    for given, message in (({'extra_data': 'C'}, '--extra_seg'), ({'extra_seg': 'C'}, '--extra_data'),
                           ({'extra_repeat': 2}, '--extra_data')):
        with pytest.raises(UserError, match=message):
            training_config({**flags, **given})
    config = training_config({**flags, 'extra_data': 'C', 'extra_seg': 'D', 'extra_repeat': 2})['training_set']
    assert config['class_name'].endswith('JoinedDataset') and (config['extra_path'], config['extra_repeat']) == ('C', 2)


def test_training_on_two_sets(files, tmp_path):
    """A stage that starts from the carried network, which is G_ema alone."""
    write_dataset(4, 64, str(tmp_path / 'b.zip'), str(tmp_path / 'bm.zip'), seed=100, progress=False)
    arguments = (f'--preset synthetic-64-backs --resume demo --img_data {files}/heads.zip --seg_data {files}/masks.zip --extra_data '
                 f'{tmp_path}/b.zip --extra_seg {tmp_path}/bm.zip --outdir {tmp_path}/runs --device cpu --kimg 88.004 --tick 0.004 '
                 '--batch 4 --snap 1')
    run(train, arguments)
    snapshots = sorted((tmp_path / 'runs').glob('*/network-snapshot-*.pkl'))
    first, last = (load_network(str(path)) for path in (snapshots[0], snapshots[-1]))
    demo = load_network('demo')
    assert all(torch.equal(a, b) for a, b in zip(demo.parameters(), first.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(demo.parameters(), last.parameters(), strict=True))
    kwargs = load_snapshot(str(snapshots[-1]))['training_set_kwargs']
    assert kwargs['extra_path'].endswith('b.zip') and kwargs['path'].endswith('heads.zip')
