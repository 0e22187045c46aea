"""Pictures: from what a generator gives to uint8 arrays, strips, grids and PNG files."""

import numpy as np
import torch
from PIL import Image

from dnnlib import UserError
from dnnlib.util import written_whole
from torch_utils.ops.resize import resize

IMAGE_MODES = ('image', 'image_depth', 'image_raw')


def to_uint8(image):
    """uint8 [N, H, W, C] of images [N, C, H, W] in [-1, 1]; values outside are clamped."""
    return (image.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def depth_to_image(depth, depth_range=None):
    """Images [N, 1, H, W] in [-1, 1] of depths [N, 1, H, W]: near is white, far is black, scaled to `depth_range`
    (nearest, farthest), what lies beyond being clamped, or else to every frame's own range. Depths that are not finite
    are black; a frame of one depth is black where it is scaled to itself."""
    near = -depth.float()
    finite = near.isfinite()
    if depth_range is not None:
        nearest, farthest = depth_range
        return torch.where(finite, ((near + farthest) / (farthest - nearest)).clamp(0, 1), 0) * 2 - 1
    far_value = near.masked_fill(~finite, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    near_value = near.masked_fill(~finite, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    scaled = (near - far_value) / (near_value - far_value).clamp_min(1e-8)
    return torch.where(finite, scaled, 0) * 2 - 1


def frames(output, mode='image', rgba=False, depth_range=None):
    """uint8 [N, H, W, 3 or 4] of a GeneratorOutput: its 'image', 'image_raw' or 'image_depth'.

    `rgba` adds the mask, resized to the picture, as alpha; `depth_range` is that of depth_to_image.
    Raises UserError if the generator gives no mask.
    """
    image = depth_to_image(output['image_depth'], depth_range) if mode == 'image_depth' else output[mode]
    if image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    if rgba:
        mask = output['image_mask']
        if mask is None:
            raise UserError('--rgba: this network gives no mask; leave the flag out')
        alpha = resize(mask.float(), image.shape[-1])
        image = torch.cat([image.float(), alpha * 2 - 1], dim=1)
    return to_uint8(image)


def grid(cells, size):
    """One picture [rows * H, columns * W, C] of equally large pictures `cells` [K, H, W, C], row by row;
    `size` is (columns, rows) and K = columns * rows."""
    columns, rows = size
    cells = np.asarray(cells)
    _, height, width, channels = cells.shape
    cells = cells.reshape(rows, columns, height, width, channels)
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def strip(cells):
    """One picture [H, K * W, C] of the pictures `cells` [K, H, W, C], side by side."""
    return grid(cells, (len(cells), 1))


def save_png(path, picture):
    """Write uint8 [H, W, 3 or 4] as PNG. Raises UserError naming the file if that fails."""
    try:
        with written_whole(path) as temporary:
            Image.fromarray(picture).save(temporary)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error}; free some space or choose another --outdir') from error
