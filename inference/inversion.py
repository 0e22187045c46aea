"""Pictures become a head: pivotal tuning inversion (2106.05744), as published for PanoHead (2303.13071) and PSO-HEAD, and
with the camera and the latents' distribution taken into account (recipe 'omni' of inference.inversion_options).

Stage 1 looks for the latents of the head; stage 2 holds them and tunes the generator's weights until the pictures come out.
A head may be given by several pictures: the backbone runs once a step, whatever their number.
"""

import dataclasses
import math

import torch

import camera_utils
from inference import noise_buffers, trajectories
from inference.camera_fit import CAMERA_SCALES, moved_cameras
from inference.heads import apply_deltas
from inference.inversion_options import freed_options, recipe_options
from inference.inversion_run import Look, Run, StageOptions, copied, new_adam, optimise
from inference.latent_space import latent_statistics
from inference.latents import conditioning
from inference.perceptual import squared_distances
from inference.targets import Target
from torch_utils.ops.resize import resize
from training.generators.base import GeneratorOutput
from training.volumetric_rendering.renderer import RenderOptions

TRUNCATION = 0.7             # of the heads that stage 1 may start from
LOSS_FLOOR = 1e-7            # below this a loss is as good as none
LOCALITY_SWING = 0.3         # radians that the cameras of the other views rise and fall
UNUSED = ('backbone.mapping.', 't_mapping.')     # parameters that latents at hand do without


@dataclasses.dataclass(frozen=True)
class Inversion:
    """What came out.

    The pivot ws [1, num_ws, w_dim]; the views with their targets and camera labels [V, 25] as they ended, the first one the
    reference; how they are rendered; the pictures [V, 3, R, R] of the generator before and after stage 2; the loss of every
    step of both stages; `deltas`: float16 changes of the generator's parameters by name, none without stage 2, and of the noise
    images that stage 1 moved.
    """
    ws: torch.Tensor
    targets: tuple
    labels: torch.Tensor
    rendering: RenderOptions
    pre: torch.Tensor
    post: torch.Tensor
    losses_w: list
    losses_g: list
    deltas: dict

    @property
    def label(self):
        """Camera [1, 25] of the first view."""
        return self.labels[:1]


# ---------------------------------------------------------------------------------------------------------------------
# Schedules, cameras, losses.

def learning_rate(t, options):
    """Rate of stage 1 at time t in [0, 1]."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / options.lr_ramp_down))
    return options.lr_w * down * min(1, t / options.lr_ramp_up)


def noise_factor(t, options):
    """Strength of stage 1's noise at time t in [0, 1], in deviations of the latents."""
    return options.noise_initial * max(0, 1 - t / options.noise_end) ** 2


def tuning_rate(t, options):
    """Rate of stage 2 at time t in [0, 1]."""
    if options.lr_g_ramp_down == 0:
        return options.lr_g
    return options.lr_g * (0.5 - 0.5 * math.cos(math.pi * min(1, (1 - t) / options.lr_g_ramp_down)))


@torch.no_grad()
def corrected_label(generator, z_mean, label):
    """The label [1, 25] with its camera moved by the generator's learned translation for the mean z [1, z_dim]."""
    offset = generator.camera_offset(z_mean, conditioning(generator, label))
    return label if offset is None else generator.move_camera(label, offset)


def inversion_rendering(generator, options):
    """RenderOptions of the generator with the near plane of `options` where its cameras are the published heads' and its
    rays start before that."""
    rendering = generator.rendering
    moved = (generator.camera.radius == camera_utils.HEAD_RADIUS and rendering.ray_start != 'auto'
             and rendering.ray_start < options.near_plane < rendering.ray_end)
    return dataclasses.replace(rendering, ray_start=options.near_plane) if moved else rendering


def render_views(generator, ws, labels, rendering):
    """GeneratorOutput of one head ws [1, num_ws, w_dim] from labels [V, 25]; its field and background are made once."""
    return generator.render(generator.build_field(ws), ws.expand(len(labels), -1, -1), labels, options=rendering, ws_bcg=ws)


def picture(render, *arguments):
    """Image of render(*arguments) as a saved head will show it, in inference mode, for training's layers round otherwise."""
    with torch.inference_mode():
        image = render(*arguments).image
    return image.clone()                # gradients may meet it


