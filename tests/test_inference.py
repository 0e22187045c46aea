"""What stands behind the generation scripts: latents, camera paths, pictures, videos, sessions."""

import json
import math

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import camera_utils
from dnnlib import UserError
from fake_generator import FakeGenerator
from inference import images, latents, trajectories
from inference.session import Session
from inference.video import video_writer
from training.generators.base import CameraPrior, GeneratorOutput

CPU = torch.device('cpu')
CAMERA = CameraPrior()


# ---------------------------------------------------------------------------------------------------------------------
# Latents and sessions.

def test_seeds_are_numpys():
    z = latents.seeds_to_z([3, 0], 8)
    np.testing.assert_array_equal(z.numpy(), np.stack([np.random.RandomState(s).randn(8) for s in (3, 0)]).astype(np.float32))


def test_glide_passes_through_keyframes_and_closes():
    keyframes = torch.randn(4, 3, 5)
    path = latents.glide(keyframes, 40)
    torch.testing.assert_close(path[::10], keyframes)
    steps = (torch.cat([path, path[:1]])[1:] - path).flatten(1).norm(dim=1)
    assert steps.max() < 4 * steps.median()            # no jump, not even from the last frame to the first
    slopes = torch.cat([path, path[:2]])
    turns = (slopes[2:] - 2 * slopes[1:-1] + slopes[:-2]).flatten(1).norm(dim=1)
    assert turns.max() < 0.5 * steps.max()             # and no kink at the keyframes


def test_glide_of_one_keyframe_stands():
    keyframe = torch.randn(1, 3, 5)
    assert torch.equal(latents.glide(keyframe, 7), keyframe.expand(7, 3, 5))


@pytest.mark.parametrize('layer', [0, 2, 10, 12])
def test_mix_styles(layer):
    first, second = torch.zeros(1, 10, 4), torch.ones(1, 10, 4)
    mixed = latents.mix_styles(first, second, layer)
    assert mixed.shape == first.shape
    assert mixed[0, :, 0].tolist() == [0] * min(layer, 10) + [1] * max(10 - layer, 0)


@pytest.mark.parametrize('pose_cond, position', [(90, (0, 0, 2.7)), (180, (2.7, 0, 0))])
def test_conditioning_camera(pose_cond, position):
    generator = FakeGenerator()
    Session(generator, CPU).seeds_to_ws([0, 1], pose_cond=pose_cond)
    label = generator.conditions[0]
    torch.testing.assert_close(label[0, [3, 7, 11]], torch.tensor(position, dtype=torch.float32), atol=1e-5, rtol=0)
    assert label[0, 16] == pytest.approx(4.2647, abs=2e-3)


def test_conditioning_of_unlabelled_network():
    generator = FakeGenerator(c_dim=0)
    Session(generator, CPU).seeds_to_ws([0])
    assert generator.conditions[0].shape == (1, 0)


def test_truncation_reaches_the_mapping():
    session = Session(FakeGenerator(), CPU)
    full, cut = session.seeds_to_ws([5]), session.seeds_to_ws([5], 0.5, 4)
    torch.testing.assert_close(cut[:, :4], full[:, :4] / 2)
    assert torch.equal(cut[:, 4:], full[:, 4:])


def test_a_seed_is_the_same_head_in_any_company():
    session = Session(FakeGenerator(), CPU)
    assert torch.equal(session.seeds_to_ws([4, 7, 9])[1:2], session.seeds_to_ws([7]))


def test_field_is_built_once_while_the_camera_moves():
    generator = FakeGenerator()
    session = Session(generator, CPU)
    ws = session.seeds_to_ws([0]).expand(48, -1, -1)
    outputs = list(session.film(ws, trajectories.orbit('Head', 48, CAMERA)))
    assert generator.counts == {'mapping': 1, 'build_field': 1, 'render': 48}
    assert not torch.equal(outputs[0].image, outputs[12].image)


