"""Which views of the back of a head are good enough to learn from: the mask is that of one head, and no face is there.

Silhouettes from opposite sides mirror each other (exactly so for parallel rays), which a head that is whole keeps to.
"""

import dataclasses

import numpy as np
from scipy import ndimage

MASK_THRESHOLD = 128       # of 255

OK, NO_HEAD, PIECES, HOLES, CUT, CROOKED, FACE = VERDICTS = (
    'ok', 'no head in the mask', 'mask in pieces', 'holes in the mask', 'head cut at a side', 'silhouette unlike the front',
    'with a face')


@dataclasses.dataclass(frozen=True)
class BackLimits:
    """What a good view keeps to. `min_area`, `max_area`: share of the picture that is head; `min_piece`: share of the mask
    that is its largest piece; `max_holes`: share of holes in it; `max_edge`: share of the upper, left and right border that
    the head covers; `min_mirror`: intersection over union with the mirrored silhouette from the front, where that is known."""
    min_area: float = 0.08
    max_area: float = 0.8
    min_piece: float = 0.98
    max_holes: float = 0.01
    max_edge: float = 0.05
    min_mirror: float = 0.8


def mask_verdict(mask, limits):
    """One of VERDICTS for a mask uint8 [H, W], 255 = head."""
    head = np.asarray(mask) >= MASK_THRESHOLD
    area = head.mean()
    if not limits.min_area <= area <= limits.max_area:
        return NO_HEAD
    labels, num = ndimage.label(head)
    largest = np.bincount(labels.ravel())[1:].max()
    if largest < limits.min_piece * head.sum():
        return PIECES
    if ndimage.binary_fill_holes(head).sum() > (1 + limits.max_holes) * head.sum():
        return HOLES
    # Below, the neck leaves the picture.
    above_neck = len(head) * 2 // 3
    edge = np.concatenate([head[0], head[:above_neck, 0], head[:above_neck, -1]])
    return CUT if edge.mean() > limits.max_edge else OK


def mirror_overlap(mask, opposite):
    """Intersection over union of a silhouette and the mirrored one from the opposite camera, masks uint8 [H, W]."""
    a, b = np.asarray(mask) >= MASK_THRESHOLD, np.asarray(opposite)[:, ::-1] >= MASK_THRESHOLD
    return (a & b).sum() / max((a | b).sum(), 1)


def judge_back(image, mask, shows_face, limits, opposite=None):
    """One of VERDICTS for a view of the back of a head: picture uint8 [H, W, 3], mask uint8 [H, W], the mask from the opposite
    camera or None; `shows_face`: function of the picture."""
    verdict = mask_verdict(mask, limits)
    if verdict == OK and opposite is not None and mirror_overlap(mask, opposite) < limits.min_mirror:
        verdict = CROOKED
    return FACE if verdict == OK and shows_face(image) else verdict
