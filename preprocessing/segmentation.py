"""Head and background told apart without a trained network: colour mixtures and a graph cut, seeded by the face.

Source: Rother et al., GrabCut (SIGGRAPH 2004), for the mixtures and the cut; He et al., Guided Image Filtering (2012), for
the edge of the mask. The seeds are the family's crop: the head stands in its middle, shoulders fill the bottom.
"""

import dataclasses

import numpy as np
import PIL.Image
import scipy.ndimage
import scipy.sparse
import skimage.color
import skimage.draw

FINE = 1536               # pixels of the longer side in which the edge is found, at most
COARSE = 128              # pixels of the longer side in which the cut is made
ROUNDS = 4                # of fitting colours and cutting
COMPONENTS = 6            # of a colour mixture
SMOOTHNESS = 6.0          # weight of neighbours being alike
PRIOR = 1.6               # weight of the place in the crop
CLEAR = 1.0               # log odds by place from which a pixel counts for the first colours
EDGE = 0.08               # of the picture's width
PLACE_WEIGHT = 12.0       # a picture's width in units of CIELAB, so that colours may differ from side to side
REACH = 3.0               # weight of what is reached without crossing an edge, where no face says where the head is
CAPACITY = 1000           # of the cut's integers per unit of energy
HARD = 10 ** 6
GUIDE_RADIUS, GUIDE_EPS = 0.012, 1e-4     # of the longer side; of squared colour
SAMPLES = 4000            # pixels that a mixture is fitted to


@dataclasses.dataclass(frozen=True)
class Seeds:
    """What a picture's geometry says of its pixels: `prior` [H, W], log odds of being head; bool [H, W]: certain `head` and
    `background`, and what the first colours are taken from, `inside` and `outside`; `reach`: weight of ways without an edge."""
    prior: np.ndarray
    head: np.ndarray
    background: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    reach: float = 0.0


def segment_head(image, landmarks=None):
    """Mask uint8 [H, W], 255 = head with hair, neck and clothes, of an RGB picture uint8 [H, W, 3], edges soft.

    `landmarks` float [68, 2]: iBUG points in its pixels; without them the head is looked for in the middle.
    """
    height, width = image.shape[:2]
    factor = max(height, width) / COARSE
    size = max(round(width / factor), 2), max(round(height / factor), 2)
    small = np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX if factor > 1 else PIL.Image.Resampling.BILINEAR))
    points = None if landmarks is None else np.asarray(landmarks) * [size[0] / width, size[1] / height]
    seed = seeds(small.shape[:2], points)
    coarse = tidy(cut(small, seed), seed.head)
    # The filter takes 100 bytes a pixel and more: pictures larger than any crop get their edge at that size.
    factor = max(factor * COARSE / FINE, 1.0)
    size = max(round(width / factor), 2), max(round(height / factor), 2)
    picture = image if factor == 1 else np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BOX))
    soft = np.asarray(PIL.Image.fromarray(coarse.astype(np.float32)).resize(picture.shape[1::-1], PIL.Image.Resampling.BICUBIC))
    mask = (guided_filter(picture, soft) * 255).round().astype(np.uint8)
    return mask if factor == 1 else np.asarray(PIL.Image.fromarray(mask).resize((width, height), PIL.Image.Resampling.BILINEAR))


def seeds(shape, points=None):
    """Seeds for a picture of `shape` (H, W); `points` [68, 2]: landmarks in its pixels."""
    height, width = shape
    v, u = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    edge = 1 - np.clip(np.minimum(u, 1 - u) / EDGE, 0, 1)
    if points is None:
        # The head may be small: what differs from the upper edges of the picture is head, wherever it is.
        distance = np.hypot((u - 0.5) / 0.40, (v - 0.5) / 0.48)
        side = np.minimum(u, 1 - u)
        behind = ((side < 0.25) & (v < EDGE / 2)) | ((side < EDGE / 2) & (v < 0.6))
        prior = np.clip(2.0 * (1.0 - distance), -1.5, 0.5)
        return Seeds(prior, distance < 0.1, np.zeros(shape, dtype=bool), distance < 0.45, behind, REACH)
    low, high = points.min(axis=0) / [width, height], points.max(axis=0) / [width, height]
    face = high - low
    # Ears and hair beside the face, hair above the brows, where the landmarks begin.
    centre = np.array([(low[0] + high[0]) / 2, low[1] + 0.28 * face[1]])
    half = np.array([0.80 * max(face[0], 0.75 * face[1] * height / width), 0.92 * face[1]])
    head_distance = np.hypot((u - centre[0]) / half[0], (v - centre[1]) / half[1])
    # Neck and shoulders: a shape that widens towards the bottom.
    chin = centre[1] + 0.8 * half[1]
    below = np.clip((v - chin) / half[1], 0, None)
    shoulder_distance = np.where(v > chin, np.abs(u - centre[0]) / (half[0] * (0.6 + 2.6 * below)), 9.0)
    distance = np.minimum(head_distance, shoulder_distance)
    # The picture's edges beside the head rather show what is behind it.
    prior = np.clip(5.0 * (1.1 - distance) - np.where(v < chin, 2.0 * edge, 0.0), -3.0, 3.0)
    # The outline of jaw and brows is certain.
    head = _polygon(shape, np.concatenate([points[:17], points[26:16:-1]])) | (head_distance < 0.3)
    # Hair may hang down anywhere, but stands up only so far.
    background = (distance > 1.5) & (v < centre[1] - 0.3 * half[1]) & ~head
    return Seeds(prior, head, background, head | ((prior > CLEAR) & ~background), background | ((prior < -CLEAR) & ~head))


