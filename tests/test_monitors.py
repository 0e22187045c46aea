"""Monitors on constructed cases: each figure where its truth is known, each rule once broken and once not, and a watched run."""

import dataclasses
import json
import math

import pytest
import torch

import camera_utils
from tiny_runs import run_train, write_heads
from training import monitors
from training.generators.panohead import PanoHeadGenerator
from training.monitors import RULES, Monitors, Probe, Rule
from training.synthetic.cameras import label_at
from training.synthetic.heads import sample_identities
from training.synthetic.render import render_heads

NUM = 8


@pytest.fixture(scope='module')
def heads():
    """Depth, mask and labels of synthetic heads from the front."""
    labels = label_at(0.0).reshape(1, 25).expand(NUM, -1)
    batch = render_heads(sample_identities(range(NUM)), labels, 64, samples=1)
    return batch.depth, batch.mask, labels


def turned_inside_out(depth):
    """The same silhouettes with the surface mirrored along the rays: what sticks out is a hollow."""
    mirrored = depth.clone()
    for image in mirrored:
        seen = image.isfinite()
        image[seen] = 2 * image[seen].mean() - image[seen]
    return mirrored


def test_true_faces_bulge_and_hollow_ones_do_not(heads):
    depth, mask, labels = heads
    true, hollow = (monitors.face_concavity(d, mask, labels) for d in (depth, turned_inside_out(depth)))
    assert (true < -0.2).all() and (hollow > 0.2).all()


def test_concavity_is_zero_for_a_wall_and_exact_for_a_paraboloid():
    label = camera_utils.front_label((0, 0, 0), 2.7)
    size = 64
    centre = (torch.arange(size) + 0.5) / size - 0.5
    v, u = torch.meshgrid(centre, centre, indexing='ij')
    focal = float(label[0, 16])
    stretch = (1 + (u / focal).square() + (v / focal).square()).sqrt()
    disc = (u.square() + v.square()).sqrt() < 0.4
    for curvature, expected in ((0.0, 0.0), (1.0, -1.0), (-1.0, 1.0)):
        planar = 2.5 + curvature * (u.square() + v.square())
        found = monitors.face_concavity((planar * stretch)[None, None], disc[None, None].float(), label)
        # Depth at FACE_RADIUS of the disc's radius of 0.4 image sizes, over that radius in world units there.
        rim = (monitors.FACE_RADIUS * 0.4) ** 2 / (0.4 / focal * 2.5)
        assert found.item() == pytest.approx(expected * rim, rel=0.05, abs=1e-4)


def test_no_head_has_no_shape(heads):
    depth, mask, labels = heads
    assert monitors.face_concavity(depth, torch.zeros_like(mask), labels).isnan().all()
    assert monitors.face_concavity(torch.full_like(depth, math.inf), mask, labels).isnan().all()


def test_pose_leak():
    people = torch.randn(4, 3, 8, 8)
    assert monitors.pose_leak(people, people) == 0
    others = torch.randn(4, 3, 8, 8)
    assert monitors.pose_leak(people, others) == pytest.approx(1, abs=0.15)      # other people altogether
    half = monitors.pose_leak(people, people + 0.5 * (others - people))
    assert half == pytest.approx(0.5 * monitors.pose_leak(people, others), rel=1e-4)
    assert math.isnan(monitors.pose_leak(people[:1].expand(4, -1, -1, -1), people))


def test_translation():
    offsets = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    assert monitors.translation(offsets) == (1.0, 0.0)
    mean, spread = monitors.translation(torch.tensor([[3.0, 0, 0], [-3.0, 0, 0], [0, 4.0, 0], [0, -4.0, 0]]))
    assert mean == 0 and spread == pytest.approx(math.sqrt((9 + 9 + 16 + 16) / 4))


def test_stopwatch():
    watch = monitors.Stopwatch(clock=iter((10.0, 12.5, 20.0, 20.5, 30.0)).__next__)
    for _ in range(2):
        with watch.time('x'):
            pass
    with pytest.raises(ZeroDivisionError), watch.time('x'):
        raise ZeroDivisionError
    assert watch.take() == {'x': 1.5} and watch.take() == {}


# ---------------------------------------------------------------------------------------------------------------------
# The probe.