class ViewsLoss:
    """Distance of a GeneratorOutput of V views from their targets, weighed as `options` and the targets say."""

    def __init__(self, targets, features, options):
        self.images = torch.cat([target.image for target in targets])                              # [V, 3, R, R]
        self._encode, self._options = features.encode, options
        self._weights = self.images.new_tensor([target.weight for target in targets])
        self._masks = torch.stack([torch.ones_like(t.image[0, :1]) if t.mask is None else t.mask[0] for t in targets])
        self._has_mask = self.images.new_tensor([float(t.mask is not None) for t in targets])
        with torch.no_grad():
            self._features = features.encode(self.images)

    def of_views(self, out):
        """Distances [V], without the views' weights."""
        options, image = self._options, out.image
        if options.background < 1:       # what lies outside of a mask is drawn towards the target, and so counts for less
            inside = self._masks + (1 - self._masks) * options.background
            image = self.images + inside * (image - self.images)
        loss = (options.weight_photometric * (image - self.images).square().mean(dim=(1, 2, 3))
                + options.weight_perceptual * squared_distances(self._encode(image), self._features))
        if options.weight_mask > 0 and self._has_mask.any():
            mask = resize(self._masks, out.image_mask.shape[-1])
            loss = loss + options.weight_mask * self._has_mask * (out.image_mask - mask).square().mean(dim=(1, 2, 3))
        return loss

    def __call__(self, out):
        return (self._weights * self.of_views(out)).sum()

    def close(self, out, decibels):
        """Whether all pictures are that close to their targets."""
        return decibels > 0 and all(psnr(image, target) >= decibels for image, target in zip(out.image.detach(), self.images))


def psnr(image, target):
    """Peak signal to noise ratio in dB of images in [-1, 1], clamped to that range; equal ones have 106."""
    error = (image.clamp(-1, 1) - target).square().mean().item()
    return 10 * math.log10(4 / max(error, 1e-10))


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1.

def optimize_layers(render, loss_of, statistics, num_ws, options, run, noise=()):
    """(ws [1, num_ws, w_dim], losses): stage 1 as published, every layer free. `render`: ws -> GeneratorOutput; `noise`: leaves,
    noise images of the generator that are moved too."""
    ws = statistics.mean.repeat(1, num_ws, 1).requires_grad_(True)
    variables = [ws, *noise]
    adam = new_adam(variables, options.lr_w, options.adam_beta2)
    random = torch.Generator().manual_seed(options.seed)                       # of the CPU: the same noise on every device

    def evaluate(step):
        t = step / options.steps_w
        for group in adam.param_groups:
            group['lr'] = learning_rate(t, options)
        strayed = torch.randn(ws.shape, generator=random).to(ws.device) * (statistics.std * noise_factor(t, options))
        out = render(ws + strayed)
        loss = loss_of(out) + options.weight_prior * (ws - statistics.mean).square().mean()
        objective = loss + noise_buffers.WEIGHT * noise_buffers.noise_penalty(noise) if noise else loss
        return Look(objective, loss, out.image[:1])

    stage = StageOptions('latents', options.steps_w, patience=options.patience, last_look=False)
    losses = optimise(stage, variables, adam, evaluate, run, random, lambda: noise_buffers.standardise(noise))
    return ws.detach(), losses


@torch.no_grad()
def best_candidate(render, loss_of, statistics, num_ws, labels, options):
    """Latent [w_dim]: of the mean head and `options.candidates` sampled ones the one closest to the pictures."""
    mean = statistics.mean[0, 0]
    samples = mean + TRUNCATION * (statistics.samples[:options.candidates] - mean)
    candidates = [mean, *samples]
    losses = [loss_of(render(w.expand(1, num_ws, -1), labels)).item() for w in candidates]
    return candidates[min(range(len(losses)), key=losses.__getitem__)]


def optimize_whitened(render, loss_of, statistics, num_ws, labels, movable, options, run, stage='latents'):
    """(ws [1, num_ws, w_dim], labels [V, 25], losses): stage 1 in whitened coordinates. `render`: (ws, labels) ->
    GeneratorOutput; `movable` [V]: 1 for the cameras that may move.

    The objective is log(loss) + priors: the negative log posterior under noise of unknown strength, so that the priors hold
    a photograph that the generator cannot show, and leave alone a head that it can.
    """
    start = best_candidate(render, loss_of, statistics, num_ws, labels, options)
    latent = statistics.whiten(start)[None, None].requires_grad_(True)                              # [1, 1, K]
    layers = torch.zeros(1, num_ws, latent.shape[-1], device=start.device, requires_grad=True)
    moves = torch.zeros(len(labels), 6, device=start.device, requires_grad=True)
    units = moves.new_tensor(CAMERA_SCALES)
    variables = [latent, layers, moves] if options.refine_camera else [latent, layers]
    rates = (1.0, 0.25, options.lr_camera / options.lr_w)
    adam = new_adam([{'params': [v]} for v in variables], options.lr_w, options.adam_beta2)

    def placed(parted):
        ws = statistics.unwhiten(latent + layers if parted else latent.expand(-1, num_ws, -1))
        return ws, moved_cameras(labels, moves * movable[:, None]) if options.refine_camera else labels

    def evaluate(step):
        t = step / options.steps_w
        for group, rate in zip(adam.param_groups, rates):
            group['lr'] = rate * learning_rate(t, options)
        parted = t >= options.layers_from
        out = render(*placed(parted))
        loss = loss_of(out)
        prior = options.weight_prior * latent.square().mean() + options.weight_camera * (moves / units).square().mean()
        if parted:
            prior = prior + options.weight_layers * layers.square().mean()
        return Look((loss + LOSS_FLOOR).log() + prior, loss, out.image[:1])

    losses = optimise(StageOptions(stage, options.steps_w, 'best', options.patience), variables, adam, evaluate, run)
    with torch.no_grad():
        return *placed(True), losses


