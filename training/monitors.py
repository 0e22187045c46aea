"""Watching a run: what goes wrong in training 3D heads, as figures per tick and plain sentences of warning.

Figures that need the generator (pose leak, the shape of faces, camera translations) come from a few fixed latents of the
moving average, once per tick; nothing here draws random numbers of the run, so a watched run and an unwatched one are the
same. The rest is arithmetic on statistics that the loss and the trainer report anyway.
"""

import contextlib
import math
import statistics
import time
from collections import Counter, defaultdict, deque
from typing import NamedTuple, Optional

import torch
from tqdm import tqdm

import camera_utils

IDENTITIES = 4               # heads rendered for the figures
OFFSETS = 64                 # latents and cameras whose translations are looked at
LEAK_YAW_DEG = 60.0          # the other camera that latents are conditioned on
MAX_RESOLUTION = 64          # pixels of those renderings
FACE_RADIUS = 0.6            # part of the head's mean radius in the picture that counts as face
HISTORY = 50                 # ticks that a rise is compared with
WARM_UP = 5                  # ticks before a rise can be called one


# ---------------------------------------------------------------------------------------------------------------------
# Figures.

class Stopwatch:
    """Mean seconds of named pieces of work, of this process; no part of a run's statistics, which are the same on any machine.
    On a GPU work is queued: single times are those of queueing, their mean over a tick is that of working."""

    def __init__(self, clock=time.perf_counter):
        self._clock, self._total, self._count = clock, Counter(), Counter()

    @contextlib.contextmanager
    def time(self, name):
        """Context whose seconds count as `name`, if it is not left by an exception."""
        start = self._clock()
        yield
        self._total[name] += self._clock() - start
        self._count[name] += 1

    def take(self):
        """{name: mean seconds} since the last call."""
        means = {name: total / self._count[name] for name, total in self._total.items()}
        self._total.clear()
        self._count.clear()
        return means


def face_concavity(depth, mask, labels):
    """How far the middle of each face lies behind its rim, in parts of the head's mean radius: [N], below 0 for a face that
    bulges towards the camera, above 0 for a hollow one, NaN where there is no head.

    depth [N, 1, R, R] world units along the ray, mask [N, 1, R, R] in 0..1, labels [N, 25] of frontal cameras. A paraboloid
    of revolution a + b x + c y + d r^2 is fitted to the depth of the visible surface within FACE_RADIUS of the mask's centre;
    its curvature d decides (the hollow-face ambiguity: shading and silhouette alone do not tell the two apart).
    """
    _, intrinsics = camera_utils.split_label(labels)
    size = depth.shape[-1]
    centre = (torch.arange(size, device=depth.device, dtype=torch.float64) + 0.5) / size
    v, u = torch.meshgrid(centre, centre, indexing='ij')                                    # [R, R]
    figures = []
    for image, alpha, k in zip(depth[:, 0].double(), mask[:, 0].double(), intrinsics.double()):
        x, y = (u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]
        planar = image / (1 + x.square() + y.square()).sqrt()       # along the camera's axis
        head = (alpha > 0.5) & planar.isfinite()
        if head.sum() < 16:
            figures.append(math.nan)
            continue
        radius = (head.sum() / math.pi).sqrt() / size               # of a disc as large as the mask, in image sizes
        du, dv = (u - u[head].mean()) / radius, (v - v[head].mean()) / radius
        face = head & (du.square() + dv.square() < FACE_RADIUS ** 2)
        columns = torch.stack([torch.ones_like(du), du, dv, du.square() + dv.square()], dim=-1)[face]
        curvature = torch.linalg.lstsq(columns, planar[face][:, None]).solution[3, 0]
        world_radius = radius / k[0, 0] * planar[face].mean()
        figures.append(float(-curvature * FACE_RADIUS ** 2 / world_radius))
    return torch.tensor(figures)


def pose_leak(images, turned):
    """How much heads change when only the camera that they are conditioned on does, in parts of how much they differ from
    one another: 0 for none; at 1 the camera matters as much as the person. NaN if the heads are all the same.

    images, turned [N, C, H, W]: the same N >= 2 latents under two conditioning cameras, seen from one."""
    num = images.shape[0]
    between = [(images[i] - images[j]).abs().mean() for i in range(num) for j in range(i)]
    return float((images - turned).abs().mean() / torch.stack(between).mean()) if torch.stack(between).mean() > 0 else math.nan


def translation(offsets):
    """(length of the mean, root of the mean squared distance from it) of camera translations [N, 3], world units."""
    mean = offsets.mean(dim=0)
    return float(mean.norm()), float((offsets - mean).square().sum(dim=1).mean().sqrt())