def small_generator(**changes):
    torch.manual_seed(0)
    settings = dict(z_dim=8, w_dim=8, img_resolution=32, channel_base=256, channel_max=8, plane_resolution=16, features=4,
                    neural_rendering_resolution=8, sr_channel_scale=0.1,
                    rendering={'depth_resolution': 6, 'depth_resolution_importance': 4})
    return PanoHeadGenerator(**{**settings, **changes}).eval().requires_grad_(False)


def cameras(num=32):
    return torch.cat([camera_utils.label_from_yaw(float(yaw)) for yaw in torch.linspace(-180, 180, num)])


def test_probe_measures_the_generator_and_leaves_it_alone():
    generator = small_generator()
    probe = Probe(generator, cameras(), seed=3)
    random, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    figures = probe.measure(generator, 8)
    assert set(figures) == {'Monitor/alpha_coverage', 'Monitor/face_concavity', 'Monitor/pose_leak', 'Monitor/camera_mean',
                            'Monitor/camera_spread'}
    again = probe.measure(generator, 8)
    assert {name: str(value) for name, value in again.items()} == {name: str(value) for name, value in figures.items()}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert figures['Monitor/pose_leak'] > 0 and 0 <= figures['Monitor/alpha_coverage'] <= 1


@pytest.mark.parametrize('changes', [{'c_gen_conditioning_zero': True}, {'c_dim': 0}])
def test_no_pose_leak_without_conditioning(changes):
    generator = small_generator(**changes, adaptive_camera=False)
    assert set(Probe(generator, cameras(), 0).measure(generator, 8)) == {'Monitor/alpha_coverage', 'Monitor/face_concavity'}


def test_probe_sees_a_leak(monkeypatch):
    """The label as loud as the latent, and not heard at all."""
    generator = small_generator()
    probe = Probe(generator, cameras(), 0)
    loud = probe.measure(generator, 8)['Monitor/pose_leak']
    generator.backbone.mapping.embed.weight.zero_()
    generator.backbone.mapping.embed.bias.fill_(1)
    assert probe.measure(generator, 8)['Monitor/pose_leak'] == pytest.approx(0, abs=1e-6) and loud > 0.05


@pytest.mark.parametrize('inside_out', [False, True])
def test_probe_sees_hollow_faces(heads, monkeypatch, inside_out):
    """A generator that shows synthetic heads, right or inside out."""
    depth, mask, _ = heads
    generator = small_generator(c_gen_conditioning_zero=True, adaptive_camera=False)
    plain = generator.synthesis
    shown = iter(zip(turned_inside_out(depth) if inside_out else depth, mask))

    def synthesis(ws, camera, resolution):
        d, m = next(shown)
        return dataclasses.replace(plain(ws, camera, resolution), image_depth=d[None], image_mask=m[None])

    monkeypatch.setattr(generator, 'synthesis', synthesis)
    figures = Probe(generator, cameras(), 0).measure(generator, 64)
    watch = Monitors(generator, cameras())
    stats = {name: {'num': 1, 'mean': value, 'std': 0.0} for name, value in figures.items()}
    heard = [watch.warnings(stats) for _ in range(6)]
    assert any('Faces are hollow' in sentence for sentence in heard[-1]) == inside_out
    assert heard[0] == []                              # the first shapes of a network are excused


# ---------------------------------------------------------------------------------------------------------------------
# The rules.

def stats_of(**means):
    return {name: {'num': 1, 'mean': mean, 'std': 0.0} for name, mean in means.items()}


GOOD = {'Monitor/real_fake_gap': 2.0, 'Loss/r1_penalty': 0.1, 'Gradients/Gmain': 1.0, 'Gradients/Greg': 1.0, 'Gradients/Dmain': 1.0,
        'Gradients/Dreg': 1.0, 'Progress/skipped_steps': 0.0, 'Monitor/alpha_coverage': 0.4, 'Monitor/pose_leak': 0.2,
        'Monitor/face_concavity': -0.4, 'Monitor/camera_mean': 0.01, 'Monitor/camera_spread': 0.05, 'Timing/data_share': 0.02,
        'Timing/step_sec': 1.0}


def watched(generator=None):
    generator = generator or small_generator()
    return Monitors(generator, cameras())