def test_field_is_built_anew_when_the_latents_move():
    generator = FakeGenerator()
    session = Session(generator, CPU)
    list(session.film(latents.glide(session.seeds_to_ws([0, 1]), 6), trajectories.orbit('Head', 6, CAMERA)))
    assert generator.counts['build_field'] == 6


def test_learned_translation_is_not_applied():
    session = Session(FakeGenerator(), CPU)
    identity = session.identity(session.seeds_to_ws([0]))
    label = trajectories.turned(CAMERA, 0)
    plain = session.generator.render(identity.field, identity.ws, label)
    torch.testing.assert_close(session.view(identity, label).image, plain.image)


def test_sampling_and_resolution_options():
    generator = FakeGenerator()
    session = Session(generator, CPU, resolution=24, sample_mult=2)
    output = session.view(session.identity(session.seeds_to_ws([0])), trajectories.turned(CAMERA, 0))
    assert output.image_raw.shape[-1] == 24
    assert (generator.options_seen[0].depth_resolution, generator.options_seen[0].depth_resolution_importance) == (32, 16)
    assert generator.rendering.depth_resolution == 16


def test_missing_network_and_device():
    with pytest.raises(UserError, match='absent.pkl'):
        Session.open('absent.pkl', 'cpu')
    with pytest.raises(UserError, match='--device'):
        Session.open('absent.pkl', 'abacus')


# ---------------------------------------------------------------------------------------------------------------------
# Camera paths.

def positions(labels):
    return labels[:, [3, 7, 11]]


def yaw_of(labels):
    x, _, z = positions(labels).T
    return torch.rad2deg(torch.atan2(x, z))


def test_head_orbit_goes_all_the_way_round():
    labels = trajectories.orbit('Head', 72, CAMERA)
    yaw = np.unwrap(np.deg2rad(yaw_of(labels).numpy()))
    np.testing.assert_allclose(np.diff(yaw), 2 * math.pi / 72, atol=1e-5)
    phase = 2 * math.pi * torch.arange(72) / 72
    expected = camera_utils.look_at_pose(math.pi / 2 + phase, math.pi / 2 - 0.05 + 0.5 * phase.sin(), (0, 0, 0), 2.7)
    torch.testing.assert_close(labels[:, :16].reshape(-1, 4, 4), expected, atol=1e-5, rtol=0)