class Probe:
    """Fixed latents [N, z_dim] and cameras [K, 25] of a run, which stay the same from tick to tick."""

    def __init__(self, generator, cameras, seed):
        draw = torch.Generator().manual_seed(seed)
        self._z = torch.randn([OFFSETS, generator.z_dim], generator=draw).to(cameras.device)
        self._cameras = cameras[torch.randint(len(cameras), [OFFSETS], generator=draw).to(cameras.device)]

    @torch.no_grad()
    def measure(self, generator, resolution):
        """{name: number} of a generator that renders raw images of `resolution` pixels; figures that make no sense for it
        (no conditioning, no camera translation) are left out."""
        prior, device = generator.camera, self._cameras.device
        front = camera_utils.front_label(prior.pivot, prior.radius, prior.fov_deg, device)
        turned = camera_utils.label_from_yaw(LEAK_YAW_DEG, lookat=prior.pivot, radius=prior.radius, fov_deg=prior.fov_deg, device=device)
        seen = [self._views(generator, label, front, min(resolution, MAX_RESOLUTION)) for label in (front, turned)
                if label is front or _is_conditioned(generator)]
        depth, mask = (torch.cat([out[name] for out in seen[0]]) for name in ('image_depth', 'image_mask'))
        concavity = face_concavity(depth, mask, front.expand(len(depth), -1))
        figures = {'Monitor/alpha_coverage': float(mask.mean()), 'Monitor/face_concavity': float(concavity.nanmean())}
        if len(seen) > 1:
            figures['Monitor/pose_leak'] = pose_leak(*(torch.cat([out['image_raw'].clamp(-1, 1) for out in views]) for views in seen))
        offsets = generator.camera_offset(self._z, self._cameras)
        if offsets is not None:
            figures['Monitor/camera_mean'], figures['Monitor/camera_spread'] = translation(offsets)
        return figures

    def _views(self, generator, conditioning, camera, resolution):
        ws = generator.mapping(self._z[:IDENTITIES], conditioning.expand(IDENTITIES, -1)[:, :generator.c_dim])
        return [generator.synthesis(w[None], camera, resolution) for w in ws]       # one at a time: little memory


def _is_conditioned(generator):
    return generator.c_dim > 0 and not generator.c_gen_conditioning_zero


# ---------------------------------------------------------------------------------------------------------------------
# Rules.

class Rule(NamedTuple):
    """When a statistic's mean is worth a sentence: below `low`, above `high`, or more than `rise` times its median so far, for
    `patience` ticks in a row. In `text` {value} and {usual} are filled in."""
    statistic: str
    text: str
    low: Optional[float] = None
    high: Optional[float] = None
    rise: Optional[float] = None
    patience: int = 1
    needs: str = ''                  # attribute of the generator without which the rule makes no sense

    def warning(self, value, history):
        """The sentence, or None. `history`: the means of earlier ticks."""
        usual = statistics.median(history) if len(history) >= WARM_UP else math.nan
        is_broken = ((self.low is not None and value < self.low) or (self.high is not None and value > self.high)
                     or (self.rise is not None and usual > 0 and value > self.rise * usual))
        return self.text.format(value=value, usual=usual) if is_broken else None