# ---------------------------------------------------------------------------------------------------------------------
# Stage 2.

class Locality:
    """Keeps a generator that is tuned to some views as it was from elsewhere: pictures of the pivot `ws` from `num` cameras
    all round are made beforehand, and one of them is compared at every step. The farther a camera is from the views, the
    more it counts (PTI's locality regularisation, equation 4 there, over cameras in the place of latents)."""

    def __init__(self, render, generator, labels, features, options):
        num = options.num_locality
        random = torch.Generator().manual_seed(options.seed)
        yaw = 360 * torch.arange(num) / num
        rise = LOCALITY_SWING * (2 * torch.rand(num, generator=random) - 1)
        cameras = trajectories.turned(generator.camera, yaw, math.pi / 2 + rise, trajectories.ORIGIN)
        order = torch.randperm(num, generator=random)
        self._labels = cameras[order].to(labels.device)
        targets = []
        for label in self._labels.split(1):
            with torch.no_grad():
                image = render(label).image
            directions = torch.nn.functional.normalize(torch.cat([label, labels])[:, [3, 7, 11]])
            nearest = (directions[1:] @ directions[0]).amax().item()
            targets.append(Target(image, label, '', '', weight=(1 - nearest) / 2))
        options = dataclasses.replace(options, weight_mask=0.0)
        self._losses = [ViewsLoss([target], features, options) for target in targets]

    def camera(self, step):
        """Label [1, 25] of the camera of a step."""
        return self._labels[step % len(self._labels)][None]

    def __call__(self, out, step):
        return self._losses[step % len(self._losses)](out)


def _row(out, start, stop):
    """GeneratorOutput of the views from `start` to `stop`."""
    return GeneratorOutput(*(getattr(out, name)[start:stop] for name in ('image', 'image_raw', 'image_depth', 'image_mask')))


def tune_generator(generator, render, loss_of, options, run, labels=None, locality=None):
    """(losses, deltas): stage 2, which changes the generator's parameters in place; `render`: labels -> GeneratorOutput.

    Besides the generator its parameters as they were and the best so far are held. `deltas`, by name, are float16, and the
    parameters end as what they were plus these, to the bit.
    """
    named = {name: p for name, p in generator.named_parameters() if not name.startswith(UNUSED)}
    base = copied(named.values(), None)
    size = sum(b.square().sum() for b in base).item()
    generator.requires_grad_(True)
    adam = new_adam(named.values(), options.lr_g, options.adam_beta2)
    num = None if labels is None else len(labels)

    def evaluate(step):
        for group in adam.param_groups:
            group['lr'] = tuning_rate(step / options.steps_g, options)
        cameras = labels if locality is None else torch.cat([labels, locality.camera(step)])
        out = render(cameras)
        views = out if locality is None else _row(out, 0, num)
        objective = loss = loss_of(views)
        if locality is not None:
            objective = objective + options.weight_locality * locality(_row(out, num, None), step)
        return Look(objective, loss, views.image[:1], loss_of.close(views, options.enough_psnr), pull)

    @torch.no_grad()
    def pull():
        """Gradient of weight_drift * sum of (p - b)^2 / size; of parameters that no picture depends on it is 0."""
        for p, b in zip(named.values(), base, strict=True) if options.weight_drift > 0 else ():
            if p.grad is not None:
                p.grad.add_(p - b, alpha=2 * options.weight_drift / size)

    try:
        losses = optimise(StageOptions('generator', options.steps_g, options.keep, options.patience), list(named.values()), adam,
                          evaluate, run)
    finally:
        adam.zero_grad(set_to_none=True)
        generator.requires_grad_(False)
    deltas = {name: (p - b).half() for (name, p), b in zip(named.items(), base, strict=True) if not torch.equal(p, b)}
    with torch.no_grad():
        for (name, p), b in zip(named.items(), base, strict=True):
            if name in deltas:
                p.copy_(b + deltas[name])
    return losses, deltas


# ---------------------------------------------------------------------------------------------------------------------
# The whole.

