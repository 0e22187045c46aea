"""Metrics of the whole head: the perfect generator, faults that move what they should, geometry, and what is refused."""

import re
import types

import numpy as np
import pytest
import torch

import metrics
from camera_utils import split_label
from dnnlib import UserError
from fake_generator import RADII, FakeGenerator
from metrics import consistency, fault_table, faults, geometry, shape
from metrics.evaluation import Evaluation
from metrics.headnet.examples import view_directions
from metrics.headnet.network import direction_angles_deg
from metrics.heads import Heads, labels_around, random_angles
from metrics.reading import bin_centre_deg, by_yaw, worst, yaw_bin
from metrics.reference import ReferenceField, ReferenceGenerator
from metrics.registry import metric_function
from training.dataset import HeadDataset
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads
from training.synthetic.write import write_dataset

SIZE = 32
HEADS = 5
ANY_DATA = types.SimpleNamespace(label_dim=25, resolution=SIZE, has_labels=True, has_masks=False)
# Of the full table (python -m metrics.fault_table): each fault, its own metric and two that must keep still.
CASES = [
    ('shifted', 'depth_synthetic', ('identity_consistency', 'depth_agreement')),
    ('mirrored', 'pose_error', ('identity_consistency', 'hollow_face')),
    ('hollowed', 'hollow_face', ('pose_error', 'flicker')),
    ('rotated_label', 'pose_error', ('identity_consistency', 'depth_agreement')),
    ('face_at_back', 'face_at_back', ('depth_agreement', 'flicker')),
    ('flickering', 'flicker', ('identity_consistency', 'depth_agreement')),
    ('swapped_identity', 'identity_consistency', ('photometric_consistency', 'face_at_back')),
    ('sticking_texture', 'photometric_consistency', ('depth_agreement', 'identity_consistency')),
    ('bleeding_background', 'mask_agreement', ('depth_agreement', 'density_sanity')),
    ('floaters', 'density_sanity', ('hollow_face', 'mask_agreement')),
]


def evaluation(generator, num=HEADS, **kwargs):
    return Evaluation(generator, ANY_DATA, num, batch_size=kwargs.pop('batch_size', 4), **kwargs)


def figure(name, generator, **kwargs):
    return metric_function(name).function(evaluation(generator, **kwargs))


