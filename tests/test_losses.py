"""Losses and regularisers against numbers by hand, on networks that are formulas."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from training.generators.base import GeneratorOutput
from training.losses import adversarial
from training.losses.adversarial import AdversarialLoss, Batch, LossOptions, blur, neighbours
from training.losses.regularizers import TYPES, DensityL1, DensityMonotonic, density_regularizer
from training.representations.base import Field, FieldSample
from training.schedules import Schedule
from training.volumetric_rendering.renderer import RenderOptions

STILL = Schedule(blur_sigma=0.0, gpc_swap_probability=0.0, neural_rendering_resolution=8, density_noise=0.0)
SIZE = 16


class FormulaField(Field):
    """Density a . p."""

    def __init__(self, slope, num=2):
        self.slope, self.num, self.device = slope, num, slope.device

    def query(self, points, directions=None):
        return FieldSample((points * self.slope).sum(dim=-1, keepdim=True), points)


class FormulaGenerator(torch.nn.Module):
    """Pictures whose pixels are the first latent's number; notes what it is asked."""

    z_dim, num_ws = 1, 4

    def __init__(self, offset=None):
        super().__init__()
        self.rendering = RenderOptions()
        self.gain = torch.nn.Parameter(torch.ones([]))
        self.offset, self.asked = offset, []

    def mapping(self, z, c, update_emas=False):
        self.asked.append(('mapping', z, c, update_emas))
        return (z * self.gain)[:, None].expand(-1, self.num_ws, -1)

    def camera_offset(self, z, c):
        return None if self.offset is None else self.offset * self.gain

    @staticmethod
    def move_camera(c, offset):
        return c.index_add(1, torch.tensor([3, 7, 11]), offset)

    def build_field(self, ws, cond=None, noise_mode='const'):
        return FormulaField(ws.mean() * torch.ones(3), len(ws))

    def synthesis(self, ws, c, resolution=None, options=None, ws_bcg=None, noise_mode='const', noise=None, cond=None):
        self.asked.append(('synthesis', ws, c, resolution, options, ws_bcg, noise_mode))
        n, value = len(ws), ws[:, 0, 0, None, None, None]
        return GeneratorOutput(value.expand(n, 3, SIZE, SIZE), value.expand(n, 3, resolution, resolution),
                               value.expand(n, 1, resolution, resolution), value.sigmoid().expand(n, 1, resolution, resolution))

    def calls(self, name):
        return [call[1:] for call in self.asked if call[0] == name]


class FormulaDiscriminator(torch.nn.Module):
    """Score: weight / 2 * sum of squares of all it sees; notes it."""

    def __init__(self, wanted=('image', 'image_raw', 'image_mask')):
        super().__init__()
        self.wanted, self.weight, self.seen = wanted, torch.nn.Parameter(torch.tensor(0.5)), []

    def forward(self, images, c):
        self.seen.append((dict(images), c))
        return sum(x.square().sum(dim=[1, 2, 3]) for x in images.values())[:, None] * self.weight / 2


@pytest.fixture
def reported(monkeypatch):
    """Statistics the loss reports, by name, as lists of tensors."""
    stats = {}
    monkeypatch.setattr(adversarial.training_stats, 'report',
                        lambda name, value: stats.setdefault(name, []).append(torch.as_tensor(value).detach()))
    return stats


def batch_of(num=3):
    return Batch({'image': torch.randn(num, 3, SIZE, SIZE), 'image_mask': torch.rand(num, 1, SIZE, SIZE)},
                 torch.randn(num, 25), torch.randn(num, 1), torch.randn(num, 25))


def loss_of(g=None, d=None, **options):
    return AdversarialLoss(g or FormulaGenerator(), d or FormulaDiscriminator(), LossOptions(**options))


# ---------------------------------------------------------------------------------------------------------------------
# Small parts.

@pytest.mark.parametrize('sigma', [0.34, 1.0, 2.5])
def test_blur_kernel(sigma):
    half = math.floor(3 * sigma)
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[..., 20, 20] = 1
    taps = torch.tensor([2 ** -((t / sigma) ** 2) for t in range(-half, half + 1)])
    taps = taps / taps.sum()
    expected = torch.zeros(41, 41)
    expected[20 - half:21 + half, 20 - half:21 + half] = torch.outer(taps, taps)
    torch.testing.assert_close(blur(impulse, sigma)[0, 0], expected)


def test_blur_of_less_than_a_third_of_a_pixel_is_none():
    x = torch.randn(1, 1, 4, 4)
    assert blur(x, 0.33) is x and blur(x, 0.0) is x


