"""The recipes beyond PanoHead's: cameras that move, whitened latents, the view from behind, bounded tuning, early ends, and
runs that are interrupted."""

import dataclasses
import math

import pytest
import torch

import camera_utils
from dnnlib import UserError
from inference import inversion
from inference.camera_fit import camera_angle_deg, moved_cameras
from inference.heads import Head, load_head, save_head
from inference.inversion import invert, psnr
from inference.inversion_files import inversion_digest
from inference.inversion_options import freed_options, recipe_options
from inference.inversion_run import Journal, Look, Run, StageOptions, new_adam, optimise
from inference.perceptual import StructuralFeatures
from inference.session import Session
from training.generators.base import GeneratorOutput
from training.snapshot import load_network
from inversion_cases import LABEL, Interruption, network, own_target, write_files

QUICK = dict(steps_w=10, steps_g=6, num_statistics=100, patience=0, enough_psnr=0.0)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp('recipes'))


# ---------------------------------------------------------------------------------------------------------------------
# Cameras.

def test_camera_is_turned_about_the_head_and_shifted_along_its_own_axes():
    label = camera_utils.label_from_yaw(30.0, vertical=1.3, lookat=(0, 0, 0))
    turned = moved_cameras(label, torch.tensor([[0, math.radians(10), 0, 0, 0, 0]]))
    pose, _ = camera_utils.split_label(turned)
    torch.testing.assert_close(pose[0, :3, :3] @ pose[0, :3, :3].T, torch.eye(3), atol=1e-5, rtol=0)
    assert camera_angle_deg(label, turned).item() == pytest.approx(10, abs=1e-3)
    assert pose[0, :3, 3].norm().item() == pytest.approx(2.7, abs=1e-4)
    torch.testing.assert_close(-pose[0, :3, 3] / 2.7, pose[0, :3, 2], atol=1e-5, rtol=0)        # it looks at the origin still
    rolled = moved_cameras(label, torch.tensor([[0, 0, math.radians(15), 0, 0, 0]]))
    assert camera_angle_deg(label, rolled).item() == pytest.approx(0, abs=1e-2)
    before, after = (camera_utils.split_label(c)[0][0] for c in (label, moved_cameras(label, torch.tensor([[0, 0, 0, .1, .2, .3]]))))
    torch.testing.assert_close(after[:3, 3] - before[:3, 3], before[:3, :3] @ torch.tensor([.1, .2, .3]), atol=1e-6, rtol=0)
    torch.testing.assert_close(after[:3, :3], before[:3, :3])
    torch.testing.assert_close(moved_cameras(label, torch.zeros(1, 6)), label)


def test_gradient_of_a_camera():
    moves = torch.randn(2, 6, dtype=torch.double) * 0.2
    labels = torch.cat([LABEL, camera_utils.label_from_yaw(170.0)]).double()
    assert torch.autograd.gradcheck(lambda m: moved_cameras(labels, m), moves.requires_grad_(True))


def test_back_of_the_back_is_the_front():
    label = camera_utils.label_from_yaw(25.0, vertical=1.2, lookat=(0, 0.1, 0))
    back = camera_utils.half_turn_label(label)
    assert torch.equal(camera_utils.half_turn_label(back), label)
    torch.testing.assert_close(back, camera_utils.label_from_yaw(205.0, vertical=1.2, lookat=(0, 0.1, 0)), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Steps.

def falling(values):
    """(variable, evaluate): losses as listed, whatever the variable; its own value counts the steps taken."""
    variable = torch.zeros(1, requires_grad=True)

    def evaluate(step):
        return Look(-variable.sum(), torch.tensor(values[step], dtype=torch.double), torch.zeros(1, 3, 1, 1))
    return variable, evaluate


def run_stage(values, **options):
    variable, evaluate = falling(values)
    sgd = torch.optim.SGD([variable], lr=1.0)
    stage = StageOptions('x', len(values) - 1, **options)
    return optimise(stage, [variable], sgd, evaluate, Run()), variable.item()


def test_adam_in_one_operation_is_adam():
    start = torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last)
    ends = []
    for make in (lambda v: new_adam(v, 0.1, 0.99), lambda v: torch.optim.Adam(v, lr=0.1, betas=(0.9, 0.99))):
        variables = [start.clone().requires_grad_(True), torch.ones(7, requires_grad=True)]
        adam = make(variables)
        for _ in range(5):
            adam.zero_grad()
            sum((v - 0.3).square().sum() for v in variables).backward()
            adam.step()
        ends.append(torch.cat([v.detach().flatten() for v in variables]))
    torch.testing.assert_close(*ends, atol=1e-6, rtol=1e-5)


