"""Signed distances of heads built from ellipsoids, and the rays that meet them.

Every surface is a group of ellipsoids joined by a smooth union; hair is cut by a second group (face and ears) and by
a plane. For an ellipsoid q(p) = |R(p - c) / r|^2 the distance is estimated to first order by (q - 1) / |grad q|, which
outside never exceeds that of a sphere. q and |grad q|^2 are both quadratic polynomials of p, so one matrix product gives
them for all ellipsoids at all points; what is left are four elementwise operations on [B, K, M].

Letters: B identities, K ellipsoids, M points or rays of one identity. Units: head units, y up, face to +z.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

SKIN, CLOTH, HAIR, CARVE = range(4)
NUM_GROUPS = 4
BLEND = (0.013, 0.03, 0.014, 0.010)   # reach of the smooth union of each group, head units
CUT_BLEND = 0.008                     # rounding of the hair's edges
BOUND_MARGIN = 0.012                  # inflation of the bounding ellipsoids, besides the reach of blending and curls
EXPONENT_LIMIT = 60.0                 # beyond it exp leaves the range of normal floats, where CPUs are slow
SMALLEST = math.exp(-EXPONENT_LIMIT)
SLOPE_FLOOR = 0.02                    # keeps |grad q|^2 off 0 at the centres, as a share of its value on the surface
TOLERANCE = 1e-3                      # a ray this close to the surface has arrived; a Newton step does the rest
MISS_TOLERANCE = 3e-3                 # a ray still on its way after the last step counts as arrived below this
MAX_STEPS = 28
# Rays that graze a surface would creep along it: after so many steps a ray outside goes at least so far. A longer least
# step may jump through slivers; one of length l on a curve of radius r is only l^2 / 8r thick.
LEAST_STEPS = ((0, 0.0), (6, 3e-3), (10, 1e-2), (16, 2e-2))
STEPS_PER_COMPACTION = 2
SLOPE_RANGE = (0.4, 1.5)              # of the distance along a ray, from its last two points: a step is distance / slope
FAR = 1e3


@dataclass(frozen=True)
class Geometry:
    """Shapes of B identities.

    centre, radii [B, K, 3]; rotation [B, K, 3, 3] (rows are the axes); used [B, K]; `groups` K group numbers, ascending;
    `paired` K booleans: the ellipsoid stands on both sides, mirrored at x = 0. cut [B, 4]: hair lies where normal . p <= offset.
    collar [B, 5]: centre y, centre z, tilt (radians), ring radius, tube radius. curl [B, 2]: amplitude, frequency.
    """
    centre: torch.Tensor
    radii: torch.Tensor
    rotation: torch.Tensor
    used: torch.Tensor
    groups: tuple
    paired: tuple
    cut: torch.Tensor
    collar: torch.Tensor
    curl: torch.Tensor


@dataclass(frozen=True)
class Distances:
    """Signed distances [B, M] to the materials, and to the volume kept free of hair."""
    skin: torch.Tensor
    cloth: torch.Tensor
    collar: torch.Tensor
    hair: torch.Tensor
    carve: torch.Tensor

    @property
    def nearest(self):
        """Signed distance [B, M] to the whole figure."""
        return torch.minimum(torch.minimum(self.skin, self.hair), torch.minimum(self.cloth, self.collar))


def euler_rotation(tilt, turn, roll):
    """Rotations [..., 3, 3], rows = axes of the body, of angles about x, y, z in radians (applied z, then y, then x)."""
    zero, one = torch.zeros_like(tilt), torch.ones_like(tilt)

    def matrix(*entries):
        return torch.stack(entries, dim=-1).reshape(*tilt.shape, 3, 3)

    about_x = matrix(one, zero, zero, zero, tilt.cos(), tilt.sin(), zero, -tilt.sin(), tilt.cos())
    about_y = matrix(turn.cos(), zero, -turn.sin(), zero, one, zero, turn.sin(), zero, turn.cos())
    about_z = matrix(roll.cos(), roll.sin(), zero, -roll.sin(), roll.cos(), zero, zero, zero, one)
    return about_x @ about_y @ about_z


def _quadratic_coefficients(matrix, linear, constant, paired):
    """Coefficients [B, K, 13] of p'Mp + l'p + c against _monomials; paired rows read |x| in place of x."""
    b, k = constant.shape
    rows = torch.zeros(b, k, 13, device=constant.device)
    rows[..., 0] = constant
    rows[..., 2:4] = linear[..., 1:]
    rows[..., 4:7] = matrix.diagonal(dim1=-2, dim2=-1)
    rows[..., 7] = 2 * matrix[..., 1, 2]
    odd_in_x = torch.stack([linear[..., 0], 2 * matrix[..., 0, 1], 2 * matrix[..., 0, 2]], dim=-1)
    paired = torch.tensor(paired, device=constant.device)
    columns = torch.tensor([1, 8, 9], device=constant.device)
    rows[..., columns] = odd_in_x * ~paired[:, None]
    rows[..., columns + torch.tensor([9, 3, 3], device=constant.device)] = odd_in_x * paired[:, None]
    return rows


def _product(rows, columns):
    """Batched matrix product; a batch of one takes the plain product, which is quicker on CPUs."""
    return (rows[0] @ columns[0])[None] if len(rows) == 1 else rows @ columns


def _monomials(p):
    """[B, 13, M] monomials of points p [B, 3, M]: 1, x, y, z, x2, y2, z2, yz, xy, xz, |x|, |x|y, |x|z."""
    x, y, z = p.unbind(1)
    side = x.abs()
    return torch.stack([torch.ones_like(x), x, y, z, x * x, y * y, z * z, y * z, x * y, x * z, side, side * y, side * z], 1)


@dataclass(frozen=True)
class Solid:
    """The Geometry of B identities, prepared for distances and rays by `prepare`; solid[i:j] are some of them."""
    groups: tuple
    sources: tuple               # of each bounding ellipsoid, the ellipsoid it bounds; -1 the collar
    used: torch.Tensor           # [B, K]
    slope: torch.Tensor          # [B, K, 13] rows of |grad q|^2
    level: torch.Tensor          # [B, K, 13] rows of (1 - q) / blend
    linear: torch.Tensor         # [B, 3, 13] rows of the height above the cut, and of two axes of the collar
    ring: torch.Tensor           # [B, 2, 1] radii of the collar's ring and tube
    curl: torch.Tensor           # [B, 2, 1] amplitude and frequency
    curly: bool                  # whether any of the identities has curls
    bound_matrix: torch.Tensor   # [B, L, 3, 3]
    bound_centre: torch.Tensor   # [B, L, 3]

    @cached_property
    def _rows(self):
        """[B, 2K + 3, 13]: everything that is a polynomial, for one matrix product."""
        return torch.cat([self.slope, self.level, self.linear], dim=1)

    @cached_property
    def _members(self):
        """[B, 4, K]: 1 where an ellipsoid belongs to the group. Adds up groups by a matrix product."""
        device = self.slope.device
        groups = torch.tensor(self.groups, device=device)
        members = (groups == torch.arange(NUM_GROUPS, device=device)[:, None]).float()
        return members.expand(len(self.slope), -1, -1)

    @cached_property
    def _reach(self):
        """[4, 1]: minus the blending reach of the groups."""
        return -torch.tensor(BLEND, device=self.slope.device)[:, None]

    def __getitem__(self, index):
        """The identities of a slice; ellipsoids that none of them uses are left out."""
        kept = [i for i, used in enumerate(self.used[index].any(0).tolist()) if used]
        bounds = [i for i, source in enumerate(self.sources) if source < 0 or source in kept]
        sources = tuple(kept.index(self.sources[i]) if self.sources[i] >= 0 else -1 for i in bounds)
        curl = self.curl[index]
        return Solid(tuple(self.groups[i] for i in kept), sources, self.used[index][:, kept], self.slope[index][:, kept],
                     self.level[index][:, kept], self.linear[index], self.ring[index], curl, bool((curl[:, 0] > 0).any()),
                     self.bound_matrix[index][:, bounds], self.bound_centre[index][:, bounds])

    def distances(self, p):
        """Distances of points p [B, 3, M]."""
        num = len(self.groups)
        values = _product(self._rows, _monomials(p))
        # (q - 1) / |grad q| by group, summed as exp(-distance / blend).
        closeness = values[:, :num].rsqrt_().mul_(values[:, num:2 * num]).clamp_(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp_()
        # An empty group is as far as the limit, like one that is out of reach.
        groups = _product(self._members, closeness).clamp_min_(SMALLEST).log_().mul_(self._reach)
        skin, cloth, hair, carve = groups.unbind(1)
        above_cut, up, ahead = values[:, 2 * num:].unbind(1)
        ring, tube = self.ring.unbind(1)
        # Flattened tubes stand up like a collar instead of lying like a sausage.
        collar = (torch.hypot((torch.hypot(p[:, 0], ahead) - ring) * 1.5, up) - tube) * 0.8
        if self.curly:
            amplitude, frequency = self.curl.unbind(1)
            x, y, z = (p * frequency[:, None]).sin_().unbind(1)
            hair = hair - amplitude * (x * y + y * z + z * x)
        # Smooth maximum of the hair and what lies outside its cuts.
        outside = torch.maximum(-carve, above_cut)
        difference = hair - outside
        hair = (hair + outside + (difference * difference + CUT_BLEND ** 2).sqrt_()) * 0.5
        return Distances(skin, cloth, collar, hair, carve)

    def _span(self, origin, direction):
        """(near, far) [B, M] between which rays can meet the figure; near > far where none can."""
        start = origin[:, None] - self.bound_centre
        moved = (self.bound_matrix @ start[..., None]).squeeze(-1)
        x, y, z = direction.unbind(1)
        products = torch.stack([x * x, y * y, z * z, y * z, x * y, x * z], dim=1)
        matrix = self.bound_matrix
        rows = torch.stack([matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2],
                            2 * matrix[..., 1, 2], 2 * matrix[..., 0, 1], 2 * matrix[..., 0, 2]], dim=-1)
        a = _product(rows, products)
        b = _product(moved, direction)
        c = (moved * start).sum(-1, keepdim=True) - 1
        root = b.square().sub_(a * c)
        meets = root > 0
        root = root.clamp_min_(0).sqrt_()
        near = torch.where(meets, (-b - root) / a, FAR).amin(1)
        far = torch.where(meets, (root - b) / a, -FAR).amax(1)
        return near.clamp_min(0), far

    def trace(self, origin, direction, blocks=1):
        """Distances [B, M] from origin [B, 3] along unit `direction` [B, 3, M] to the surface, infinity without one.
        The rays may come in `blocks`, ray i of each as good as parallel to ray i of the others: they share bounds."""
        b, _, m = direction.shape
        near, far = (span.repeat(1, blocks) for span in self._span(origin, direction.unflatten(2, (blocks, -1)).mean(2)))
        # Column m takes what the padding of compacted rows writes.
        result = torch.full([b, m + 1], float('inf'), device=direction.device)
        index = compact(near < far)
        t, far, rays = pick(near, index), pick(far, index), pick(direction, index)
        slope = torch.ones_like(t)
        distance = go = None
        for step in range(0, MAX_STEPS, STEPS_PER_COMPACTION):
            least = max(length for first, length in LEAST_STEPS if step >= first)
            for _ in range(STEPS_PER_COMPACTION):
                last = distance
                distance = self.distances(torch.addcmul(origin[:, :, None], rays, t[:, None])).nearest
                if last is not None:
                    slope = (last - distance) / go
                    # Where a ray moves away from what it grazed, only the distance itself is a safe step.
                    slope = torch.where(slope > 0, slope.clamp(*SLOPE_RANGE), 1.0)
                go = distance / slope
                go = torch.where(distance > TOLERANCE, go.clamp_min(least), go)
                t = t + go
            arrived = distance.abs() < (TOLERANCE if step + STEPS_PER_COMPACTION < MAX_STEPS else MISS_TOLERANCE)
            result.scatter_(1, torch.where(arrived, index, m), t)
            keep = compact(~arrived & (t < far) & (index < m))
            if keep.shape[1] == 0:
                break
            index = torch.cat([index, torch.full_like(index[:, :1], m)], 1).gather(1, keep)
            t, far, rays, distance, go = (pick(values, keep) for values in (t, far, rays, distance, go))
        return result[:, :m]

    def normals(self, p, distances, epsilon=1e-3):
        """Unit normals [B, 3, M] at points p [B, 3, M] of known Distances, by forward differences."""
        offsets = torch.eye(3, device=p.device) * epsilon
        ahead = self.distances((p[:, :, None] + offsets[..., None]).flatten(2)).nearest.unflatten(1, (3, -1))
        return unit(ahead - distances.nearest[:, None])


def prepare(geometry):
    """The Solid of a Geometry."""
    g = geometry
    inverse = g.rotation.transpose(-1, -2) @ (g.rotation / g.radii.square()[..., None])  # q(p) = (p - c)' inverse (p - c)
    squared = 4 * inverse @ inverse                                                      # |grad q|^2 likewise
    blend = torch.tensor([BLEND[group] for group in g.groups], device=g.centre.device)
    level = _ellipsoid_rows(inverse, g.centre, -1.0, g.paired) / -blend[:, None]
    slope = _ellipsoid_rows(squared, g.centre, 4 * SLOPE_FLOOR / g.radii.amax(-1).square(), g.paired)
    linear, ring = _linear_rows(g)
    solid = [i for i, group in enumerate(g.groups) if group != CARVE]
    mirrored = [i for i in solid if g.paired[i]]
    bounds = _bounds(g, solid, mirrored)
    return Solid(g.groups, (*solid, *mirrored, -1), g.used, slope, level, linear, ring, g.curl[..., None],
                 bool((g.curl[:, 0] > 0).any()), *bounds)


def _linear_rows(g):
    """(rows [B, 3, 13] of the height above the hair's cut and of the collar's axes up and ahead, ring [B, 2, 1])."""
    y, z, tilt, ring, tube = g.collar.unbind(1)
    rows = g.cut.new_zeros(len(g.cut), 3, 13)
    rows[:, 0, 1:4], rows[:, 0, 0] = g.cut[:, :3], -g.cut[:, 3]
    for row, along_y, along_z in ((1, tilt.cos(), tilt.sin()), (2, -tilt.sin(), tilt.cos())):
        rows[:, row, 2], rows[:, row, 3], rows[:, row, 0] = along_y, along_z, -along_y * y - along_z * z
    return rows, torch.stack([ring, tube], dim=1)[..., None]


def _ellipsoid_rows(matrix, centre, constant, paired):
    """Coefficients [B, K, 13] against _monomials of (p - centre)' matrix (p - centre) + constant."""
    moved = (matrix @ centre[..., None]).squeeze(-1)
    return _quadratic_coefficients(matrix, -2 * moved, (moved * centre).sum(-1) + constant, paired)


