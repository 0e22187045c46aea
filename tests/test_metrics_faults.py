"""Which published metric moves at which fault: sets of synthetic heads with one thing wrong, measured through the evaluator
with --fakes, against a set of other heads. What 3D metrics find is tested elsewhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metrics
import metrics.evaluate
from training.dataset_writer import DatasetWriter
from training.synthetic.cameras import label_at
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads
from training.synthetic.write import to_uint8

SIZE = 32
FRONTS, BACKS = 230, 320
FEW = 50                      # backs of a set in which they are as rare as in photographs
OTHERS = 1_000_000            # identities of the fakes


def yaws(seed):
    """float32 [FRONTS + BACKS]: angles in front, then behind."""
    random = np.random.RandomState(seed)
    return np.concatenate([random.uniform(-90, 90, FRONTS), random.uniform(90, 270, BACKS)]).astype(np.float32)


def heads(identities, yaw_deg):
    """(uint8 images [N, 3, SIZE, SIZE], labels [N, 25]) of identities seen from yaws."""
    labels = label_at(torch.from_numpy(yaw_deg))
    batch = render_heads(sample_identities(identities), labels, SIZE, samples=1)
    return torch.from_numpy(to_uint8(batch.image, batch.mask)[0]).permute(0, 3, 1, 2), labels


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Function name -> path of a set: 'real', 'none' and those of faults."""
    folder = tmp_path_factory.mktemp('faults')
    numbers = np.arange(FRONTS + BACKS)
    real, fake = heads(numbers, yaws(0)), heads(OTHERS + numbers, yaws(1))
    images, labels = fake
    fronts, _ = heads(OTHERS + numbers[FRONTS:], 180 - yaws(1)[FRONTS:])
    few = torch.arange(len(images)) % 55 * 10
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 40
    faults = {
        'real': real, 'none': fake,
        'shifted': (torch.roll(images, 5, dims=3), labels),
        'mirrored': (images.flip(3), labels),
        'noised': ((images + noise).clamp(0, 255).to(torch.uint8), labels),
        'blurred': (F.avg_pool2d(F.pad(images.float(), [2] * 4, mode='replicate'), 5, stride=1).to(torch.uint8), labels),
        'darkened': ((images * 0.6).to(torch.uint8), labels),
        'repeated': (images[few], labels[few]),
        'turned labels': (images, label_at(torch.from_numpy(yaws(1)) + 180)),
        'faces behind': (torch.cat([images[:FRONTS], fronts]), labels),
    }
    rare = torch.arange(FRONTS + FEW)
    for name in ('real', 'none', 'faces behind'):
        faults[f'{name}, few backs'] = tuple(values[rare] for values in faults[name])
    for name, (pictures, cameras) in faults.items():
        with DatasetWriter(folder / f'{name}.zip') as writer:
            for i, (picture, camera) in enumerate(zip(pictures, cameras)):
                writer.add(picture.permute(1, 2, 0).numpy(), None, camera.numpy(), f'{i}.png')
    return lambda name: folder / f'{name}.zip'


@pytest.fixture(scope='module')
def figures(sets, tmp_path_factory):
    """Function (fault, mode, feature network) -> {'fid', 'kid', 'precision', 'recall'}; modes but all give fid alone."""
    known, kept = {}, pytest.MonkeyPatch()
    kept.setattr(metrics.evaluate.cache, 'FOLDER', tmp_path_factory.mktemp('statistics'))

    def measured(fault, mode='all', features='seeded', real='real'):
        key = fault, mode, features         # each fault has one set it is compared with
        if key not in known:
            names = ['fid50k_full', 'kid50k_full', 'pr50k3_full'] if mode == 'all' and features == 'seeded' else ['fid50k_full']
            with pytest.warns(UserWarning, match='samples instead of 50000'):
                records = list(metrics.measure(None, sets(real), fakes=sets(fault), metrics=names, features=[features], mode=mode,
                                               device='cpu', batch_size=100))
            values = {figure: value for record in records for figure, value in record['results'].items()}
            known[key] = {next(kind for kind in ('fid', 'kid', 'precision', 'recall') if kind in figure): value
                          for figure, value in values.items()}
        return known[key]
    yield measured
    kept.undo()


def test_a_set_against_itself(figures):
    own, none = figures('real'), figures('none')
    assert own['fid'] < 1e-6 and own['precision'] == own['recall'] == 1 and own['kid'] <= 0
    assert figures('real', 'back')['fid'] < 1e-6
    assert abs(none['kid']) < 0.02 and none['precision'] > 0.8 and none['recall'] > 0.8     # other heads, none of them wrong


# Fault; factor on the FID, and KID, that it must exceed; precision and recall below which it must go (None: they stay).
@pytest.mark.parametrize('fault, factor, kid, precision, recall', [
    ('shifted', 5, 0.1, 0.7, 0.7),
    ('noised', 2, 0.05, None, 0.75),
    ('blurred', 1.8, 0.03, None, None),
    ('darkened', 20, 1, None, 0.5),
    ('repeated', 3, 0.02, None, 0.05),       # few heads, each of them right
])
def test_spoilt_pictures_move_what_they_should(figures, fault, factor, kid, precision, recall):
    none, spoilt = figures('none'), figures(fault)
    assert spoilt['fid'] > factor * none['fid'] and spoilt['kid'] > kid
    for name, limit in (('precision', precision), ('recall', recall)):
        assert spoilt[name] > none[name] - 0.15 if limit is None else spoilt[name] < limit, name


@pytest.mark.parametrize('fault', ['mirrored', 'turned labels'])
def test_what_looks_right_moves_nothing_all_round(figures, fault):
    """Heads are as often turned left as right; and in mode all nobody asks for labels."""
    none, other = figures('none'), figures(fault)
    assert other['fid'] == pytest.approx(none['fid'], rel=0.2) and abs(other['kid'] - none['kid']) < 0.01
    assert (other['precision'], other['recall']) == pytest.approx((none['precision'], none['recall']), abs=0.05)


def test_turned_labels_are_seen_in_front_and_behind(figures):
    for mode, factor in (('front', 4), ('back', 2)):
        assert figures('turned labels', mode)['fid'] > factor * figures('none', mode)['fid']


def test_faces_behind_are_seen_from_behind(figures):
    """Back views replaced by front views of the same heads: the distance of backs grows at least five-fold, all round far less,
    in front not at all."""
    def grown(mode, few=''):
        faces, none = (figures(f'{fault}{few}', mode, 'builtin', f'real{few}')['fid'] for fault in ('faces behind', 'none'))
        return faces / none
    assert grown('back') >= 5 and grown('front') == pytest.approx(1, abs=0.02)
    assert grown('all', ', few backs') < 0.4 * grown('back')
