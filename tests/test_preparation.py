"""Photographs become crops, labels and masks: against the published labels and the values of the specification."""

import numpy as np
import pytest
import torch

from dnnlib import UserError
from photo_samples import CROPS, FOLDER, needs_samples, picture, published_labels, tools
from preprocessing import PhotoOptions, examine_photo, prepare_photo
from preprocessing import crops, poses, regressor
from preprocessing.faceboxes import FaceBoxes, anchors, decode, suppress
from preprocessing.prepare import NO_FACE, OUT_OF_RANGE, TOO_SMALL, find_faces, measure_pose, quad_of_face
from training.synthetic.cameras import label_at


@needs_samples
@pytest.mark.parametrize('name', CROPS)
def test_published_crops_are_fixed_points(name):
    """Prepared again, a published crop comes out as itself: rotation within 5 degrees, scale within 4 %."""
    head = prepare_photo(FOLDER / name, tools=tools(), matting='none')[0]
    assert poses.rotation_difference_deg(head.label, published_labels()[name.rpartition('/')[2]]) < 5
    centre, right, down = crops.axes_of_quad(head.quad)
    assert abs(np.linalg.norm(right) / 255.5 - 1) < 0.04
    assert np.abs(centre - [crops.QUAD_LEFT + 255.5, crops.QUAD_TOP + 255.5]).max() < 0.04 * 255.5
    assert head.status == 'ok' and head.image.shape == (563, 563, 3)
    assert np.abs(head.image.astype(float) - picture(name)).mean() < 16


# Detection box and score, first quad's centre and half side, S, tx, ty, angles: another implementation's figures.
VECTORS = [
    ('photos/JianzhuGuo.jpg', 0, (119.6, 93.5, 290.7, 312.4, 0.999), (205.4, 191.0), 148.0, (0.962, 0.002, -0.119), (-0.9, 3.2, 0.9)),
    ('photos/trump_hillary.jpg', 0, (228.8, 103.7, 465.9, 390.6, 0.998), (364.4, 224.5), 218.7,
     (0.913, -0.120, -0.083), (-17.6, 7.2, -0.2)),
    ('photos/trump_hillary.jpg', 1, (1040.4, 122.2, 1257.8, 428.1, 0.996), (1168.1, 264.4), 204.8,
     (0.958, -0.163, -0.086), (-20.1, 8.4, 2.7)),
]


@needs_samples
@pytest.mark.parametrize('name, face, box, centre, half, offset, angles', VECTORS)
def test_measurements(name, face, box, centre, half, offset, angles):
    image = picture(name)
    found = find_faces(image, tools())
    assert np.abs(np.array(found[face][:4]) - box[:4]).max() < 2 and abs(found[face][4] - box[4]) < 0.005
    quad, _, _ = quad_of_face(image, found[face], tools())
    middle, right, _ = crops.axes_of_quad(quad)
    assert np.abs(middle - centre).max() < 2 and abs(np.linalg.norm(right) - half) < 2
    measured, tx, ty, scale = measure_pose(image, quad, tools())
    assert np.abs(np.array([scale, tx, ty]) - offset).max() < 0.02
    _, rotation, _ = regressor.decompose_projection(measured.projection)
    assert np.abs(np.array(poses.angles_of_label(poses.label_of_rotation(rotation))) - angles).max() < 1.5


@needs_samples
def test_choice_of_faces():
    name = FOLDER / 'photos/trump_hillary.jpg'
    both = prepare_photo(name, tools=tools(), face='all', matting='none')
    assert [head.face for head in both] == [0, 1] and both[0].box[2] < both[1].box[0]
    assert all('2 faces' in ' '.join(head.messages) for head in both)
    for number in (0, 1):
        one, = prepare_photo(name, tools=tools(), face=number, matting='none')
        assert np.array_equal(one.image, both[number].image)
    with pytest.raises(UserError, match='--face 2.*shows 2; choose 0 to 1'):
        prepare_photo(name, tools=tools(), face=2)
    largest, = prepare_photo(name, tools=tools(), matting='none')
    assert largest.face == 0 and 'largest' in ' '.join(largest.messages)


@needs_samples
def test_turned_and_small_photographs():
    """A leaning head comes out as upright as the straight one; scaled pictures give the same crop."""
    import PIL.Image
    image = PIL.Image.fromarray(picture('photos/trump_hillary.jpg'))
    straight = prepare_photo(np.array(image), tools=tools(), matting='none')[0]
    turned = np.array(image.rotate(-18, resample=PIL.Image.Resampling.BICUBIC, expand=True))
    leaning = prepare_photo(turned, tools=tools(), matting='none')[0]
    assert poses.rotation_difference_deg(straight.label, leaning.label) < 5
    assert abs(leaning.quality['side'] / straight.quality['side'] - 1) < 0.04
    double = prepare_photo(np.array(image.resize((image.width * 2, image.height * 2))), tools=tools(), matting='none')[0]
    assert abs(double.quality['side'] / straight.quality['side'] / 2 - 1) < 0.02
    assert poses.rotation_difference_deg(straight.label, double.label) < 3


