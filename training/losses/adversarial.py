"""Adversarial training of a head generator: non-saturating loss with lazy R1 (StyleGAN2 1912.04958), conditioning swap
(EG3D 2112.07945, section 4.4), masks, background swap and camera regularisation (PanoHead 2303.13071, sections 3.1-3.4)."""

import dataclasses
from typing import Dict, Optional

import torch
import torch.nn.functional as F

from torch_utils import streams, training_stats
from torch_utils.misc import deviation_within_groups, grouped
from torch_utils.ops.conv_gradients import no_weight_gradients
from torch_utils.ops.resize import resize
from torch_utils.ops.upfirdn2d import filter2d


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one phase is given: real images with their labels, and latents with labels for the fakes."""
    images: Dict[str, torch.Tensor]   # image [N, 3, H, W] in [-1, 1], image_mask [N, 1, H, W] in [0, 1] where there are masks
    labels: torch.Tensor              # [N, c_dim] of the real images
    gen_z: torch.Tensor               # [N, z_dim]
    gen_labels: torch.Tensor          # [N, 25]
    gen_cond: Optional[Dict[str, torch.Tensor]] = None   # further inputs of the fakes, as the generator's cond_spec names them


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights and probabilities of the loss; images' gradients are penalised by r1_gamma, masks' by r1_gamma_seg."""
    r1_gamma: float = 10.0
    r1_gamma_seg: float = 10.0
    group_size: Optional[int] = None  # samples that count as one batch where a batch's mean or neighbours matter; None: all
    trans_reg: float = 0.0            # weight of the squared mean translation of the cameras of a group
    bcg_reg_prob: float = 0.0         # probability that a background is painted from a neighbour's latents
    style_mixing_prob: float = 0.0
    noise_mode: str = 'random'        # of the backbone's layers in training
    c_noise: float = 0.0              # noise on the generator's conditioning label, in deviations of each entry over the group
    g_reg_interval: int = 4
    d_reg_interval: int = 16


def neighbours(x, probability, group_size=None):
    """x [N, ...] with each item replaced by its neighbour's in the group (see misc.grouped) with that probability."""
    swap = streams.uniform([x.shape[0]] + [1] * (x.ndim - 1), x.device) < probability
    return torch.where(swap, grouped(x, group_size).roll(1, dims=0).reshape(x.shape), x)


def blur(x, sigma):
    """x [N, C, H, W] under the family's fading blur: kernel exp2(-(t / sigma)^2) out to 3 sigma; none below 1/3 pixel."""
    half_width = int(sigma * 3)
    if half_width <= 0:
        return x
    taps = torch.arange(-half_width, half_width + 1, device=x.device, dtype=torch.float32).div(sigma).square().neg().exp2()
    taps = taps / taps.sum()
    x = filter2d(x, taps[None, :])
    return filter2d(x, taps[:, None])


