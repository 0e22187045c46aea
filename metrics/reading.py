"""Metrics that read heads with the built-in network: whether the head seen is the one asked for, from where, and whose.

All heads are conditioned on the frontal camera. `fixed_features`: --features does not change the network that reads, so
figures of one version of it compare. Good values are those of the perfect synthetic generator; see docs/head_metrics.md.
"""

import numpy as np
import torch

from metrics.headnet.accuracy import verification
from metrics.headnet.examples import view_directions
from metrics.headnet.network import direction_angles_deg, head_network
from metrics.heads import Heads, PROTOCOL, labels_around, random_angles
from metrics.registry import register_metric

ORBIT_DEG = (0, 45, 90, 135, 180, -135, -90, -45)
POSE_STREAM, BACK_STREAM, MASK_STREAM = 21, 22, 23     # keep the cameras' random numbers of the metrics apart
YAW_BIN_DEG = 30
BACK_FROM_DEG = 150
READ = dict(features='builtin', fixed_features=True, **PROTOCOL)


def yaw_bin(yaw_deg):
    """Index 0..11 of the 30-degree bin of yaws [N] in degrees; bin 0 is centred on the back, bin 6 on the front."""
    return (np.floor((np.asarray(yaw_deg) + 180 + YAW_BIN_DEG / 2) / YAW_BIN_DEG) % (360 // YAW_BIN_DEG)).astype(int)


def bin_centre_deg(index):
    """Yaw in degrees, -180..150, at the centre of a bin."""
    return index * YAW_BIN_DEG - 180


def by_yaw(name, yaw_deg, values):
    """{'NAME/yaw+030': mean} of values [N] in the bins of yaws [N] that have any."""
    bins = yaw_bin(yaw_deg)
    return {f'{name}/yaw{bin_centre_deg(i):+04d}': float(np.mean(values[bins == i])) for i in range(12) if (bins == i).any()}


def worst(name, values, largest=True, num=3):
    """{'NAME/worst1': number of the head} of the `num` heads with the worst values [N]."""
    order = np.argsort(-values if largest else values, kind='stable')[:num]
    return {f'{name}/worst{rank + 1}': int(head) for rank, head in enumerate(order)}


@register_metric('identity_consistency', num=200, **READ)
def identity_consistency(evaluation):
    """Whether a head stays the same person all round. Each head is seen from eight sides, 45 degrees apart; the figure is the
    probability that two views of one head are more alike (cosine of the built-in embedding) than views of two heads.
    1 is best, 0.5 is chance. '/cosine_same' and '/cosine_different' are the means behind it, '/yaw...' the mean cosine with
    the frontal view, '/worst...' the heads whose views are least alike. Low for a head that turns into somebody else;
    heads that all look alike lower it too."""
    heads, network = Heads.of(evaluation), head_network(evaluation.device)

    def look(opened, start, stop):
        views = [network(opened.view(labels_around(heads.camera, yaw))['image']).identity for yaw in ORBIT_DEG]
        return {'code': torch.stack(views, 1).cpu().numpy()}                            # [n, V, 64]

    code = torch.from_numpy(heads.rows(evaluation, look, 'identity')['code'])
    owner = torch.arange(len(code)).repeat_interleave(len(ORBIT_DEG))
    auc, same, different = verification(code.flatten(0, 1), owner)
    alike = code @ code.transpose(1, 2)                                                 # [n, V, V]
    others = (alike.sum([1, 2]) - len(ORBIT_DEG)) / (len(ORBIT_DEG) * (len(ORBIT_DEG) - 1))
    front = {f'identity_consistency/yaw{yaw:+04d}': float(alike[:, 0, i].mean()) for i, yaw in enumerate(ORBIT_DEG) if i}
    return {'identity_consistency': auc, 'identity_consistency/cosine_same': same,
            'identity_consistency/cosine_different': different, **front,
            **worst('identity_consistency', others.numpy(), largest=False)}


@register_metric('pose_error', num=500, **READ)
def pose_error(evaluation):
    """Degrees between the yaw of the camera asked for and the yaw that the built-in network reads off the picture: the median
    over heads seen once each from random sides (yaw uniform, pitch within 15 degrees). 0 is best; perfect pictures give 1.5 to 4, what the
    network itself errs; a set whose labels are off by some angle gives that angle. '/bias' is the median of the signed
    error, '/front' and '/back' the medians of the halves, '/share_beyond_45' the share of gross errors, '/pitch' the median
    of the pitch error, '/yaw...' means over the bins of the yaw asked for."""
    heads, network = Heads.of(evaluation), head_network(evaluation.device)

    def look(opened, start, stop):
        yaw, pitch = random_angles(evaluation.seed, start, stop, 15.0, POSE_STREAM)
        labels = labels_around(heads.camera, yaw, pitch)
        reading = network(opened.view(labels)['image'])
        asked = direction_angles_deg(view_directions(labels))
        return {'asked': torch.stack(asked, 1).numpy(), 'seen': torch.stack([reading.yaw_deg, reading.pitch_deg], 1).cpu().numpy()}

    rows = heads.rows(evaluation, look, 'pose')
    asked, seen = rows['asked'], rows['seen']
    signed = (seen[:, 0] - asked[:, 0] + 180) % 360 - 180
    error = np.abs(signed)
    back = np.abs(asked[:, 0]) > 90
    halves = {f'pose_error/{name}': float(np.median(error[half])) for name, half in (('front', ~back), ('back', back)) if half.any()}
    return {'pose_error': float(np.median(error)), 'pose_error/bias': float(np.median(signed)), **halves,
            'pose_error/share_beyond_45': float((error > 45).mean()),
            'pose_error/pitch': float(np.median(np.abs(seen[:, 1] - asked[:, 1]))),
            **by_yaw('pose_error', asked[:, 0], error), **worst('pose_error', error)}


@register_metric('face_at_back', num=300, **READ)
def face_at_back(evaluation):
    """Share of heads with a face where none belongs: each is seen once from behind (|yaw| at least 150 degrees), and the
    built-in network says whether it sees a face. 0 is best, and what perfect heads give. '/front' is the share of the same
    heads whose face is seen from before (|yaw| within 30 degrees), which should be near 1: without it a network that draws
    no faces at all would do well here."""
    heads, network = Heads.of(evaluation), head_network(evaluation.device)

    def look(opened, start, stop):
        yaw, pitch = random_angles(evaluation.seed, start, stop, 10.0, BACK_STREAM)
        aside = yaw / 180 * (180 - BACK_FROM_DEG)                                       # -30 .. 30
        return {name: network(opened.view(labels_around(heads.camera, aside + turn, pitch))['image']).face.cpu().numpy()
                for name, turn in (('front', 0), ('back', 180))}

    rows = heads.rows(evaluation, look, 'backs')
    return {'face_at_back': float((rows['back'] > 0.5).mean()), 'face_at_back/front': float((rows['front'] > 0.5).mean()),
            **worst('face_at_back', rows['back'])}


@register_metric('mask_agreement', num=200, **READ)
def mask_agreement(evaluation):
    """Whether head and background are kept apart. A head is seen once (|yaw| up to 60 degrees) before its own background and
    before the next head's; the built-in network finds the head in both pictures. The figure is the mean squared difference of
    the two masks (PanoHead, 2303.13071, table 2, reports 0.091 for itself with another segmentation network); 0 is best,
    perfect pictures give below 0.01. '/own' is the mean squared difference to the mask the generator itself gives,
    which is all there is for generators without a background of their own."""
    heads, network = Heads.of(evaluation), head_network(evaluation.device)
    separate = getattr(evaluation.generator, 'bcg_synthesis', None) is not None or hasattr(evaluation.generator, 'people')

    def look(opened, start, stop):
        yaw, _ = random_angles(evaluation.seed, start, stop, 0.0, MASK_STREAM)
        labels = labels_around(heads.camera, yaw / 3)
        out = opened.view(labels)
        found = network(out['image']).mask
        given = torch.nn.functional.interpolate(out['image_mask'].clamp(0, 1), size=found.shape[2:], mode='bilinear', antialias=True)
        row = {'own': (found - given).square().mean([1, 2, 3]).cpu().numpy()}
        if separate:
            swapped = network(opened.view(labels, ws_bcg=heads.latents(start + 1, stop + 1))['image']).mask
            row['swapped'] = (found - swapped).square().mean([1, 2, 3]).cpu().numpy()
        return row

    rows = heads.rows(evaluation, look, 'masks')
    main = rows['swapped' if separate else 'own']
    return {'mask_agreement': float(main.mean()), 'mask_agreement/own': float(rows['own'].mean()), **worst('mask_agreement', main)}

