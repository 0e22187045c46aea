"""Shapes: the grid is regular, the surface is where it should be, files hold what viewers expect."""

import mrcfile
import numpy as np
import pytest
import torch
import trimesh

from dnnlib import UserError
from fake_generator import RADII, CENTER, EllipsoidField, FakeGenerator
from inference import shapes
from inference.session import Session
from training.representations.base import Field, FieldSample

CPU = torch.device('cpu')
BOX = 1.0


class FunctionField(Field):
    """Density given by a function of the points [N, M, 3]."""

    def __init__(self, density):
        self.density = density

    def query(self, points, directions=None):
        return FieldSample(self.density(points), points)


def sphere_volume(radius=0.3, resolution=64, center=(0.0, 0.0, 0.0), steepness=10000.0, plateau=300.0):
    def density(points):
        return ((radius - (points - torch.tensor(center)).norm(dim=-1, keepdim=True)) * steepness).clamp(-100, plateau)
    return shapes.density_grid(FunctionField(density), resolution, BOX, CPU)


@pytest.mark.parametrize('resolution, chunk_bytes', [(32, 10 ** 9), (33, 33 ** 3 * 4 + 1100 * Field.bytes_per_point)])
def test_grid_points_lie_where_they_belong(resolution, chunk_bytes):
    """Not sheared: every sample is taken at its own point, whatever the chunk."""
    field = FunctionField(lambda points: points[..., :1] + 10 * points[..., 1:2] + 100 * points[..., 2:])
    volume = shapes.density_grid(field, resolution, BOX, CPU, chunk_bytes)
    axis = np.linspace(-0.5, 0.5, resolution)
    expected = axis[:, None, None] + 10 * axis[:, None] + 100 * axis
    border = int(resolution * 30 / 256)
    inner = (slice(border, -border),) * 3
    np.testing.assert_allclose(volume[inner], expected[inner], atol=2e-5)
    outside = np.ones_like(volume, dtype=bool)
    outside[inner] = False
    assert (volume[outside] == -1000).all()


def test_queries_stay_within_the_memory_given():
    field = EllipsoidField(torch.tensor(CENTER), torch.zeros(1))
    grid_bytes = 32 ** 3 * 4
    shapes.density_grid(field, 32, BOX, CPU, grid_bytes + 2000 * Field.bytes_per_point)
    assert 26 ** 2 < field.largest_query <= 2000     # a plane of the grid is 26^2 points
    with pytest.raises(UserError, match='--max-mem'):
        shapes.density_grid(field, 32, BOX, CPU, grid_bytes)


@pytest.mark.parametrize('num', [1, 7, 30, 36, 100, 10 ** 6])
def test_blocks_fill_the_cube_once(num):
    times = np.zeros((9, 9, 9), int)
    for block in shapes._blocks(2, 8, num):
        assert times[block].size <= num
        times[block] += 1
    assert (times[2:8, 2:8, 2:8] == 1).all() and times.sum() == 6 ** 3


def test_memory_is_checked_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(np, 'full', lambda *_, **__: pytest.fail('the grid was made'))
    with pytest.raises(UserError, match='--max-mem.*--shape-res'):
        shapes.density_grid(Field(), 2048, BOX, CPU)
    with pytest.raises(UserError, match='--max-mem.*--shape-res'):
        shapes.ShapeOptions(('mrc',), 2048)


def test_machine_without_the_memory(monkeypatch):
    def full(*_, **__):
        raise MemoryError
    monkeypatch.setattr(np, 'full', full)
    with pytest.raises(UserError, match='--shape-res 32.*memory.*--max-mem'):
        shapes.density_grid(Field(), 32, BOX, CPU)


def surface_error(mesh, radius, center=(0.0, 0.0, 0.0)):
    return np.abs(np.linalg.norm(mesh.vertices - np.array(center), axis=1) - radius).max()