@needs_samples
def test_refusals_carry_a_status():
    half = picture('photos/trump_hillary.jpg')[:, :340]
    small = picture('photos/trump_hillary.jpg')[::3, ::3]
    for image, wanted in ((np.full((300, 300, 3), 128, np.uint8), NO_FACE), (small, TOO_SMALL)):
        found = examine_photo(image, PhotoOptions(matting='none'), tools())
        assert not found.heads and found.failures[0].status == wanted
    for head in examine_photo(half, PhotoOptions(matting='none'), tools()).heads:
        assert head.status == 'low confidence' and 'outside' in ' '.join(head.messages)
    kept, = prepare_photo(small, tools=tools(), matting='none', keep_rejected=True)
    assert kept.status == TOO_SMALL and kept.image.shape == (563, 563, 3)


@needs_samples
def test_given_angles_win():
    head, = prepare_photo(FOLDER / 'photos/man.jpg', tools=tools(), yaw=30.0, matting='none')
    assert head.angles_deg[0] == pytest.approx(30, abs=1e-3) and head.label_source == 'given'
    measured, = prepare_photo(FOLDER / 'photos/man.jpg', tools=tools(), matting='none')
    assert head.angles_deg[1] == pytest.approx(measured.angles_deg[1], abs=1e-3)


@pytest.mark.parametrize('yaw', [-179, -135, -90, -30, 0, 45, 89, 91, 180])
@pytest.mark.parametrize('pitch, roll', [(0, 0), (20, 0), (-15, 8)])
def test_labels_and_angles(yaw, pitch, roll):
    """Angles put into a label are read out of it again; the camera stands where they say, on every side."""
    label = poses.label_of_camera(yaw, pitch, roll)
    assert poses.camera_angles(label) == pytest.approx((yaw, pitch, roll), abs=1e-6)
    if roll == 0:
        assert label[:16] == pytest.approx(label_at(float(yaw), float(pitch))[0, :16].numpy(), abs=1e-5)
    assert np.linalg.norm(label[[3, 7, 11]]) == pytest.approx(2.7)
    assert poses.label_of_rotation(poses.rotation_of_label(label)) == pytest.approx(label, abs=1e-9)


def test_roll_turns_as_the_family_measures_it():
    assert poses.angles_of_label(poses.label_of_camera(0, 0, 8)) == pytest.approx((0, 0, 8), abs=1e-3)
    assert poses.angles_of_label(poses.label_of_camera(0, 9, 0)) == pytest.approx((0, 9, 0), abs=1e-3)


@needs_samples
def test_label_of_a_published_rotation():
    """Rotation out of a published label and back again gives it up to its six decimals and its departure from a rotation."""
    for label in published_labels().values():
        again = poses.label_of_rotation(poses.rotation_of_label(label))
        assert np.abs(again - label).max() < 0.02
    yaw, pitch, roll = poses.angles_of_label(published_labels()['man.jpg'])
    assert (yaw, pitch, roll) == pytest.approx((-3.72, 6.84, 1.34), abs=0.02)


def test_half_turn():
    label = poses.label_of_camera(20, 7, 3)
    back = poses.half_turn(label)
    assert back[[3, 7, 11]] == pytest.approx(label[[3, 7, 11]] * [-1, 1, -1])
    assert np.linalg.det(back[:16].reshape(4, 4)[:3, :3]) == pytest.approx(1)
    assert poses.camera_angles(back) == pytest.approx((-160, 7, 3))
    assert poses.half_turn(back) == pytest.approx(label)


def test_warp_keeps_places():
    """A blob's centre of mass lands where the map says, whatever is enlarged, shrunk, turned or seen in perspective."""
    yy, xx = np.mgrid[:400, :400]
    image = (255 * np.exp(-((xx - 200.3) ** 2 + (yy - 150.7) ** 2) / 60)).round().astype(np.uint8)
    maps = [[[1, 0, 100], [0, 1, 80]], [[.5, 0, 150], [0, .5, 120]], [[2, 0, 0], [0, 2, 0]], [[3, 0, -50], [0, 3, -60]],
            [[.8, .3, 20], [-.3, .8, 90.5]], [[1, 0, 100], [0, 1, 80], [2e-4, -1e-4, 1]]]
    for to_source in maps:
        out = crops.warp(image, np.array(to_source, dtype=float), 200).astype(float)
        y, x = np.mgrid[:200, :200]
        x, y, *w = np.array(to_source) @ [(out * x).sum() / out.sum(), (out * y).sum() / out.sum(), 1]
        assert (x / (w or [1])[0], y / (w or [1])[0]) == pytest.approx((200.3, 150.7), abs=0.06 if not w else 0.3)


