"""One inversion from targets to a folder: resumed where it was interrupted, filmed, saved, seen all the way round."""

import dataclasses
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import PIL.Image
from tqdm import tqdm

from inference import images, inversion_files, shapes, trajectories
from inference.heads import load_head
from inference.inversion import invert
from inference.inversion_run import Journal
from inference.session import Session
from inference.video import video_writer
from torch_utils.misc import reuse_freed_memory, weights_digest
from training.networks.precision import set_precision
from training.snapshot import load_network

FRAME_EVERY = {'back': 4, 'latents': 4, 'generator': 20}     # steps of each stage that a frame of the film stands for
FRAMES_FOLDER = '.frames'


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What an inversion leaves beside its head: the film of the optimisation at `fps` frames a second (None: no film), a
    film all the way round of so many frames (0: none), a shape (None: none). `restart`: do not go on from an earlier run.
    `echo`: where lines for the user go."""
    fps: float | None = 30
    orbit_frames: int = 120
    shape: shapes.ShapeOptions | None = None
    shape_progress: Callable | None = None
    restart: bool = False
    progress: bool = True
    echo: Callable = lambda line: None


class Film:
    """Frames of the optimisation, target next to synthesis, kept as files so that an interrupted run loses none."""

    def __init__(self, folder, target, fresh):
        self._folder = folder / FRAMES_FOLDER
        self._target = images.to_uint8(target)[0]
        if fresh:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)

    def observe(self, stage, step, image):
        """Keep the picture [1, 3, R, R] of a step where it is its turn."""
        if step % FRAME_EVERY[stage] == 0:
            number = list(FRAME_EVERY).index(stage) * 10 ** 7 + step
            frame = np.concatenate([self._target, images.to_uint8(image)[0]], axis=1)
            images.save_png(self._folder / f'{number:09d}.png', frame)

    def finish(self, path, fps):
        """Write the film and remove the frames."""
        with video_writer(path, fps) as write:
            for frame in sorted(self._folder.glob('[0-9]*.png')):
                write(np.asarray(PIL.Image.open(frame)))
        shutil.rmtree(self._folder, ignore_errors=True)


def set_inversion_precision(generator, precision, device):
    """Set and return the precision an inversion computes in: as 'auto' stands for in inference, but without float16, whose
    small gradients vanish."""
    if precision == 'auto' and device.type == 'cuda':
        precision = 'tf32'
    return set_precision(generator, precision, device)


def invert_to_folder(network, device, targets, features, options, folder, outputs, settings, precision='auto'):
    """Find the head of `targets` with the network file `network` and write it to `folder`: what save_inversion writes, and
    proj.mp4, orbit.mp4 and geometry.* as `outputs` say. Returns the record (psnr_pre, psnr_post, ...), or that of an earlier
    run which did the same. `settings`: JSON values that go into the record beside the options."""
    folder = Path(folder)
    generator = load_network(network, 'G_ema', device)
    network_digest = weights_digest(generator)
    precision = set_inversion_precision(generator, precision, device)
    reuse_freed_memory()
    settings = {**settings, **dataclasses.asdict(options), 'precision': precision}
    digest = inversion_files.inversion_digest(network_digest, targets, {**settings, 'perceptual': features.description})
    earlier = inversion_files.finished_record(folder)
    state = folder / inversion_files.STATE_FILE
    if outputs.restart:
        state.unlink(missing_ok=True)
    elif earlier is not None and earlier.get('digest') == digest and not state.exists():
        outputs.echo(f'{folder}: was done before with these settings; --restart does it again')
        _show_missing(generator, folder, outputs)
        return earlier
    journal = Journal(state, digest)
    if journal.resumed:
        outputs.echo(f'{folder}: going on where an earlier run was interrupted')
    film = None if outputs.fps is None else Film(folder, targets[0].image, fresh=not journal.resumed)
    result = invert(generator, targets, features, options, film and film.observe, outputs.progress, journal)
    inversion_files.save_inversion(folder, generator, result, {
        'network': str(network), 'network_digest': network_digest, 'digest': digest, 'precision': precision,
        'perceptual': features.description,
        'targets': [Path(target.source).name for target in result.targets], 'settings': settings})
    if film is not None:
        film.finish(folder / 'proj.mp4', outputs.fps)
    _show(generator, result.ws, result.rendering, folder, outputs)
    journal.remove()
    return inversion_files.finished_record(folder)


def _show_missing(generator, folder, outputs):
    """What an earlier run did not leave of its head, and this one is asked for."""
    formats = () if outputs.shape is None else outputs.shape.formats
    shape = None if all((folder / f'geometry.{suffix}').exists() for suffix in formats) else outputs.shape
    outputs = dataclasses.replace(outputs, shape=shape, orbit_frames=0 if (folder / 'orbit.mp4').exists() else outputs.orbit_frames)
    if outputs.orbit_frames or shape is not None:
        head = load_head(folder / inversion_files.HEAD_FILE)
        rendering = head.use_on(generator)
        _show(generator, head.ws.to(next(generator.parameters()).device), rendering, folder, outputs)


def _show(generator, ws, rendering, folder, outputs):
    """The head `ws` [1, num_ws, w_dim] all the way round, and its shape."""
    if not outputs.orbit_frames and outputs.shape is None:
        return
    session = Session(generator, ws.device)
    session.options = rendering
    identity = session.identity(ws)
    if outputs.orbit_frames:
        labels = trajectories.orbit('Head', outputs.orbit_frames, session.camera())
        with video_writer(folder / 'orbit.mp4') as write:
            for label in tqdm(labels.split(1), desc='film', unit='frame', leave=False, disable=not outputs.progress):
                write(images.frames(session.view(identity, label))[0])
    if outputs.shape is not None:
        shapes.export_shape(session, identity, folder / 'geometry', outputs.shape,
                            *([] if outputs.shape_progress is None else [outputs.shape_progress]))
