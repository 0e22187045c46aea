"""A picture becomes a head: pivotal tuning inversion (2106.05744), losses and schedules as published for PanoHead (2303.13071).

Stage 1 looks for the latents of the head, one a layer, from the mean latent on; stage 2 holds them and tunes the
generator's weights until the picture comes out. The loss of both is
weight_photometric * mean squared error + weight_perceptual * perceptual distance at the target's camera; stage 1 adds
weight_prior * mean squared distance from the mean latent.
"""

import dataclasses
import json
import math

import numpy as np
import torch
from tqdm import tqdm

from camera_utils import HEAD_RADIUS
from dnnlib import UserError
from inference import images, latents, trajectories
from inference.perceptual import squared_distance
from training.snapshot import save_snapshot
from training.volumetric_rendering.renderer import RenderOptions

STATISTICS_SEED = 123       # of the published statistics, whatever the run's seed
STATISTICS_BATCH = 1000
ADAM_BETAS = (0.9, 0.999)


@dataclasses.dataclass(frozen=True)
class InversionOptions:
    """The published recipe. Times are fractions of stage 1, t = step / steps_w."""
    steps_w: int = 500                 # of stage 1
    steps_g: int = 500                 # of stage 2; 0 leaves the generator as it is
    lr_w: float = 0.1                  # peak
    lr_g: float = 3e-4                 # constant
    lr_ramp_up: float = 0.05           # the rate grows linearly until this time
    lr_ramp_down: float = 0.25         # and falls along a cosine over this time at the end
    noise_initial: float = 0.05        # of the latents' deviation, exploring
    noise_end: float = 0.75            # the time from which there is no noise
    weight_photometric: float = 0.1
    weight_perceptual: float = 1.0
    weight_prior: float = 1.0
    num_statistics: int = 10000        # latents that mean and deviation are taken from
    near_plane: float = 2.35           # rays of the head networks start here: no floaters close to the camera
    keep: str = 'best'                 # which weights stage 2 ends with: those of least loss, or the 'last' (published)
    seed: int = 666

    def __post_init__(self):
        if self.steps_w < 1 or self.steps_g < 0 or self.num_statistics < 2:
            raise UserError(f'--num-steps {self.steps_w}, --num-steps-pti {self.steps_g}: stage 1 takes at least 1 step, stage 2 '
                            f'none or more, the statistics at least 2 latents, got {self.num_statistics}')
        if self.keep not in ('best', 'last'):
            raise UserError(f"--keep {self.keep}: choose 'best' or 'last'")


@dataclasses.dataclass(frozen=True)
class Inversion:
    """What came out: the pivot ws [1, num_ws, w_dim], the corrected camera label [1, 25], how it is rendered, the pictures
    [1, 3, R, R] of the generator before and after stage 2, and the loss of every step of both stages."""
    ws: torch.Tensor
    label: torch.Tensor
    rendering: RenderOptions
    pre: torch.Tensor
    post: torch.Tensor
    losses_w: list
    losses_g: list


# ---------------------------------------------------------------------------------------------------------------------
# Schedules and statistics.

def learning_rate(t, options):
    """Rate of stage 1 at time t in [0, 1]."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / options.lr_ramp_down))
    return options.lr_w * down * min(1, t / options.lr_ramp_up)


def noise_factor(t, options):
    """Strength of stage 1's noise at time t in [0, 1], in deviations of the latents."""
    return options.noise_initial * max(0, 1 - t / options.noise_end) ** 2


@torch.no_grad()
def latent_statistics(generator, num, device):
    """(w_avg [1, 1, w_dim], w_std, z_avg [1, z_dim]) over `num` latents conditioned on the camera before the face.
    w_std is the root mean square length of w - w_avg, a float."""
    z = np.random.RandomState(STATISTICS_SEED).randn(num, generator.z_dim).astype(np.float32)
    z = torch.from_numpy(z).to(device)
    front = trajectories.turned(generator.camera, 0, pivot=trajectories.ORIGIN).to(device)
    c = latents.conditioning(generator, front)
    w = torch.cat([generator.mapping(rows, c.expand(len(rows), -1))[:, 0] for rows in z.split(STATISTICS_BATCH)])   # [num, w_dim]
    w_avg = w.mean(dim=0, keepdim=True)
    w_std = (w - w_avg).square().sum(dim=1).mean().sqrt().item()
    return w_avg[:, None], w_std, z.mean(dim=0, keepdim=True)


