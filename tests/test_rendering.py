"""Rays, samples, marching and the renderer against closed forms, on fields that are formulas."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

import camera_utils
from training.representations.base import Field, FieldSample
from training.volumetric_rendering.compositing import interval_weights, march
from training.volumetric_rendering.rays import Rays, box_limits, camera_rays
from training.volumetric_rendering.renderer import RenderNoise, RenderOptions, crop_density, draw_noise, ray_limits, render_rays
from training.volumetric_rendering.sampling import importance_depths, midpoint_noise, stratified_depths

OPTIONS = RenderOptions(crop_margin=None)


class Formula(Field):
    """A field whose density is a function of points; its features are the points, or all `colour`. It notes its queries."""

    def __init__(self, density, colour=None):
        self.density, self.colour, self.asked = density, colour, []

    def query(self, points, directions=None):
        self.asked.append(points)
        features = points if self.colour is None else torch.full_like(points, self.colour)
        return FieldSample(self.density(points), features)


def ball(radius, inside=50.0):
    return lambda points: torch.where(points.norm(dim=-1, keepdim=True) < radius, inside, -50.0)


def parallel_rays(num=3, distance=2.7, side=0.2):
    """Rays towards -z, `num` of them, side by side along x."""
    x = torch.linspace(-side, side, num) if num > 1 else torch.zeros(1)
    origins = torch.stack([x, torch.zeros(num), torch.full([num], distance)], dim=-1)[None]
    return Rays(origins, torch.tensor([0.0, 0.0, -1.0]).expand_as(origins))


# ---------------------------------------------------------------------------------------------------------------------
# Rays.

def test_rays_hit_projected_points():
    """A point projected into the picture lies on the ray of its pixel, skew and an odd centre included."""
    c = camera_utils.label_from_yaw((20.0, 160.0), vertical=1.2)
    cam2world, intrinsics = camera_utils.split_label(c)
    intrinsics = intrinsics.clone()
    intrinsics[:, 0, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 1, 1] = 0.3, 0.45, 0.55, 4.0
    size, (row, column) = 8, (2, 5)
    rays = camera_rays(cam2world, intrinsics, size)
    index = row * size + column
    points = rays.origins[:, index] + rays.directions[:, index] * 2.5
    inside = (torch.linalg.inv(cam2world) @ torch.cat([points, torch.ones(2, 1)], dim=1)[..., None])[:, :3]
    u, v, w = (intrinsics @ inside)[..., 0].unbind(dim=1)
    torch.testing.assert_close(u / w, torch.full([2], (column + 0.5) / size))
    torch.testing.assert_close(v / w, torch.full([2], (row + 0.5) / size))


def test_rays_of_a_camera():
    c = camera_utils.label_from_yaw((0.0, 90.0))
    rays = camera_rays(*camera_utils.split_label(c), 5)
    assert rays.directions.shape == (2, 25, 3)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(2, 25))
    torch.testing.assert_close(rays.origins, c[:, None, [3, 7, 11]].expand(2, 25, 3))
    towards = F.normalize(torch.tensor(camera_utils.HEAD_PIVOT) - rays.origins[:, 12], dim=-1)
    torch.testing.assert_close(rays.directions[:, 12], towards)                # the middle pixel looks at the pivot
    front = rays.directions[0].reshape(5, 5, 3)
    assert (front[1:, :, 1] < front[:-1, :, 1]).all() and (front[:, 1:, 0] > front[:, :-1, 0]).all()   # rows down, columns to +x


def test_rays_check_their_shapes():
    with pytest.raises(ValueError, match='one shape'):
        Rays(torch.zeros(1, 4, 3), torch.zeros(1, 5, 3))


def test_points_along_rays():
    rays = parallel_rays(2)
    points = rays.at(torch.tensor([2.7, 3.0]).expand(1, 2, 2))
    torch.testing.assert_close(points[0, :, :, 2], torch.tensor([[0.0, -0.3], [0.0, -0.3]]))
    assert (points[0, 0, :, 0] == -0.2).all()


# ---------------------------------------------------------------------------------------------------------------------
# Limits.

def rays_with_a_miss():
    """Along -z from 2.7 through the middle, slanted through a corner of the box, and past it."""
    origins = torch.tensor([[[0.0, 0.0, 2.7], [0.0, 0.0, 2.7], [0.0, 0.0, 2.7]]])
    directions = F.normalize(torch.tensor([[[0.0, 0.0, -1.0], [0.2, 0.0, -1.0], [1.0, 0.0, -1.0]]]), dim=-1)
    return Rays(origins, directions)


def test_box_limits_by_hand():
    near, far, hit = box_limits(rays_with_a_miss(), 1.0)
    slope = math.sqrt(1.04)
    torch.testing.assert_close(near[0, :2], torch.tensor([2.2, 2.2 * slope]))
    torch.testing.assert_close(far[0, :2], torch.tensor([3.2, 2.5 * slope]))   # the second leaves by the side
    assert hit.tolist() == [[True, True, False]]


@pytest.mark.parametrize('slip', [False, True])
def test_automatic_limits_of_rays_that_miss(slip):
    options = RenderOptions(ray_start='auto', ray_end='auto', missed_rays_end_near=slip)
    near, far = ray_limits(rays_with_a_miss(), options)
    slope = math.sqrt(1.04)
    torch.testing.assert_close(near, torch.tensor([[2.2, 2.2 * slope, 2.2]]))
    # published: the largest depth at which a ray ENTERS
    torch.testing.assert_close(far, torch.tensor([[3.2, 2.5 * slope, 2.2 * slope if slip else 3.2]]))


def test_camera_that_looks_past_the_box():
    rays = Rays(torch.tensor([[[0.0, 0.0, 2.7]]]), torch.tensor([[[0.0, 1.0, 0.0]]]))
    with pytest.raises(ValueError, match='looks past'):
        ray_limits(rays, RenderOptions(ray_start='auto', ray_end='auto'))


def test_automatic_and_fixed_limits_agree_on_a_ball():
    rays = camera_rays(*camera_utils.split_label(camera_utils.label_from_yaw((30.0,))), 8)
    fixed, auto = (render_rays(Formula(ball(0.3), 1.0), rays, dataclasses.replace(OPTIONS, depth_resolution=200, **limits))
                   for limits in ({}, {'ray_start': 'auto', 'ray_end': 'auto'}))
    torch.testing.assert_close(fixed.weights.sum(-1), auto.weights.sum(-1), atol=0.02, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Samples.

def test_stratified_depths():
    noise = torch.rand(2, 3, 5)
    depths = stratified_depths(2.0, 3.0, noise)
    steps = torch.tensor([2.0, 2.25, 2.5, 2.75, 3.0])
    torch.testing.assert_close(depths, steps + noise * 0.25)
    near, far = torch.full([2, 3], 2.0), torch.full([2, 3], 3.0)
    torch.testing.assert_close(stratified_depths(near, far, noise), depths)
    near[0, 0], far[0, 0] = 0.0, 4.0
    torch.testing.assert_close(stratified_depths(near, far, torch.zeros(2, 3, 5))[0, 0], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))


def test_importance_samples_go_where_the_weight_is():
    depths = torch.linspace(2, 3, 41).expand(1, 2, 41)
    weights = torch.zeros(1, 2, 40)
    weights[0, 0, 12], weights[0, 1, 30] = 1.0, 1.0
    fine = importance_depths(depths, weights, midpoint_noise((1, 2, 100), 'cpu'))
    assert (fine[..., 1:] >= fine[..., :-1]).all() and fine.min() >= 2 and fine.max() <= 3
    for ray, middle in ((0, 2.3125), (1, 2.7625)):
        near = (fine[0, ray] - middle).abs() < 0.06
        # weight 1 widened to about 3 intervals against 0.01 in all 38
        assert near.float().mean() > 0.7 and near.float().mean() < 1


def test_importance_samples_of_even_weights_are_even():
    depths = torch.linspace(2, 3, 11).expand(1, 1, 11)
    fine = importance_depths(depths, torch.ones(1, 1, 10), midpoint_noise((1, 1, 8), 'cpu'))
    # from the middle of the first interval to that of the last but one: as published, the weights of the inner intervals
    # stand on edges that begin one interval earlier
    torch.testing.assert_close(fine[0, 0], 2.05 + 0.8 * midpoint_noise((8,), 'cpu'), atol=1e-3, rtol=0)
    torch.testing.assert_close(fine.diff(), torch.full_like(fine.diff(), 0.1), atol=1e-3, rtol=0)


def test_importance_samples_have_no_gradient():
    depths = torch.linspace(2, 3, 11).expand(1, 1, 11)
    weights = torch.rand(1, 1, 10, requires_grad=True)
    assert not importance_depths(depths, weights, torch.rand(1, 1, 8)).requires_grad


def test_noise_of_rendering():
    rays = parallel_rays()
    still = draw_noise(rays, OPTIONS)
    assert (still.coarse == 0.5).all() and still.coarse_density is None
    torch.testing.assert_close(still.fine[0, 0], (torch.arange(48) + 0.5) / 48)
    moving = draw_noise(rays, dataclasses.replace(OPTIONS, jitter=True, density_noise=2.0))
    assert moving.coarse.std() > 0.2 and 0 <= moving.coarse.min() and moving.coarse.max() < 1
    assert moving.coarse_density.std().item() == pytest.approx(2, rel=0.2) and moving.fine_density.shape == (1, 3, 48)


# ---------------------------------------------------------------------------------------------------------------------
# Marching.

def test_slab_of_constant_density():
    """Weight of a homogeneous slab: 1 - exp(-softplus(density - 1) * length), however it is cut into samples."""
    for num, density in ((2, 1.0), (7, 3.0), (50, 3.0)):
        depths = torch.linspace(2.0, 2.8, num).expand(1, 1, num)
        result = march(torch.full([1, 1, num], density), torch.full([1, 1, num, 2], 0.7), depths)
        opacity = 1 - math.exp(-math.log1p(math.exp(density - 1)) * 0.8)
        assert result.weights.sum().item() == pytest.approx(opacity, abs=1e-5)
        torch.testing.assert_close(result.features, torch.full([1, 1, 2], 0.7 * opacity))


def test_mean_depth_of_a_slab():
    num, density = 400, 4.0
    depths = torch.linspace(2.0, 3.0, num).expand(1, 1, num)
    sigma = math.log1p(math.exp(density - 1))
    expected = 2 + (1 - (1 + sigma) * math.exp(-sigma)) / sigma / (1 - math.exp(-sigma))     # mean of a cut exponential
    result = march(torch.full([1, 1, num], density), torch.zeros(1, 1, num, 1), depths)
    assert result.depth.item() == pytest.approx(expected, abs=1e-3)


def test_intervals_mean_their_samples():
    depths = torch.tensor([[[1.0, 2.0, 4.0]]])
    density = torch.tensor([[[0.0, 2.0, 4.0]]])
    weights, middle = interval_weights(density, depths)
    first, second = (math.log1p(math.exp(d - 1)) for d in (1.0, 3.0))
    alpha = [1 - math.exp(-first), 1 - math.exp(-second * 2)]
    torch.testing.assert_close(weights[0, 0], torch.tensor([alpha[0], (1 - alpha[0]) * alpha[1]]))
    assert middle.tolist() == [[[1.5, 3.0]]]
    features = torch.tensor([[[[0.0], [1.0], [5.0]]]])
    assert march(density, features, depths).features.item() == pytest.approx(alpha[0] * 0.5 + (1 - alpha[0]) * alpha[1] * 3)


def test_ray_without_weight_is_far_and_white_on_request():
    depths = torch.linspace(2, 3, 5).expand(1, 2, 5)
    density = torch.tensor([-1000.0, 10.0])[None, :, None].expand(1, 2, 5)
    result = march(density, torch.zeros(1, 2, 5, 3), depths)
    assert result.depth[0, 0].item() == 3.0 and 2 < result.depth[0, 1].item() < 2.3
    assert (result.features[0, 0] == 0).all()
    white = march(density, torch.zeros(1, 2, 5, 3), depths, white_back=True)
    assert (white.features[0, 0] == 1).all()
    torch.testing.assert_close(white.features, 1 - white.weights.sum(-1, keepdim=True).expand(1, 2, 3))


def test_marching_has_finite_gradients_where_nothing_is():
    density = torch.full([1, 1, 6], -1000.0, requires_grad=True)
    result = march(density, torch.ones(1, 1, 6, 2), torch.linspace(2, 3, 6).expand(1, 1, 6))
    result.features.sum().backward()
    assert density.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# The renderer.

def test_ball_has_its_outline_and_depth():
    size, radius = 32, 0.3
    c = camera_utils.label_from_yaw((0.0, 70.0), lookat=(0.0, 0.0, 0.0))
    rays = camera_rays(*camera_utils.split_label(c), size)
    result = render_rays(Formula(ball(radius), 1.0), rays, OPTIONS)
    passing = torch.linalg.cross(rays.origins, rays.directions).norm(dim=-1)            # distance of the rays from the centre
    opacity = result.weights.sum(-1)
    assert (opacity[passing < radius - 0.04] > 0.99).all() and (opacity[passing > radius + 0.02] < 0.01).all()
    surface = camera_utils.HEAD_RADIUS - radius
    middle = passing.argmin(dim=1)
    assert result.depth[0, middle[0], 0].item() == pytest.approx(surface, abs=0.03)   # a step is 0.022
    assert result.depth[1, middle[1], 0].item() == pytest.approx(surface, abs=0.03)   # a step is 0.022


def test_features_are_those_of_the_surface():
    """With the point as its feature, a ray returns where it met the surface."""
    rays = camera_rays(*camera_utils.split_label(camera_utils.label_from_yaw((50.0,))), 8)
    result = render_rays(Formula(ball(0.3)), rays, OPTIONS)
    opaque = result.weights.sum(-1) > 0.999
    met = (rays.origins + rays.directions * result.depth)[opaque]
    assert opaque.any()
    torch.testing.assert_close(result.features[opaque], met, atol=1e-3, rtol=0)


def test_second_pass_samples_the_surface():
    field = Formula(ball(0.3))
    render_rays(field, parallel_rays(1), OPTIONS)
    coarse, fine = (points[0, :, 2] for points in field.asked)
    assert len(coarse) == len(fine) == 48
    close = [((z - 0.3).abs() < 0.06).float().mean().item() for z in (coarse, fine)]
    assert close[1] > 0.7 > 0.2 > close[0]
    field = Formula(ball(0.3))
    render_rays(field, parallel_rays(1), dataclasses.replace(OPTIONS, depth_resolution_importance=0))
    assert len(field.asked) == 1


def test_second_pass_is_merged_in_order_of_depth():
    """Both passes together are one march over all samples, sorted."""
    field = Formula(lambda points: points[..., 2:] * 8)
    result = render_rays(field, parallel_rays(3), OPTIONS)
    points = torch.cat([p.reshape(1, 3, -1, 3) for p in field.asked], dim=2)
    depths, order = (2.7 - points[..., 2]).sort(dim=-1)
    points = points.gather(2, order[..., None].expand_as(points))
    expected = march(points[..., 2] * 8, points, depths)
    for value, wanted in zip(result, expected):
        torch.testing.assert_close(value, wanted)


def test_crop_by_hand():
    points = torch.tensor([[[0.39, 5.0, 0.39], [0.41, 0.0, 0.0], [0.0, 0.0, -0.41], [0.0, -0.9, 0.0]]])
    density = torch.ones(1, 4, 1)
    assert crop_density(density, points, RenderOptions()).flatten().tolist() == [1, -1000, -1000, 1]
    assert crop_density(density, points, RenderOptions(box_warp=1.2)).flatten().tolist() == [1, 1, 1, 1]
    assert crop_density(density, points, OPTIONS) is density


@pytest.mark.parametrize('margin, visible', [(None, True), (0.1, False)])
def test_crop_hides_what_is_close_to_the_sides(margin, visible):
    post = Formula(lambda points: torch.where((points[..., :1] - 0.45).abs() < 0.03, 50.0, -50.0), 1.0)
    rays = Rays(torch.tensor([[[0.45, 0.0, 2.7]]]), torch.tensor([[[0.0, 0.0, -1.0]]]))
    opacity = render_rays(post, rays, dataclasses.replace(OPTIONS, crop_margin=margin)).weights.sum()
    assert (opacity > 0.99) if visible else (opacity == 0)


def test_white_back():
    rays = parallel_rays(3, side=0.45)
    result = render_rays(Formula(ball(0.3), 0.25), rays, dataclasses.replace(OPTIONS, white_back=True))
    torch.testing.assert_close(result.features[0, :, 0], torch.tensor([1.0, 0.25, 1.0]), atol=1e-3, rtol=0)


def test_density_noise_is_added_to_both_passes():
    rays = parallel_rays(1)
    ones = torch.full((1, 1, 48), 0.5)
    field = Formula(lambda points: torch.zeros_like(points[..., :1]), 1.0)
    none, lifted = (render_rays(field, rays, OPTIONS, RenderNoise(ones, ones, noise, noise))
                    for noise in (None, torch.full((1, 1, 48), 3.0)))
    reach = 1.05 * 48 / 47 - 1.05 / 47      # from the first sample to the last, all at the mid-points of their steps
    for result, density in ((none, 0.0), (lifted, 3.0)):
        expected = 1 - math.exp(-math.log1p(math.exp(density - 1)) * reach)
        assert result.weights.sum().item() == pytest.approx(expected, abs=1e-3)


def test_rendering_is_repeatable_and_jitter_is_not():
    rays = camera_rays(*camera_utils.split_label(camera_utils.label_from_yaw((50.0,))), 8)
    field = Formula(lambda points: points.norm(dim=-1, keepdim=True) * -20 + 8)
    first, second = (render_rays(field, rays, OPTIONS) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second))
    jittered = [render_rays(field, rays, dataclasses.replace(OPTIONS, jitter=True)) for _ in range(2)]
    assert not (jittered[0].depth == jittered[1].depth).all()
    torch.testing.assert_close(jittered[0].weights.sum(-1), first.weights.sum(-1), atol=0.05, rtol=0)


def test_field_that_renders_itself_is_left_to_it():
    class Fused(Formula):
        def render_fused(self, rays, options, noise):
            return torch.ones(1, 3, 3), torch.ones(1, 3, 1) * 2, torch.ones(1, 3, 1) * 0.5

    field = Fused(ball(0.3))
    result = render_rays(field, parallel_rays(3), OPTIONS)
    assert not field.asked and (result.depth == 2).all() and (result.weights == 0.5).all()


@pytest.mark.parametrize('bad', [
    {'ray_start': 3.0, 'ray_end': 2.0}, {'ray_start': -1.0}, {'ray_start': 'auto'}, {'ray_end': 'auto'}, {'depth_resolution': 3},
    {'depth_resolution_importance': -1}, {'box_warp': 0.0}])
def test_options_refuse(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RenderOptions(**bad)


def test_rays_that_meet_nothing_leave_gradients_finite():
    depths = torch.linspace(1, 2, 6).expand(1, 2, 6)
    density = torch.full([1, 2, 6], -1000.0)
    density[0, 0] = 3
    density.requires_grad_(True)
    composite = march(density, torch.ones(1, 2, 6, 3), depths)
    assert composite.depth[0, 1] == 2
    composite.depth.sum().backward()
    assert density.grad.isfinite().all() and density.grad[0, 0].abs().max() > 0
