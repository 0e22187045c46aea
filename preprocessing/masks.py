"""Where masks come from when none is given: the built-in segmentation, rembg, a TorchScript file, or a function."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dnnlib import UserError
from preprocessing.segmentation import segment_head

MODEL_SIZE = 512              # what a TorchScript model is shown


@dataclasses.dataclass(frozen=True)
class Matting:
    """`function` (RGB picture uint8 [H, W, 3], landmarks [68, 2] or None) -> mask uint8 [H, W], 255 = head; None where no
    masks are wanted. `name` for messages."""
    name: str
    function: Callable | None

    def __call__(self, image, landmarks=None):
        """Mask uint8 [H, W] of a picture. Raises UserError if the function gives anything else."""
        mask = np.asarray(self.function(image, landmarks))
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise UserError(f'--matting {self.name}: gave {mask.dtype} {mask.shape}, wanted uint8 {image.shape[:2]}')
        return mask


def find_matting(matting):
    """Matting of what a user names: 'built-in', 'none', 'rembg', a TorchScript file, a function (picture) -> mask, or a
    Matting, which is returned. Raises UserError naming what is missing."""
    if isinstance(matting, Matting):
        return matting
    if callable(matting):
        return Matting(getattr(matting, '__name__', 'function'), lambda image, landmarks: matting(image))
    if matting == 'none':
        return Matting('none', None)
    if matting == 'built-in':
        return Matting('built-in', segment_head)
    if matting == 'rembg':
        return Matting('rembg', _rembg())
    return Matting(Path(matting).name, _torchscript(matting))


def _rembg():
    try:
        import rembg  # an extra: most do without it
    except ImportError as error:
        raise UserError(f"--matting rembg: {error}; install it with: pip install 'omnihead[matting]', or use --matting built-in") from error
    session = rembg.new_session('u2net_human_seg')
    return lambda image, landmarks: rembg.remove(image, session=session, only_mask=True)


def _torchscript(path):
    """Function of a TorchScript model: RGB [1, 3, 512, 512] in [0, 1] -> opacity [1, 1, h, w] in [0, 1], or a tuple or
    list whose last entry is that."""
    if not Path(path).is_file():
        raise UserError(f"--matting {path}: no such file; wanted 'built-in', 'rembg', 'none' or a TorchScript file")
    try:
        model = torch.jit.load(str(path), map_location='cpu').eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f'--matting {path}: not a TorchScript file ({str(error).splitlines()[0]}); see torch.jit.trace') from error

    @torch.no_grad()
    def apply(image, landmarks):
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        x = torch.nn.functional.interpolate(x, (MODEL_SIZE, MODEL_SIZE), mode='bilinear', align_corners=False, antialias=True)
        try:
            y = model(x)
        except RuntimeError as error:
            raise UserError(f'--matting {path}: fails on [1, 3, {MODEL_SIZE}, {MODEL_SIZE}]: {str(error).splitlines()[-1]}') from error
        y = y[-1] if isinstance(y, (tuple, list)) else y
        if not isinstance(y, torch.Tensor) or y.ndim != 4 or y.shape[:2] != (1, 1):
            raise UserError(f'--matting {path}: gives {tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__}, '
                            'wanted opacities [1, 1, h, w]')
        y = torch.nn.functional.interpolate(y.float(), image.shape[:2], mode='bilinear', align_corners=False)
        return (y[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    return apply
