"""Pictures of synthetic heads: image, mask, depth and normals for any camera label, at any resolution."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from camera_utils import split_label
from training.synthetic.appearance import AO_REACH, backdrop_colour, cloth_colour, hair_colour, shade, skin_colour
from training.synthetic.cameras import pixel_centres
from training.synthetic.geometry import FAR, compact, pick, prepare, unit

# Offsets in pixels of the rays of one pixel; four are the corners of a rotated square, which smooths all edge directions.
SAMPLE_OFFSETS = {1: ((0.0, 0.0),),
                  2: ((-0.25, -0.25), (0.25, 0.25)),
                  4: ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))}
SHARED_BOUNDS_SIZE = 48  # from this many pixels on, the rays of one pixel are close enough to share their bounds
GLOSS = (1.0, 0.0, 1.6)  # strength of the highlight on skin, cloth, hair


@dataclass(frozen=True)
class SyntheticBatch:
    """Rendered heads. image [N, 3, H, W] in [-1, 1]; mask [N, 1, H, W] in [0, 1], the share of the pixel that is head;
    depth [N, 1, H, W] world units along the ray, infinite where mask is 0; normals [N, 3, H, W] unit vectors in world
    axes, 0 where mask is 0; identity [N] int64. Depth and normals are means over the rays of the pixel that hit."""
    image: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor
    normals: torch.Tensor
    identity: torch.Tensor


def camera_rays(labels, height, width, offset=(0.0, 0.0)):
    """(origin [N, 3], unit directions [N, 3, height * width], rows first) of labels [N, 25] in world axes; `offset`
    moves the rays within their pixels."""
    cam2world, intrinsics = split_label(labels)
    u, v = (grid.reshape(1, -1) for grid in pixel_centres(height, width, offset, labels.device))
    fx, skew, cx = (intrinsics[:, 0, i, None] for i in range(3))
    fy, cy = intrinsics[:, 1, 1, None], intrinsics[:, 1, 2, None]
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    direction = cam2world[:, :3, :3] @ torch.stack([x, y, torch.ones_like(x)], dim=1)
    return cam2world[:, :3, 3], unit(direction)


@torch.no_grad()
def render_heads(identities, labels, resolution=64, samples=4, images_per_chunk=None):
    """Render identity i through camera i.

    `identities`: Identities of N heads; `labels` [N, 25] on the same device; `resolution`: int or (width, height);
    `samples`: rays per pixel, 1, 2 or 4; `images_per_chunk`: heads in flight at once, by default 1 on a CPU (the arrays
    fit its cache) and 32 elsewhere. Returns a SyntheticBatch. Raises ValueError when numbers do not fit.
    """
    if labels.dim() != 2 or labels.shape[1] != 25 or len(labels) != len(identities):
        raise ValueError(f'labels must be [{len(identities)}, 25], one per identity, got {list(labels.shape)}')
    if samples not in SAMPLE_OFFSETS:
        raise ValueError(f'samples must be one of {sorted(SAMPLE_OFFSETS)}, got {samples}')
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if width < 1 or height < 1:
        raise ValueError(f'resolution must be positive, got {width}x{height}')
    chunk = images_per_chunk or (1 if labels.device.type == 'cpu' else 32)
    solid = prepare(identities.geometry)

    def render(start):
        part = slice(start, start + chunk)
        return _render_chunk(identities[part], solid[part], labels[part], width, height, samples)

    parts = _map_threads(render, range(0, len(identities), chunk), labels.device)
    columns = [torch.cat(column) for column in zip(*parts)] if parts else \
        [labels.new_zeros(0, c, height, width) for c in (3, 1, 1, 3)]
    return SyntheticBatch(*columns, identities.seeds)


def _map_threads(function, items, device):
    """map() over CPU threads, one chunk on each: its arrays are too small to be worth splitting. Elsewhere plain map().
    A chunk is always computed by one thread, so the number of threads never changes the result."""
    threads = torch.get_num_threads()
    if device.type != 'cpu' or threads == 1:
        return [function(item) for item in items]
    try:
        torch.set_num_threads(1)  # what the pool's threads start with
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _render_chunk(identities, solid, labels, width, height, samples):
    """(image, mask, depth, normals) of the heads of one chunk; `solid` is their prepared geometry."""
    hand = torch.ones(len(labels), 3, device=labels.device)
    hand[:, 0] = identities.handedness
    rays = [camera_rays(labels, height, width, offset) for offset in SAMPLE_OFFSETS[samples]]
    # Into head units, mirrored where the identity is; distances along the ray then are world units / scale.
    origin = rays[0][0] * hand / identities.scale[:, None]
    direction = torch.cat([ray[1] for ray in rays], dim=2) * hand[:, :, None]
    t = solid.trace(origin, direction, samples if min(width, height) >= SHARED_BOUNDS_SIZE else 1)
    hits = torch.isfinite(t)
    index = compact(hits)
    ray, depth = pick(direction, index), pick(t, index).clamp_max(FAR)
    colour, normal, step = _surface(identities, solid, origin, ray, depth)

    depth = (depth + step) * identities.scale[:, None]
    flat = torch.cat([colour, normal * hand[:, :, None], depth[:, None]], dim=1)  # [B, 7, L]
    # Slot M takes the padding of rows with fewer hits.
    sums = torch.zeros(len(labels), 7, direction.shape[2] + 1, device=labels.device)
    sums.scatter_(2, index[:, None].expand(-1, 7, -1), flat)
    sums = sums[..., :-1].reshape(len(labels), 7, samples, height, width).sum(2)
    count = hits.reshape(len(labels), 1, samples, height, width).sum(2)
    mask = count.to(sums.dtype) / samples
    backdrop = backdrop_colour(identities.backdrop, identities.handedness, height, width)
    image = sums[:, :3] / samples + (1 - mask) * backdrop
    depth = torch.where(count > 0, sums[:, 6:] / count.clamp_min(1), float('inf'))
    return image * 2 - 1, mask, depth, unit(sums[:, 3:6])


def _surface(identities, solid, origin, ray, depth):
    """(colours [B, 3, L], normals [B, 3, L], step [B, L]) where rays meet the surface; `step` is what remained of the way
    to it after `depth`."""
    near = torch.addcmul(origin[:, :, None], ray, depth[:, None])
    distances = solid.distances(near)
    normal = solid.normals(near, distances)
    # One step of Newton's method along the ray; at grazing incidence a plain step of the distance.
    step = distances.nearest / -(normal * ray).sum(1).clamp(-1, -0.3)
    p = torch.addcmul(near, ray, step[:, None])
    open_space = solid.distances(torch.add(p, normal, alpha=AO_REACH)).nearest
    occlusion = (open_space / AO_REACH).clamp(0, 1) * 0.45 + 0.55
    cloth = torch.minimum(distances.cloth, distances.collar)
    is_hair = distances.hair < torch.minimum(distances.skin, cloth)
    is_cloth = cloth < torch.minimum(distances.skin, distances.hair)
    paint = identities.paint
    albedo = torch.empty_like(p)
    for material, painter in ((~(is_hair | is_cloth), _paint_skin), (is_hair, _paint_hair), (is_cloth, _paint_cloth)):
        index = compact(material)
        if index.shape[1]:
            colour = painter(paint, index, p, normal, distances)
            padded = torch.cat([albedo, albedo[..., :1]], dim=2)
            albedo = padded.scatter_(2, index[:, None].expand_as(colour), colour)[..., :-1]
    gloss = torch.where(is_hair, GLOSS[2], torch.where(is_cloth, GLOSS[1], GLOSS[0]))
    return shade(identities.light, albedo, normal, -ray, occlusion, gloss), normal, step


def _paint_skin(paint, index, p, normal, distances):
    return skin_colour(paint, pick(p, index), pick(normal, index), pick(distances.carve, index))


def _paint_hair(paint, index, p, normal, distances):
    return hair_colour(paint, pick(p, index))


def _paint_cloth(paint, index, p, normal, distances):
    return cloth_colour(paint, pick(p, index), pick((distances.collar < distances.cloth).float(), index))