def _polygon(shape, points):
    inside = np.zeros(shape, dtype=bool)
    rows, columns = skimage.draw.polygon(points[:, 1], points[:, 0], shape)
    inside[rows, columns] = True
    return inside


class Mixture:
    """Gaussian mixture of vectors [n, d], fitted by expectation maximisation from a start that depends on nothing random."""

    def __init__(self, vectors, components=COMPONENTS, rounds=8):
        order = np.argsort(vectors @ np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[2][0], kind='stable')
        parts = np.array_split(order, min(components, len(order)))
        shares = np.zeros([len(vectors), len(parts)])
        for k, part in enumerate(parts):
            shares[part, k] = 1
        for _ in range(rounds):
            self._fit(vectors, shares)
            logs = self._logs(vectors)
            shares = np.exp(logs - logs.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)

    def _fit(self, vectors, shares):
        weight = shares.sum(axis=0) + 1e-6
        self.log_weight = np.log(weight / weight.sum())
        self.mean = shares.T @ vectors / weight[:, None]
        self.root, self.log_scale = [], []
        for k in range(len(weight)):
            offset = vectors - self.mean[k]
            covariance = (offset * shares[:, k:k + 1]).T @ offset / weight[k] + np.eye(vectors.shape[1]) * 4.0
            root = np.linalg.cholesky(np.linalg.inv(covariance))
            self.root.append(root)
            self.log_scale.append(np.log(np.diag(root)).sum())

    def _logs(self, vectors):
        return np.stack([w + s - 0.5 * (((vectors - m) @ r) ** 2).sum(axis=1)
                         for w, s, m, r in zip(self.log_weight, self.log_scale, self.mean, self.root)], axis=1)

    def log_likelihood(self, vectors):
        """Log density [n], up to a constant common to all mixtures, of vectors [n, d]."""
        logs = self._logs(vectors)
        top = logs.max(axis=1)
        return top + np.log(np.exp(logs - top[:, None]).sum(axis=1))


