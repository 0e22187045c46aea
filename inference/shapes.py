"""Shapes: the density of a field on a regular grid, the surface in it, and files of both.

A grid [X, Y, Z] of a box of side L has its first point at -L/2 and its last at +L/2 of every axis. Meshes are in world
units (y up, the face looks to +z), which is also what glTF viewers expect. The .mrc volume is laid out as the family's
are, with the first axis reversed: its x, y, z are the world's z, y, -x, a rotation and no mirror image.
"""

import dataclasses
import itertools

import mrcfile
import numpy as np
import scipy.ndimage
import skimage.measure
import torch
import trimesh

from dnnlib import UserError
from dnnlib.util import written_whole
from training.representations.base import Field

EMPTY_DENSITY = -1000.0       # of the border: below any level
BORDER_FRACTION = 30 / 256    # of the resolution, on each side: cameras of the family never see it
MAX_CHUNK_BYTES = 2 ** 28     # working memory of one query; more at a time is no faster
LEVEL_GRID = 128              # the level is sought on a grid of about this resolution
MIN_OPACITY = 0.05            # a volume whose densest rays stop less light than this is empty
FLOATER_FRACTION = 0.02       # pieces smaller than this share of the largest piece are dropped
FORMATS = ('mrc', 'ply', 'obj', 'glb')


@dataclasses.dataclass(frozen=True)
class ShapeOptions:
    """What is written of a shape: `formats` of FORMATS, grid `resolution`, density `level` of the surface (None finds
    one) and `max_bytes` of working memory. Raises UserError if that does not hold the grid."""
    formats: tuple = ('mrc',)
    resolution: int = 512
    level: float | None = None
    max_bytes: int = 2 * 10 ** 9

    def __post_init__(self):
        chunk_size(self.max_bytes, grid_bytes(self.resolution))


def export_shape(session, identity, stem, options, progress=lambda steps: steps):
    """Write the shape of `identity` to `stem`.FORMAT for every format and return the paths.

    `progress` wraps the sequence of query chunks, for instance tqdm. Raises UserError where the memory does not hold
    the grid, the level finds no surface or a file cannot be written.
    """
    box = session.generator.rendering.box_warp
    volume = density_grid(identity.field, options.resolution, box, session.device, options.max_bytes, progress)
    paths = []
    mesh = None
    for suffix in options.formats:
        path = stem.with_name(f'{stem.name}.{suffix}')
        if suffix != 'mrc' and mesh is None:
            level = find_level(volume, box) if options.level is None else options.level
            mesh = extract_mesh(volume, level, box)
            mesh.visual.vertex_colors = surface_colors(session, identity, mesh, box / (options.resolution - 1), options.max_bytes)
        try:
            with written_whole(path) as temporary:
                if suffix == 'mrc':
                    save_mrc(temporary, volume, box)
                else:
                    mesh.export(temporary)
        except OSError as error:
            raise UserError(f'cannot write {path}: {error}; free some space or choose another --outdir') from error
        paths.append(path)
    return paths


def grid_bytes(resolution):
    """Bytes of a float32 grid of so many points on a side."""
    return 4 * resolution ** 3