class AdversarialLoss:
    """Accumulates the gradients of every phase; sees a Generator and a Discriminator by their contracts only.

    `regularizers`: objects of losses.regularizers, called in the phase Greg. `augment`: callable on the dict of
    images, or None.
    """

    def __init__(self, generator, discriminator, options=LossOptions(), regularizers=(), augment=None):
        self.generator, self.discriminator = generator, discriminator
        self.options, self.regularizers, self.augment = options, tuple(regularizers), augment

    def phases(self):
        """(name, network, interval) of the phases of a step, in their order."""
        phases = [('Gmain', 'G', 1)]
        if self.regularizers:
            phases.append(('Greg', 'G', self.options.g_reg_interval))
        phases.append(('Dmain', 'D', 1))
        if self.options.r1_gamma or self.options.r1_gamma_seg:
            phases.append(('Dreg', 'D', self.options.d_reg_interval))
        return phases

    def accumulate(self, phase, batch, schedule, gain=1.0):
        """Add the gradients of `phase` for `batch`, times `gain`; `schedule` holds the step's values. Returns the loss, a
        tensor without gradient."""
        return getattr(self, f'_{phase}')(batch, schedule, gain).detach()

    def _latents(self, batch, schedule, update_emas=False):
        """ws, and the translation of the cameras or None, of a batch under the conditioning swap and style mixing."""
        g, group = self.generator, self.options.group_size
        c = batch.gen_labels
        if schedule.gpc_swap_probability > 0:
            c = neighbours(c, schedule.gpc_swap_probability, group)
        if self.options.c_noise > 0:
            c = c + streams.normal(c.shape, c.device) * deviation_within_groups(c, group) * self.options.c_noise
        ws = g.mapping(batch.gen_z, c, update_emas=update_emas)
        if self.options.style_mixing_prob > 0:
            num_ws = ws.shape[1]
            cutoff = 1 + int(streams.integers(num_ws - 1, [])) if streams.uniform([]) < self.options.style_mixing_prob else num_ws
            if cutoff < num_ws:
                other = g.mapping(streams.normal(batch.gen_z.shape, c.device), c)
                ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
        return ws, g.camera_offset(batch.gen_z, c)

    def fakes(self, batch, schedule, update_emas=False):
        """GeneratorOutput of the batch's latents, its camera_offset included."""
        g = self.generator
        ws, offset = self._latents(batch, schedule, update_emas)
        camera = batch.gen_labels if offset is None else g.move_camera(batch.gen_labels, offset)
        ws_bcg = neighbours(ws, self.options.bcg_reg_prob, self.options.group_size) if self.options.bcg_reg_prob > 0 else None
        options = dataclasses.replace(g.rendering, jitter=True, density_noise=schedule.density_noise)
        out = g.synthesis(ws, camera, schedule.neural_rendering_resolution, options, ws_bcg, self.options.noise_mode,
                          cond=batch.gen_cond)
        return dataclasses.replace(out, camera_offset=offset)

    def reals(self, batch, schedule):
        """Dict of the real images as the discriminator is to see them; raw image and mask are made as small as the fakes'."""
        images = dict(batch.images)
        images['image_raw'] = blur(resize(images['image'], schedule.neural_rendering_resolution), schedule.blur_sigma)
        if 'image_mask' in images:
            images['image_mask'] = resize(images['image_mask'], schedule.neural_rendering_resolution)
        return {name: images[name] for name in self.discriminator.wanted}

    def scores(self, images, labels, schedule):
        """Logits [N, 1] of images (dict or GeneratorOutput), blurred and augmented as the step asks."""
        images = {name: images[name] for name in self.discriminator.wanted}
        images['image'] = blur(images['image'], schedule.blur_sigma)
        if self.augment is not None:
            images = self.augment(images)
        return self.discriminator(images, labels)

    def _Gmain(self, batch, schedule, gain):
        fake = self.fakes(batch, schedule)
        logits = self.scores(fake, batch.gen_labels, schedule)
        training_stats.report('Loss/scores/fake', logits)
        training_stats.report('Loss/signs/fake', logits.sign())
        loss = F.softplus(-logits)
        training_stats.report('Loss/G/loss', loss)
        total = loss.mean()
        if self.options.trans_reg > 0 and fake.camera_offset is not None:
            # Cameras may move, but not all the same way: that would only shift the heads.
            mean = grouped(fake.camera_offset, self.options.group_size).mean(dim=0)                    # [groups, 3]
            trans_loss = mean.square().sum(dim=1).mean() * self.options.trans_reg
            training_stats.report('Loss/G/trans_reg_loss', trans_loss)
            training_stats.report('Camera/translation', fake.camera_offset.norm(dim=1))
            total = total + trans_loss
        training_stats.report('Mask/coverage', fake.image_mask.mean(dim=[1, 2, 3]))
        total.mul(gain).backward()
        return total

    def _Greg(self, batch, schedule, gain):
        ws, _ = self._latents(batch, schedule)
        field = self.generator.build_field(ws, batch.gen_cond, self.options.noise_mode)
        losses = [regularizer(self.generator, field) for regularizer in self.regularizers]
        for regularizer, loss in zip(self.regularizers, losses):
            training_stats.report(f'Loss/G/{regularizer.name}', loss)
        total = sum(losses)
        total.mul(gain).backward()
        return total

    def _Dmain(self, batch, schedule, gain):
        with torch.no_grad():
            fake = self.fakes(batch, schedule, update_emas=True)
        fake_logits = self.scores(fake, batch.gen_labels, schedule)
        training_stats.report('Loss/scores/fake', fake_logits)
        training_stats.report('Loss/signs/fake', fake_logits.sign())
        loss_fake = F.softplus(fake_logits)
        loss_fake.mean().mul(gain).backward()
        real_logits = self._report_real(self.scores(self.reals(batch, schedule), batch.labels, schedule))
        loss_real = F.softplus(-real_logits)
        loss_real.mean().mul(gain).backward()
        both = loss_fake.detach() + loss_real.detach()
        training_stats.report('Loss/D/loss', both)
        return both.mean()

    def _report_real(self, logits):
        training_stats.report('Loss/scores/real', logits)
        training_stats.report('Loss/signs/real', logits.sign())
        return logits

    def _Dreg(self, batch, schedule, gain):
        images = {name: x.detach().requires_grad_(True) for name, x in self.reals(batch, schedule).items()}
        logits = self._report_real(self.scores(images, batch.labels, schedule))
        with no_weight_gradients():
            gradients = torch.autograd.grad(logits.sum(), list(images.values()), create_graph=True)
        penalty = {name: x.square().sum(dim=[1, 2, 3]) for name, x in zip(images, gradients)}
        of_images = sum(x for name, x in penalty.items() if name != 'image_mask')
        training_stats.report('Loss/r1_penalty', of_images)
        loss = of_images * (self.options.r1_gamma / 2)
        if 'image_mask' in penalty:
            training_stats.report('Loss/r1_penalty_seg', penalty['image_mask'])
            loss = loss + penalty['image_mask'] * (self.options.r1_gamma_seg / 2)
        training_stats.report('Loss/D/reg', loss)
        loss.mean().mul(gain).backward()
        return loss.mean()
