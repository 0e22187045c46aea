"""Times a 48-frame 512x512 video of one head of the published PanoHead configuration, the encoding included.

    python benchmarks/video.py --reference

The published script runs the whole generator for every frame; of the plain variant REFERENCE_FRAMES are timed. Seconds are
those of one frame.
"""

import tempfile
from pathlib import Path

import harness
import torch

import camera_utils
from inference import images, trajectories
from inference.session import Session
from inference.video import video_writer
from torch_utils.misc import reuse_freed_memory
from training.networks.precision import set_precision

FRAMES, REFERENCE_FRAMES = 48, 6


def build(plain, options):
    """The work of a variant; see the top of this file."""
    device = torch.device(options.device)
    generator = harness.published_generator().to(device)
    set_precision(generator, 'float32' if plain else options.precision, device)
    if not plain:
        reuse_freed_memory()
    session = Session(generator, device)
    labels = trajectories.orbit('Head', REFERENCE_FRAMES if plain else FRAMES, generator.camera).to(device)
    z, front = torch.randn(1, 512, device=device), camera_utils.front_label(device=device)

    @torch.inference_mode()
    def film():
        ws = generator.mapping(z, front)
        frames = (generator.synthesis(ws, label) for label in labels.split(1)) if plain else \
            session.film(ws.expand(len(labels), -1, -1), labels)
        with tempfile.TemporaryDirectory() as folder, video_writer(Path(folder) / 'head.mp4') as write:
            for output in frames:
                write(images.frames(output)[0])
        return len(labels)

    return {'frame of a video': film}


@harness.command
def main(**options):
    """Time a 48-frame video."""
    harness.run('video', **options, size=512, frames=FRAMES, reference_frames=REFERENCE_FRAMES)


if __name__ == '__main__':
    main()