@torch.no_grad()
def corrected_label(generator, z_avg, label):
    """The label [1, 25] with its camera moved by the generator's learned translation for the mean z [1, z_dim]."""
    offset = generator.camera_offset(z_avg, latents.conditioning(generator, label))
    return label if offset is None else generator.move_camera(label, offset)


def inversion_rendering(generator, options):
    """RenderOptions of the generator with the near plane of `options` where its cameras are the published heads' and its
    rays start before that."""
    rendering = generator.rendering
    moved = (generator.camera.radius == HEAD_RADIUS and rendering.ray_start != 'auto'
             and rendering.ray_start < options.near_plane < rendering.ray_end)
    return dataclasses.replace(rendering, ray_start=options.near_plane) if moved else rendering


# ---------------------------------------------------------------------------------------------------------------------
# The two stages.

class PictureLoss:
    """Distance of images [1, 3, R, R] in [-1, 1] from the target, weighed as `options` say."""

    def __init__(self, target, features, options):
        self._target, self._encode, self._options = target, features.encode, options
        with torch.no_grad():
            self._features = features.encode(target)

    def __call__(self, image):
        photometric = (image - self._target).square().mean()
        perceptual = squared_distance(self._encode(image), self._features)
        return self._options.weight_photometric * photometric + self._options.weight_perceptual * perceptual


class _Steps:
    """Counts the steps of one stage: its bar, its losses, and word to the observer."""

    def __init__(self, stage, num, observe, progress):
        self.losses = []
        self._stage, self._observe = stage, observe
        self._bar = tqdm(range(num), desc=stage, unit='step', disable=not progress)

    def __iter__(self):
        return iter(self._bar)

    def note(self, step, loss, image):
        """Record a step. Raises UserError if its loss is not finite."""
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f'stage "{self._stage}": the loss is {value} at step {step}; the network renders no finite picture '
                            "at the target's camera: check the label, or choose another --network")
        self.losses.append(value)
        self._bar.set_postfix(loss=f'{value:.4f}', refresh=False)
        if self._observe is not None:
            self._observe(self._stage, step, image.detach())
        return value


def optimize_latents(render, loss_of, w_avg, w_std, num_ws, options, observe=None, progress=False):
    """(ws [1, num_ws, w_dim], losses): stage 1. `render`: ws -> image; `w_avg` [1, 1, w_dim] and `w_std` of
    latent_statistics."""
    ws = w_avg.repeat(1, num_ws, 1).requires_grad_(True)
    adam = torch.optim.Adam([ws], lr=options.lr_w, betas=ADAM_BETAS)
    random = torch.Generator().manual_seed(options.seed)                       # of the CPU: the same noise on every device
    steps = _Steps('latents', options.steps_w, observe, progress)
    for step in steps:
        t = step / options.steps_w
        for group in adam.param_groups:
            group['lr'] = learning_rate(t, options)
        noise = torch.randn(ws.shape, generator=random).to(ws.device) * (w_std * noise_factor(t, options))
        image = render(ws + noise)
        loss = loss_of(image) + options.weight_prior * (ws - w_avg).square().mean()
        steps.note(step, loss, image)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
    return ws.detach(), steps.losses