def test_neighbours():
    x = torch.arange(4000.0)[:, None].expand(-1, 3)
    assert (neighbours(x, 0.0) == x).all() and (neighbours(x, 1.0) == x.roll(1, 0)).all()
    some = neighbours(x, 0.3)
    swapped = (some != x).any(dim=1)
    assert swapped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (some[swapped] == x.roll(1, 0)[swapped]).all()                    # whole rows, never entries of them


def test_phases():
    assert loss_of(r1_gamma=0, r1_gamma_seg=0).phases() == [('Gmain', 'G', 1), ('Dmain', 'D', 1)]
    assert loss_of(d_reg_interval=8).phases()[-1] == ('Dreg', 'D', 8)
    regularised = AdversarialLoss(None, None, LossOptions(g_reg_interval=5), [DensityL1(1.0)])
    assert [phase[0] for phase in regularised.phases()] == ['Gmain', 'Greg', 'Dmain', 'Dreg']
    assert regularised.phases()[1] == ('Greg', 'G', 5)


# ---------------------------------------------------------------------------------------------------------------------
# Generator.

def test_generator_loss_by_hand(reported):
    g, d, batch = FormulaGenerator(), FormulaDiscriminator(wanted=('image',)), batch_of()
    loss_of(g, d).accumulate('Gmain', batch, STILL, gain=3.0)
    energy = batch.gen_z.square()[:, 0] * 3 * SIZE ** 2
    logits = energy * 0.25
    torch.testing.assert_close(reported['Loss/G/loss'][0][:, 0], F.softplus(-logits))
    # d softplus(-s)/d gain = -sigmoid(-s) * 2 s at gain 1, averaged over the batch, times the phase's gain
    torch.testing.assert_close(g.gain.grad, (-torch.sigmoid(-logits) * 2 * logits).mean() * 3)
    assert set(d.seen[0][0]) == {'image'} and (d.seen[0][1] == batch.gen_labels).all()


def test_camera_translation(reported):
    offset = torch.tensor([[0.1, 0.0, -0.2], [0.3, 0.0, 0.2], [0.2, 0.6, 0.0]])
    g, batch = FormulaGenerator(offset), batch_of()
    loss_of(g, trans_reg=10.0).accumulate('Gmain', batch, STILL)
    assert reported['Loss/G/trans_reg_loss'][0].item() == pytest.approx(10 * (0.2 ** 2 + 0.2 ** 2 + 0.0))
    camera = g.calls('synthesis')[0][1]
    torch.testing.assert_close(camera[:, [3, 7, 11]], batch.gen_labels[:, [3, 7, 11]] + offset)
    plain = FormulaGenerator()
    loss_of(plain, trans_reg=10.0).accumulate('Gmain', batch, STILL)
    assert len(reported['Loss/G/trans_reg_loss']) == 1 and (plain.calls('synthesis')[0][1] == batch.gen_labels).all()


def test_conditioning_swap_is_for_the_mapping_only():
    g, batch = FormulaGenerator(), batch_of()
    loss_of(g).accumulate('Gmain', batch, dataclasses.replace(STILL, gpc_swap_probability=1.0))
    (_, c, _), = g.calls('mapping')
    assert (c == batch.gen_labels.roll(1, 0)).all()
    assert (g.calls('synthesis')[0][1] == batch.gen_labels).all()


def test_background_swap():
    g, batch = FormulaGenerator(), batch_of()
    loss_of(g, bcg_reg_prob=1.0).accumulate('Gmain', batch, STILL)
    ws, *_, ws_bcg, _ = g.calls('synthesis')[0]
    assert (ws_bcg == ws.roll(1, 0)).all()
    loss_of(g).accumulate('Gmain', batch, STILL)
    assert g.calls('synthesis')[1][4] is None


def test_style_mixing():
    g, batch = FormulaGenerator(), batch_of()
    for _ in range(30):
        loss_of(g, style_mixing_prob=1.0).accumulate('Gmain', batch, STILL)
    cutoffs = set()
    for ws, *_ in g.calls('synthesis'):
        own = (ws == batch.gen_z[:, None]).all(dim=0).flatten().tolist()
        assert own == sorted(own, reverse=True) and own[0] and not own[-1]
        cutoffs.add(sum(own))
    assert cutoffs == {1, 2, 3}
    g.asked.clear()
    loss_of(g, style_mixing_prob=1e-9).accumulate('Gmain', batch, STILL)
    assert (g.calls('synthesis')[0][0] == batch.gen_z[:, None]).all()