def test_ffhq_orbit_swings_before_the_face():
    labels = trajectories.orbit('FFHQ', 100, CAMERA)
    yaw = yaw_of(labels)
    assert yaw.max() == pytest.approx(math.degrees(1.5), abs=0.1) and yaw.min() == pytest.approx(-math.degrees(1.5), abs=0.1)
    centre = camera_utils.look_at_pose(math.pi / 2, math.pi / 2 - 0.05 + 0.25, CAMERA.pivot, 2.7)
    torch.testing.assert_close(labels[:1, :16].reshape(-1, 4, 4), centre, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', trajectories.ORBITS)
def test_orbits_are_closed(name):
    labels = trajectories.orbit(name, 60, CAMERA)
    steps = (labels - labels.roll(1, 0)).norm(dim=1)
    assert steps.max() < 3 * steps.mean()


def load(tmp_path, data, num_frames=10):
    path = tmp_path / 'path.json'
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return trajectories.load_trajectory(path, CAMERA, num_frames)


LABELS = trajectories.orbit('Head', 5, CAMERA).tolist()


@pytest.mark.parametrize('data', [LABELS, {'labels': LABELS}, {'labels': [[f'{i}.png', row] for i, row in enumerate(LABELS)]},
                                  [[str(x) for x in row] for row in LABELS]], ids=['list', 'dict', 'dataset', 'strings'])
def test_trajectory_of_labels(tmp_path, data):
    torch.testing.assert_close(load(tmp_path, data), torch.tensor(LABELS))


def test_trajectory_of_lists(tmp_path):
    labels = load(tmp_path, {'yaw': [0, 90, 180], 'pitch': 30, 'radius': [2, 3, 4], 'fov': 25})
    torch.testing.assert_close(positions(labels)[1], 3 * torch.tensor([math.cos(math.pi / 6), 0.5, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(positions(labels).norm(dim=1), torch.tensor([2.0, 3, 4]))
    assert labels[0, 16] == pytest.approx(float(camera_utils.fov_to_intrinsics(25)[0, 0]))
    torch.testing.assert_close(yaw_of(labels).abs(), torch.tensor([0.0, 90, 180]), atol=1e-3, rtol=0)


@pytest.mark.parametrize('kind', ['linear', 'cubic'])
def test_trajectory_of_keyframes(tmp_path, kind):
    keyframes = [{'yaw': 0}, {'yaw': 40, 'pitch': 20, 'time': 2}, {'yaw': 90, 'time': 3}]
    labels = load(tmp_path, {'keyframes': keyframes, 'frames': 31, 'interpolation': kind})
    assert len(labels) == 31
    yaw = yaw_of(labels)
    torch.testing.assert_close(yaw[[0, 20, 30]], torch.tensor([0.0, 40, 90]), atol=1e-2, rtol=0)
    assert (float(yaw[10]) == pytest.approx(20, abs=1e-3)) == (kind == 'linear')
    assert len(load(tmp_path, {'keyframes': keyframes}, num_frames=7)) == 7


def test_trajectory_of_nerf(tmp_path):
    matrix = np.eye(4)
    matrix[2, 3] = 2.7          # before the face; OpenGL cameras look along -z by themselves
    labels = load(tmp_path, {'camera_angle_x': 0.5, 'frames': [{'file_path': 'a', 'transform_matrix': matrix.tolist()}]})
    front = camera_utils.front_label(lookat=(0, 0, 0))
    torch.testing.assert_close(labels[:, :16], front[:, :16], atol=1e-5, rtol=0)
    assert labels[0, 16] == pytest.approx(0.5 / math.tan(0.25))
    pixels = load(tmp_path, {'fl_x': 300, 'w': 200, 'frames': [{'transform_matrix': matrix.tolist()}]})
    assert pixels[0, 16] == pytest.approx(1.5)


def changed(index, value):
    row = list(LABELS[0])
    row[index] = value
    return [row]


MIRRORED = (np.diag([1, 1, -1, 1.0])).tolist()

NONSENSE = {
    'not json': ('{', 'not JSON'),
    'empty': ('', 'not JSON'),
    'a number': (7, 'none of the known forms'),
    'unknown form': ({'foo': 1}, 'none of the known forms'),
    'no labels': ([], 'empty'),
    'labels no list': ({'labels': None}, 'empty'),
    '24 numbers': ([LABELS[0][:24]], 'label 0 must have shape'),
    'words': ([['x'] * 25], 'label 0 must be numbers'),
    'not finite': (changed(3, float('nan')), 'not finite'),
    'too large for the cameras': (changed(3, 1e300), 'label 0 holds a number that is not finite'),
    'radius too large': ({'yaw': [0], 'radius': 1e300}, 'radius holds'),
    'no width': ({'fl_x': 1, 'w': 0, 'frames': [{'transform_matrix': np.eye(4).tolist()}]}, 'w must be positive'),
    'deep': ('[' * 100000, 'not JSON'),
    'deep numbers': ('[' * 90 + ']' * 90, 'label 0'),
    'not orthonormal': (changed(0, 2.0), 'orthonormal'),
    'focal length': (changed(16, -1.0), 'focal length'),
    'last row': (changed(15, 2.0), 'last row'),
    'mirrored': ({'camera_angle_x': 1, 'frames': [{'transform_matrix': MIRRORED}]}, 'left-handed'),
    'no angle': ({'frames': [{'transform_matrix': np.eye(4).tolist()}]}, 'camera_angle_x'),
    'bad angle': ({'camera_angle_x': 4, 'frames': [{'transform_matrix': np.eye(4).tolist()}]}, r'\(0, pi\)'),
    'no matrix': ({'camera_angle_x': 1, 'frames': [{}]}, 'transform_matrix'),
    '3x4 matrix': ({'camera_angle_x': 1, 'frames': [{'transform_matrix': np.eye(4)[:3].tolist()}]}, 'shape'),
    'uneven lists': ({'yaw': [0, 1], 'pitch': [0, 1, 2]}, 'equally long'),
    'no list': ({'yaw': 3}, 'must be a list'),
    'empty lists': ({'yaw': []}, 'lists are empty'),
    'unknown key': ({'yaw': [0], 'roll': 3}, 'roll'),
    'straight up': ({'pitch': [0, 90]}, 'pitch reaches 90'),
    'radius': ({'yaw': [0], 'radius': 0}, 'radius 0'),
    'fov': ({'yaw': [0], 'fov': 180}, 'fov'),
    'lookat': ({'yaw': [0], 'lookat': [0, 0]}, 'lookat'),
    'one keyframe': ({'keyframes': [{'yaw': 0}]}, 'at least two'),
    'keyframes no dicts': ({'keyframes': [0, 1]}, 'at least two'),
    'times fall': ({'keyframes': [{'time': 1}, {'time': 0}]}, 'must rise'),
    'interpolation': ({'keyframes': [{}, {}], 'interpolation': 'magic'}, 'magic'),
    'frames': ({'keyframes': [{}, {}], 'frames': 0}, 'whole number'),
}


@pytest.mark.parametrize('data, message', NONSENSE.values(), ids=NONSENSE)
def test_nonsense_trajectories(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, data)
    assert '--trajectory' in str(caught.value) and 'path.json' in str(caught.value)


def test_missing_trajectory(tmp_path):
    with pytest.raises(UserError, match='--trajectory .*absent.json'):
        trajectories.load_trajectory(tmp_path / 'absent.json', CAMERA, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures.

def test_to_uint8():
    image = torch.tensor([-1.0, 0.0, 1.0, -5.0, 5.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert images.to_uint8(image)[0, 0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_grid_reads_row_by_row():
    cells = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    picture = images.grid(cells, (3, 2))
    assert picture.shape == (4, 9, 1)
    assert picture[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert images.strip(cells).shape == (2, 18, 1)


def test_depth_is_negated_and_scaled_to_each_frame():
    depth = torch.tensor([[2.0, 3.0], [2.5, float('inf')]]).reshape(1, 1, 2, 2)
    picture = images.depth_to_image(torch.cat([depth, depth * 10, torch.full_like(depth, 2)]))
    for frame in picture[:2]:
        assert frame.flatten().tolist() == [1, -1, 0, -1]
    assert (picture[2] == -1).all()


def test_depth_in_a_given_range_is_the_same_grey_in_every_frame():
    depth = torch.tensor([[2.0, 3.0], [2.5, float('inf')]]).reshape(1, 1, 2, 2)
    picture = images.depth_to_image(torch.cat([depth, depth + 0.5, depth - 1]), (2.0, 4.0))
    assert picture.flatten(1).tolist() == [[1, 0, 0.5, -1], [0.5, -0.5, 0, -1], [1, 1, 1, -1]]
    assert images.frames(output_with(None), 'image_depth', depth_range=(1000, 1001)).min() == 255


def test_depth_range_of_a_film():
    session = Session(FakeGenerator(), CPU)
    box = session.generator.rendering.box_warp
    labels = torch.cat([camera_utils.label_from_yaw(yaw, math.pi / 2, (0, 0, 0), radius, 18.8)
                        for yaw, radius in ((0, 3), (90, 4))])
    assert session.depth_range(labels) == pytest.approx((3 - box / 2, 4 + box / 2))
    assert session.depth_range(trajectories.orbit('Head', 4, CAMERA)) == pytest.approx((2.7 - box / 2, 2.7 + box / 2))


def output_with(mask):
    return GeneratorOutput(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 4, 4), torch.rand(1, 1, 4, 4) + 2, mask)


def test_rgba_takes_the_mask_at_the_size_of_the_picture():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    frame = images.frames(output_with(mask), rgba=True)
    assert frame.shape == (1, 8, 8, 4)
    assert frame[0, 0, :, 3].tolist() == [255, 255, 255, 191, 64, 0, 0, 0]
    assert images.frames(output_with(mask), 'image_raw', rgba=True).shape == (1, 4, 4, 4)
    with pytest.raises(UserError, match='--rgba'):
        images.frames(output_with(None), rgba=True)


@pytest.mark.parametrize('mode, size', [('image', 8), ('image_raw', 4), ('image_depth', 4)])
def test_modes(mode, size):
    assert images.frames(output_with(None), mode).shape == (1, size, size, 3)


def test_save_png(tmp_path):
    picture = np.random.RandomState(0).randint(0, 256, (5, 7, 4), dtype=np.uint8)
    images.save_png(tmp_path / 'a.png', picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'a.png')), picture)
    with pytest.raises(UserError, match='cannot write'):
        images.save_png(tmp_path / 'absent' / 'a.png', picture)


def test_half_written_picture_leaves_what_was_there(tmp_path, monkeypatch):
    def save(self, path):
        with open(path, 'wb') as file:
            file.write(b'half')
        raise OSError(28, 'No space left on device')
    (tmp_path / 'a.png').write_bytes(b'before')
    monkeypatch.setattr(Image.Image, 'save', save)
    with pytest.raises(UserError, match='cannot write .*a.png.*No space'):
        images.save_png(tmp_path / 'a.png', np.zeros((4, 4, 3), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ['a.png'] and (tmp_path / 'a.png').read_bytes() == b'before'


# ---------------------------------------------------------------------------------------------------------------------
# Videos.

def read_video(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta['size']
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def write_video(path, num=6, size=(33, 35)):
    with video_writer(path, fps=30) as write:
        for i in range(num):
            write(np.full((*size, 3), 40 * i % 256, dtype=np.uint8))


def test_video_of_odd_size(tmp_path):
    write_video(tmp_path / 'a.mp4')
    meta, frames = read_video(tmp_path / 'a.mp4')
    assert (meta['size'], meta['fps'], meta['codec'], len(frames)) == ((36, 34), 30, 'h264', 6)
    for i, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - 40 * i).max() <= 3


def test_videos_are_equal_bit_by_bit(tmp_path):
    write_video(tmp_path / 'a.mp4')
    write_video(tmp_path / 'b.mp4')
    assert (tmp_path / 'a.mp4').read_bytes() == (tmp_path / 'b.mp4').read_bytes()


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_interrupted_video_leaves_what_was_there(tmp_path, error):
    (tmp_path / 'a.mp4').write_bytes(b'older')
    with pytest.raises(error), video_writer(tmp_path / 'a.mp4') as write:
        write(np.zeros((16, 16, 3), np.uint8))
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']
    assert (tmp_path / 'a.mp4').read_bytes() == b'older'


def test_two_videos_of_one_name_do_not_meet(tmp_path):
    with video_writer(tmp_path / 'a.mp4') as first, video_writer(tmp_path / 'a.mp4') as second:
        assert len(list(tmp_path.iterdir())) == 2
        for _ in range(3):
            first(np.zeros((16, 16, 3), np.uint8))
            second(np.full((32, 32, 3), 9, np.uint8))
    meta, frames = read_video(tmp_path / 'a.mp4')
    assert meta['size'] == (16, 16) and len(frames) == 3
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_video_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match='a.mp4'):
        write_video(tmp_path / 'absent' / 'a.mp4', num=200, size=(64, 64))
    with pytest.raises(UserError, match='at least one frame'), video_writer(tmp_path / 'b.mp4'):
        pass
