"""Videos: h264 in mp4, written frame by frame, whole or not at all."""

import contextlib
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from dnnlib import UserError
from dnnlib.util import written_whole

QUALITY_CRF = 16    # x264's constant rate factor: below 18 the eye sees no loss


def pad_to_even(frame):
    """`frame` [H, W, C] with its last row and column repeated where H or W is odd: h264 halves the colour planes."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')


@contextlib.contextmanager
def video_writer(path, fps=60):
    """Context giving `write(frame)` for uint8 frames [H, W, 3] of one size; the file `path` (.mp4) stands when it ends.

    Frames go to a file beside `path` that takes its name at the end. If the block is left by an exception or an
    interrupt, the encoder is closed, that file is removed, and a video that stood there before stays.
    Raises UserError if the encoder fails or no frame was written.
    """
    path = Path(path)
    encoder = None

    def write(frame):
        nonlocal encoder
        frame = np.ascontiguousarray(pad_to_even(frame))
        if encoder is None:
            encoder = imageio_ffmpeg.write_frames(
                str(partial), (frame.shape[1], frame.shape[0]), fps=fps, codec='libx264', quality=None,
                macro_block_size=1, ffmpeg_log_level='error',
                output_params=['-crf', str(QUALITY_CRF), '-bitexact', '-movflags', '+faststart'])
            encoder.send(None)
        encoder.send(frame)

    try:
        with written_whole(path) as partial:
            try:
                yield write
            finally:
                if encoder is not None:
                    encoder.close()
            if encoder is None:
                raise UserError(f'{path}: a video needs at least one frame')
            if partial.stat().st_size == 0:
                raise UserError(f'{path}: the encoder wrote nothing; free some space or choose another --outdir')
    except OSError as error:
        raise UserError(f'cannot write the video {path}: {error}; free some space or choose another --outdir') from error
