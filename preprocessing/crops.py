"""The family's crop: quads from landmarks, their correction by the measured pose, and the cutting of pictures.

A quad is float64 [4, 2], corners top left, bottom left, bottom right, top right in pixels of the picture (x right, y down,
whole numbers at pixel centres). Half its side is 12 cm on an average head; the published crop shows it with a margin.
Source: PanoHead (2303.13071), section on data; the numbers are those of its published crops.
"""

import numpy as np
import PIL.Image
import scipy.ndimage

from dnnlib import UserError

WORKING_SIZE = 512
CROP_SIZE = 563                     # 512 and a margin of 5 % left and right, 10 % above
QUAD_LEFT, QUAD_TOP = 25, 51        # where the quad's first corner lies in the crop
QUAD_SPAN = 511                     # and how far the others are from it
MIN_QUAD_SIDE = 256                 # pixels of the picture
DOUBLED_BELOW = 1.2                 # pixels of the picture to one of the crop
MODEL_DEPTH = 37115.3               # half the mean depth of the face model: what the crop is centred on, micrometres
MODEL_HALF_SIDE = 1 / 2000          # S = 2000 * scale * side / 511
MAX_OFFSET, MIN_SCALE, MAX_SCALE = 1.0, 0.7, 1.3
MAX_YAW_DEG, MAX_PITCH_DEG, MAX_ROLL_DEG = 90, 80, 50


def quad_of_axes(centre, half_right, half_down):
    """Quad of its centre and the halves of its sides that point right and down, each [2]."""
    c, x, y = (np.asarray(v, dtype=np.float64) for v in (centre, half_right, half_down))
    return np.stack([c - x - y, c - x + y, c + x + y, c + x - y])


def axes_of_quad(quad):
    """(centre, half right, half down), the reverse of quad_of_axes."""
    quad = np.asarray(quad, dtype=np.float64)
    return quad.mean(axis=0), (quad[3] - quad[0]) / 2, (quad[1] - quad[0]) / 2


def upright_quad(centre, half_side, roll_deg=0.0):
    """Quad around `centre` (x, y) whose head stands upright after turning by `roll_deg`, clockwise in the picture."""
    angle = np.deg2rad(roll_deg)
    x = half_side * np.array([np.cos(angle), np.sin(angle)])
    return quad_of_axes(centre, x, [-x[1], x[0]])


def share_outside(quad, shape):
    """Share of the published crop of a quad that lies outside of a picture of `shape` (H, W, ...)."""
    grid = np.linspace(0, CROP_SIZE - 1, 64)
    points = crop_map(quad) @ np.stack([*(axis.ravel() for axis in np.meshgrid(grid, grid)), np.ones(64 * 64)])
    return float(np.mean((points[0] < -0.5) | (points[0] > shape[1] - 0.5) | (points[1] < -0.5) | (points[1] > shape[0] - 0.5)))


def quad_side(quad):
    """Length in pixels of a quad's shortest side."""
    return float(min(np.linalg.norm(quad[k] - quad[(k + 1) % 4]) for k in range(4)))


def quad_of_landmarks(landmarks):
    """First quad of 68 iBUG landmarks [68, 2]: from eyes and mouth, as FFHQ does it but with upright sides."""
    points = np.asarray(landmarks, dtype=np.float64)
    left, right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
    eyes = (left + right) / 2
    across, down = right - left, (points[48] + points[54]) / 2 - eyes
    x = across - np.array([-down[1], down[0]])
    length = np.linalg.norm(x)
    if not np.isfinite(length) or length < 1e-6:
        raise ValueError('the landmarks of eyes and mouth fall together')
    x *= max(2.0 * np.linalg.norm(across), 1.8 * np.linalg.norm(down)) / length
    return quad_of_axes(eyes + 0.1 * down, x, [-x[1], x[0]])


def crop_offset(projection, roi):
    """(tx, ty, S) of a projection [3, 4] measured in the working crop through the square `roi` (x1, y1, x2, y2): where the
    head's reference point lies, in half sides right and up, and how large the right quad is against this one."""
    side = roi[2] - roi[0]
    scale = (np.linalg.norm(projection[0, :3]) + np.linalg.norm(projection[1, :3])) / 2
    point = projection[:, 3] + projection[:, 2] * MODEL_DEPTH
    half = QUAD_SPAN / 2
    x = (point[0] - 1) * side / 120 + roi[0]
    y = (120 - point[1]) * side / 120 + roi[1]
    return (x - half) / half, -(y - half) / half, scale / MODEL_HALF_SIDE * side / QUAD_SPAN


def corrected_quad(quad, tx, ty, scale):
    """The quad moved by (tx, ty) half sides, right and up, and scaled; its turn stays."""
    c, x, y = axes_of_quad(quad)
    return quad_of_axes(c + tx * x - ty * y, scale * x, scale * y)