def chunk_size(max_bytes, taken=0, bytes_per_point=Field.bytes_per_point):
    """How many points are queried at a time in `max_bytes`, of which a grid has `taken` some.
    Raises UserError if fewer than 1024 fit."""
    points = int(max_bytes - taken) // bytes_per_point
    if points < 1024:
        need = (taken + 1024 * bytes_per_point) / 1e9
        raise UserError(f'--max-mem {max_bytes / 1e9:g}GB is too little: this --shape-res needs at least {need:.3g}GB; '
                        'raise the one or lower the other')
    return min(points, MAX_CHUNK_BYTES // bytes_per_point)


@torch.inference_mode()
def density_grid(field, resolution, box, device, max_bytes=2 * 10 ** 9, progress=lambda steps: steps):
    """Density float32 [R, R, R] (x, y, z) of a field of one identity, with the border set to EMPTY_DENSITY.

    Points are queried in chunks that keep working memory, grid included, within `max_bytes`.
    """
    border = max(int(resolution * BORDER_FRACTION), 1)
    inner = resolution - 2 * border
    if inner < 2:
        raise UserError(f'--shape-res {resolution} is too small; use at least 8')
    chunk = chunk_size(max_bytes, grid_bytes(resolution), field.bytes_per_point)
    try:
        volume = np.full((resolution,) * 3, EMPTY_DENSITY, dtype=np.float32)
    except MemoryError as error:
        raise UserError(f'--shape-res {resolution} takes {grid_bytes(resolution) / 1e9:.3g}GB, more than this '
                        'machine has free memory, whatever --max-mem allows; lower it') from error
    axis = torch.linspace(-box / 2, box / 2, resolution, device=device)
    for block in progress(_blocks(border, resolution - border, chunk)):
        points = torch.stack(torch.meshgrid(*(axis[part] for part in block), indexing='ij'), dim=-1)   # [X, Y, Z, 3]
        volume[block] = field.density(points.reshape(1, -1, 3)).reshape(points.shape[:3]).float().cpu().numpy()
    return volume


def _blocks(first, end, num_points):
    """Blocks (slices of x, y, z) of at most `num_points` that fill the cube [first, end)^3 of a grid."""
    side, sizes = end - first, []
    for plane in (side ** 2, side, 1):             # points of one step along x, y, z
        sizes.append(min(max(num_points // plane, 1), side))
    return [tuple(slice(start, min(start + size, end)) for start, size in zip(starts, sizes))
            for starts in itertools.product(*(range(first, end, size) for size in sizes))]


def find_level(volume, box):
    """The density whose surface lies where the picture's does.

    Along rays from front, back and both sides, the picture's depth is where half of all light the ray loses is lost;
    a level's depth is where its density is first met. The level taken has the least median difference of the two
    and lies below half of what the rays meet at their densest, so that it does not cut through the inside.
    Raises UserError if the volume is empty.
    """
    stride = max(round(volume.shape[0] / LEVEL_GRID), 1)
    coarse = volume[::stride, ::stride, ::stride]
    step = box / (volume.shape[0] - 1) * stride
    rays = np.concatenate([np.moveaxis(view, axis, -1).reshape(-1, coarse.shape[axis])
                           for axis in (0, 2) for view in (coarse, np.flip(coarse, axis))])   # [M, S] from the eye on
    optical_depth = np.cumsum(np.logaddexp(0, rays - 1) * step, axis=1)                       # softplus(density - 1)
    opacity = 1 - np.exp(-optical_depth)
    total = opacity[:, -1]
    if total.max() < MIN_OPACITY:
        raise UserError('--shapes: there is no surface at any level, the volume is empty; train longer or try another seed')
    hit = total >= np.quantile(total[total >= MIN_OPACITY], 0.99) / 2
    rays, half = rays[hit], opacity[hit] >= total[hit, None] / 2
    seen = half.argmax(axis=1)
    peak = np.median(rays.max(axis=1))
    levels = np.geomspace(min(0.1, peak / 100), peak / 2, 48) if peak > 0 else np.linspace(2 * peak, peak, 48)[:-1]
    errors = []
    for level in levels:
        reached = rays >= level
        depth = np.where(reached.any(axis=1), reached.argmax(axis=1), rays.shape[1])
        errors.append(np.mean(np.minimum(np.abs(depth - seen), rays.shape[1] // 8)))
    # Sharp surfaces have the same depth at many levels: the middle of them is the safest.
    best = np.flatnonzero(np.array(errors) <= min(errors) + 0.05)
    return float(levels[best[len(best) // 2]])


def extract_mesh(volume, level, box):
    """trimesh.Trimesh (world units, closed, normals outwards) of the surface of `level` in volume [R, R, R] by marching
    cubes, without small loose pieces. Raises UserError if no density lies above `level`."""
    spacing = box / (volume.shape[0] - 1)
    inside = volume > level
    if not inside.any() or level <= EMPTY_DENSITY:
        known = volume[volume > EMPTY_DENSITY]
        span = f'{known.min():.4g} to {known.max():.4g}' if known.size else 'nowhere above the border'
        raise UserError(f'--level {level:g}: no surface at this level; densities run from {span}')
    # The box round the surface, one point wider on each side: the rest need not be searched.
    occupied = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    first = np.array([max(axis[0] - 1, 0) for axis in occupied])
    region = tuple(slice(start, axis[-1] + 2) for start, axis in zip(first, occupied))
    volume, inside = volume[region], inside[region]
    pieces, _ = scipy.ndimage.label(inside, structure=np.ones((3, 3, 3)), output=np.int32)
    sizes = np.bincount(pieces.reshape(-1))
    dropped = sizes < FLOATER_FRACTION * sizes[1:].max()
    dropped[0] = False
    volume = np.where(dropped[pieces], np.float32(EMPTY_DENSITY), volume)
    vertices, faces, _, _ = skimage.measure.marching_cubes(volume, level=level, gradient_direction='ascent')
    return trimesh.Trimesh((vertices + first) * spacing - box / 2, faces, process=True)


@torch.inference_mode()
def surface_colors(session, identity, mesh, spacing, max_bytes):
    """RGB uint8 [V, 3] of a mesh's vertices: the field's features met by a short ray along the normal, from one
    `spacing` outside to three inside, composited as the renderer does, in the generator's colours."""
    points = torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    normals = torch.as_tensor(np.array(mesh.vertex_normals), dtype=torch.float32)
    offsets = torch.linspace(1, -3, 9) * spacing
    chunk = max(chunk_size(max_bytes) // len(offsets), 1)
    colors = []
    for point, normal in zip(points.split(chunk), normals.split(chunk), strict=True):
        ray = point[:, None] + offsets[:, None] * normal[:, None]                             # [M, S, 3]
        sample = identity.field.query(ray.reshape(1, -1, 3).to(session.device))
        sigma = torch.nn.functional.softplus(sample.density.reshape(*ray.shape[:2]) - 1)
        alpha = 1 - torch.exp(-sigma * (spacing / 2))
        through = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], dim=1), dim=1)
        weights = alpha * through
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-8)                  # [M, S]
        features = (weights[..., None] * sample.features.reshape(*ray.shape[:2], -1)).sum(dim=1)
        rgb = session.generator.point_colors(features[None], identity.ws)[0]
        colors.append((rgb * 255).round().to(torch.uint8).cpu())
    return torch.cat(colors).numpy()


def save_mrc(path, volume, box):
    """Write volume [R, R, R] (x, y, z) as .mrc of mode 2 (float32), first axis reversed; voxel size and origin in the
    header are world units, so that the box is centred on the viewer's origin."""
    spacing = box / (volume.shape[0] - 1)
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.ascontiguousarray(volume[::-1]))
        mrc.voxel_size = spacing
        mrc.header.origin = (-box / 2,) * 3
        # mrcfile's own label holds the time of writing; equal runs shall give equal files.
        mrc.header.label[0] = b'density of a neural field; x, y, z are world z, y, -x'
