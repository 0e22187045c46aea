"""How well a head network reads heads it has never seen."""

import torch
import torch.nn.functional as F

from metrics.headnet.network import PART_SIZE, SURFACES, direction_angles_deg
from training.synthetic.parts import PARTS

HELD_OUT_SEED = 2_000_000   # held-out identities start here; those trained on start at train.TRAIN_SEED, data sets at 0
BATCH = 128


def angle_deg(a, b):
    """[N] degrees between the yaws of vectors a and b [N, 3]."""
    difference = direction_angles_deg(a)[0] - direction_angles_deg(b)[0]
    return (torch.remainder(difference + 180, 360) - 180).abs()


def retrieval(embedding, identity):
    """Share of pictures whose nearest other picture (cosine) shows the same identity."""
    similarity = embedding @ embedding.t()
    similarity.fill_diagonal_(-2)
    return float((identity[similarity.argmax(1)] == identity).float().mean())


def verification(embedding, identity):
    """(area under the ROC curve of 'same identity?' by cosine, mean cosine of same, mean cosine of different)."""
    upper = torch.triu_indices(len(identity), len(identity), 1)
    cosine = (embedding @ embedding.t())[upper[0], upper[1]]
    same = identity[upper[0]] == identity[upper[1]]
    positive, negative = cosine[same], cosine[~same].sort().values
    below = torch.searchsorted(negative, positive) / len(negative)
    return float(below.mean()), float(positive.mean()), float(negative.mean())


def small_parts(part):
    """float [N, 6, 32, 32]: the share of each part in the cells of part maps [N, 64, 64]."""
    return F.adaptive_avg_pool2d(F.one_hot(part.long(), len(PARTS)).permute(0, 3, 1, 2).float(), PART_SIZE)


def part_iou(predicted, true):
    """{part: intersection over union} of maps of indices [N, H, W] over all pictures together."""
    found = {}
    for i, name in enumerate(PARTS):
        a, b = predicted == i, true == i
        found[name] = float((a & b).sum() / (a | b).sum().clamp_min(1))
    return found


@torch.no_grad()
def accuracy(network, examples, images):
    """Figures of a network on `images` [M, 3, 64, 64] of `examples`, which may be those themselves or augmented."""
    readings = [network(batch) for batch in images.split(BATCH)]

    def column(name):
        return torch.cat([getattr(reading, name) for reading in readings])

    direction, identity = column('direction'), column('identity')
    error = angle_deg(direction, examples.direction)
    pitch = direction_angles_deg(examples.direction)[1]
    back = examples.direction[:, 2] < 0
    auc, same, different = verification(identity, examples.identity)
    seen = examples.face > 0.5
    colours = (column('colours') - examples.colours).abs().mean(2)
    return {
        'yaw_error_deg': float(error.mean()), 'yaw_error_median_deg': float(error.median()),
        'yaw_error_front_deg': float(error[~back].mean()), 'yaw_error_back_deg': float(error[back].mean()),
        'pitch_error_deg': float((column('pitch_deg') - pitch).abs().mean()),
        'face_seen_accuracy': float(((column('face') > 0.5) == seen).float().mean()),
        'identity_retrieval': retrieval(identity, examples.identity), 'identity_auc': auc,
        'cosine_same': same, 'cosine_different': different,
        'style_accuracy': float((column('style').argmax(1) == examples.style).float().mean()),
        'cloth_kind_accuracy': float((column('cloth_kind').argmax(1) == examples.cloth_kind).float().mean()),
        'accessory_accuracy': float((column('accessory').argmax(1) == examples.accessory).float().mean()),
        'beard_error': float((column('beard') - examples.beard)[seen].abs().mean()),
        **{f'{name}_colour_error': float(colours[:, i].mean()) for i, name in enumerate(SURFACES)},
        **{f'iou_{name}': value for name, value in part_iou(column('parts').argmax(1), column_parts(examples)).items()},
    }


def column_parts(examples):
    """[M, 32, 32] the most frequent part of each cell."""
    return torch.cat([small_parts(part).argmax(1) for part in examples.part.split(BATCH)])