@pytest.mark.parametrize('radius, center', [(0.3, (0, 0, 0)), (0.2, (0.1, -0.05, 0.12)), (0.1, (-0.2, 0.2, 0))])
def test_sphere_at_the_level_found(radius, center):
    volume = sphere_volume(radius, 64, center)
    mesh = shapes.extract_mesh(volume, shapes.find_level(volume, BOX), BOX)
    voxel = BOX / 63
    assert surface_error(mesh, radius, center) < voxel
    # Both ways: every point of the sphere has a vertex near it, at most half a cell's diagonal farther.
    directions = np.random.RandomState(0).randn(500, 3)
    points = radius * directions / np.linalg.norm(directions, axis=1, keepdims=True) + center
    distances = np.linalg.norm(points[:, None] - mesh.vertices[None], axis=2).min(axis=1)
    assert distances.max() < voxel
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert 0.6 < mesh.volume / (4 / 3 * np.pi * radius ** 3) < 1.1     # negative if normals pointed inwards
    outward = ((mesh.vertices - np.array(center)) * mesh.vertex_normals).sum(axis=1)
    assert (outward > 0.9 * radius).all()


def test_level_is_where_light_is_lost():
    """A soft cloud round a hard core: the cloud, which hardly shows, is not the surface."""
    def density(points):
        radius = points.norm(dim=-1, keepdim=True)
        core, cloud = ((0.2 - radius) * 3000).clamp(-100, 200), ((0.35 - radius) * 100).clamp(-100, 1.0)
        return torch.maximum(core, cloud)
    volume = shapes.density_grid(FunctionField(density), 64, BOX, CPU)
    level = shapes.find_level(volume, BOX)
    assert level > 1
    assert surface_error(shapes.extract_mesh(volume, level, BOX), 0.2) < BOX / 63


def test_level_does_not_cut_through_a_noisy_inside():
    rng = np.random.RandomState(0)
    volume = sphere_volume(0.3, 64, plateau=12.0)
    volume = np.where(volume > 0, volume + rng.uniform(-4, 4, volume.shape), volume).astype(np.float32)
    mesh = shapes.extract_mesh(volume, shapes.find_level(volume, BOX), BOX)
    assert surface_error(mesh, 0.3) < 1.5 * BOX / 63


def test_thin_volume_still_has_a_level():
    """A young network whose densest rays are half transparent."""
    volume = sphere_volume(0.3, 48, steepness=50, plateau=1.5)
    assert 1 - np.exp(-np.logaddexp(0, volume.max() - 1) * 0.6) < 0.7
    mesh = shapes.extract_mesh(volume, shapes.find_level(volume, BOX), BOX)
    assert surface_error(mesh, 0.3) < 0.05


@pytest.mark.parametrize('density', [-1000.0, -10.0, -5.0])
def test_empty_volume(density):
    volume = np.full((32, 32, 32), density, dtype=np.float32)
    with pytest.raises(UserError, match='no surface at any level'):
        shapes.find_level(volume, BOX)


def test_level_beyond_the_densities():
    with pytest.raises(UserError, match='--level 1e\\+06.*densities run from -100 to 300'):
        shapes.extract_mesh(sphere_volume(resolution=32), 1e6, BOX)


def test_floaters_are_dropped():
    def density(points):
        head = 0.25 - points.norm(dim=-1, keepdim=True)
        floater = 0.03 - (points - torch.tensor([0.3, 0.3, 0.3])).norm(dim=-1, keepdim=True)
        return (torch.maximum(head, floater) * 3000).clamp(-100, 300)
    volume = shapes.density_grid(FunctionField(density), 64, BOX, CPU)
    before = volume.copy()
    mesh = shapes.extract_mesh(volume, 10, BOX)
    assert len(mesh.split(only_watertight=False)) == 1
    assert surface_error(mesh, 0.25) < BOX / 63
    np.testing.assert_array_equal(volume, before)


