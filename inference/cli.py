"""What the generation scripts share on the command line: options of the network, of latents, of pictures, of shapes."""

from pathlib import Path

import click
from tqdm import tqdm

from dnnlib import UserError
from dnnlib.cli import ByteSize, FiniteFloat, SeedRange, require_fast_option, trust_pickle_option
from inference import heads, shapes
from inference.images import IMAGE_MODES
from training.networks.precision import INFERENCE_PRECISIONS


class NameList(click.ParamType):
    """'mrc,glb' -> ('mrc', 'glb'), out of `choices`; a leading dot is forgiven, repeats are dropped."""
    name = 'names'

    def __init__(self, choices):
        self.choices = choices

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(part.strip().lstrip('.').lower() for part in value.split(',')))
        wrong = [name for name in names if name not in self.choices]
        if wrong:
            self.fail(f'{wrong[0]!r} is not one of {", ".join(self.choices)}', param, ctx)
        return names


def stack(options):
    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command
    return decorate


def network_options(outdir):
    """--network, --outdir, --device, --require-fast: which network, where its pictures go, and where it runs."""
    return stack([
        click.option('--network', metavar='PKL|URL|demo', required=True, help='Network file, address, or the one carried along.'),
        click.option('--outdir', metavar='DIR', default=outdir, show_default=True, help='Where the results go.'),
        click.option('--device', default='auto', show_default=True, help='Where the network runs: auto, cpu, cuda or mps.'),
        require_fast_option(),
        trust_pickle_option(),
    ])


def gpus_option():
    """--gpus: how many processes share the work."""
    return click.option('--gpus', type=click.IntRange(min=1), default=1, show_default=True,
                        help='Processes that share the work; torchrun decides itself.')


def precision_option():
    """--precision: the type that convolutions compute in."""
    return click.option('--precision', type=click.Choice(INFERENCE_PRECISIONS), default='auto', show_default=True,
                        help='Type the convolutions compute in; auto: the fastest whose pictures look the same.')


def latent_options(seeds):
    """--seeds, --trunc, --trunc-cutoff, --pose_cond, --fov-deg: which heads."""
    return stack([
        click.option('--seeds', type=SeedRange(), default=seeds, show_default=True, help='Seed numbers such as 0-3 or 1,5,9.'),
        click.option('--trunc', 'truncation_psi', type=FiniteFloat(), default=1, show_default=True,
                     help='Truncation psi: 0 is the average head, 1 the full variety.'),
        click.option('--trunc-cutoff', 'truncation_cutoff', type=click.IntRange(min=0), default=None,
                     help='Truncate only the first so many layers.  [default: all]'),
        click.option('--pose_cond', type=FiniteFloat(), default=90, show_default=True,
                     help='Horizontal angle in degrees of the camera the latents are conditioned on; 90 is the front.'),
        click.option('--fov-deg', type=FiniteFloat(min=1, max=170), default=None,
                     help="Angle of view.  [default: the network's own]"),
    ])


def latent_file_option():
    """--latent: heads from a file instead of from seeds."""
    return click.option('--latent', metavar='FILE', default=None,
                        help='The head.safetensors or projected_w.npz of projector.py instead of --seeds; --trunc does not act on '
                             'it. The first brings its changes of the network along, --network is the one it was found with.')


def read_latent(path):
    """(name, Head) of the file given as --latent, or ('seed', None) where none was: heads are numbered, and files called,
    after that name. Raises UserError if the file is not readable or --seeds is given too."""
    if path is None:
        return 'seed', None
    if click.get_current_context().get_parameter_source('seeds') is not click.core.ParameterSource.DEFAULT:
        raise UserError(f'--latent {path}: its heads come without seeds; leave out --seeds or --latent')
    return Path(path).stem, heads.load_head(path)


def picture_options():
    """--image_mode, --nrr, --sample_mult: what is rendered, and how finely."""
    return stack([
        click.option('--image_mode', type=click.Choice(IMAGE_MODES), default='image', show_default=True,
                     help='Full picture, its depth, or the picture before super-resolution.'),
        click.option('--nrr', type=click.IntRange(4, 1024), default=None,
                     help="Neural rendering resolution.  [default: the network's own]"),
        click.option('--sample_mult', type=FiniteFloat(min=0.1, max=64), default=1, show_default=True,
                     help='Factor on the number of depth samples of every ray.'),
    ])


def shape_options():
    """--shapes and how they are written."""
    return stack([
        click.option('--shapes', 'with_shapes', type=bool, default=False, show_default=True,
                     help='Write the shape of every seed too.'),
        click.option('--shape-format', 'shape_formats', type=NameList(shapes.FORMATS), default='mrc', show_default=True,
                     help=f'One or several of {", ".join(shapes.FORMATS)}, with commas.'),
        click.option('--shape-res', type=click.IntRange(8, 2048), default=512, show_default=True,
                     help='Points on a side of the grid.'),
        click.option('--level', type=FiniteFloat(), default=None, help='Density of the surface.  [default: found by itself]'),
        click.option('--max-mem', type=ByteSize(), default='2GB', show_default=True, help='Working memory for shapes.'),
    ])


def shape_progress(chunks):
    """Progress bar over the chunks of a shape's grid."""
    return tqdm(chunks, desc='shape', unit='chunk', leave=False)
