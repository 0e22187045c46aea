"""Times what torch.compile gains, beside the same work without it: a frame of the published 512 configuration or of 'demo'.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py --threads 1 --reference
    OMP_NUM_THREADS=1 python benchmarks/compiled.py --threads 1 --reference --network demo

'whole frame' and 'kept field' are those of frame.py. Variants, each in a process of its own with an empty cache of Inductor's:

'eager'    our code, or with --reference the plain published work, as frame.py times it;
'parts'    the backbone, the background and the super-resolution compiled, as our code stands;
'traced'   the same after `help_tracing`: every part is one graph, and our operators are calls in it;
'whole'    after `help_tracing` all of the frame is one graph, the rendering of the volume included.

The plain ones are called 'plain eager', 'plain traced' and 'plain whole'. `first_...` is the first call, which compiles: seconds of
the clock, and of the processor with those of the C++ compiler; 'again' is that of the next process, which finds the cache.
'break_even' is the number of frames whose gain pays for a first call, by processor time; null where none does.
"""

import contextlib
import dataclasses
import json
import math
import tempfile

import click
import harness
import torch

import camera_utils
from dnnlib import UserError
from inference.session import Session
from torch_utils import misc
from torch_utils.ops import native, winograd
from training.networks.precision import set_precision
from training.snapshot import load_network

WORKS = ('whole frame', 'kept field')
VARIANTS = {'eager': (False, ''), 'parts': (False, 'parts'), 'traced': (False, 'traced'), 'whole': (False, 'whole')}
PLAIN_VARIANTS = {f'plain {mode or "eager"}': (True, mode) for mode in ('', 'traced', 'whole')}
PARTS = ('backbone.synthesis', 'bcg_synthesis', 'superresolution')


def help_tracing():
    """Tell torch.compile what our code does not: that asking for the C++ operators has one answer, and what those without a
    fake kernel return."""
    torch.compiler.assume_constant_result(native.load_native)
    types = winograd.types()
    winograd.types = lambda: types
    fakes = {'winograd_convolve': _fake_convolution, 'upsample_add': _fake_upsample_add,
             'activate': lambda x, *_: _channels_last(x, x.shape)}
    for name, function in fakes.items() if native.load_native() else ():
        with contextlib.suppress(RuntimeError):   # it has one
            torch.library.register_fake(f'omnihead::{name}', function)


def _channels_last(x, size):
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_convolution(x, weight, upsampling, *rest):
    up, turned = (1 if upsampling is None else 2), rest[-1] is True
    size = x.shape[0], weight.shape[1 if turned else 0], x.shape[2] * up, x.shape[3] * up
    return _channels_last(x, size)


def _fake_upsample_add(image, taps, added):
    return _channels_last(image, added.shape)


def compile_parts(generator, **options):
    """Let the networks of a generator be compiled at their first call."""
    for name in PARTS:
        with contextlib.suppress(AttributeError):
            generator.get_submodule(name).compile(dynamic=False, **options)


def build(plain, options):
    """The one work that options.settings name, compiled as they say."""
    device, settings = torch.device(options.device), options.settings
    mode = settings['mode']
    generator = harness.published_generator().to(device) if settings['network'] == 'published' else \
        load_network(settings['network'], 'G_ema', device)
    set_precision(generator, 'float32' if plain else options.precision, device)
    frame = frame_of(generator, device, plain, settings['work'])
    if mode in ('traced', 'whole'):
        help_tracing()
    if mode == 'whole':
        frame = torch.compile(frame, fullgraph=True, dynamic=False)
    elif mode:
        compile_parts(generator, fullgraph=mode == 'traced')

    @torch.inference_mode()
    def call():
        frame()

    return {settings['work']: call}


def frame_of(generator, device, plain, work):
    """Function without arguments that makes the image of one frame; call it in inference mode."""
    z, label = torch.randn(1, generator.z_dim, device=device), camera_utils.front_label(device=device)
    session = Session(generator, device)
    if not plain:
        misc.reuse_freed_memory()
    with torch.inference_mode():
        ws = generator.mapping(z, label)
        identity = session.identity(ws)
        if plain:
            identity = dataclasses.replace(identity, background=None)    # painted for every frame

    def whole():
        ws = generator.mapping(z, label)
        return generator.render(generator.build_field(ws), ws, label, background=generator.background(ws)).image

    def kept():
        return generator.render(identity.field, identity.ws, label, background=identity.background).image

    return whole if work == 'whole frame' else kept


def timed(work, variants, options, repeats):
    """{variant: figures} of one work, the first calls of processes that find the caches included."""
    with tempfile.TemporaryDirectory() as folder:
        told = {}
        for name, (plain, mode) in variants.items():
            environ = {'TORCHINDUCTOR_CACHE_DIR': f'{folder}/{name.replace(" ", "-")}',   # g++ is told of it without quotes
                       'TORCHINDUCTOR_COMPILE_THREADS': str(options.threads)}
            settings = {**options.settings, 'work': work, 'mode': mode}
            told[name] = plain, dataclasses.replace(options, settings=settings, environ=environ)
        figures = harness.measure('compiled', told, repeats, keep_first=True)[work]
        compiled = {name: told[name] for name, (_, mode) in variants.items() if mode}
        again = harness.measure('compiled', compiled, 1, keep_first=True)[work] if compiled else {}
    for name, figure in again.items():
        figures[name].update({f'again_{key}': figure[f'first_{key}'] for key in ('wall_sec', 'cpu_sec')})
        compare(figures[name], figures.get('plain eager' if variants[name][0] else 'eager'))
    return figures


def compare(figure, eager):
    """Add to a variant's figures what it gains over the same without torch.compile, and when that pays for the first call."""
    if eager is None:
        return
    gain = eager['cpu_sec'] - figure['cpu_sec']
    figure['ratio'] = round(eager['cpu_sec'] / figure['cpu_sec'], 3)
    for key in ('first', 'again'):
        spent = figure[f'{key}_cpu_sec'] - figure['cpu_sec']
        figure[f'{key}_break_even'] = math.ceil(spent / gain) if gain > 0 else None


@harness.command
@click.option('--network', default='published', show_default=True, help="'published', 'demo' or a network file")
@click.option('--variants', default=None, help='Names of variants, by commas  [default: all]')
def main(network, variants, device, threads, precision, repeats, reference):
    """Time frames with and without torch.compile."""
    device = misc.resolve_device(device)
    known = {**VARIANTS, **(PLAIN_VARIANTS if reference else {})}
    names = list(known) if variants is None else variants.split(',')
    if unknown := [name for name in names if name not in known]:
        raise UserError(f'--variants {",".join(unknown)}: must be of {", ".join(known)}')
    chosen = {name: variant for name, variant in known.items() if name in names}
    options = harness.Options(str(device), threads or torch.get_num_threads(), precision, {'network': network})
    figures = {work: timed(work, chosen, options, repeats) for work in WORKS}
    click.echo(json.dumps({'benchmark': 'compiled', 'network': network, 'figures': figures, 'repeats': repeats, 'precision': precision,
                           **harness.environment(device, options.threads)}))


if __name__ == '__main__':
    main()