def generated_back(generator, target, label, statistics, features, options, run):
    """Image [1, 3, R, R] and label [1, 25] of the head from behind: the most likely head for the picture, of one latent and
    from the camera given, is looked for, and the untuned generator shows it from the other side."""
    search = recipe_options('omni', steps_w=options.steps_w, refine_camera=False, layers_from=1.0, near_plane=options.near_plane,
                            seed=options.seed)
    rendering = inversion_rendering(generator, search)

    def render(ws, labels):
        return render_views(generator, ws, labels, rendering)

    ws, _, _ = optimize_whitened(render, ViewsLoss([target], features, search), statistics, generator.num_ws, label,
                                 label.new_zeros(1), search, run, 'back')
    back = camera_utils.half_turn_label(target.label)
    with torch.no_grad():
        return {'image': render(ws, back).image.clamp(-1, 1), 'label': back}


def _stage(run, name, num_steps, compute, repeat=None):
    """What compute() gives, a dict, unless an earlier run has finished that stage: then `repeat` makes its changes again."""
    result = run.journal.finished(name)
    if result is not None:
        run.begin(name, num_steps)
        if repeat is not None:
            repeat(result)
        return result
    return run.journal.finish(name, compute())


def invert(generator, targets, features, options, observe=None, progress=False, journal=None):
    """The Inversion of one or several Targets (see inference.targets) of one head, on the generator's device.

    The generator's parameters are TUNED IN PLACE: no second one is kept. `features`: see inference.perceptual.
    `observe(stage, step, image)` is told every step's picture; `progress` shows a bar with the time left; `journal`:
    where an interrupted inversion goes on from. On the CPU the same seed gives the same bits. Raises UserError if a picture
    is not finite.
    """
    targets = [targets] if isinstance(targets, Target) else list(targets)
    device = targets[0].label.device
    generator.requires_grad_(False)
    statistics = latent_statistics(generator, options.num_statistics, device, options.statistics_views)
    labels = torch.cat([corrected_label(generator, statistics.z_mean, t.label) if t.correct_camera else t.label for t in targets])
    rendering = inversion_rendering(generator, options)
    want_back = options.back == 'generated' and len(targets) == 1
    run = Run.over(options.steps_w * (2 if want_back else 1) + options.steps_g, journal, observe, progress)

    def render(ws, labels):
        return render_views(generator, ws, labels, rendering)

    with run.journal.interruptible():
        if want_back:
            back = _stage(run, 'back', options.steps_w, lambda: generated_back(generator, targets[0], labels, statistics,
                                                                              features, options, run))
            targets.append(Target(back['image'], back['label'], targets[0].name, 'generated', weight=options.weight_back,
                                  correct_camera=False).to(device))
            labels = torch.cat([labels, targets[1].label])
        loss_of = ViewsLoss(targets, features, options)
        movable = labels.new_tensor([float(target.correct_camera) for target in targets])

        def find_latents():
            if options.space == 'whitened':
                return dict(zip(('ws', 'labels', 'losses'), optimize_whitened(
                    render, loss_of, statistics, generator.num_ws, labels, movable, options, run)))
            with noise_buffers.freed(generator, options.seed, options.optimize_noise) as noise:
                ws, losses = optimize_layers(lambda ws: render(ws, labels), loss_of, statistics, generator.num_ws, options, run,
                                             noise.images)
            return {'ws': ws, 'labels': labels, 'losses': losses, 'noise': noise.deltas}
        found = _stage(run, 'latents', options.steps_w, find_latents, lambda done: apply_deltas(generator, done.get('noise', {})))
        ws, labels = found['ws'].to(device), found['labels'].to(device)
        pre = post = picture(render, ws, labels)
        tuned = {'losses': [], 'deltas': {}}
        if options.steps_g > 0:
            freed = freed_options(options, min(psnr(image, target) for image, target in zip(pre, loss_of.images)))
            tuned = _tuned(generator, lambda labels: render(ws, labels), loss_of, features, labels, freed, run)
            post = picture(render, ws, labels)
    if run.bar is not None:
        run.bar.close()
    deltas = {**found.get('noise', {}), **tuned['deltas']}
    return Inversion(ws, tuple(targets), labels, rendering, pre, post, found['losses'], tuned['losses'], deltas)


def _tuned(generator, render, loss_of, features, labels, options, run):
    """Losses and deltas of stage 2, by this run or an earlier one; the generator is changed either way."""
    def tune():
        locality = Locality(render, generator, labels, features, options) if options.weight_locality > 0 else None
        losses, deltas = tune_generator(generator, render, loss_of, options, run, labels, locality)
        return {'losses': losses, 'deltas': deltas}
    return _stage(run, 'generator', options.steps_g, tune, lambda done: apply_deltas(generator, done['deltas']))