def test_there_is_a_rule_for_every_good_figure():
    assert {rule.statistic for rule in RULES} == set(GOOD)


def test_good_figures_raise_no_warning():
    watch = watched()
    assert [watch.warnings(stats_of(**GOOD)) for _ in range(10)] == [[]] * 10


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: '-'.join([rule.statistic, *(k for k in rule._fields[2:5] if getattr(rule, k))]))
def test_every_rule_warns_once_a_tick_while_it_is_broken(rule):
    watch = watched()
    for _ in range(monitors.WARM_UP):
        watch.warnings(stats_of(**GOOD))
    bad = rule.low - 0.1 if rule.low is not None else rule.high + 0.1 if rule.high is not None else 1.1 * rule.rise * GOOD[rule.statistic]
    expected = rule.text.format(value=bad, usual=GOOD[rule.statistic])
    for tick in range(1, 8):
        warnings = watch.warnings(stats_of(**{**GOOD, rule.statistic: bad}))
        assert warnings == ([expected] if tick >= rule.patience else [])
    assert watch.warnings(stats_of(**GOOD)) == []
    assert '\n' not in expected and expected.endswith('.') and ('--' in expected or 'look for' in expected)


def test_a_rise_needs_something_to_rise_from():
    watch = watched()
    assert watch.warnings(stats_of(**{'Loss/r1_penalty': 1e6})) == []
    zero = [watch.warnings(stats_of(**{'Loss/r1_penalty': 0.0})) for _ in range(10)]
    assert zero == [[]] * 10 and watch.warnings(stats_of(**{'Loss/r1_penalty': 1e6})) == []


def test_the_usual_is_not_learned_from_what_was_warned_of():
    watch = watched()
    for _ in range(6):
        watch.warnings(stats_of(**GOOD))
    for _ in range(100):
        assert watch.warnings(stats_of(**{**GOOD, 'Timing/step_sec': 5.0})) != []


def test_figures_that_are_missing_or_nan_are_passed_over():
    watch = watched()
    assert watch.warnings({}) == [] and watch.warnings(stats_of(**dict.fromkeys(GOOD, math.nan))) == []


def test_a_full_picture_is_right_without_a_background():
    full = stats_of(**{'Monitor/alpha_coverage': 1.0})
    with_background, without = watched(), watched(small_generator(use_background=False))
    for _ in range(3):
        heard = with_background.warnings(full), without.warnings(full)
    assert 'Heads fill the picture' in heard[0][0] and heard[1] == []


def test_derived_figures():
    stats = stats_of(**{'Loss/scores/real': 3.0, 'Loss/scores/fake': -1.0, 'Timing/data_sec': 1.0, 'Timing/step_sec': 4.0})
    assert monitors.derived(stats) == {'Monitor/real_fake_gap': 4.0, 'Timing/data_share': 0.25}
    assert monitors.derived({}) == {}


def test_warnings_are_written_where_the_log_sees_them(capsys):
    rule = Rule('x', 'Too much ({value:.1f}): use less.', high=1.0)
    watch = Monitors(small_generator(), cameras(), rules=[rule])
    assert watch.warn(stats_of(x=2.0)) == ['Too much (2.0): use less.']
    assert 'Warning: Too much (2.0): use less.' in capsys.readouterr().out


def test_a_run_writes_the_figures_everywhere(tmp_path):
    run_dir = run_train(tmp_path / 'runs', write_heads(tmp_path), '--gen_pose_cond True')
    wanted = {'Monitor/real_fake_gap', 'Loss/r1_penalty', 'Gradients/Gmain', 'Gradients/Dmain', 'Monitor/alpha_coverage',
              'Monitor/pose_leak', 'Monitor/face_concavity', 'Monitor/camera_mean', 'Monitor/camera_spread', 'Timing/data_sec',
              'Timing/step_sec'}
    lines = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert lines and all(wanted <= set(line) for line in lines)
    log = (run_dir / 'log.txt').read_text()
    assert all(f' {short} ' in log for _, short in monitors.BRIEF)
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator').EventAccumulator(str(run_dir))
    events.Reload()
    finite = {name for name in wanted if lines[-1][name]['mean'] is not None}
    assert finite <= set(events.Tags()['scalars'])
