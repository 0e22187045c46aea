"""Cameras of COLMAP and NeRF: known points land on known pixels, files survive a round trip, the head's world is found."""

import json
import struct

import numpy as np
import PIL.Image
import pytest

from dnnlib import UserError
from photo_samples import needs_samples, picture, tools
from preprocessing import camera_files, cameras, crops, head_frame, poses, prepare_photo
from preprocessing.batch import CropSet
from preprocessing.report import project
from preprocessing.silhouette import quad_around
from training.dataset import HeadDataset

SIZE = (640, 480)
POINTS = np.random.default_rng(5).uniform(-0.2, 0.2, (12, 3))


def head_views(num=8, seed=0):
    """Views [num] in the head's world that see the head off their middles, from distances and lenses that differ."""
    rng = np.random.default_rng(seed)
    views = []
    for k in range(num):
        label = poses.label_of_camera(360 * k / num - 180 + rng.uniform(-9, 9), rng.uniform(-15, 25), rng.uniform(-20, 20))
        pose = label[:16].reshape(4, 4).copy()
        pose[:3, 3] *= rng.uniform(0.8, 1.6)
        pose[:3, :3] = pose[:3, :3] @ poses.rotation_of_label(poses.label_of_camera(*rng.uniform(-5, 5, 2)))
        focal = rng.uniform(900, 1400)
        views.append(camera_files.View(f'{k:03d}.png', pose, (focal, focal * 1.01), (315.0, 242.0), SIZE))
    return views


def pixels(view, points):
    """Where world points [n, 3] lie in a View's photograph."""
    camera = np.linalg.inv(view.cam2world)[:3] @ np.concatenate([points.T, np.ones([1, len(points)])])
    image = view.matrix @ camera
    return (image[:2] / image[2]).T


def same(views, others, tolerance=1e-6):
    for view, other in zip(views, others, strict=True):
        assert view.name == other.name and view.size == other.size
        assert np.abs(pixels(view, POINTS) - pixels(other, POINTS)).max() < tolerance


def write_binary(folder, views):
    """A COLMAP model in its binary form, by its published layout."""
    data = struct.pack('<Q', len(views))
    images = struct.pack('<Q', len(views))
    for number, view in enumerate(views, 1):
        data += struct.pack('<iiQQ4d', number, 1, *view.size, *view.focal, *view.centre)
        world2cam = np.linalg.inv(view.cam2world)
        images += struct.pack('<i7di', 7 * number, *camera_files.quaternion_of_rotation(world2cam[:3, :3]), *world2cam[:3, 3], number)
        images += view.name.encode() + b'\0' + struct.pack('<Q', 2) + struct.pack('<ddqddq', 1, 2, -1, 3, 4, 5)
    (folder / 'cameras.bin').write_bytes(data)
    (folder / 'images.bin').write_bytes(images)


def test_round_trips(tmp_path):
    views = head_views()
    camera_files.write_nerf(tmp_path / 'transforms.json', views)
    same(views, camera_files.read_views(tmp_path / 'transforms.json'))
    same(views, camera_files.read_views(tmp_path))
    camera_files.write_colmap(tmp_path / 'model', views)
    same(views, camera_files.read_views(tmp_path / 'model'))
    (tmp_path / 'binary' / 'sparse' / '0').mkdir(parents=True)
    write_binary(tmp_path / 'binary' / 'sparse' / '0', views)
    same(views, camera_files.read_views(tmp_path / 'binary'))


def test_conventions_by_hand(tmp_path):
    """NeRF: looks along -z, y up. COLMAP: world to camera, y down. A point up and right of the middle lands there in both."""
    point = np.array([[0.5, 0.25, 0.0]])
    frame = {'file_path': 'a', 'transform_matrix': [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]}
    (tmp_path / 'transforms.json').write_text(json.dumps({'camera_angle_x': 2 * np.arctan(0.5), 'w': 100, 'h': 80, 'frames': [frame]}))
    view, = camera_files.read_views(tmp_path / 'transforms.json')
    assert pixels(view, point)[0] == pytest.approx((75, 40 - 12.5))
    (tmp_path / 'cameras.txt').write_text('# c\n3 SIMPLE_PINHOLE 100 80 100 50 40\n')
    (tmp_path / 'images.txt').write_text('# i\n1 0 1 0 0 0 0 2 3 my photo.jpg\n\n')     # half a turn about x
    view, = camera_files.read_colmap(tmp_path)
    assert view.name == 'my photo.jpg' and pixels(view, point)[0] == pytest.approx((75, 40 - 12.5))


@pytest.mark.parametrize('rotation', [np.eye(3), np.diag([1, -1, -1]), np.diag([-1, 1, -1]), np.diag([-1, -1, 1])])
def test_quaternions(rotation):
    assert camera_files.rotation_of_quaternion(camera_files.quaternion_of_rotation(rotation)) == pytest.approx(rotation)