def _folded(index, length):
    """Indices mirrored into 0..length - 1 at the first and last one."""
    period = max(2 * (length - 1), 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros_like(index)


def warp(image, to_source, size, reflect=False):
    """Picture uint8 [size, size(, 3)] whose pixel (x, y) shows `image` uint8 [H, W(, 3)] at to_source of (x, y, 1): [2, 3], or
    [3, 3] for a change of perspective.

    What is shrunk is averaged over its area first. Outside is black, or mirrored with `reflect`.
    """
    matrix = np.eye(3)
    matrix[:len(to_source)] = to_source
    corners = matrix @ np.array([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1], [1, 1, 1, 1]], dtype=np.float64)
    if not (corners[2] > 1e-6).all():
        raise ValueError('the crop reaches behind the camera')
    corners = corners[:2] / corners[2]
    step = (np.linalg.norm(corners[:, 1] - corners[:, 0]), np.linalg.norm(corners[:, 2] - corners[:, 0]))
    reduce = max(int(min(step) / max(size - 1, 1)), 1)
    margin = 3 * reduce
    low = np.floor(corners.min(axis=1)).astype(int) - margin
    high = np.ceil(corners.max(axis=1)).astype(int) + margin + 1
    height, width = image.shape[:2]
    if reflect:
        part = image[_folded(np.arange(low[1], high[1]), height)][:, _folded(np.arange(low[0], high[0]), width)]
    else:
        part = np.zeros((high[1] - low[1], high[0] - low[0], *image.shape[2:]), dtype=image.dtype)
        inside = [slice(max(low[k], 0), min(high[k], (width, height)[k])) for k in range(2)]
        if inside[0].start < inside[0].stop and inside[1].start < inside[1].stop:
            part[inside[1].start - low[1]:inside[1].stop - low[1], inside[0].start - low[0]:inside[0].stop - low[0]] = \
                image[inside[1], inside[0]]
    picture = PIL.Image.fromarray(np.ascontiguousarray(part))
    # Pillow's cubic filter does not reproduce straight lines and shifts pictures: bilinear on a doubled picture does not.
    doubled = 2 if min(step) / max(size - 1, 1) < DOUBLED_BELOW else 1
    if reduce > 1:
        picture = picture.reduce(reduce)
    elif doubled == 2:
        picture = picture.resize((2 * picture.width, 2 * picture.height), PIL.Image.Resampling.LANCZOS)
    factor = doubled / reduce
    # From pixel centres at whole numbers to Pillow's, which lie at halves, and into the reduced part.
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    into = np.array([[factor, 0, factor * (0.5 - low[0])], [0, factor, factor * (0.5 - low[1])], [0, 0, 1]])
    matrix = into @ matrix @ half
    matrix /= matrix[2, 2]
    if len(to_source) == 2:
        how, coefficients = PIL.Image.Transform.AFFINE, matrix[:2]
    else:
        how, coefficients = PIL.Image.Transform.PERSPECTIVE, matrix
    return np.asarray(picture.transform((size, size), how, tuple(coefficients.ravel()[:8]), PIL.Image.Resampling.BILINEAR))


def working_crop(image, quad):
    """The quad's picture uint8 [512, 512, 3], black outside of `image` uint8 [H, W, 3]."""
    return warp(image, _quad_map(quad, 0, 0, WORKING_SIZE - 1), WORKING_SIZE)


def crop_map(quad):
    """float64 [2, 3]: pixel (x, y, 1) of the published crop -> pixel of the picture."""
    return _quad_map(quad, QUAD_LEFT, QUAD_TOP, QUAD_SPAN)


def _quad_map(quad, left, top, span):
    quad = np.asarray(quad, dtype=np.float64)
    right, down = (quad[2] - quad[1]) / span, (quad[1] - quad[0]) / span
    return np.stack([right, down, quad[0] - left * right - top * down], axis=1)


def quad_of_crop(to_source):
    """The quad of a map of crop_map's kind: where the published crop's inner square lies in the picture."""
    corners = np.array([[QUAD_LEFT, QUAD_TOP, 1], [QUAD_LEFT, QUAD_TOP + QUAD_SPAN, 1],
                        [QUAD_LEFT + QUAD_SPAN, QUAD_TOP + QUAD_SPAN, 1], [QUAD_LEFT + QUAD_SPAN, QUAD_TOP, 1]], dtype=np.float64)
    return corners @ np.asarray(to_source).T


def _box_blur(image, size):
    return scipy.ndimage.uniform_filter(image, size=(size, size) + (1,) * (image.ndim - 2), mode='mirror')


def final_crop(image, quad):
    """The published crop uint8 [563, 563, 3] of a quad in `image` uint8 [H, W, 3]: cut at double resolution, mirrored where
    the picture ends and there faded into its blur."""
    return faded_crop(image, crop_map(quad))


def faded_crop(image, to_source):
    """Like final_crop, of a map [2, 3] or [3, 3] from the crop's pixels to the picture's."""
    doubled = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])      # pixel centres of the doubled picture
    crop = np.asarray(PIL.Image.fromarray(warp(image, to_source @ doubled, 2 * CROP_SIZE, reflect=True)).reduce(2))
    valid = warp(np.full(image.shape[:2], 255, dtype=np.uint8), to_source, CROP_SIZE)
    if valid.min() == 255:
        return crop
    mask = _box_blur(valid.astype(np.float32) / 255, 21)[..., None]
    crop = crop.astype(np.float32)
    return (crop * mask + _box_blur(crop, 31) * (1 - mask)).round().clip(0, 255).astype(np.uint8)


def crop_mask(mask, quad):
    """uint8 [563, 563] of a mask uint8 [H, W] of the whole picture, 0 outside of it."""
    return warp(mask, crop_map(quad), CROP_SIZE)


def resized(image, size):
    """`image` uint8 [563, 563(, 3)] resized to size x size pixels (the whole crop: labels stay as they are)."""
    picture = PIL.Image.fromarray(image)
    how = PIL.Image.Resampling.LANCZOS if image.ndim == 3 else PIL.Image.Resampling.BOX if size < image.shape[0] \
        else PIL.Image.Resampling.BILINEAR
    return np.asarray(picture.resize((size, size), how))


def check_quad(quad):
    """Raise UserError if a quad is too small for the published crop or has no finite corners."""
    if not np.isfinite(quad).all():
        raise UserError('the crop has no finite corners')
    if quad_side(quad) < MIN_QUAD_SIDE:
        raise UserError(f'the head fills {quad_side(quad):.0f} pixels, wanted at least {MIN_QUAD_SIDE}')