def test_crop_of_a_whole_picture_is_that_picture():
    image = np.kron(np.random.default_rng(0).integers(0, 256, (71, 71, 3)), np.ones((8, 8, 1))).astype(np.uint8)[:563, :563]
    quad = np.array([[25, 51], [25, 562], [536, 562], [536, 51]], dtype=float)
    assert np.abs(crops.final_crop(image, quad).astype(float) - image).mean() < 6
    mask = np.where(image[..., 0] > 128, 255, 0).astype(np.uint8)
    assert np.mean((crops.crop_mask(mask, quad) > 127) == (mask > 127)) > 0.98
    assert crops.share_outside(quad, image.shape) == 0


def test_crop_beyond_the_picture_is_faded():
    image = np.full((400, 400, 3), 90, np.uint8)
    image[:, :40] = 200
    crop = crops.final_crop(image, crops.upright_quad((60, 200), 150))
    assert crop.shape == (563, 563, 3) and crop.min() >= 75 and crop.max() <= 215
    assert crops.share_outside(crops.upright_quad((60, 200), 150), image.shape) > 0.2


def test_quad_of_landmarks():
    """Eyes level, mouth straight below: twice the way between the eyes, centred a tenth down; a turn turns it."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[48], points[54] = (100, 100), (160, 100), (115, 160), (145, 160)
    quad = crops.quad_of_landmarks(points)
    assert quad == pytest.approx(np.array([[10, -14], [10, 226], [250, 226], [250, -14]]))
    turn = np.array([[0, -1], [1, 0]])
    assert crops.quad_of_landmarks(points @ turn.T) == pytest.approx(quad @ turn.T)
    with pytest.raises(ValueError, match='fall together'):
        crops.quad_of_landmarks(np.zeros((68, 2)))


def test_offsets():
    """A head of the mean size straight in the middle needs no correction: S, tx and ty by hand."""
    side = 400
    scale = 511 / 2000 / side
    projection = np.array([[scale, 0, 0, 0], [0, scale, 0, 0], [0, 0, scale, 0]])
    projection[:2, 3] = 1 + 120 / side * 205.5, 120 - 120 / side * 205.5
    assert crops.crop_offset(projection, (50, 50, 450, 450)) == pytest.approx((0, 0, 1))
    projection[0, 3] += 12
    assert crops.crop_offset(projection, (50, 50, 450, 450)) == pytest.approx((12 * side / 120 / 255.5, 0, 1))


def test_anchors_and_boxes():
    found = anchors(512, 512)
    assert found.shape == (5456, 4)
    assert found[0] * 512 == pytest.approx([0, 0, 32, 32]) and found[1] * 512 == pytest.approx([8, 0, 32, 32])
    assert found[16] * 512 == pytest.approx([0, 0, 64, 64]) and found[20] * 512 == pytest.approx([16, 16, 128, 128])
    loc, _ = FaceBoxes().eval()(torch.zeros(1, 3, 100, 70))
    assert loc.shape[1] == len(anchors(100, 70))
    assert decode(np.array([[1.0, 0, 0, 0]]), np.array([[0.5, 0.5, 0.2, 0.2]]))[0] == pytest.approx([0.42, 0.4, 0.62, 0.6])
    boxes = np.array([[0, 0, 99, 99], [0, 0, 99, 49], [0, 0, 99, 24], [200, 0, 299, 99]], dtype=float)
    assert suppress(boxes).tolist() == [0, 2, 3]


@pytest.mark.parametrize('settings, message', [
    (dict(face='middle'), '--face'), (dict(face=-1), '--face'), (dict(route='mask'), '--route'), (dict(yaw=200.0), '--yaw'),
    (dict(pitch=float('nan')), '--pitch'),
])
def test_bad_options(settings, message):
    with pytest.raises(UserError, match=message):
        PhotoOptions(**settings)


def test_out_of_range_is_refused_in_words():
    from preprocessing.prepare import _out_of_range
    assert _out_of_range(1.0, 0, 0, 20, 5, 1) is None
    assert 'scale 1.35' in _out_of_range(1.35, 0, 0, 0, 0, 0)
    assert 'roll -51' in _out_of_range(1.0, 0, 0, 0, 0, -51.0)
    assert OUT_OF_RANGE == 'out of range'
