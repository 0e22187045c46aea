"""FaceBoxes, a small face detector: the network, its anchors, and the boxes of a picture.

Source: Zhang et al., FaceBoxes: A CPU Real-time Face Detector with High Accuracy (1708.05234). Names and shapes of the
parameters are those of the published file FaceBoxesProd.pth.
"""

import itertools
import math

import numpy as np
import torch
from torch import nn

MEAN_BGR = (104.0, 117.0, 123.0)
MAX_HEIGHT, MAX_WIDTH = 720, 1080       # larger pictures are shrunk before the network sees them
VARIANCES = (0.1, 0.2)
# (stride, ((size, positions per cell and axis), ...)) of the three heads.
ANCHORS = ((32, ((32, 4), (64, 2), (128, 1))), (64, ((256, 1),)), (128, ((512, 1),)))
CANDIDATE_SCORE, FACE_SCORE = 0.05, 0.5
NUM_CANDIDATES, NUM_KEPT = 5000, 750
OVERLAP = 0.3


class ConvBN(nn.Module):
    """Convolution without bias and batch norm: x [N, C, H, W]; with `doubled` the ReLU of both x and -x, else the ReLU."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, doubled=False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5)
        self.doubled = doubled

    def forward(self, x):
        x = self.bn(self.conv(x))
        return torch.relu(torch.cat([x, -x], dim=1) if self.doubled else x)


class Inception(nn.Module):
    """Four branches of 32 channels each on 128 channels: 1x1; average and 1x1; 3x3; two 3x3."""

    def __init__(self):
        super().__init__()
        self.branch1x1 = ConvBN(128, 32, 1)
        self.branch1x1_2 = ConvBN(128, 32, 1)
        self.branch3x3_reduce = ConvBN(128, 24, 1)
        self.branch3x3 = ConvBN(24, 32, 3, padding=1)
        self.branch3x3_reduce_2 = ConvBN(128, 24, 1)
        self.branch3x3_2 = ConvBN(24, 32, 3, padding=1)
        self.branch3x3_3 = ConvBN(32, 32, 3, padding=1)

    def forward(self, x):
        averaged = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([
            self.branch1x1(x), self.branch1x1_2(averaged), self.branch3x3(self.branch3x3_reduce(x)),
            self.branch3x3_3(self.branch3x3_2(self.branch3x3_reduce_2(x)))], dim=1)


class FaceBoxes(nn.Module):
    """Pictures [N, 3, H, W], BGR in 0..255 less MEAN_BGR -> locations [N, A, 4] and face probabilities [N, A] of the A
    anchors of `anchors(H, W)`."""

    def __init__(self):
        super().__init__()
        self.conv1 = ConvBN(3, 24, 7, stride=4, padding=3, doubled=True)
        self.conv2 = ConvBN(48, 64, 5, stride=2, padding=2, doubled=True)
        self.inception1, self.inception2, self.inception3 = Inception(), Inception(), Inception()
        self.conv3_1, self.conv3_2 = ConvBN(128, 128, 1), ConvBN(128, 256, 3, stride=2, padding=1)
        self.conv4_1, self.conv4_2 = ConvBN(256, 128, 1), ConvBN(128, 256, 3, stride=2, padding=1)
        channels, per_cell = (128, 256, 256), [sum(k * k for _, k in sizes) for _, sizes in ANCHORS]
        self.loc = nn.ModuleList(nn.Conv2d(c, 4 * a, 3, padding=1) for c, a in zip(channels, per_cell))
        self.conf = nn.ModuleList(nn.Conv2d(c, 2 * a, 3, padding=1) for c, a in zip(channels, per_cell))

    def forward(self, x):
        def pool(x):
            return nn.functional.max_pool2d(x, 3, stride=2, padding=1)

        x = pool(self.conv2(pool(self.conv1(x))))
        x = self.inception3(self.inception2(self.inception1(x)))
        scales = [x]
        scales.append(self.conv3_2(self.conv3_1(scales[-1])))
        scales.append(self.conv4_2(self.conv4_1(scales[-1])))
        # Rows, columns, anchors of a cell: the order of anchors().
        loc = torch.cat([head(s).permute(0, 2, 3, 1).flatten(1) for head, s in zip(self.loc, scales)], dim=1)
        conf = torch.cat([head(s).permute(0, 2, 3, 1).flatten(1) for head, s in zip(self.conf, scales)], dim=1)
        return loc.unflatten(1, (-1, 4)), conf.unflatten(1, (-1, 2)).softmax(dim=2)[..., 1]


def anchors(height, width):
    """Anchors float64 [A, 4] of a picture: centre x, y and width, height as fractions of the picture."""
    found = []
    for stride, sizes in ANCHORS:
        cells = np.stack(np.meshgrid(np.arange(math.ceil(height / stride)), np.arange(math.ceil(width / stride)),
                                     indexing='ij'), axis=-1)                     # [rows, columns, 2], y and x
        offsets, sides = [], []
        for size, positions in sizes:
            steps = [0.5] if positions == 1 else [k / positions for k in range(positions)]
            offsets += itertools.product(steps, steps)
            sides += [size] * positions ** 2
        centres = (cells[:, :, None] + np.array(offsets)) * stride                # [rows, columns, anchors, 2]
        sides = np.broadcast_to(np.array(sides, dtype=float), centres.shape[:3])
        found.append(np.stack([centres[..., 1] / width, centres[..., 0] / height, sides / width, sides / height], axis=-1).reshape(-1, 4))
    return np.concatenate(found)


def decode(loc, anchor):
    """Corners [A, 4] (x1, y1, x2, y2, fractions of the picture) of locations [A, 4] relative to anchors [A, 4]."""
    centre = anchor[:, :2] + VARIANCES[0] * loc[:, :2] * anchor[:, 2:]
    size = anchor[:, 2:] * np.exp(VARIANCES[1] * loc[:, 2:])
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def suppress(boxes, limit=OVERLAP):
    """Indices of the boxes [K, 4] in pixels, best first, that overlap no better one by `limit` of their union or more."""
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    left, kept = np.arange(len(boxes)), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        common = np.clip(high - low + 1, 0, None).prod(axis=1)
        left = left[common / (area[best] + area[left] - common) < limit]
    return np.array(kept, dtype=int)


@torch.no_grad()
def detect_faces(network, image, min_score=FACE_SCORE):
    """Faces float64 [K, 5] of an RGB picture uint8 [H, W, 3]: x1, y1, x2, y2 in pixels and score, best first; only those
    of score above `min_score`."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_HEIGHT / height)
    scale *= min(1.0, MAX_WIDTH / (width * scale))
    device = next(network.parameters()).device
    x = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].flip(1).float()
    if scale < 1:
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        x = nn.functional.interpolate(x, size, mode='bilinear', align_corners=False)
    rows, columns = x.shape[2:]
    x = x - torch.tensor(MEAN_BGR, device=device)[:, None, None]
    loc, score = (value[0].double().cpu().numpy() for value in network(x))
    boxes = decode(loc, anchors(rows, columns)) * [width, height, width, height]
    order = np.argsort(-score, kind='stable')[:NUM_CANDIDATES]
    order = order[score[order] > CANDIDATE_SCORE]
    order = order[suppress(boxes[order])][:NUM_KEPT]
    found = np.concatenate([boxes[order], score[order, None]], axis=1)
    return found[found[:, 4] > min_score]
