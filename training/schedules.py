"""What changes in the course of training, as pure functions of the number of real images shown so far.

Blur and EMA as in StyleGAN3 / EG3D (2112.07945), swap probability and density noise as in PanoHead (2303.13071),
lazy regularisation as in StyleGAN2 (1912.04958, appendix B).
"""

from dataclasses import dataclass
from typing import Optional

REFERENCE_BATCH = 32       # the batch that fade lengths given "per batch" were chosen for


def fade(cur_nimg, fade_kimg):
    """Progress in [0, 1] of a fade over the first `fade_kimg` thousand images; 1 at once if that is 0."""
    if cur_nimg < 0 or fade_kimg < 0:
        raise ValueError(f'need cur_nimg >= 0 and fade_kimg >= 0, got {cur_nimg} and {fade_kimg}')
    return min(cur_nimg / (fade_kimg * 1000), 1.0) if fade_kimg > 0 else 1.0


def blur_sigma(cur_nimg, batch_size, fade_kimg, init_sigma=10.0):
    """Deviation in pixels of the blur of the discriminator's images: init_sigma -> 0 over fade_kimg * batch / 32 kimg."""
    return (1 - fade(cur_nimg, fade_kimg * batch_size / REFERENCE_BATCH)) * init_sigma


def gpc_swap_probability(cur_nimg, gpc_reg_prob, fade_kimg):
    """Probability that the mapping network is given a neighbour's label: 1 -> gpc_reg_prob over fade_kimg.
    None for gpc_reg_prob means never."""
    if gpc_reg_prob is None:
        return 0.0
    progress = fade(cur_nimg, fade_kimg)
    return (1 - progress) + progress * gpc_reg_prob


def neural_rendering_resolution(cur_nimg, initial, final=None, fade_kimg=0.0):
    """Side in pixels of the raw image: initial -> final linearly over fade_kimg, rounded. No final: initial throughout."""
    if final is None:
        return initial
    progress = fade(cur_nimg, fade_kimg)
    return round(initial * (1 - progress) + final * progress)


def density_noise(cur_nimg, fade_kimg):
    """Strength of the gaussian noise on densities: 1 -> 0 over fade_kimg, 0 throughout if that is 0."""
    return 1 - fade(cur_nimg, fade_kimg)


def ema_beta(cur_nimg, batch_size, half_life_kimg, rampup=0.05):
    """Weight of the old average in one step of the moving average. The half life grows with training up to
    half_life_kimg: it is at most `rampup` of the images seen; None = no such limit."""
    half_life = half_life_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, cur_nimg * rampup)
    return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0


def lazy_adam(lr, betas, interval):
    """(lr, betas) of Adam for a network whose regulariser runs every `interval` steps as a step of its own:
    both scaled by k / (k + 1) so that the pace is that of running both together. None or 0: unchanged."""
    if not interval:
        return lr, tuple(betas)
    ratio = interval / (interval + 1)
    return lr * ratio, tuple(beta ** ratio for beta in betas)


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of a run's schedules; kimg are thousands of images."""
    batch_size: int
    blur_init_sigma: float = 10.0
    blur_fade_kimg: float = 200.0
    gpc_reg_prob: Optional[float] = None
    gpc_reg_fade_kimg: float = 1000.0
    neural_rendering_resolution_initial: int = 64
    neural_rendering_resolution_final: Optional[int] = None
    neural_rendering_resolution_fade_kimg: float = 1000.0
    density_noise_fade_kimg: float = 0.0
    resumed: bool = False           # started from another run's networks: they have learned without the blur
    resume_blur: bool = False       # ... blur all the same

    def __post_init__(self):
        if self.batch_size < 1 or self.blur_init_sigma < 0:
            raise ValueError(f'need batch_size >= 1 and blur_init_sigma >= 0, got {self.batch_size}, {self.blur_init_sigma}')
        if self.gpc_reg_prob is not None and not 0 <= self.gpc_reg_prob <= 1:
            raise ValueError(f'gpc_reg_prob must lie in [0, 1], got {self.gpc_reg_prob}')
        sizes = (self.neural_rendering_resolution_initial, self.neural_rendering_resolution_final)
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f'neural rendering resolutions must be positive, got {sizes}')


@dataclass(frozen=True)
class Schedule:
    """The values of one training step, handed to losses as an argument."""
    blur_sigma: float
    gpc_swap_probability: float
    neural_rendering_resolution: int
    density_noise: float


def schedule_at(cur_nimg, config):
    """The `Schedule` after `cur_nimg` images under the `ScheduleConfig` config."""
    blurred = config.resume_blur or not config.resumed
    return Schedule(
        blur_sigma=blur_sigma(cur_nimg, config.batch_size, config.blur_fade_kimg, config.blur_init_sigma) if blurred else 0.0,
        gpc_swap_probability=gpc_swap_probability(cur_nimg, config.gpc_reg_prob, config.gpc_reg_fade_kimg),
        neural_rendering_resolution=neural_rendering_resolution(
            cur_nimg, config.neural_rendering_resolution_initial, config.neural_rendering_resolution_final,
            config.neural_rendering_resolution_fade_kimg),
        density_noise=density_noise(cur_nimg, config.density_noise_fade_kimg))
