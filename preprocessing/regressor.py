"""Head pose and 68 landmarks of a face: the MobileNet regressor of 3DDFA_V2 and the reading of its numbers.

Source: Guo et al., Towards Fast, Accurate and Stable 3D Dense Face Alignment (2009.09960), and Howard et al., MobileNets
(1704.04861). Names and shapes of the parameters are those of the published files mb1_120x120.pth and mb05_120x120.pth;
the second head of mb05, 68 landmarks, takes the place of a landmark detector.
"""

import dataclasses

import numpy as np
import torch
from torch import nn

INPUT_SIZE = 120
NUM_PARAMETERS = 62
NUM_LANDMARKS = 68
# Blocks of MobileNet V1: name, output channels at width 1, stride.
BLOCKS = (('dw2_1', 64, 1), ('dw2_2', 128, 2), ('dw3_1', 128, 1), ('dw3_2', 256, 2), ('dw4_1', 256, 1), ('dw4_2', 512, 2),
          ('dw5_1', 512, 1), ('dw5_2', 512, 1), ('dw5_3', 512, 1), ('dw5_4', 512, 1), ('dw5_5', 512, 1), ('dw5_6', 1024, 2),
          ('dw6', 1024, 1))


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and 1x1 convolution, each with batch norm and ReLU; x [N, C, H, W]."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn_dw = nn.BatchNorm2d(in_channels)
        self.conv_sep = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn_sep = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        x = torch.relu(self.bn_dw(self.conv_dw(x)))
        return torch.relu(self.bn_sep(self.conv_sep(x)))


class Regressor(nn.Module):
    """Crops [N, 3, 120, 120], BGR, (v - 127.5) / 128 -> (parameters [N, 62], landmarks [N, 136] or None).

    `width` scales all channels: 1 (mb1) or 0.5 (mb05); `landmark_head`: whether there is one.
    """

    def __init__(self, width=0.5, landmark_head=True):
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for name, out_channels, stride in BLOCKS:
            out_channels = int(out_channels * width)
            setattr(self, name, SeparableBlock(channels, out_channels, stride))
            channels = out_channels
        self.fc_param = nn.Linear(channels, NUM_PARAMETERS)
        self.fc_lm = nn.Linear(channels, 2 * NUM_LANDMARKS) if landmark_head else None

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for name, _, _ in BLOCKS:
            x = getattr(self, name)(x)
        x = x.mean(dim=(2, 3))
        return self.fc_param(x), None if self.fc_lm is None else self.fc_lm(x)


@dataclasses.dataclass(frozen=True)
class Face:
    """One face as the regressor sees it. `roi` (x1, y1, x2, y2): the square it looked at, in pixels of the picture;
    `projection` float64 [3, 4]: model (micrometres) to that square scaled to 120 pixels, y up; `landmarks` float64 [68, 2]:
    iBUG points in pixels of the picture, None without a landmark head; `deviation`: root mean square of the shape and
    expression coefficients in standard deviations, large where the square shows no face."""
    roi: tuple
    projection: np.ndarray
    landmarks: np.ndarray | None
    deviation: float

    @property
    def roi_side(self):
        """Side of the square in pixels."""
        return self.roi[2] - self.roi[0]


def roi_of_box(box):
    """Square (x1, y1, x2, y2) that the regressor looks at, of a detection (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box[:4]
    size = ((x2 - x1) + (y2 - y1)) / 2
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2 + 0.14 * size
    side = int(size * 1.58)
    return centre_x - side / 2, centre_y - side / 2, centre_x + side / 2, centre_y + side / 2


def cut_square(image, roi):
    """float32 [3, 120, 120] in 0..255 of an RGB picture uint8 [H, W, 3]: the square `roi` with corners rounded, black
    outside of the picture, resized bilinearly."""
    x1, y1, x2, y2 = (int(round(value)) for value in roi)
    height, width = image.shape[:2]
    square = np.zeros((y2 - y1, x2 - x1, 3), dtype=np.uint8)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if left < right and top < bottom:
        square[top - y1:bottom - y1, left - x1:right - x1] = image[top:bottom, left:right]
    x = torch.from_numpy(square).permute(2, 0, 1)[None].float()
    return nn.functional.interpolate(x, (INPUT_SIZE, INPUT_SIZE), mode='bilinear', align_corners=False)[0]


@torch.no_grad()
def regress_faces(network, statistics, image, rois):
    """List of Face, one for each square of `rois` in an RGB picture uint8 [H, W, 3].

    `statistics`: (mean, standard deviation), float [62] each, of the parameters.
    """
    if not len(rois):
        return []
    mean, std = (np.asarray(value, dtype=np.float64) for value in statistics)
    device = next(network.parameters()).device
    x = torch.stack([cut_square(image, roi) for roi in rois]).flip(1).to(device)
    raw, points = network((x - 127.5) / 128)
    faces = []
    for k, roi in enumerate(rois):
        normalised = raw[k].double().cpu().numpy()
        landmarks = None
        if points is not None:
            pixels = 60 * points[k].double().cpu().numpy().reshape(2, NUM_LANDMARKS).T + 60
            landmarks = pixels * (roi[2] - roi[0]) / INPUT_SIZE + [roi[0], roi[1]]
        faces.append(Face(tuple(float(v) for v in roi), (normalised * std + mean)[:12].reshape(3, 4), landmarks,
                          float(np.sqrt(np.mean(normalised[12:] ** 2)))))
    return faces


def decompose_projection(projection):
    """(scale, rotation float64 [3, 3], translation [3]) of a projection [3, 4]: the first two rows made unit and the third
    their cross product, as published; not made orthogonal."""
    row1, row2 = projection[0, :3], projection[1, :3]
    length1, length2 = np.linalg.norm(row1), np.linalg.norm(row2)
    row1, row2 = row1 / length1, row2 / length2
    return (length1 + length2) / 2, np.stack([row1, row2, np.cross(row1, row2)]), projection[:, 3]