@pytest.mark.parametrize('exact', [True, False])
def test_crops_show_points_where_their_labels_say(exact):
    """Known points: through the crop's label, and through the photograph's camera and the crop's map. With the exact label to
    a hundredth of a pixel; the published distance differs by what perspective makes of it."""
    for view in head_views():
        label, to_source = head_frame.crop_camera(view, exact)
        seen = pixels(view, POINTS) - 0.5
        crop = project(POINTS, label) * crops.CROP_SIZE - 0.5
        mapped = np.concatenate([crop, np.ones([len(crop), 1])], axis=1) @ to_source.T
        mapped = mapped[:, :2] / mapped[:, 2:]
        scale = np.sqrt(abs(np.linalg.det(to_source[:2, :2] / to_source[2, 2])))
        assert np.abs(mapped - seen).max() / scale < (0.01 if exact else 25)
        origin = project(np.zeros((1, 3)), label)[0]
        assert origin == pytest.approx((0.5, 0.5), abs=1e-6)
        assert np.linalg.norm(label[[3, 7, 11]]) == pytest.approx(np.linalg.norm(view.cam2world[:3, 3]) if exact else 2.7)
        assert abs(poses.camera_angles(label)[2]) < 1e-6     # upright


def in_another_world(views, seed=1):
    """(the views moved by a similarity, the similarity from there back to the head's world)."""
    rng = np.random.default_rng(seed)
    similarity = np.eye(4)
    similarity[:3, :3] = 0.37 * poses.rotation_of_label(poses.label_of_camera(*rng.uniform(-80, 80, 3)))
    similarity[:3, 3] = rng.uniform(-3, 3, 3)
    return [head_frame.moved(view, np.linalg.inv(similarity)) for view in views], similarity


def measured(view, world_view, with_label=True):
    """What a perfect detector measures in the photograph of `view`: the crop's quad, upright, and its label."""
    label, to_source = head_frame.crop_camera(view)
    middle = (crops.CROP_SIZE - 1) / 2
    centre = to_source @ [middle, middle, 1]
    centre = centre[:2] / centre[2]
    edge = to_source @ [middle + 1, middle, 1]
    right = edge[:2] / edge[2] - centre
    quad = quad_around(centre, np.linalg.norm(right) * crops.CROP_SIZE / 2, np.rad2deg(np.arctan2(right[1], right[0])))
    return head_frame.measured_by_crop(world_view, quad, label if with_label else None)


def test_the_heads_world_is_found():
    views = head_views(12)
    moved, similarity = in_another_world(views)
    found = head_frame.head_from_world([measured(v, w) for v, w in list(zip(views, moved))[4:8]])
    for view, other in zip(views, moved):
        again = head_frame.moved(other, found)
        label, wanted = head_frame.crop_camera(again)[0], head_frame.crop_camera(view)[0]
        assert poses.rotation_difference_deg(label, wanted) < 1.0
        size, wanted_size = (np.linalg.norm(v.cam2world[:3, 3]) for v in (again, view))
        assert size == pytest.approx(wanted_size, rel=0.02)
    assert np.cbrt(np.linalg.det(found[:3, :3])) == pytest.approx(np.cbrt(np.linalg.det(similarity[:3, :3])), rel=0.02)


def test_one_wrong_pose_among_many_is_outvoted():
    views = head_views(12)
    moved, _ = in_another_world(views)
    all_measured = [measured(v, w) for v, w in zip(views, moved)][3:9]
    wrong = measured(views[0], moved[3])
    found = head_frame.head_from_world([head_frame.Measured(m.view, wrong.rotation if k == 2 else m.rotation, m.direction, m.distance)
                                        for k, m in enumerate(all_measured)])
    label, wanted = head_frame.crop_camera(head_frame.moved(moved[5], found))[0], head_frame.crop_camera(views[5])[0]
    assert poses.rotation_difference_deg(label, wanted) < 1.0


def test_without_faces_the_front_is_named():
    views = [camera_files.View(f'{k}.png', poses.label_of_camera(yaw)[:16].reshape(4, 4), (1000.0, 1000.0), (320.0, 240.0), SIZE)
             for k, yaw in enumerate((-120, -40, 0, 70, 150))]
    moved, _ = in_another_world(views)
    data = [measured(v, w, with_label=False) for v, w in zip(views, moved)]
    with pytest.raises(UserError, match='--front'):
        head_frame.head_from_world(data)
    with pytest.raises(UserError, match='--front x.png: no camera'):
        head_frame.head_from_world(data, 'x.png')
    found = head_frame.head_from_world(data, '2.png')
    yaws = [poses.camera_angles(head_frame.crop_camera(head_frame.moved(w, found))[0])[0] for w in moved]
    assert yaws == pytest.approx([-120, -40, 0, 70, 150], abs=0.5)
    with pytest.raises(UserError, match='at least two'):
        head_frame.head_from_world(data[:1], '0.png')