RULES = (
    Rule('Monitor/real_fake_gap', high=12.0,
         text='The discriminator tells real from fake too easily (gap {value:.1f}): raise --gamma, or give --aug=ada if images are few.'),
    Rule('Monitor/real_fake_gap', low=-1.0,
         text='The discriminator takes fakes for more real than the reals (gap {value:.1f}): check the images, or raise --dlr.'),
    Rule('Loss/r1_penalty', rise=30.0,
         text='The discriminator has become steep (R1 {value:.3g}, usually {usual:.3g}): raise --gamma, or lower --dlr.'),
    *(Rule(f'Gradients/{phase}', rise=30.0,
           text=f'Gradients of phase {phase} have grown ({{value:.3g}}, usually {{usual:.3g}}): lower --{flag}.')
      for phase, flag in (('Gmain', 'glr'), ('Greg', 'glr'), ('Dmain', 'dlr'), ('Dreg', 'dlr'))),
    *(Rule(f'Gradients/{phase}', low=1e-9,
           text=f'No gradient reaches {whose} (norm {{value:.1g}} in {phase}): go back to an earlier snapshot with a smaller --{flag}.')
      for phase, whose, flag in (('Gmain', 'the generator', 'glr'), ('Dmain', 'the discriminator', 'dlr'))),
    Rule('Progress/skipped_steps', high=0.05,
         text='{value:.0%} of the updates were not finite and skipped: lower --glr and --dlr, or the number of --*_num_fp16_res.'),
    Rule('Monitor/alpha_coverage', low=0.05, patience=2,
         text='Heads are vanishing (they cover {value:.0%} of the picture): check the masks, lower --density_reg, or go back to an '
              'earlier snapshot.'),
    Rule('Monitor/alpha_coverage', high=0.95, patience=2, needs='bcg_synthesis',
         text='Heads fill the picture (they cover {value:.0%}), the background included: check the masks, raise --gamma_seg, or give '
              '--bcg_reg_prob.'),
    Rule('Monitor/pose_leak', high=0.7, patience=5,
         text='The identity follows the conditioning camera (pose leak {value:.2f}, 1 is another person): raise --gpc_reg_prob.'),
    # A network that has seen little has no shape yet, and its first may be a dent.
    Rule('Monitor/face_concavity', high=0.05, patience=5,
         text='Faces are hollow (their middle lies {value:.2f} head radii behind the rim): check that labels have the right sign, '
              'start again with another --seed, or give --reg_type=monotonic-fixed.'),
    Rule('Monitor/camera_mean', high=0.15,
         text='All cameras move the same way (by {value:.2f} units), which only shifts the heads: raise --trans_reg.'),
    Rule('Monitor/camera_spread', high=0.4,
         text='Cameras scatter ({value:.2f} units), beyond the depths that are sampled: raise --trans_reg.'),
    Rule('Timing/data_share', high=0.3,
         text='Training waits for images {value:.0%} of the time: raise --workers, or move the images to a faster disk.'),
    Rule('Timing/step_sec', rise=2.0,
         text='Steps have become slow ({value:.2f} s, usually {usual:.2f} s): look for other programs on this machine, or for heat.'),
)
# Statistics on the console line, beside reporting.BRIEF_STATS: (statistic, short name).
BRIEF = (('Monitor/real_fake_gap', 'gap'), ('Gradients/Gmain', 'gradG'), ('Gradients/Dmain', 'gradD'), ('Monitor/alpha_coverage', 'alpha'),
         ('Monitor/pose_leak', 'leak'), ('Monitor/face_concavity', 'hollow'), ('Monitor/camera_mean', 'shift'),
         ('Monitor/camera_spread', 'spread'), ('Timing/data_sec', 'data'), ('Timing/step_sec', 'step'))


def derived(stats):
    """{name: number} of figures that follow from others in `stats` {name: {'mean', ...}}."""
    def mean(name):
        return stats[name]['mean'] if name in stats else math.nan

    figures = {'Monitor/real_fake_gap': mean('Loss/scores/real') - mean('Loss/scores/fake'),
               'Timing/data_share': mean('Timing/data_sec') / mean('Timing/step_sec') if mean('Timing/step_sec') else math.nan}
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def _as_stats(figures):
    return {name: {'num': 1, 'mean': value, 'std': 0.0} for name, value in figures.items()}


class Monitors:
    """Watches one run, on rank 0: `tick` adds figures to a tick's statistics, `warn` says what is wrong with them.

    `generator` and `cameras` [K, 25] are the run's, `seed` chooses latents; `rules` may be others than RULES."""

    def __init__(self, generator, cameras, seed=0, rules=RULES):
        self._probe, self._rules = Probe(generator, cameras, seed), rules
        self._absent = {rule.needs for rule in rules if rule.needs and getattr(generator, rule.needs, None) is None}
        self._history = defaultdict(lambda: deque(maxlen=HISTORY))
        self._broken = Counter()         # ticks in a row, by rule

    def tick(self, stats, seconds, generator, resolution):
        """`stats` {name: {'num', 'mean', 'std'}} of a tick with `seconds` {name: mean} of its work, and with the monitors' figures
        of the moving average `generator`, at the raw resolution of now."""
        stats = {**stats, **_as_stats({f'Timing/{name}_sec': value for name, value in seconds.items()})}
        return {**stats, **_as_stats({**self._probe.measure(generator, resolution), **derived(stats)})}

    def warnings(self, stats):
        """Sentences on the tick's `stats`, at most one per statistic, which are remembered as usual from now on."""
        sentences = {}
        for rule in self._rules:
            value = stats.get(rule.statistic, {}).get('mean')
            if value is None or not math.isfinite(value) or rule.needs in self._absent:
                continue
            sentence = rule.warning(value, self._history[rule.statistic])
            self._broken[rule] = 0 if sentence is None else self._broken[rule] + 1
            if self._broken[rule] >= rule.patience:
                sentences.setdefault(rule.statistic, sentence)
        for statistic in {rule.statistic for rule in self._rules} & set(stats):
            if math.isfinite(stats[statistic]['mean']) and statistic not in sentences:
                self._history[statistic].append(stats[statistic]['mean'])
        return list(sentences.values())

    def warn(self, stats):
        """Write the warnings of a tick above the progress bar, and so into log.txt. Returns them."""
        sentences = self.warnings(stats)
        for sentence in sentences:
            tqdm.write(f'Warning: {sentence}')
        return sentences