@pytest.fixture(scope='module')
def faultless():
    """Figures of the perfect generator, computed when first asked for."""
    class Figures(dict):
        def __missing__(self, name):
            self[name] = figure(name, ReferenceGenerator(SIZE))[name]
            return self[name]
    return Figures()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Zip of 120 synthetic heads seen from all sides."""
    path = tmp_path_factory.mktemp('heads') / 'heads.zip'
    write_dataset(120, SIZE, path, samples=2, progress=False)
    return path


@pytest.mark.parametrize('fault, own, others', CASES, ids=[case[0] for case in CASES])
def test_fault_moves_its_metric_and_not_the_others(fault, own, others, faultless):
    generator = faults.open_reference(f'synthetic:{fault}', SIZE)
    assert fault_table.EXPECTED[fault][0] == own and not set(others) & set(fault_table.EXPECTED[fault])
    value = figure(own, generator)[own]
    assert fault_table.moved(own, value, faultless[own]), f'{own}: {faultless[own]} -> {value}'
    for name in others:
        value = figure(name, generator)[name]
        assert not fault_table.moved(name, value, faultless[name]), f'{name}: {faultless[name]} -> {value}'


def test_faultless_figures_are_good(faultless):
    bounds = {'pose_error': 12, 'face_at_back': 0.2, 'mask_agreement': 0.03, 'depth_agreement': 0.004, 'flicker': 0.006,
              'photometric_consistency': 0.02, 'density_sanity': 1e-3, 'hollow_face': 1e-6, 'depth_synthetic': 0.02}
    assert {name: faultless[name] for name, most in bounds.items() if not 0 <= faultless[name] < most} == {}
    assert faultless['identity_consistency'] > 0.95


def test_every_fault_has_its_place_in_the_table():
    assert set(fault_table.EXPECTED) == set(faults.FAULTS) and len(faults.FAULTS) > 8
    assert {case[0] for case in CASES} | {'none', 'noised'} == set(faults.FAULTS)
    assert set(fault_table.MATTERS) | set(fault_table.FRECHET_MATTERS) >= {name for row in fault_table.EXPECTED.values() for name in row}
    for name in (*fault_table.MATTERS, 'fid50k_yaw12', 'fid50k_random_camera'):
        protocol = metric_function(name)
        assert protocol.conditioning == 'front' and re.search('[01] is best', ' '.join(protocol.function.__doc__.split())), name


def test_frechet_distance_sees_what_is_not_geometry(data):
    """A grain on the surfaces moves the distance; mirror images of a symmetric world do not."""
    dataset = HeadDataset(data)
    found = {fault: fault_table.measured(fault, dataset, 0, 80, ['fid50k_full'])['fid50k_full'] for fault in ('none', 'noised', 'mirrored')}
    assert fault_table.moved('fid50k_full', found['noised'], found['none'])
    assert not fault_table.moved('fid50k_full', found['mirrored'], found['none'])


def run_views(name, generator, dataset, num=96):
    return metric_function(name).function(Evaluation(generator, dataset, num, features=metrics.open_features('builtin', 'cpu')))


def test_distance_by_yaw_finds_the_bin_that_is_wrong(data, monkeypatch):
    """Backs replaced by fronts raise the distances at the back and leave those in front; empty bins are said and left out."""
    monkeypatch.setattr('metrics.views.FEWEST', 5)
    dataset = HeadDataset(data)
    good, bad = (run_views('fid50k_yaw12', faults.FAULTS[fault](SIZE), dataset) for fault in ('none', 'face_at_back'))
    assert good['fid50k_yaw12'] == pytest.approx(np.mean([v for k, v in good.items() if '/yaw' in k]))
    assert bad['fid50k_yaw12/yaw-180'] > 1.3 * good['fid50k_yaw12/yaw-180']
    assert bad['fid50k_yaw12/yaw+000'] == pytest.approx(good['fid50k_yaw12/yaw+000'])
    with pytest.warns(UserWarning, match=r'bins of yaw left out .*-180 \(0 images\)'):
        front = run_views('fid50k_yaw12', ReferenceGenerator(SIZE), HeadDataset(data, max_yaw=90))
    assert front['fid50k_yaw12/bins_left_out'] >= 5 and 'fid50k_yaw12/yaw-180' not in front
    with pytest.raises(UserError, match='--num 24 gives 2'):
        run_views('fid50k_yaw12', ReferenceGenerator(SIZE), dataset, num=24)
    with pytest.raises(UserError, match='needs labels'):
        run_views('fid50k_random_camera', types.SimpleNamespace(c_dim=0, img_resolution=SIZE), HeadDataset(data, use_labels=False))


def test_random_camera_distance_is_small_for_perfect_heads(data):
    """Of as many images, perfect heads are nearer to the data than heads that the background shows through."""
    dataset = HeadDataset(data)
    good = run_views('fid50k_random_camera', ReferenceGenerator(SIZE), dataset)
    bad = run_views('fid50k_random_camera', faults.open_reference('synthetic:bleeding_background', SIZE), dataset)
    assert 0 < good['fid50k_random_camera'] < bad['fid50k_random_camera'] / 2


# ---------------------------------------------------------------------------------------------------------------------
# The perfect generator.

def test_reference_keeps_the_generator_contract():
    generator = ReferenceGenerator(SIZE)
    z = torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(0))
    c = labels_around(generator.camera, torch.tensor([0.0, 150.0]))
    out = generator(z, c)
    ws = generator.mapping(z, c)
    assert out['image'].shape == (2, 3, SIZE, SIZE) and ws.shape == (2, generator.num_ws, generator.w_dim)
    truth = render_heads(generator.people(ws), c, SIZE)
    seen = truth.mask > 0
    assert torch.allclose(out['image'], truth.image, atol=1e-5)
    assert torch.allclose(out['image_depth'][seen], truth.depth[seen]) and torch.equal(out['image_mask'], truth.mask)
    assert out['image_depth'].isfinite().all()
    other = generator.render(generator.build_field(ws), ws, c, ws_bcg=generator.mapping(z.flip(0), c))
    inside = (truth.mask == 1).expand_as(out.image)
    assert torch.allclose(other.image[inside], out.image[inside]) and not torch.allclose(other.image, out.image, atol=0.05)
    assert not torch.equal(generator(z + 1, c).image, out.image)


def test_reference_density_is_the_solid_that_is_seen():
    """Just before the surface there is nothing, just behind it matter."""
    generator = ReferenceGenerator(SIZE)
    people = sample_identities([5, 6])
    c = labels_around(generator.camera, torch.tensor([30.0, 200.0]))
    out = generator.picture(people, c, SIZE)
    solid = geometry.solid_pixels(out.image_mask, opaque=0.99, erode=2)
    for step, matter in ((-0.02, False), (0.01, True)):
        points = geometry.points_of(out.image_depth + step, c).flatten(2).transpose(1, 2)
        density = ReferenceField(people).query(points).density.reshape(out.image_depth.shape)
        assert ((density > 0) == matter)[solid].float().mean() > 0.97


def test_faults_are_named_and_unknown_ones_refused():
    assert faults.is_reference('synthetic') and faults.is_reference('synthetic:noised') and not faults.is_reference('demo')
    assert type(faults.open_reference('synthetic', SIZE)) is faults.Faultless
    with pytest.raises(UserError, match='hollowed'):
        faults.open_reference('synthetic:upside_down', SIZE)


def test_turned_cameras_turn():
    labels = labels_around(ReferenceGenerator(SIZE).camera, torch.tensor([10.0, -60.0]), 5.0)
    before, after = (direction_angles_deg(view_directions(c)) for c in (labels, faults.turned(labels, 25.0)))
    assert torch.allclose(after[0] - before[0], torch.tensor([25.0, 25.0]), atol=1e-3)
    assert torch.allclose(after[1], before[1], atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Heads by number, geometry, small parts.

def test_heads_do_not_depend_on_company():
    """Number by number the same, in any batch and order; another seed gives others."""
    generator = ReferenceGenerator(SIZE)
    heads = Heads.of(evaluation(generator))
    assert torch.equal(heads.latents(0, 5)[3:4], heads.latents(3, 4))
    assert not torch.equal(heads.latents(0, 1), Heads(generator, seed=1).latents(0, 1))
    a, b = (figure('depth_agreement', generator, batch_size=size, num=3) for size in (1, 3))
    assert a == pytest.approx(b, abs=1e-6)
    assert random_angles(0, 2, 4, 10.0, 5)[0].tolist() == random_angles(0, 0, 4, 10.0, 5)[0][2:].tolist()


def test_metrics_run_on_a_volume_rendered_generator():
    """A generator with a field, a depth of its own and no background network."""
    generator = FakeGenerator(img_resolution=SIZE)
    generator.cond_spec = {}
    render = generator.render
    generator.render = lambda field, ws, c, ws_bcg=None: render(field, ws, c)
    for name in ('depth_agreement', 'photometric_consistency', 'flicker', 'hollow_face', 'mask_agreement', 'depth_synthetic'):
        results = figure(name, generator, num=2)
        assert all(key.startswith(name) for key in results) and np.isfinite(results[name]), name
    # Its density rises so slowly that cells are opaque from 0.022 below the surface on.
    volume = 4 / 3 * np.pi * np.prod(np.array(RADII) - 0.022)
    assert figure('density_sanity', generator, num=2)['density_sanity/volume'] == pytest.approx(volume, rel=0.1)


def test_what_needs_a_generator_says_so():
    fakes = types.SimpleNamespace(resolution=SIZE)
    with pytest.raises(UserError, match='--network'):
        metric_function('pose_error').function(Evaluation(None, ANY_DATA, 4, fakes=fakes))
    generator = ReferenceGenerator(SIZE)
    generator.cond_spec = {'mesh': 3}
    with pytest.raises(UserError, match='mesh'):
        metric_function('flicker').function(evaluation(generator))


def test_points_and_pixels_are_inverse():
    generator = ReferenceGenerator(SIZE)
    c = labels_around(generator.camera, torch.tensor([20.0, 100.0]), 10.0)
    c[0, 16], c[0, 18], c[0, 17] = 5.0, 0.45, 0.05              # another focal length, an off-centre image, skew
    depth = 2.4 + 0.5 * torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    places, distance = geometry.project(geometry.points_of(depth, c), c)
    centres = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    assert torch.allclose(places[..., 0], centres.expand(2, SIZE, SIZE), atol=1e-4)
    assert torch.allclose(places[..., 1], centres[:, None].expand(2, SIZE, SIZE), atol=1e-4)
    assert torch.allclose(distance, depth[:, 0], atol=1e-4)


def test_agreement_of_a_surface_in_two_views():
    """A plane seen from two cameras agrees with itself; moved in one view by 0.01 it disagrees by about that."""
    generator = ReferenceGenerator(SIZE)
    labels = [labels_around(generator.camera, yaw) for yaw in (-6.0, 6.0)]

    def view(c, shift=0.0):
        cam2world, _ = split_label(c)
        ones = torch.ones(1, 1, SIZE, SIZE)
        direction = geometry.points_of(ones, c) - cam2world[:, :3, 3, None, None]
        depth = -cam2world[:, 2, 3] / direction[:, 2:]           # to the plane z = 0
        return {'image': torch.zeros(1, 3, SIZE, SIZE), 'image_depth': depth + shift, 'image_mask': ones}

    same = consistency.pair_agreement(view(labels[0]), view(labels[1]), labels)
    moved = consistency.pair_agreement(view(labels[0]), view(labels[1], 0.01), labels)
    assert same['depth'] < 1e-4 and moved['depth'] == pytest.approx(0.01, rel=0.05) and same['hidden'] < 0.2


def test_relief_tells_a_face_from_its_mould():
    at = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    squared = (at ** 2 + at[:, None] ** 2)[None, None]
    region = squared < 0.5
    bulge = geometry.relief(2.5 + 0.1 * squared + 0.3 * at, region)
    assert float(bulge) == pytest.approx(0.1 * float(squared[region].mean()), rel=1e-3)      # a tilt does not count
    assert float(geometry.relief(2.5 - 0.1 * squared, region)) == pytest.approx(-float(bulge), rel=1e-3)
    assert geometry.relief(squared, squared < 0.001).isnan()


def test_pieces_of_matter():
    density = np.full([24, 24, 24], -50.0, dtype=np.float32)
    assert len(shape.pieces(density, 1.0)) == 0
    density[4:12, 4:12, 4:12] = 200
    density[18:20, 18:20, 18:20] = 200
    assert shape.pieces(density, 1.0).tolist() == [512, 8]


def test_solid_pixels_leave_out_the_outline():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:7, 2:7] = 1
    mask[..., 4, 4] = 0.95
    assert geometry.solid_pixels(mask).nonzero()[:, 2:].tolist() == [[i, j] for i in (3, 4, 5) for j in (3, 4, 5)]
    depth = torch.full([1, 1, 8, 8], float('inf'))
    depth[mask > 0.9] = 2.5
    assert torch.equal(geometry.safe_depth(depth, mask), torch.full([1, 1, 8, 8], 2.5))


def test_bins_of_yaw():
    assert yaw_bin([0, 14, -14, 16, 180, -180, 166, -166, 90]).tolist() == [6, 6, 6, 7, 0, 0, 0, 0, 9]
    assert [bin_centre_deg(i) for i in (0, 6, 9)] == [-180, 0, 90]
    values = by_yaw('m', np.array([0.0, 5, 180]), np.array([1.0, 3, 7]))
    assert values == {'m/yaw-180': 7.0, 'm/yaw+000': 2.0}
    assert worst('m', np.array([1.0, 5, 3]), num=2) == {'m/worst1': 1, 'm/worst2': 2}
    assert worst('m', np.array([1.0, 5, 3]), largest=False, num=1) == {'m/worst1': 0}


def test_records_state_the_protocol(data):
    record = next(metrics.measure('synthetic:mirrored', data, metrics=['pose_error'], num=4, device='cpu'))
    assert record['conditioning'] == 'front' and record['network'] == 'synthetic:mirrored' and record['features'] == 'builtin'
    assert record['num'] == 4
