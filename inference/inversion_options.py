"""What an inversion may be told, and the recipes: PanoHead's and PSO-HEAD's as published, and this project's own.

The published recipes are pivotal tuning (2106.05744): 'panohead' as PanoHead (2303.13071) has it, 'pso' with a second view
from behind in both stages, as PSO-HEAD's pseudo-supervision. 'omni' finds one latent for all layers in whitened
coordinates together with the camera, lets the layers part late, and changes the generator no more than it must.
"""

import dataclasses

from dnnlib import UserError

SPACES = ('layers', 'whitened')
STATISTICS_VIEWS = ('front', 'front+back')
BACKS = ('none', 'generated')
FREED_SPAN = 10.0


@dataclasses.dataclass(frozen=True)
class InversionOptions:
    """The defaults are PanoHead's recipe. Times are fractions of stage 1, t = step / steps_w; weights are factors of mean
    squared errors of pictures in [-1, 1], of perceptual distances, and of mean squares of latents."""
    steps_w: int = 500                 # of stage 1
    steps_g: int = 500                 # of stage 2; 0 leaves the generator as it is
    lr_w: float = 0.1                  # peak
    lr_g: float = 3e-4
    lr_ramp_up: float = 0.05           # the rate grows linearly until this time
    lr_ramp_down: float = 0.25         # and falls along a cosine over this time at the end
    lr_g_ramp_down: float = 0.0        # the same of stage 2's rate; 0: constant
    noise_initial: float = 0.05        # of the latents' deviation, exploring
    noise_end: float = 0.75            # the time from which there is no noise
    weight_photometric: float = 0.1
    weight_perceptual: float = 1.0
    weight_prior: float = 1.0
    num_statistics: int = 10000        # latents that mean and deviation are taken from
    near_plane: float = 2.35           # rays of the head networks start here: no floaters close to the camera
    keep: str = 'best'                 # which weights stage 2 ends with: those of least loss, or the 'last' (published)
    seed: int = 666
    optimize_noise: bool = False       # the layers' noise images are found with the latents (published, there off too)
    # What only some recipes use.
    adam_beta2: float = 0.999
    space: str = 'layers'              # stage 1 moves: 'layers', a latent a layer; 'whitened', one latent, then the layers
    statistics_views: str = 'front'    # cameras that the statistics' latents are conditioned on, one after the other
    back: str = 'none'                 # a view from behind: 'generated' by the untuned network where no picture is given
    weight_back: float = 0.3           # of that view, of 1 for the picture
    candidates: int = 0                # heads that stage 1 may start from; 0: the mean head
    layers_from: float = 0.6           # 'whitened': the time from which layers may part
    weight_layers: float = 3.0         # 'whitened': pull of the layers on one another
    refine_camera: bool = False        # the cameras move with the latents
    lr_camera: float = 0.01            # of radians and world units
    weight_camera: float = 0.02        # pull of the cameras to where they were, in squares of CAMERA_SCALES
    weight_mask: float = 0.0           # of the mean squared error of the opacity, where there is a mask
    background: float = 1.0            # what pixels outside of a mask count for
    weight_locality: float = 0.0       # stage 2: of the picture loss from other cameras, against the untuned generator
    num_locality: int = 16             # those cameras
    freed_below_psnr: float = 0.0      # stage 2 is freed for pictures that stage 1 leaves farther than this, in dB; 0: never
    freed_by: float = 1.0              # then, from FREED_SPAN dB below on, the rate is this times as high, locality weighs as much less
    weight_drift: float = 0.0          # stage 2: of the mean squared change of the weights, relative to their size
    patience: int = 0                  # a stage ends after so many steps in which its loss fell by less than 1 %; 0: never
    enough_psnr: float = 0.0           # stage 2 ends where all pictures are this close, in dB; 0: never

    def __post_init__(self):
        if self.steps_w < 1 or self.steps_g < 0 or self.num_statistics < 2:
            raise UserError(f'--num-steps {self.steps_w}, --num-steps-pti {self.steps_g}: stage 1 takes at least 1 step, stage 2 '
                            f'none or more, the statistics at least 2 latents, got {self.num_statistics}')
        if self.optimize_noise and self.space != 'layers':
            raise UserError('--optimize-noise: goes with --recipe panohead and pso, whose first stage is the published one')
        for flag, value, choices in (('--keep', self.keep, ('best', 'last')), ('space', self.space, SPACES),
                                     ('statistics_views', self.statistics_views, STATISTICS_VIEWS), ('--back', self.back, BACKS)):
            if value not in choices:
                raise UserError(f'{flag} {value}: choose {" or ".join(map(repr, choices))}')


RECIPES = {
    'panohead': {},
    'pso': dict(weight_photometric=0.5, statistics_views='front+back', back='generated'),
    'omni': dict(
        steps_w=300, steps_g=200, lr_w=0.4, lr_g=1e-3, lr_ramp_down=0.9, lr_g_ramp_down=1.0, adam_beta2=0.99, noise_initial=0.0,
        space='whitened', candidates=64, weight_photometric=1.0, weight_perceptual=0.3, weight_prior=0.02, refine_camera=True,
        weight_mask=0.3, background=0.3, weight_locality=0.3, weight_drift=0.1, patience=100,
        enough_psnr=42.0, freed_below_psnr=30.0, freed_by=3.0),
}


def freed_options(options, decibels):
    """`options` with stage 2 as free as a picture needs that stage 1 brought so close: one of a head that the network knows is
    as good as done, a photograph it cannot show would stay a blur at the same rate and bounds."""
    far = min(max((options.freed_below_psnr - decibels) / FREED_SPAN, 0.0), 1.0)
    factor = options.freed_by ** far
    return dataclasses.replace(options, lr_g=options.lr_g * factor, weight_locality=options.weight_locality / factor)


def recipe_options(recipe, **changes):
    """InversionOptions of a recipe's name with `changes`; those that are None stay the recipe's. Raises UserError."""
    if recipe not in RECIPES:
        raise UserError(f'--recipe {recipe}: choose one of {", ".join(RECIPES)}')
    return InversionOptions(**{**RECIPES[recipe], **{name: value for name, value in changes.items() if value is not None}})
