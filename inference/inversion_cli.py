"""The options of projector.py: which pictures, by which recipe, and what is left beside the head."""

import re

import click

from dnnlib import UserError
from dnnlib.cli import FiniteFloat
from inference.cli import stack
from inference.inversion_options import RECIPES

STEPS = {name: click.IntRange(least, 10 ** 6) for name, least in (('w', 1), ('g', 0))}


class Numbers(click.ParamType):
    """'0', '0,2,5' or '1-4' -> [numbers]."""
    name = 'numbers'

    def convert(self, value, param, ctx):
        if isinstance(value, list):
            return value
        numbers = []
        for part in str(value).split(','):
            match = re.fullmatch(r'\s*(\d{1,7})(?:-(\d{1,7}))?\s*', part)
            if not match or int(match[2] or match[1]) < int(match[1]):
                self.fail(f'{value!r} is not a number, nor a list such as 0,2,5 or 1-4', param, ctx)
            numbers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
        return numbers


def picture_options():
    """PHOTO ..., or --target_img and what belongs to it."""
    return stack([
        click.argument('photos', metavar='[PHOTO]...', nargs=-1),
        click.option('--target_img', metavar='PATH', default=None,
                     help='Instead of photos: folder or zip of cropped pictures with dataset.json, or one cropped picture.'),
        click.option('--target_seg', metavar='PATH', default=None,
                     help='Masks of photos or pictures: folder or zip, by the same names. The published recipes do not use them.'),
        click.option('--target_img_back', metavar='PATH', default=None,
                     help='For --recipe pso: pictures from behind in the same order, with dataset.json, data_rotate.json, or '
                          'neither: half a turn from the front.  [default: generated]'),
        click.option('--label', 'label_file', metavar='JSON', default=None,
                     help='Camera of one cropped picture: 25 numbers, or a dataset.json that names it.  '
                          '[default: dataset.json beside it]'),
        click.option('--idx', type=Numbers(), default='0', show_default=True,
                     help='Numbers of the pictures in name order, such as 0 or 0,2,5 or 1-4.'),
        click.option('--together', is_flag=True, help='All pictures show one person: find one head for them, the first leads. '
                     'Photos with a face tell how those without are cropped.'),
    ])


def photo_options():
    """How photographs are cropped."""
    return stack([
        click.option('--face', default='largest', show_default=True, help="Photos: which face, 'largest', 'all' or a number from "
                     'the left, from 0.'),
        click.option('--route', type=click.Choice(['auto', 'face', 'silhouette']), default='auto', show_default=True,
                     help="Photos: 'silhouette' crops by the mask and --yaw, and needs no face networks."),
        click.option('--yaw', type=FiniteFloat(-180, 180), default=None, help='Photos: degrees, 180 from behind.  [default: measured]'),
        click.option('--pitch', type=FiniteFloat(-90, 90), default=None, help='Photos: degrees.  [default: measured]'),
        click.option('--roll', type=FiniteFloat(-180, 180), default=None, help='Photos: degrees.  [default: measured]'),
        click.option('--angles', metavar='FILE', default=None, help='Photos: angles of single ones, CSV name,yaw,pitch,roll, or JSON.'),
        click.option('--weights', metavar='DIR', default=None, help='Photos: where the face networks are.  [default: the cache]'),
    ])


OF_PHOTOS = ('face', 'route', 'yaw', 'pitch', 'roll', 'angles', 'weights')
OF_CROPPED = ('label_file', 'idx')


def check_kind(photos):
    """Raise UserError if an option was given that only the other kind of pictures has: `photos`, or cropped ones."""
    context = click.get_current_context()
    others = OF_CROPPED if photos else OF_PHOTOS
    for parameter in context.command.params:
        # A back's number is among cropped pictures, whatever the front is.
        counts = parameter.name in others and not (parameter.name == 'idx' and context.params['target_img_back'])
        if counts and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            kind = 'cropped pictures (--target_img)' if photos else 'photographs'
            raise UserError(f'{parameter.opts[0]}: goes with {kind} only; leave it out')


def recipe_options():
    """--recipe and what may be changed in it."""
    return stack([
        click.option('--recipe', type=click.Choice(list(RECIPES)), default='omni', show_default=True,
                     help="'panohead' and 'pso' as published; 'omni': with the camera, the mask and bounded tuning."),
        click.option('--num-steps', '--num_steps', 'steps_w', type=STEPS['w'], default=None,
                     help='Steps looking for latents.  [default: the recipe\'s]'),
        click.option('--num-steps-pti', '--num_steps_pti', 'steps_g', type=STEPS['g'], default=None,
                     help='Steps tuning the generator; 0 leaves it as it is.  [default: the recipe\'s]'),
        click.option('--refine-camera', type=bool, default=None, help='Find the cameras too.  [default: with omni]'),
        click.option('--optimize-noise', is_flag=True, default=None, help="With panohead and pso: find the layers' noise too."),
        click.option('--keep', type=click.Choice(['best', 'last']), default=None,
                     help='Tuned weights that are written: of least loss, or the last, as published.  [default: best]'),
        click.option('--perceptual', metavar='PATH|URL|auto', default='auto', show_default=True,
                     help="TorchScript VGG16 that gives LPIPS features, as published; auto: the cache's, else a built-in "
                          'structural distance. The log says which.'),
        click.option('--seed', type=click.IntRange(0, 2 ** 32 - 1), default=None, help='Random seed.  [default: 666]'),
    ])


def output_options():
    """What is left beside the head."""
    return stack([
        click.option('--save-video', type=bool, default=True, show_default=True, help='Film the optimisation: proj.mp4.'),
        click.option('--fps', type=FiniteFloat(min=1, max=240), default=30, show_default=True, help='Frames a second of that film.'),
        click.option('--orbit-frames', type=click.IntRange(0, 10 ** 5), default=120, show_default=True,
                     help='Frames of orbit.mp4, once round the head; 0 for none.'),
        click.option('--restart', is_flag=True, help='Begin anew where an earlier run finished or was interrupted.'),
    ])