def drawn_weights(in_the_loss):
    """Weights of a layer before and after four steps of stage 2 with weight_drift 5, which the loss has where tune_generator
    does not."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    before = torch.nn.utils.parameters_to_vector(layer.parameters()).detach().clone()

    class Loss:
        def __call__(self, out):
            drift = (torch.nn.utils.parameters_to_vector(layer.parameters()) - before).square().sum() / before.square().sum()
            return (out.image - 1).square().sum() + (5.0 * drift if in_the_loss else 0.0)

        def close(self, out, decibels):
            return False

    options = recipe_options('omni', steps_g=4, lr_g=0.1, keep='last', weight_drift=0.0 if in_the_loss else 5.0)
    inversion.tune_generator(layer, lambda _: GeneratorOutput(layer(torch.ones(1, 3))[None], None, None, None), Loss(), options, Run())
    return before, torch.nn.utils.parameters_to_vector(layer.parameters()).detach()


def test_weights_are_drawn_to_where_they_were():
    """The steps are those of a loss with the squared change of the weights in it, relative to their squares."""
    (before, inside), (_, outside) = drawn_weights(True), drawn_weights(False)
    torch.testing.assert_close(outside, inside, atol=1e-5, rtol=1e-3)
    assert (inside - before).norm() > 0.1


def test_a_stage_ends_where_nothing_is_gained():
    values = [1.0, 0.5, 0.499, 0.498, 0.497, 0.1]
    assert run_stage(values) == (values, 5)
    losses, taken = run_stage(values, patience=3, keep='best')
    assert losses == values[:5] and taken == 4
    losses, taken = run_stage(values, patience=4, keep='best')
    assert losses == values and taken == 5


@pytest.mark.parametrize('values, kept', [([3.0, 1.0, 2.0, 4.0], 1), ([3.0, 2.0, 2.5, 1.0], 3), ([1.0, 2.0, 3.0, 4.0], 0)])
def test_the_best_state_is_kept(values, kept):
    assert run_stage(values, keep='best') == (values, kept)
    assert run_stage(values, keep='last') == (values, 3)


@pytest.mark.parametrize('recipe, after', [('panohead', 4), ('omni', 3), ('omni', 12), ('pso', 5), ('pso', 15), ('pso', 23)])
def test_interrupted_run_goes_on_to_the_same_end(files, tmp_path, recipe, after):
    options = recipe_options(recipe, **{**QUICK, 'candidates': 3})

    def run(journal):
        generator = network(files)
        result = invert(generator, own_target(generator), StructuralFeatures(), options, journal=journal)
        return [result.ws, result.labels, result.post, *generator.parameters()], [*result.losses_w, *result.losses_g]

    state = tmp_path / 'state'
    with pytest.raises(KeyboardInterrupt):
        run(Interruption(state, 'a', after))
    again = Journal(state, 'a')
    assert again.resumed
    tensors, losses = run(again)
    whole, all_losses = run(Journal())
    assert losses == all_losses
    assert all(torch.equal(a, b) for a, b in zip(tensors, whole, strict=True))
    assert not Journal(state, 'b').resumed                            # another inversion's


def test_state_that_is_damaged(tmp_path):
    for content in (b'', b'nonsense'):
        (tmp_path / 'state').write_bytes(content)
        with pytest.raises(UserError, match='delete it'):
            Journal(tmp_path / 'state')


def test_digest_names_the_inversion(files):
    generator = network(files)
    target = own_target(generator)
    names = {inversion_digest('net', [target], {'a': 1}), inversion_digest('other', [target], {'a': 1}),
             inversion_digest('net', [target], {'a': 2}), inversion_digest('net', [target, target], {'a': 1}),
             inversion_digest('net', [dataclasses.replace(target, weight=0.5)], {'a': 1}),
             inversion_digest('net', [dataclasses.replace(target, label=target.label + 1)], {'a': 1})}
    assert len(names) == 6 and inversion_digest('net', [target], {'a': 1}) in names


# ---------------------------------------------------------------------------------------------------------------------
# Recipes.

def test_own_head_is_found_from_a_camera_that_is_off():
    """Picture, camera and the side that was not shown, by a short run of the default recipe on the carried network."""
    generator = load_network('demo')
    truth = camera_utils.label_from_yaw(20.0, lookat=(0, 0, 0))
    behind = camera_utils.half_turn_label(truth)
    target, back = (own_target(generator, label=label) for label in (truth, behind))
    off = moved_cameras(truth, torch.tensor([[0.06, -0.16, 0.0, 0, 0, 0]]))
    options = recipe_options('omni', steps_w=70, steps_g=0, num_statistics=1000, candidates=16)
    result = invert(generator, dataclasses.replace(target, label=off), StructuralFeatures(), options)
    before, after = (camera_angle_deg(label, truth).item() for label in (off, result.label))
    assert before > 9 and after < before / 2
    assert psnr(result.pre[0], target.image[0]) > 30

    def quality_behind(found):
        return psnr(generator.synthesis(found.ws, behind).image[0], back.image[0])
    assert quality_behind(result) > 27
    fixed = invert(generator, dataclasses.replace(target, label=off), StructuralFeatures(),
                   dataclasses.replace(options, refine_camera=False))
    assert torch.equal(fixed.label, off)
    assert quality_behind(fixed) < quality_behind(result) - 1


def test_views_of_one_head_are_found_together(files):
    generator = network(files)
    targets = [own_target(generator, label=camera_utils.label_from_yaw(yaw, lookat=(0, 0, 0))) for yaw in (20.0, 200.0)]
    options = recipe_options('omni', steps_w=40, steps_g=0, num_statistics=300, candidates=8)
    one = invert(network(files), targets[0], StructuralFeatures(), options)
    two = invert(generator, targets, StructuralFeatures(), options)
    assert two.labels.shape == (2, 25) and two.pre.shape == two.post.shape == (2, 3, 32, 32)
    behind = network(files).synthesis(one.ws, targets[1].label, options=one.rendering).image
    assert psnr(two.pre[1], targets[1].image[0]) > psnr(behind[0], targets[1].image[0]) + 1


def test_view_from_behind_is_made_and_held(files):
    generator = network(files)
    target = own_target(generator)
    result = invert(generator, target, StructuralFeatures(), recipe_options('pso', **{**QUICK, 'candidates': 3}))
    front, back = result.targets
    assert torch.equal(back.label, camera_utils.half_turn_label(target.label)) and torch.equal(result.labels[1:], back.label)
    assert back.weight == 0.3 and not back.correct_camera and front is target
    # The learned translation moves the front's camera and leaves the back's.
    assert not torch.equal(result.label, target.label)
    given = dataclasses.replace(back, image=torch.zeros_like(back.image))
    result = invert(network(files), [target, given], StructuralFeatures(), recipe_options('pso', **QUICK))
    assert result.targets[1] is given


def test_tuning_is_held_elsewhere(files):
    """Towards a picture that the network does not show: the other side changes less than without the bounds."""
    generator = network(files)
    target = own_target(generator)
    blocks = torch.randn([1, 3, 4, 4], generator=torch.Generator().manual_seed(0))
    target = dataclasses.replace(target, image=(target.image * 0.5 + 0.4 * blocks.repeat_interleave(8, 2)
                                                .repeat_interleave(8, 3)).clamp(-1, 1))
    options = recipe_options('omni', **{**QUICK, 'candidates': 2, 'steps_g': 25, 'lr_g': 1.5e-3, 'freed_by': 1.0})
    changes = []
    for bounded in (options, dataclasses.replace(options, weight_locality=0.0, weight_drift=0.0)):
        generator = network(files)
        result = invert(generator, target, StructuralFeatures(), bounded)
        behind = camera_utils.label_from_yaw(200.0, lookat=(0, 0, 0))
        pictures = [g.synthesis(result.ws, behind, options=result.rendering).image for g in (network(files), generator)]
        changes.append((pictures[1] - pictures[0]).square().mean().item())
        assert result.losses_g[-1] < 0.9 * result.losses_g[0]
    assert changes[0] < 0.87 * changes[1]


def test_tuning_is_freer_for_pictures_the_network_cannot_show(files):
    """A known head keeps its rate and bounds to the bit; the published recipes always do."""
    omni, panohead = recipe_options('omni'), recipe_options('panohead')
    assert freed_options(omni, 35.0) == omni and freed_options(panohead, 10.0) == panohead
    half, whole, beyond = (freed_options(omni, psnr) for psnr in (25.0, 20.0, 5.0))
    assert omni.lr_g < half.lr_g < whole.lr_g == beyond.lr_g == 3 * omni.lr_g
    assert omni.weight_locality / whole.weight_locality == pytest.approx(3)
    generator = network(files)
    nobody = torch.rand([1, 3, 32, 32], generator=torch.Generator().manual_seed(0)) * 2 - 1
    target = dataclasses.replace(own_target(generator), image=nobody)
    options = dataclasses.replace(omni, steps_w=2, steps_g=15, num_statistics=50, candidates=1)
    held, freed = (invert(network(files), target, StructuralFeatures(), o) for o in
                   (dataclasses.replace(options, freed_by=1.0), options))
    assert torch.equal(held.pre, freed.pre) and min(freed.losses_g) < min(held.losses_g)


def test_tuning_stops_where_the_picture_is_close(files):
    generator = network(files)
    options = recipe_options('omni', **{**QUICK, 'candidates': 2, 'enough_psnr': 1.0})
    result = invert(generator, own_target(generator), StructuralFeatures(), options)
    assert len(result.losses_g) == 1 and result.deltas == {} and torch.equal(result.pre, result.post)


# ---------------------------------------------------------------------------------------------------------------------
# The file.

def test_head_goes_with_its_network_alone(files, tmp_path):
    generator = network(files)
    record = {'network': 'small.pkl', 'network_digest': '0' * 64, 'ray_start': 2.3}
    head = Head(torch.zeros(1, generator.num_ws, 32), LABEL, {'torgb.bias': torch.ones(3).half()}, record)
    save_head(tmp_path / 'head.safetensors', head)
    loaded = load_head(tmp_path / 'head.safetensors')
    assert loaded.record == record and torch.equal(loaded.deltas['torgb.bias'], torch.ones(3).half())
    with pytest.raises(UserError, match='small.pkl'):
        Session(generator, 'cpu').given_ws(loaded)
    with pytest.raises(UserError, match='8 layers of 7'):
        Session(generator, 'cpu').given_ws(dataclasses.replace(loaded, ws=torch.zeros(1, 8, 7)))


def test_heads_that_are_damaged(tmp_path):
    good = Head(torch.zeros(1, 8, 32), LABEL, {}, {'network': 'x', 'network_digest': 'y', 'ray_start': 2.3})
    save_head(tmp_path / 'good.safetensors', good)
    whole = (tmp_path / 'good.safetensors').read_bytes()
    (tmp_path / 'short.safetensors').write_bytes(whole[:-20])
    (tmp_path / 'text.safetensors').write_bytes(b'no head at all')
    save_head(tmp_path / 'nan.safetensors', dataclasses.replace(good, ws=good.ws * math.nan))
    save_head(tmp_path / 'shape.safetensors', dataclasses.replace(good, labels=LABEL[:, :20]))
    save_head(tmp_path / 'record.safetensors', dataclasses.replace(good, record={'network': 'x'}))
    for name, message in (('short', 'whole'), ('text', 'whole'), ('nan', 'finite'), ('shape', 'odd shapes'), ('record', 'complete'),
                          ('absent', 'cannot be read')):
        with pytest.raises(UserError, match=message):
            load_head(tmp_path / f'{name}.safetensors')
    assert len(load_head(tmp_path / 'good.safetensors')) == 1


def test_unknown_recipe():
    with pytest.raises(UserError, match='panohead, pso, omni'):
        recipe_options('best')
    with pytest.raises(UserError, match='--back'):
        recipe_options('pso', back='bought')
    assert inversion.tuning_rate(0.5, recipe_options('panohead')) == 3e-4
    assert inversion.tuning_rate(1.0, recipe_options('omni')) == 0