@needs_samples
def test_import_and_export_of_a_capture(tmp_path):
    """A photograph seen by two cameras (turned and shifted pictures of it): crops, labels, and a set that loads; one missing
    picture does not stop the others; the labels go out again."""
    image = PIL.Image.fromarray(picture('photos/man.jpg')).resize((480, 480))
    wide = PIL.Image.new('RGB', SIZE, (220, 220, 220))
    wide.paste(image, (80, 0))
    (tmp_path / 'images').mkdir()
    head, = prepare_photo(np.asarray(wide), tools=tools(), matting='none')
    views = []
    for k, side in enumerate((1.0, 1.3)):
        # The same picture from farther away through a longer lens: to the camera model another place.
        pose = head.label[:16].reshape(4, 4).copy()
        pose[:3, 3] *= side
        views.append(camera_files.View(f'{k}.png', pose, (1500 * side,) * 2, (320.0, 240.0), SIZE))
        wide.save(tmp_path / 'images' / f'{k}.png')
    views.append(camera_files.View('gone.png', views[0].cam2world, views[0].focal, views[0].centre, SIZE))
    camera_files.write_nerf(tmp_path / 'transforms.json', views[:2])
    found = cameras.measure_views(views[:2], tmp_path / 'images', tools(), 'none')
    assert len(found) == 2 and all(m.rotation is not None for m in found)
    sets = [CropSet(tmp_path / 'crops', ext='png', size=64)]
    lines, _ = cameras.import_cameras(tmp_path / 'transforms.json', tmp_path / 'images', sets, tools(), 'none')
    sets[0].close()
    assert [line.status for line in lines] == ['ok', 'ok']
    labels = HeadDataset(str(tmp_path / 'crops')).get_labels()
    assert poses.rotation_difference_deg(labels[0], head.label) < 8
    assert cameras.export(tmp_path / 'crops', tmp_path / 'out.json') == 2
    again = camera_files.read_views(tmp_path / 'out.json')
    assert again[0].size == (64, 64) and again[0].cam2world == pytest.approx(labels[0][:16].reshape(4, 4), abs=1e-5)
    assert cameras.export(tmp_path / 'crops', tmp_path / 'colmap') == 2
    same(again, camera_files.read_views(tmp_path / 'colmap'), 1e-3)      # labels have six decimals


BAD = {
    'text': 'hello', 'list': '[]', 'no frames': '{"frames": []}',
    'no matrix': '{"fl_x": 9, "w": 9, "h": 9, "frames": [{"file_path": "a"}]}',
    'no lens': '{"w": 9, "h": 9, "frames": [{"file_path": "a", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}]}',
    'bent': '{"fl_x": 9, "k1": 0.1, "w": 9, "h": 9, "frames": [{"file_path": "a", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,0]]}]}',
    'mirrored': '{"fl_x": 9, "w": 9, "h": 9, "frames": [{"file_path": "a", "transform_matrix": [[-1,0,0,0],[0,1,0,0],[0,0,1,0]]}]}',
    'no picture': '{"fl_x": 9, "frames": [{"file_path": "a", "transform_matrix": [[1,0,0,0],[0,1,0,0],[0,0,1,0]]}]}',
}


@pytest.mark.parametrize('name', BAD)
def test_bad_transforms(tmp_path, name):
    (tmp_path / 'transforms.json').write_text(BAD[name])
    with pytest.raises(UserError, match='transforms.json'):
        camera_files.read_views(tmp_path / 'transforms.json')


def test_bad_colmap(tmp_path):
    with pytest.raises(UserError, match='neither'):
        camera_files.read_views(tmp_path)
    good = '1 PINHOLE 100 80 100 100 50 40\n'
    for number, (camera, image, message) in enumerate((
            ('1 OPENCV 100 80 100 100 50 40 0.1 0 0 0\n', '1 1 0 0 0 0 0 2 1 a.jpg\n\n', 'distorted'),
            ('1 OPENCV_FISHEYE 100 80 100 100 50 40 0 0 0 0\n', '1 1 0 0 0 0 0 2 1 a.jpg\n\n', 'OPENCV_FISHEYE'),
            (good, '1 1 0 0 0 0 0 2 9 a.jpg\n\n', 'camera 9'), (good, '1 1 0 0 zero 0 0 2 1 a.jpg\n\n', 'not a file of COLMAP'),
            (good, '\n', 'no images'))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / 'cameras.txt').write_text(camera)
        (folder / 'images.txt').write_text(image)
        with pytest.raises(UserError, match=message):
            camera_files.read_views(folder)
    write_binary(tmp_path, head_views(2))
    data = (tmp_path / 'images.bin').read_bytes()
    (tmp_path / 'images.bin').write_bytes(data[:90])
    with pytest.raises(UserError, match='images.bin: not a file of COLMAP'):
        camera_files.read_views(tmp_path)