def cut(image, seed):
    """Bool [H, W]: the head in a small RGB picture uint8 [H, W, 3] by rounds of fitting colours and cutting, from Seeds."""
    height, width = image.shape[:2]
    lab = skimage.color.rgb2lab(image)
    v, u = np.mgrid[:height, :width]
    vectors = np.concatenate([lab.reshape(-1, 3), np.stack([u, v], axis=-1).reshape(-1, 2) * (PLACE_WEIGHT / max(width, height))], axis=1)
    edges, likeness = _neighbours(lab)
    inside, outside = seed.inside, seed.outside
    reach = seed.reach * _nearness(lab, seed) if seed.reach else 0.0
    for _ in range(ROUNDS):
        odds = PRIOR * seed.prior + reach
        groups = [np.flatnonzero(group.ravel()) for group in (inside, outside)]
        if min(len(group) for group in groups) >= COMPONENTS:
            likelihood = [Mixture(vectors[group[::max(len(group) // SAMPLES, 1)]]).log_likelihood(vectors) for group in groups]
            odds = odds + np.clip(likelihood[0] - likelihood[1], -8, 8).reshape(height, width)
        odds = np.where(seed.head, HARD, np.where(seed.background, -HARD, odds * CAPACITY)).astype(np.int64)
        cut_now = minimum_cut(odds.ravel(), edges, likeness).reshape(height, width)
        if np.array_equal(cut_now, inside):
            break
        inside, outside = cut_now, ~cut_now
    return inside


def _nearness(lab, seed):
    """float [H, W] from -1, reached from the background without crossing an edge, to 1, so reached from the head: compares
    the two shortest ways through a picture in CIELAB, on which every change of colour counts."""
    pairs, differences, lengths = _grid(lab)
    n = seed.head.size
    cost = np.sqrt(differences) + 0.02 * lengths
    graph = scipy.sparse.csr_matrix((cost, (pairs[0], pairs[1])), shape=(n, n))
    far = [scipy.sparse.csgraph.dijkstra(graph, directed=False, indices=np.flatnonzero(group.ravel()), min_only=True)
           if group.any() else np.full(n, np.inf) for group in (seed.outside, seed.head)]
    if not np.isfinite(far).all():
        return np.zeros(seed.head.shape)
    return ((far[0] - far[1]) / (far[0] + far[1] + 1e-6)).reshape(seed.head.shape)


def _neighbours(lab):
    """(pairs [2, E] of flat indices, capacities [E]) of the eight neighbours; alike ones hold together strongly."""
    pairs, differences, lengths = _grid(lab)
    beta = 1 / max(2 * differences.mean(), 1e-6)
    capacity = SMOOTHNESS * (0.05 + np.exp(-beta * differences)) / lengths
    return pairs, (capacity * CAPACITY).astype(np.int64)


def _grid(lab):
    """(pairs [2, E] of flat indices, squared colour differences [E], distances [E] in pixels) of the eight neighbours."""
    height, width = lab.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    pairs, differences, lengths = [], [], []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = np.s_[:height - dy, max(-dx, 0):width - max(dx, 0)]
        b = np.s_[dy:, max(dx, 0):width + min(dx, 0)]
        pairs.append(np.stack([index[a].ravel(), index[b].ravel()]))
        differences.append(((lab[a] - lab[b]) ** 2).sum(axis=-1).ravel())
        lengths.append(np.full(pairs[-1].shape[1], np.hypot(dy, dx)))
    return np.concatenate(pairs, axis=1), np.concatenate(differences), np.concatenate(lengths)


def minimum_cut(odds, edges, capacity):
    """Bool [n]: the source's side of the minimum cut; odds [n] > 0 tie a node to the source, < 0 to the sink."""
    n = len(odds)
    source, sink = n, n + 1
    nodes = np.arange(n)
    to, away = odds > 0, odds < 0
    rows = np.concatenate([edges[0], edges[1], np.full(to.sum(), source), nodes[away]])
    columns = np.concatenate([edges[1], edges[0], nodes[to], np.full(away.sum(), sink)])
    values = np.concatenate([capacity, capacity, odds[to], -odds[away]]).astype(np.int32)
    graph = scipy.sparse.csr_matrix((values, (rows, columns)), shape=(n + 2, n + 2))
    flow = scipy.sparse.csgraph.maximum_flow(graph, source, sink).flow
    residual = graph - flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = scipy.sparse.csgraph.breadth_first_order(residual, source, return_predecessors=False)
    inside = np.zeros(n + 2, dtype=bool)
    inside[reached] = True
    return inside[:n]


def tidy(inside, head):
    """Bool [H, W] without islands and holes: the part of `inside` that holds the certain `head`, or the largest part."""
    parts, count = scipy.ndimage.label(inside)
    if count == 0:
        return inside
    sizes = np.bincount(parts.ravel(), weights=1 + 10.0 * head.ravel())
    sizes[0] = 0
    kept = parts == sizes.argmax()
    holes, _ = scipy.ndimage.label(~kept)
    touching = np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
    large = np.flatnonzero(np.bincount(holes.ravel()) > 0.01 * inside.size)     # seen through an arm or a handle
    return kept | ~np.isin(holes, np.union1d(touching, large))


def guided_filter(image, mask, radius=None, eps=GUIDE_EPS):
    """float32 [H, W] in [0, 1]: `mask` float [H, W] pulled to the edges of the RGB picture uint8 [H, W, 3]."""
    size = 2 * (radius or max(round(GUIDE_RADIUS * max(image.shape[:2])), 1)) + 1
    guide = image.astype(np.float32) / 255

    def mean(x):
        return scipy.ndimage.uniform_filter(x, size=(size, size) + (1,) * (x.ndim - 2), mode='nearest')

    mean_guide, mean_mask = mean(guide), mean(mask)
    covariance = mean(guide * mask[..., None]) - mean_guide * mean_mask[..., None]
    second = mean(guide[..., :, None] * guide[..., None, :]) - mean_guide[..., :, None] * mean_guide[..., None, :]
    slope = np.linalg.solve(second + eps * np.eye(3, dtype=np.float32), covariance[..., None])[..., 0]
    offset = mean_mask - (slope * mean_guide).sum(axis=-1)
    return np.clip((mean(slope) * guide).sum(axis=-1) + mean(offset), 0, 1)