def test_label_noise_follows_the_labels_spread():
    g, batch = FormulaGenerator(), batch_of(200)
    batch.gen_labels[:, 0] *= 100
    batch.gen_labels[:, 1] = 7.0
    loss_of(g, c_noise=0.5).accumulate('Gmain', batch, STILL)
    (_, c, _), = g.calls('mapping')
    difference = (c - batch.gen_labels).std(dim=0)
    assert difference[0].item() == pytest.approx(50, rel=0.25) and difference[1] == 0
    assert (g.calls('synthesis')[0][1] == batch.gen_labels).all()


def test_rendering_in_training_follows_the_schedule():
    g = FormulaGenerator()
    schedule = dataclasses.replace(STILL, neural_rendering_resolution=5, density_noise=0.7)
    loss_of(g, noise_mode='none').accumulate('Gmain', batch_of(), schedule)
    _, _, resolution, options, _, noise_mode = g.calls('synthesis')[0]
    assert resolution == 5 and noise_mode == 'none'
    assert options == dataclasses.replace(g.rendering, jitter=True, density_noise=0.7)
    assert g.rendering == RenderOptions()


def test_density_phase(reported):
    g, batch = FormulaGenerator(), batch_of()
    loss = AdversarialLoss(g, None, LossOptions(), [DensityL1(0.25, step=0.1)])
    loss.accumulate('Greg', batch, STILL, gain=4.0)
    slope = abs(batch.gen_z.mean().item())
    expected = 0.25 * slope * math.sqrt(3) * 0.1 * math.sqrt(2 / math.pi)
    assert reported['Loss/G/l1'][0].item() == pytest.approx(expected, rel=0.05)
    assert g.gain.grad.item() == pytest.approx(4 * expected, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# Discriminator.

def test_discriminator_loss_by_hand(reported):
    g, d, batch = FormulaGenerator(), FormulaDiscriminator(wanted=('image',)), batch_of()
    batch.images['image'].mul_(0.02)
    batch.gen_z.mul_(0.02)
    loss_of(g, d).accumulate('Dmain', batch, STILL, gain=2.0)
    fake = batch.gen_z.square()[:, 0] * 3 * SIZE ** 2 / 2
    real = batch.images['image'].square().sum(dim=[1, 2, 3]) / 2
    torch.testing.assert_close(reported['Loss/D/loss'][0][:, 0], F.softplus(fake / 2) + F.softplus(-real / 2))
    expected = (torch.sigmoid(fake / 2) * fake).mean() - (torch.sigmoid(-real / 2) * real).mean()
    torch.testing.assert_close(d.weight.grad, 2 * expected)
    assert g.gain.grad is None and g.calls('mapping')[0][2] is True           # the mean latent is followed here
    assert (d.seen[0][1] == batch.gen_labels).all() and (d.seen[1][1] == batch.labels).all()


def test_r1_by_hand(reported):
    """The gradient of weight / 2 * |x|^2 is weight * x."""
    d, batch = FormulaDiscriminator(), batch_of()
    loss = loss_of(d=d, r1_gamma=3.0, r1_gamma_seg=5.0)
    loss.accumulate('Dreg', batch, STILL, gain=16.0)
    reals = loss.reals(batch, STILL)
    squares = {name: x.square().sum(dim=[1, 2, 3]) for name, x in reals.items()}
    pictures = squares['image'] + squares['image_raw']
    torch.testing.assert_close(reported['Loss/r1_penalty'][0], pictures * 0.25)
    torch.testing.assert_close(reported['Loss/r1_penalty_seg'][0], squares['image_mask'] * 0.25)
    torch.testing.assert_close(reported['Loss/D/reg'][0], (pictures * 1.5 + squares['image_mask'] * 2.5) * 0.25)
    # d/d weight of weight^2 * S is 2 * weight * S
    torch.testing.assert_close(d.weight.grad, 16 * (pictures * 1.5 + squares['image_mask'] * 2.5).mean())


def test_r1_without_masks(reported):
    d, batch = FormulaDiscriminator(wanted=('image', 'image_raw')), batch_of()
    del batch.images['image_mask']
    loss_of(d=d, r1_gamma=2.0).accumulate('Dreg', batch, STILL)
    assert 'Loss/r1_penalty_seg' not in reported
    torch.testing.assert_close(reported['Loss/D/reg'], reported['Loss/r1_penalty'])


def test_reals_are_made_like_fakes():
    loss, batch = loss_of(), batch_of()
    sharp = loss.reals(batch, STILL)
    assert sharp['image_raw'].shape == (3, 3, 8, 8) and sharp['image_mask'].shape == (3, 1, 8, 8)
    assert sharp['image'] is batch.images['image']
    expected = F.interpolate(batch.images['image'], size=(8, 8), mode='bilinear', antialias=True)
    torch.testing.assert_close(sharp['image_raw'], expected)
    blurred = loss.reals(batch, dataclasses.replace(STILL, blur_sigma=1.0))
    torch.testing.assert_close(blurred['image_raw'], blur(expected, 1.0))
    assert (blurred['image_mask'] == sharp['image_mask']).all()                # masks keep their edges
    assert set(batch.images) == {'image', 'image_mask'}


def test_blur_is_for_reals_and_fakes_alike():
    d, batch = FormulaDiscriminator(), batch_of()
    loss_of(d=d).accumulate('Dmain', batch, dataclasses.replace(STILL, blur_sigma=1.0))
    (fake, _), (real, _) = d.seen
    flat = batch.gen_z[:, :, None, None].expand(3, 3, SIZE, SIZE)
    torch.testing.assert_close(fake['image'], blur(flat, 1.0))
    torch.testing.assert_close(real['image'], blur(batch.images['image'], 1.0))


def test_augmentation_sees_all_pictures_of_reals_and_fakes():
    d, batch, seen = FormulaDiscriminator(), batch_of(), []

    def augment(images):
        seen.append(set(images))
        return {name: -x for name, x in images.items()}

    loss = AdversarialLoss(FormulaGenerator(), d, LossOptions(), augment=augment)
    for phase, calls in (('Gmain', 1), ('Dmain', 2), ('Dreg', 1)):
        seen.clear()
        loss.accumulate(phase, batch, STILL)
        assert seen == [{'image', 'image_raw', 'image_mask'}] * calls
    assert (d.seen[2][0]['image'] == -batch.images['image']).all()


# ---------------------------------------------------------------------------------------------------------------------
# Regularisers of density.

BOX = dataclasses.make_dataclass('Generator', ['rendering'])(RenderOptions(box_warp=1.28))     # a voxel is 0.005
VOXEL = 0.005
MEAN_ABS_NORMAL = math.sqrt(2 / math.pi)


def test_l1_of_a_slope():
    loss = DensityL1(weight=3.0, step=0.02)(BOX, FormulaField(torch.tensor([3.0, 0.0, 4.0])))
    assert loss.item() == pytest.approx(3 * 5 * 0.02 * MEAN_ABS_NORMAL, rel=0.06)
    assert DensityL1(3.0)(BOX, FormulaField(torch.zeros(3))).item() == 0


def test_l1_step_may_be_a_voxel():
    loss = DensityL1(weight=1.0, step=None)(BOX, FormulaField(torch.tensor([0.0, 1.0, 0.0])))
    assert loss.item() == pytest.approx(VOXEL * MEAN_ABS_NORMAL, rel=0.06)


@pytest.mark.parametrize('detach', [True, False])
@pytest.mark.parametrize('slope, lowered', [(2.0, 2.0 * VOXEL), (-2.0, 0.0)])
def test_monotonic_of_a_slope(detach, slope, lowered):
    """Density that falls towards -z, from the face inwards, costs; density that rises does not."""
    loss = DensityMonotonic(0.5, detach)(BOX, FormulaField(torch.tensor([0.0, 0.0, slope])))
    assert loss.item() == pytest.approx(10 * lowered + 0.5 * 2 * VOXEL * MEAN_ABS_NORMAL, rel=0.06)


@pytest.mark.parametrize('detach', [True, False])
def test_only_the_deeper_point_learns_when_detached(detach):
    class Learning(FormulaField):
        def query(self, points, directions=None):
            self.values = super().query(points, directions).density.requires_grad_(True)
            return FieldSample(self.values, points)

    field, regulariser = Learning(torch.tensor([0.0, 0.0, 2.0])), DensityMonotonic(0.0, detach)
    kept = []
    regulariser.smooth = lambda generator, field: kept.append(field.values) or torch.zeros([])
    regulariser(BOX, field).backward()
    outer, inner = kept[0].grad.chunk(2, dim=1)
    assert (inner < 0).all()                                                    # the deeper density shall grow
    assert (outer == 0).all() if detach else (outer > 0).all()


def test_regularisers_by_name():
    assert [density_regularizer(name, 1.0).name for name in TYPES] == list(TYPES)
    assert density_regularizer('l1', 0.0) is None
    assert density_regularizer('l1', 1.0, p_dist=0.1, interval=7).interval == 7
    with pytest.raises(ValueError, match='tv'):
        density_regularizer('tv', 1.0)