def test_shape_cut_by_the_border_is_closed():
    mesh = shapes.extract_mesh(sphere_volume(radius=0.45), 10, BOX)
    assert mesh.is_watertight
    assert np.abs(mesh.bounds).max() < 0.5 - 30 / 256 + 2 / 63


def test_mrc(tmp_path):
    volume = sphere_volume(0.2, 32, (0.1, 0.0, 0.05))
    for name in ('a.mrc', 'b.mrc'):
        shapes.save_mrc(tmp_path / name, volume, BOX)
    assert (tmp_path / 'a.mrc').read_bytes() == (tmp_path / 'b.mrc').read_bytes()
    assert mrcfile.validate(tmp_path / 'a.mrc')
    with mrcfile.open(tmp_path / 'a.mrc') as mrc:
        assert mrc.header.mode == 2
        # No time of writing: the only label is ours.
        labels = [label for label in mrc.header.label.tolist() if label]
        assert labels == [b'density of a neural field; x, y, z are world z, y, -x']
        np.testing.assert_array_equal(mrc.data, np.flip(volume, 0))
        assert [float(mrc.voxel_size[axis]) for axis in 'xyz'] == pytest.approx([1 / 31] * 3)
        # The box is centred: its first point at -1/2, its last at +1/2.
        assert [float(mrc.header.origin[axis]) for axis in 'xyz'] == [-0.5] * 3


@pytest.fixture
def session():
    return Session(FakeGenerator(), CPU)


def test_files_have_colours_and_world_units(session, tmp_path):
    identity = session.identity(torch.zeros(1, 10, 16))
    options = shapes.ShapeOptions(('mrc', 'ply', 'obj', 'glb'), 48)
    paths = shapes.export_shape(session, identity, tmp_path / 'head', options)
    assert [path.name for path in paths] == ['head.mrc', 'head.ply', 'head.obj', 'head.glb']
    for path in paths[1:]:
        mesh = trimesh.load(path, force='mesh')
        assert mesh.is_watertight
        np.testing.assert_allclose(mesh.bounds, [np.subtract(CENTER, RADII), np.add(CENTER, RADII)], atol=1 / 47)
        colors = np.asarray(mesh.visual.vertex_colors)[:, :3].astype(int)
        right = mesh.vertices[:, 0] > CENTER[0] + 0.05
        left = mesh.vertices[:, 0] < CENTER[0] - 0.05
        assert np.abs(colors[right] - [255, 128, 0]).max() <= 2, path
        assert np.abs(colors[left] - [0, 128, 255]).max() <= 2, path


def test_given_level_is_used(session, tmp_path):
    identity = session.identity(torch.zeros(1, 10, 16))
    paths = [shapes.export_shape(session, identity, tmp_path / f'{level}', shapes.ShapeOptions(('ply',), 48, level))[0]
             for level in (-20, 150)]
    outer, inner = (trimesh.load(path).volume for path in paths)
    assert outer > 1.2 * inner


@pytest.mark.parametrize('suffix', shapes.FORMATS)
def test_half_written_shape_leaves_what_was_there(session, tmp_path, monkeypatch, suffix):
    def half(path):
        with open(path, 'wb') as file:
            file.write(b'half')
        raise OSError(28, 'No space left on device')
    path = tmp_path / f'head.{suffix}'
    path.write_bytes(b'before')
    monkeypatch.setattr(shapes, 'save_mrc', lambda path, *_: half(path))
    monkeypatch.setattr(trimesh.Trimesh, 'export', lambda self, path: half(path))
    with pytest.raises(UserError, match='cannot write .*No space'):
        identity = session.identity(torch.zeros(1, 10, 16))
        shapes.export_shape(session, identity, tmp_path / 'head', shapes.ShapeOptions((suffix,), 32))
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b'before'


def test_unwritable_file(session, tmp_path):
    identity = session.identity(torch.zeros(1, 10, 16))
    with pytest.raises(UserError, match='cannot write'):
        shapes.export_shape(session, identity, tmp_path / 'absent' / 'head', shapes.ShapeOptions(('mrc',), 16))
