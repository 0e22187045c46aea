"""Where views of the backs of heads come from: a network's own heads, or the images of a set with labels and masks."""

import dataclasses
import math

import numpy as np
import torch

import camera_utils
from dnnlib import UserError
from inference import images, trajectories
from torch_utils.ops.resize import resize

TRIES = 3                  # own heads rendered for every good view wanted, at most
SWING = 0.25               # radians that cameras of own views rise and fall


@dataclasses.dataclass(frozen=True)
class BackViews:
    """Which views are asked for: |yaw| of at least `min_yaw` degrees, `num` good ones, drawn by `seed`."""
    min_yaw: float
    num: int
    seed: int


@dataclasses.dataclass(frozen=True)
class BackView:
    """`image` uint8 [R, R, 3], `mask` uint8 [R, R], `label` [25], the mask from the `opposite` camera or None, `name`."""
    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    opposite: np.ndarray | None
    name: str


def _seen(session, identity, label):
    """(image uint8 [R, R, 3], mask uint8 [R, R]) of an identity from one camera."""
    out = session.view(identity, label)
    mask = resize(out.image_mask, out.image.shape[-1]).clamp(0, 1)
    return images.to_uint8(out.image)[0], (mask[0, 0] * 255).round().to(torch.uint8).cpu().numpy()


def network_backs(session, views, truncation_psi):
    """Yield a BackView of the head of every seed from `views.seed` on, until TRIES times as many as wanted."""
    random = np.random.RandomState(views.seed)
    for seed in range(views.seed, views.seed + TRIES * views.num):
        identity = session.identity(session.seeds_to_ws([seed], truncation_psi))
        yaw = random.uniform(views.min_yaw, 180) * random.choice([-1, 1])
        label = trajectories.turned(session.camera(), float(yaw), math.pi / 2 + random.uniform(-SWING, SWING))
        _, opposite = _seen(session, identity, camera_utils.half_turn_label(label))
        yield BackView(*_seen(session, identity, label), label[0].numpy(), opposite, f'seed{seed:04d}')


def dataset_backs(dataset, views):
    """Yield the BackViews of a HeadDataset with labels and masks, in an order drawn by `views.seed`. Raises UserError if it
    has none."""
    if not dataset.has_labels:
        raise UserError(f'{dataset.name}: has no labels in dataset.json, so nothing says which images show the back')
    yaws = camera_utils.label_angles_deg(torch.from_numpy(dataset.get_labels()))[:, 0].abs().numpy()
    order = np.random.RandomState(views.seed).permutation(len(dataset))
    chosen = order[yaws[order] >= views.min_yaw]
    if not len(chosen):
        raise UserError(f'{dataset.name}: no image has |yaw| >= {views.min_yaw:g} degrees; lower --min_yaw')
    for i in chosen:
        item = dataset[i]
        yield BackView(item['image'].transpose(1, 2, 0), item['mask'][0], item['label'], None, f'image{i:08d}')