def tune_generator(generator, render, loss_of, options, observe=None, progress=False):
    """Losses of stage 2, which changes the generator's parameters in place; `render`: () -> image. The last of the losses
    is that of the weights the last step leaves. Besides the generator one copy of its parameters is held, the best so far."""
    parameters = list(generator.parameters())
    best_loss, best = math.inf, None
    steps = _Steps('generator', options.steps_g, observe, progress)
    generator.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=options.lr_g, betas=ADAM_BETAS)
    try:
        for step in steps:
            image = render()
            loss = loss_of(image)
            value = steps.note(step, loss, image)
            if options.keep == 'best' and value < best_loss:
                best_loss, best = value, _copied(parameters, best)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
    finally:
        adam.zero_grad(set_to_none=True)
        generator.requires_grad_(False)
    with torch.no_grad():
        image = render()
        last = steps.note(options.steps_g, loss_of(image), image)
        if best is not None and best_loss < last:
            _copied(best, parameters)
    return steps.losses


@torch.no_grad()
def _copied(source, destination):
    """`destination` with the values of the tensors of `source`; new tensors where it is None."""
    if destination is None:
        return [tensor.detach().clone() for tensor in source]
    for to, tensor in zip(destination, source, strict=True):
        to.copy_(tensor)
    return destination


def invert(generator, target, features, options, observe=None, progress=False):
    """The Inversion of a Target (see inference.targets) on the generator's device.

    The generator's parameters are TUNED IN PLACE: no second one is kept. `features`: see inference.perceptual.
    `observe(stage, step, image)` is told every step's picture; `progress` shows bars. On the CPU the same seed gives
    the same bits. Raises UserError if a picture is not finite.
    """
    generator.requires_grad_(False)
    w_avg, w_std, z_avg = latent_statistics(generator, options.num_statistics, target.label.device)
    label = corrected_label(generator, z_avg, target.label)
    rendering = inversion_rendering(generator, options)
    loss_of = PictureLoss(target.image, features, options)

    def render(ws):
        return generator.synthesis(ws, label, options=rendering).image

    ws, losses_w = optimize_latents(render, loss_of, w_avg, w_std, generator.num_ws, options, observe, progress)
    with torch.no_grad():
        pre = post = render(ws)
    losses_g = []
    if options.steps_g > 0:
        losses_g = tune_generator(generator, lambda: render(ws), loss_of, options, observe, progress)
        with torch.no_grad():
            post = render(ws)
    return Inversion(ws, label, rendering, pre, post, losses_w, losses_g)


# ---------------------------------------------------------------------------------------------------------------------
# Results.

def psnr(image, target):
    """Peak signal to noise ratio in dB of images in [-1, 1], clamped to that range; equal ones have 106."""
    error = (image.clamp(-1, 1) - target).square().mean().item()
    return 10 * math.log10(4 / max(error, 1e-10))


def save_inversion(folder, generator, inversion, target, settings):
    """Write into the folder, under the names the family's readers look for: projected_w.npz (`w`, and the corrected camera
    `c`), fintuned_generator.pkl (spelt as published), target.png, proj.png, and pre.png from before stage 2; settings.json
    holds `settings` (JSON values), losses and PSNR.

    The network in the file renders as the inversion did: its near plane is `inversion.rendering`'s.
    Raises UserError if a file cannot be written.
    """
    for name, image in (('target', target.image), ('pre', inversion.pre), ('proj', inversion.post)):
        images.save_png(folder / f'{name}.png', images.to_uint8(image)[0])
    record = {**settings, 'psnr_pre': psnr(inversion.pre, target.image), 'psnr_post': psnr(inversion.post, target.image),
              'losses_w': inversion.losses_w, 'losses_g': inversion.losses_g}
    try:
        np.savez(folder / 'projected_w.npz', w=inversion.ws.cpu().numpy(), c=inversion.label.cpu().numpy())
        (folder / 'settings.json').write_text(json.dumps(record), encoding='utf-8')
    except OSError as error:
        raise UserError(f'cannot write to {folder}: {error}; free some space or choose another --outdir') from error
    rendering = {**(generator.init_kwargs['rendering'] or {}), 'ray_start': inversion.rendering.ray_start}
    save_snapshot(folder / 'fintuned_generator.pkl', {'G_ema': generator}, overrides={'G_ema': {'rendering': rendering}})
