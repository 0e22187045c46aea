"""Cameras: published poses and angles, round trips, mirrored labels, where known points land in the image."""

import math

import numpy as np
import pytest
import torch

import camera_utils as cu
from reference import files, load

FRONT = math.pi / 2


def project(points, c):
    """Image coordinates (u right, v down; 0..1 across the picture) and depth of world points [M, 3] seen by label c [1, 25]."""
    cam2world, intrinsics = cu.split_label(c)
    world2cam = torch.linalg.inv(cam2world[0].double())
    local = points.double() @ world2cam[:3, :3].T + world2cam[:3, 3]
    uvw = local @ intrinsics[0].double().T
    return uvw[:, :2] / uvw[:, 2:], local[:, 2]


def angle_difference(a, b):
    """Largest difference of angles in degrees, across the jump at 180."""
    return ((a - b + 180) % 360 - 180).abs().max().item()


@pytest.mark.parametrize('path', files('camera*.npz'))
def test_published_poses(path):
    values, _ = load(path)
    h, v = values['hv'].unbind(1)
    pose = cu.look_at_pose(h, v, values['lookat'], values['radius'])
    torch.testing.assert_close(pose, values['cam2world'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('path', files('camera*.npz'))
def test_published_intrinsics(path):
    values, _ = load(path)
    for fov_deg, expected in zip(values['fov'].tolist(), values['intrinsics']):
        torch.testing.assert_close(cu.fov_to_intrinsics(fov_deg), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('path', files('camera*.npz'))
def test_published_angles(path):
    values, _ = load(path)
    angles = cu.label_angles_deg(cu.make_label(values['cam2world']))
    # Degrees from float32 rotations of which a few stand near the pole.
    assert angle_difference(angles, values['yaw_pitch_roll_deg']) < 1e-3


def test_focal_length_of_the_family():
    k = cu.fov_to_intrinsics()
    assert k[0, 0].item() == pytest.approx(1 / (math.sqrt(2) * math.tan(math.radians(cu.FOV_DEG / 2))), rel=2e-4)
    # The photographs' labels carry 4.2647 (fov 18.831); the family's scripts speak of 18.837 all the same.
    assert k[0, 0].item() == pytest.approx(4.2647, rel=5e-4)
    assert k[0, 0] == k[1, 1] and k[0, 2] == k[1, 2] == 0.5 and k[0, 1] == 0


def test_front_camera_stands_on_positive_z_and_looks_back():
    c = cu.front_label(lookat=(0, 0, 0))
    expected = torch.tensor([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, cu.HEAD_RADIUS], [0, 0, 0, 1.0]])
    torch.testing.assert_close(cu.split_label(c)[0][0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('point, u, v', [
    ((0, 0, 0), 0, 0),
    ((0.1, 0, 0), 1, 0),      # +x is to the right of a picture taken from the front: the head's left ear
    ((0, 0.1, 0), 0, -1),     # +y is up, and v counts downwards
])
def test_points_seen_from_the_front(point, u, v):
    c = cu.front_label(lookat=(0, 0, 0))
    uv, depth = project(torch.tensor([point], dtype=torch.float32), c)
    step = c[0, 16].item() * 0.1 / cu.HEAD_RADIUS
    np.testing.assert_allclose(uv[0], [0.5 + u * step, 0.5 + v * step], atol=1e-6)
    assert depth.item() == pytest.approx(cu.HEAD_RADIUS, abs=1e-6)


def test_pivot_is_in_the_middle_of_every_picture():
    poses = cu.sample_poses(16, horizontal_spread=math.pi, vertical_spread=1.0, generator=torch.Generator().manual_seed(3))
    for c in cu.make_label(poses).split(1):
        uv, _ = project(torch.tensor([cu.HEAD_PIVOT]), c)
        np.testing.assert_allclose(uv[0], [0.5, 0.5], atol=1e-5)


def test_nose_and_ears_by_yaw():
    """At +90 degrees the camera stands at +x, on the side of the head's left ear, and sees the nose (+z) on the left."""
    nose, ear = torch.tensor([[0, 0, 0.3]]), torch.tensor([[0.3, 0, 0]])
    side = cu.label_from_yaw([90.0, -90.0, 180.0], lookat=(0, 0, 0))
    torch.testing.assert_close(side[:, 3], torch.tensor([1, -1, 0.0]) * cu.HEAD_RADIUS, rtol=0, atol=1e-5)
    assert project(nose, side[:1])[0][0, 0] < 0.4
    assert project(nose, side[1:2])[0][0, 0] > 0.6
    # From behind, left and right of the head change places in the picture.
    assert project(ear, side[2:])[0][0, 0] < 0.4 and project(ear, cu.front_label((0, 0, 0)))[0][0, 0] > 0.6


@pytest.mark.parametrize('vertical', [FRONT, FRONT - 0.3, FRONT + 0.5])
def test_poses_are_rigid_and_right_handed(vertical):
    pose = cu.look_at_pose(torch.linspace(-math.pi, math.pi, 9), vertical)
    rotation = pose[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(pose[:, :3, 3].norm(dim=1), torch.full([9], cu.HEAD_RADIUS), rtol=0, atol=1e-5)
    torch.testing.assert_close(pose[:, 3], torch.tensor([0, 0, 0, 1.0]).expand(9, 4), rtol=0, atol=0)
    assert (pose[:, 1, 1] < 0).all(), 'the camera hangs upside down'


def test_label_round_trip():
    pose = cu.sample_poses(5, horizontal_spread=1.0, vertical_spread=0.3)
    intrinsics = torch.stack([cu.fov_to_intrinsics(f) for f in (12, 18.837, 30, 50, 90)])
    label = cu.make_label(pose, intrinsics)
    assert label.shape == (5, cu.LABEL_DIM)
    for ours, back in zip((pose, intrinsics), cu.split_label(label)):
        torch.testing.assert_close(ours, back, rtol=0, atol=0)


def test_angles_of_an_orbit_come_back():
    yaw = torch.tensor([-180.0, -179, -135, -95, -90, -45, -1, 0, 1, 45, 90, 95, 135, 179])
    angles = cu.label_angles_deg(cu.label_from_yaw(yaw, lookat=(0, 0, 0)))
    assert angle_difference(angles[:, 0], yaw) < 0.1
    assert angle_difference(angles[:, 1:], torch.zeros(14, 2)) < 0.1


def test_a_profile_within_the_gimbal_limit_is_90_degrees():
    near = 90 - math.degrees(math.asin(cu.GIMBAL_LIMIT))
    yaw = torch.tensor([90 - near + 0.1, 90 + near - 0.1, -90 + near - 0.1, 90 - near - 0.1])
    angles = cu.label_angles_deg(cu.label_from_yaw(yaw, lookat=(0, 0, 0)))[:, 0]
    torch.testing.assert_close(angles, torch.tensor([90, 90, -90, yaw[3]]), rtol=0, atol=0.02)


@pytest.mark.parametrize('yaw_deg', [88.5, 90.0, -88.5, -90.0])
def test_pitch_of_a_profile(yaw_deg):
    """Within the gimbal limit pitch and roll are one angle, and the pitch is all of it."""
    yaw, pitch = math.radians(yaw_deg), math.radians(20.0)
    about_y = torch.tensor([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    # The rotation of the formulas, R = Ry(-yaw) Rx(pitch), is the inverse of the camera's with its y and z turned.
    pose = torch.eye(4)
    pose[:3, :3] = (about_y.T @ about_x).T @ torch.diag(torch.tensor([1.0, -1, -1]))
    angles = cu.label_angles_deg(cu.make_label(pose[None]))[0]
    torch.testing.assert_close(angles, torch.tensor([math.copysign(90, yaw_deg), 20, 0]), rtol=0, atol=0.1)


def test_pitch_sign():
    """A camera above the head (a small vertical angle) has its origin at y > 0 and the pitch of its elevation."""
    above = cu.make_label(cu.look_at_pose(FRONT, FRONT - 0.3, (0, 0, 0)))
    below = cu.make_label(cu.look_at_pose(FRONT, FRONT + 0.3, (0, 0, 0)))
    pitch = cu.label_angles_deg(torch.cat([above, below]))[:, 1]
    elevation = math.degrees(math.asin(above[0, 7].item() / cu.HEAD_RADIUS))
    assert above[0, 7] > 0 > below[0, 7]
    torch.testing.assert_close(pitch, torch.tensor([elevation, -elevation]), rtol=0, atol=1e-2)


@pytest.mark.parametrize('roll_deg', [-20.0, 15.0])
def test_roll_sign(roll_deg):
    """Turning the camera clockwise about its view axis, so that the head seems to turn anticlockwise, has a sign."""
    pose = cu.look_at_pose(FRONT, FRONT, (0, 0, 0))
    t = math.radians(roll_deg)
    turn = torch.tensor([[math.cos(t), -math.sin(t), 0, 0], [math.sin(t), math.cos(t), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert cu.label_angles_deg(cu.make_label(pose @ turn))[0, 2].item() == pytest.approx(roll_deg, abs=1e-3)


@pytest.mark.parametrize('yaw', [0.0, 30.0, 90.0, 150.0, 180.0])
def test_flipped_label_sees_the_mirrored_world(yaw):
    """The picture of a head mirrored in x, through the flipped label, is the mirrored picture: u -> 1 - u."""
    c = cu.label_from_yaw(yaw, vertical=FRONT - 0.2)
    points = torch.rand(20, 3) - 0.5
    uv, depth = project(points, c)
    mirrored_uv, mirrored_depth = project(points * torch.tensor([-1, 1, 1]), cu.flip_label(c))
    torch.testing.assert_close(mirrored_uv, torch.stack([1 - uv[:, 0], uv[:, 1]], dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(mirrored_depth, depth, rtol=0, atol=1e-5)


def test_flip_of_an_orbit_is_the_opposite_yaw():
    c = cu.label_from_yaw([20.0, 110.0])
    torch.testing.assert_close(cu.flip_label(c), cu.label_from_yaw([-20.0, -110.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(cu.flip_label(cu.flip_label(c)), c, rtol=0, atol=0)
    torch.testing.assert_close(cu.flip_label(c[0]), cu.flip_label(c)[0], rtol=0, atol=0)


@pytest.mark.parametrize('distribution, spread', [('uniform', 0.4), ('gaussian', 0.2)])
def test_sampled_poses_have_the_asked_spread(distribution, spread):
    draw = [cu.sample_poses(4000, horizontal_spread=spread, lookat=(0, 0, 0), distribution=distribution,
                            generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draw), 'the generator decides the draw'
    yaw = torch.deg2rad(cu.label_angles_deg(cu.make_label(draw[0]))[:, 0])
    expected = spread / math.sqrt(3) if distribution == 'uniform' else spread
    assert yaw.mean().abs() < 0.02
    assert yaw.std().item() == pytest.approx(expected, rel=0.05)
    assert (yaw.abs().max() <= spread + 1e-4) == (distribution == 'uniform')


def test_poles_give_finite_poses():
    pose = cu.look_at_pose(FRONT, torch.tensor([0.0, -1.0, math.pi, 4.0]), (0, 0, 0))
    assert torch.isfinite(pose).all()


@pytest.mark.parametrize('fov_deg', [0, -1, 180, 400, float('nan')])
def test_impossible_angle_of_view(fov_deg):
    with pytest.raises(ValueError, match='fov_deg'):
        cu.fov_to_intrinsics(fov_deg)


def test_unknown_distribution():
    with pytest.raises(ValueError, match="'gaussian' or 'uniform', got 'cauchy'"):
        cu.sample_poses(1, distribution='cauchy')