def _bounds(g, solid, mirrored):
    """(matrix [B, L, 3, 3], centre [B, L, 3]) of inflated ellipsoids that hold the whole figure."""
    mirror = torch.tensor([-1.0, 1.0, 1.0], device=g.centre.device)
    centre = torch.cat([g.centre[:, solid], g.centre[:, mirrored] * mirror], dim=1)
    rotation = torch.cat([g.rotation[:, solid], g.rotation[:, mirrored] * mirror], dim=1)
    blend = g.centre.new_tensor([BLEND[g.groups[i]] for i in (*solid, *mirrored)])
    margin = BOUND_MARGIN + blend[:, None] + 3 * g.curl[:, :1, None]
    radii = torch.cat([g.radii[:, solid], g.radii[:, mirrored]], dim=1) + margin
    y, z, tilt, ring, tube = g.collar.unbind(1)
    reach = ring + tube
    zero = torch.zeros_like(y)
    centre = torch.cat([centre, torch.stack([zero, y, z], dim=1)[:, None]], dim=1)
    rotation = torch.cat([rotation, euler_rotation(tilt, zero, zero)[:, None]], dim=1)
    radii = torch.cat([radii, torch.stack([reach, 2 * tube, reach], dim=1)[:, None] + BOUND_MARGIN], dim=1)
    return rotation.transpose(-1, -2) @ (rotation / radii.square()[..., None]), centre


def unit(vectors):
    """Vectors [B, 3, M] scaled to length 1; torch's normalize is slow along the middle axis."""
    return vectors * vectors.square().sum(1, keepdim=True).clamp_min(1e-20).rsqrt()


def compact(active):
    """Positions [B, L] of the true entries of each row of `active` [B, M], padded with M to the longest row."""
    b, m = active.shape
    if b == 1:
        return active[0].nonzero().t()
    counts = active.sum(1)
    longest = int(counts.max())
    slots = torch.where(active, active.cumsum(1) - 1, longest)
    index = torch.full([b, longest + 1], m, device=active.device)
    index.scatter_(1, slots, torch.arange(m, device=active.device).expand(b, m))
    return index[:, :longest]


def pick(values, index):
    """Entries of values [B, M] or [B, C, M] at positions [B, L]; padding (position M) repeats the last entry."""
    index = index.clamp_max(values.shape[-1] - 1)
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(2, index[:, None].expand(-1, values.shape[1], -1))
