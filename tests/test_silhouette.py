"""Heads without a face: crops by the silhouette on synthetic heads, where the truth is known, angles by hand and in sequences."""

import json

import numpy as np
import PIL.Image
import PIL.ImageFilter
import PIL.ImageOps
import pytest
import torch

from dnnlib import UserError
from photo_samples import FOLDER, front_and_back, needs_samples, tools
from preprocessing import PhotoOptions, crops, outlines, poses, prepare_photo, sequences, silhouette
from preprocessing.batch import Batch, CropSet, Photos
from preprocessing.prepare import PhotoError
from training.synthetic.cameras import label_at
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads

SIZE = 192
SIDES = (0.0, 90.0, 180.0, -90.0)


def photographed(identity, yaws, seed=0, size=SIZE, pitch=0.0):
    """(masks uint8, labels [N, 25], centres [N, 2], half sides [N], pictures) of a synthetic head at `yaws`: whole photographs in
    which the family's crop lies anywhere, at any size. Centre and half side are the crop's, in pixels."""
    rng = np.random.default_rng(seed)
    zoom, shift = rng.uniform(0.5, 0.7, len(yaws)), rng.uniform([-0.08, -0.1], [0.08, 0.0], (len(yaws), 2))
    labels = label_at(torch.tensor(yaws, dtype=torch.float32), torch.tensor(pitch))
    wide = labels.clone()
    wide[:, [16, 20]] *= torch.tensor(zoom, dtype=torch.float32)[:, None]
    wide[:, [18, 21]] += torch.tensor(shift, dtype=torch.float32)
    batch = render_heads(sample_identities([identity] * len(yaws)), wide, size, 1)
    masks = (batch.mask[:, 0].numpy() * 255).round().astype(np.uint8)
    images = ((batch.image + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return masks, labels.numpy(), (0.5 + shift) * size - 0.5, zoom * size / 2, images


def quad_at(centre, half):
    """Quad whose published crop lies there."""
    return silhouette.quad_around(centre, half, 0.0)


def errors(quads, centres, halves):
    """(scale, centre) errors [N, 2] of quads, in the crop's side."""
    found = [silhouette.crop_centre(quad) for quad in quads]
    return np.array([(abs(half / halves[i] - 1), np.hypot(*(centre - centres[i])) / (2 * halves[i]))
                     for i, (centre, half) in enumerate(found)])


@pytest.mark.parametrize('identity', [60, 65])
@pytest.mark.parametrize('known', [SIDES, (-60.0, -30.0, 0.0, 30.0, 60.0)])
def test_fifty_cameras_all_round(identity, known):
    """Yaw given, the crops of four or five views known: scale and centre of all others within 3 % of the crop. Of 65, which is
    bald, the relation of crop and silhouette alone misses that, so it is the outlines that reach it."""
    yaws = np.concatenate([np.linspace(-178, 178, 50), known])
    masks, labels, centres, halves, _ = photographed(identity, yaws)
    views = [(masks[i], labels[i], quad_at(centres[i], halves[i])) for i in range(50, len(yaws))]
    person = outlines.fit_outlines(views)
    found = [outlines.quad_of_outline(masks[i], person, yaws[i]) for i in range(50)]
    assert errors([quad for quad, *_ in found], centres, halves).max() < 0.03
    assert max(mismatch for *_, mismatch in found) < 0.06
    if identity == 65:
        relation = silhouette.fit_relation(views)
        alone = [silhouette.quad_of_mask(masks[i], yaws[i], relation=relation)[0] for i in range(50)]
        assert errors(alone, centres, halves).max() > 0.033


@pytest.fixture(scope='module')
def backs():
    """A person whose front is known, and a view from behind: (Outlines, mask, quad found in the whole picture, centre, half)."""
    masks, labels, centres, halves, _ = photographed(62, [140.0, 0.0], size=256)
    person = outlines.fit_outlines([(masks[1], labels[1], quad_at(centres[1], halves[1]))])
    return person, masks[0], outlines.quad_of_outline(masks[0], person, 140.0)[0], centres[0], halves[0]


@pytest.mark.parametrize('border, at', [('bottom', 0.2), ('left', 0.25), ('right', 0.45), ('top', 0.6)])
def test_outlines_do_not_mind_what_the_picture_cuts_off(backs, border, at):
    """Neck and shoulders, an ear, the crown beyond the picture's borders: the crop is the same."""
    person, mask, whole, centre, half = backs
    x, y = (int(c + sign * at * half) for c, sign in zip(centre, {'left': (-1, 0), 'right': (1, 0), 'top': (0, -1)}.get(border, (0, 1))))
    parts = {'bottom': (mask[:y], (0, 0)), 'left': (mask[:, x:], (x, 0)), 'right': (mask[:, :x], (0, 0)), 'top': (mask[y:], (0, y))}
    cut, shift = parts[border]
    assert (cut > 127).sum() < 0.97 * (mask > 127).sum()
    quad, _, _ = outlines.quad_of_outline(np.ascontiguousarray(cut), person, 140.0)
    assert np.abs(quad + shift - whole).max() < 0.06 * half


@pytest.mark.parametrize('size, right, down', [(0.65, 0, 0), (1.4, 0, 0), (1, 0.3, 0), (1, 0, 0.35), (0.75, 0.1, -0.3)])
def test_outlines_are_found_from_far_off(backs, size, right, down):
    """From first guesses that are off by more than any silhouette's are."""
    _, mask, _, centre, half = backs
    outline = outlines.trace(mask)
    vector = outlines.vector_of(outline, centre, half)
    found, found_half, mismatch = outlines.place(outline, vector, centre + np.array([right, down]) * half, half * size)
    assert mismatch < 0.01 and abs(found_half / half - 1) < 0.02 and np.abs(found - centre).max() < 0.02 * half


def test_outlines_of_leaning_heads(backs):
    person, mask, whole, _, half = backs
    leaning = np.asarray(PIL.Image.fromarray(mask).rotate(-20, PIL.Image.Resampling.BILINEAR))
    quad, _, _ = outlines.quad_of_outline(leaning, person, 140.0, roll_deg=20.0)
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    wanted = (whole - 127.5) @ np.array([[cos, -sin], [sin, cos]]).T + 127.5
    assert np.abs(quad - wanted).max() < 0.03 * half


def test_known_views_from_above_tell_of_views_from_below():
    """The opposite of a camera above stands below: known from above in front, the back from below is its mirror image."""
    masks, labels, centres, halves, _ = photographed(61, [0.0, 180.0, 180.0], pitch=[18.0, -18.0, 18.0])
    person = outlines.fit_outlines([(masks[0], labels[0], quad_at(centres[0], halves[0]))])
    opposite, same = (outlines.quad_of_outline(masks[i], person, 180.0, pitch)[2] for i, pitch in ((1, -18.0), (2, 18.0)))
    assert opposite < 0.7 * same
    found = [outlines.quad_of_outline(masks[i], person, 180.0, pitch)[0] for i, pitch in ((1, -18.0), (2, 18.0))]
    assert errors(found, centres[1:], halves[1:]).max() < 0.04


def test_holes_in_masks_are_filled():
    masks, *_ = photographed(60, [150.0])
    hole = masks[0].copy()
    y, x = (int(np.median(axis)) for axis in np.nonzero(hole > 200))
    hole[y - 30:y, x - 12:x + 12] = 0
    assert silhouette.measure(hole) == silhouette.measure(masks[0])


def test_large_pictures_are_measured_small():
    """A mask of many pixels: the same crop as of a small one, up to a pixel of the small one."""
    masks, *_ = photographed(60, [150.0], size=400)
    size = 2000, 1500
    large = np.asarray(PIL.Image.fromarray(masks[0]).resize(size, PIL.Image.Resampling.BILINEAR))
    head, = prepare_photo(np.zeros((*size[::-1], 3), np.uint8), mask=large, route='silhouette', yaw=150.0)
    small = np.asarray(PIL.Image.fromarray(masks[0]).resize((1000, 750), PIL.Image.Resampling.BILINEAR))
    quad, _ = silhouette.quad_of_mask(small, 150.0)
    assert np.abs(head.quad - ((quad + 0.5) * 2 - 0.5)).max() < 4


def test_mean_outline_is_that_of_synthetic_heads():
    """The table, against heads that it was not made from: the mean of eight lies within what heads differ by."""
    yaws = [-120.0, -45.0, 0.0, 75.0, 165.0]
    found = []
    for identity in range(80, 88):
        masks, _, centres, halves, _ = photographed(identity, yaws, size=96)
        found.append([outlines.vector_of(outlines.trace(mask), centre, half) for mask, centre, half in zip(masks, centres, halves)])
    wanted = np.array([outlines.mean_outline(np.deg2rad(yaw), 0.0) for yaw in yaws])
    spread = np.std(found, axis=0).mean()
    assert np.abs(np.mean(found, axis=0) - wanted).mean() < spread
    # The other way round it would not: yaw has its sign, and the table its sides.
    assert np.abs(np.mean(found, axis=0) - wanted[::-1]).mean() > 2 * spread


def test_unlike_outlines_are_told():
    """A shape that is not the person's head is cropped, with a line that says so."""
    masks, labels, centres, halves, images = photographed(60, [0.0, 160.0], size=640)
    person = outlines.fit_outlines([(masks[0], labels[0], quad_at(centres[0], halves[0]))])
    options = {'route': 'silhouette', 'yaw': 160.0, 'person': person}
    head, = prepare_photo(images[1], mask=masks[1], **options)
    assert not any('unlike' in message for message in head.messages)
    rows, columns = np.mgrid[:640, :640]
    triangle = np.where((rows > 80) & (np.abs(columns - 320) < 0.45 * (620 - rows)), 255, 0).astype(np.uint8)     # on its tip
    head, = prepare_photo(images[1], mask=triangle, **options)
    assert any('unlike the person' in message for message in head.messages) and head.status == 'low confidence'


def test_crop_geometry_round_trip():
    for roll in (0, 30, -100):
        quad = silhouette.quad_around((321.5, 200.0), 140.0, roll)
        centre, half = silhouette.crop_centre(quad)
        assert centre == pytest.approx((321.5, 200)) and half == pytest.approx(140)
    image = np.zeros((400, 600), np.uint8)
    image[190:211, 311:333] = 255
    crop = crops.crop_mask(image, silhouette.quad_around((321.5, 200.0), 140.0, 0))
    rows, columns = np.nonzero(crop > 127)
    assert (columns.mean(), rows.mean()) == pytest.approx((281, 281), abs=1)


def test_leaning_heads_are_turned_upright():
    """A picture turned by some degrees gives the same crop, turned."""
    masks, *_ = photographed(60, [150.0], size=288)
    straight, _ = silhouette.quad_of_mask(masks[0], 150.0)
    for roll in (20.0, -35.0):
        # Pillow turns anticlockwise.
        leaning = np.asarray(PIL.Image.fromarray(masks[0]).rotate(-roll, PIL.Image.Resampling.BILINEAR))
        quad, _ = silhouette.quad_of_mask(leaning, 150.0, roll_deg=roll)
        angle = np.deg2rad(roll)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        wanted = (straight - 143.5) @ turn.T + 143.5
        assert np.abs(quad - wanted).max() < 6


def test_measures_of_simple_shapes():
    """Of a wide bar, area = width * h = 0.8 h^2; soft edges count by their share."""
    mask = np.zeros((300, 200), np.uint8)
    mask[40:290, 60:140] = 255
    found = silhouette.measure(mask)
    assert (found.top, found.height, found.middle) == pytest.approx((39.5, 100, 99.5), abs=0.6) and not found.cut
    mask[39, 60:140] = 128
    assert silhouette.measure(mask).top == pytest.approx(39.0, abs=0.1)
    speck = mask.copy()
    speck[5:8, 180:183] = 255
    assert silhouette.measure(speck).top == silhouette.measure(mask).top
    mask[:40, 60:140] = 255
    assert silhouette.measure(mask).cut
    with pytest.raises(ValueError, match='empty'):
        silhouette.measure(np.zeros((50, 50), np.uint8))


def test_prepared_without_a_face_and_without_weights():
    """The back of a head: mask and yaw are enough; the label is the camera's, the crop upright and of the published size."""
    masks, labels, centres, halves, images = photographed(62, [170.0], size=640)
    head, = prepare_photo(images[0], mask=masks[0], route='silhouette', yaw=170.0)
    assert head.image.shape == (563, 563, 3) and head.mask.shape == (563, 563) and head.label_source == 'given'
    assert head.angles_deg == pytest.approx((170, 0, 0), abs=1e-6) and head.face is None
    assert head.label[:16] == pytest.approx(labels[0, :16], abs=1e-4)
    assert poses.camera_angles(head.back_label)[0] == pytest.approx(-10)
    estimated, = prepare_photo(images[0], mask=masks[0], route='silhouette', estimator=lambda image, mask: (160.0, 5.0, 0.0))
    assert estimated.label_source == 'estimated' and estimated.angles_deg[:2] == pytest.approx((160, 5))
    with pytest.raises(PhotoError, match='no angles given.*--yaw'):
        prepare_photo(images[0], mask=masks[0], route='silhouette')
    guessed, = prepare_photo(images[0], route='silhouette', yaw=170.0)
    assert 'guess' in ' '.join(guessed.messages) and guessed.status == 'low confidence'


@needs_samples
def test_one_person_front_and_back(tmp_path):
    """A front with a face and a mirrored outline as its back: the front tells how the back is cropped, so both match."""
    source = front_and_back(tmp_path / 'in')
    job = Batch(tools(), PhotoOptions(), angles={'back.png': (162.0, None, None)}, same_person=True)
    lines, _ = job.run(Photos(source), [CropSet(tmp_path / 'img', tmp_path / 'seg')], str)
    sides = {line.source: line.quality['side'] for line in lines}
    assert set(sides) == {'front.png', 'back.png'}
    # But for perspective, by which the rim of a head is nearer from behind.
    assert sides['back.png'] == pytest.approx(sides['front.png'], rel=0.035)
    assert {line.source: round(line.angles[0]) for line in lines}['back.png'] == 162


@needs_samples
def test_a_head_that_the_picture_cuts_off_tells_nothing(tmp_path):
    """Its outline would be wrong at the crown: the other view says that it goes by the mean relation."""
    source = front_and_back(tmp_path / 'in')
    image = np.asarray(PIL.Image.open(source / 'front.png'))
    job = Batch(tools(), PhotoOptions(), angles={'back.png': (162.0, None, None)}, same_person=True)
    whole, _ = job.run(Photos(source), [], str)
    PIL.Image.fromarray(image[90:]).save(source / 'front.png')
    job = Batch(tools(), PhotoOptions(), angles={'back.png': (162.0, None, None)}, same_person=True)
    cut, _ = job.run(Photos(source), [], str)
    for lines, expected in ((whole, False), (cut, True)):
        assert [line.source for line in lines] == ['front.png', 'back.png'] and lines[0].label_source == 'measured'
        assert any('mean relation decides' in message for message in lines[1].messages) == expected


@needs_samples
def test_given_masks_of_known_views_win(tmp_path):
    """The front's mask is given, wider than the head by much: the back is cropped as if that were its outline."""
    source = front_and_back(tmp_path / 'in')
    (tmp_path / 'seg').mkdir()
    alpha = PIL.Image.open(source / 'back.png').getchannel('A')
    front = PIL.ImageOps.mirror(alpha)
    wide = front.filter(PIL.ImageFilter.MaxFilter(41))
    sides = {}
    for name, mask in (('front', front), ('wide', wide)):
        mask.save(tmp_path / 'seg' / 'front.png')
        job = Batch(tools(), PhotoOptions(), angles={'back': (162.0, None, None)}, masks=str(tmp_path / 'seg'), same_person=True)
        lines, _ = job.run(Photos(source), [], str)
        sides[name] = lines[1].quality['side']
    assert sides['wide'] < 0.97 * sides['front']


@needs_samples
def test_all_without_a_face_wait_for_the_others(tmp_path, monkeypatch):
    """Also those that the mean relation finds too small, and profiles in which a face is seen but not well."""
    source = front_and_back(tmp_path / 'in')
    small = PIL.Image.open(source / 'back.png')
    small.resize((small.width // 3, small.height // 3)).save(source / 'a_small.png')
    image = PIL.Image.open(source / 'front.png')
    image.save(source / 'a_profile.png')
    angles = {'a_small': (162.0, None, None), 'back': (162.0, None, None)}
    lines, _ = Batch(tools(), PhotoOptions(), angles=angles, same_person=True).run(Photos(source), [], str)
    assert [line.source for line in lines] == ['a_profile.png', 'front.png', 'a_small.png', 'back.png']
    assert lines[2].status == 'too small' and lines[1].label_source == 'measured'
    monkeypatch.setattr(crops, 'MAX_YAW_DEG', 10.0)       # now its -18 degrees are too many
    lines, _ = Batch(tools(), PhotoOptions(), angles={'a_profile': (-18.0, 5.0, 0.0)}).run(Photos(source / 'a_profile.png'), [], str)
    assert lines[0].label_source == 'given' and 'cropped by its silhouette' in lines[0].messages
    lines, _ = Batch(tools(), PhotoOptions()).run(Photos(source / 'a_profile.png'), [], str)
    assert lines[0].status == 'out of range'
    with pytest.raises(UserError, match='--face all'):
        Batch(tools(), PhotoOptions(face='all'), same_person=True).run(Photos(source), [], str)


def test_sequences_with_given_angles(tmp_path):
    """Given yaws stand, by names with or without extension; the others lie between them, in the order of the numbers."""
    _, _, _, _, images = photographed(61, [180.0], size=600)
    for k in range(1, 12):
        PIL.Image.fromarray(images[0]).save(tmp_path / f'{k}.png')
    angles = {'1': (150.0, None, None), '3.png': (170.0, 5.0, None), '4': (None, 7.0, None)}
    job = Batch(None, PhotoOptions(route='silhouette', keep_rejected=True), angles=angles, in_order=True)
    lines, _ = job.run(Photos(tmp_path), [], str)
    assert [line.source for line in lines] == [f'{k}.png' for k in range(1, 12)]
    assert [round(line.angles[0]) for line in lines] == [150, 160, 170, 180, -170, -160, -150, -140, -130, -120, -110]
    assert [line.label_source for line in lines][:4] == ['given', 'interpolated', 'given', 'interpolated']
    assert [round(line.angles[1]) for line in lines][:4] == [0, 0, 5, 7]


@needs_samples
def test_a_face_without_a_mask_tells_nothing(tmp_path):
    """--same_person with --matting none, where no outline is to be had: the front is cropped, the back gets its line."""
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'front.jpg').write_bytes((FOLDER / 'photos/man.jpg').read_bytes())
    PIL.Image.fromarray(photographed(61, [180.0], size=600)[4][0]).save(tmp_path / 'in' / 'back.png')
    job = Batch(tools(), PhotoOptions(matting='none'), angles={'back.png': (180.0, None, None)}, same_person=True)
    lines, _ = job.run(Photos(tmp_path / 'in'), [], str)
    assert {line.source: line.status for line in lines} == {'front.jpg': 'ok', 'back.png': 'no face'}
    assert 'no mask given' in lines[1].messages[0]


def test_yaws_of_a_sequence():
    """Even pace: gaps are filled, also across the back; without two neighbours nothing is guessed."""
    wanted = [sequences.wrapped(yaw) for yaw in range(-60, 345, 15)]
    measured = {k: yaw for k, yaw in enumerate(wanted) if abs(yaw) <= 60}
    filled = sequences.fill_yaws(measured, len(wanted))
    assert len(filled) == len(wanted)
    assert all(abs((filled[k] - yaw + 180) % 360 - 180) < 1e-9 for k, yaw in enumerate(wanted))
    assert sequences.fill_yaws({0: 1.0}, 5) == {} and sequences.fill_yaws({0: 1.0, 4: 50.0}, 5) == {}
    assert sequences.fill_yaws({0: 1.0, 1: 1.2}, 5) == {}, 'a camera that stands still'
    assert [round(yaw) for yaw in sequences.fill_yaws({0: 160.0, 3: -170.0}, 5).values()] == [160, 170, 180, -170, -160]
    spread = sequences.spread_yaws(list('abcde'), 0, 360)
    assert [spread[name][0] for name in 'abcde'] == [0, 90, 180, -90, 0]


def test_angle_files(tmp_path):
    (tmp_path / 'a.csv').write_text('name,yaw,pitch\na.jpg,170,\n# remark\nb.jpg,-20,5,3\n')
    assert sequences.read_angles(tmp_path / 'a.csv') == {'a.jpg': (170, None, None), 'b.jpg': (-20, 5, 3)}
    (tmp_path / 'a.json').write_text(json.dumps({'a.jpg': 190, 'b.jpg': [10, 5, 0]}))
    assert sequences.read_angles(tmp_path / 'a.json') == {'a.jpg': (-170, None, None), 'b.jpg': (10, 5, 0)}
    label = [str(v) for v in poses.label_of_camera(130, 10)]
    (tmp_path / 'dataset.json').write_text(json.dumps({'labels': [['a.jpg', label]]}))
    assert sequences.read_angles(tmp_path / 'dataset.json')['a.jpg'][:2] == pytest.approx((130, 10))
    for name, text in (('x.csv', 'a.jpg,left\n'), ('y.csv', 'a.jpg\n'), ('z.csv', 'a.jpg,1,2,3,4\n'), ('x.json', '[1]'), ('y.json', '{'),
                       ('z.json', '{"a.jpg": "x"}'), ('w.json', '{"labels": [["a", [1, 2]]]}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f'--angles.*{name}'):
            sequences.read_angles(tmp_path / name)
    with pytest.raises(UserError, match='cannot be read'):
        sequences.read_angles(tmp_path / 'absent.csv')


@needs_samples
def test_no_face_is_a_line_not_a_gap(tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('1.png', '2.png'):
        PIL.Image.fromarray(photographed(61, [180.0], size=600)[4][0]).save(tmp_path / 'in' / name)
    (tmp_path / 'in' / '3.jpg').write_bytes((FOLDER / 'photos/man.jpg').read_bytes())
    lines, _ = Batch(tools(), PhotoOptions(matting='none')).run(Photos(tmp_path / 'in'), [], str)
    assert [line.status for line in lines] == ['no face', 'no face', 'ok'] and '--yaw' in lines[0].messages[0]
