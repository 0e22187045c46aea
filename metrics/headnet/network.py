"""A small network that looks at heads: pose, who it is, what is seen where. Trained by metrics/headnet/train.py on synthetic
heads, carried with the code (weights.safetensors), so that measuring needs no download.

It has seen drawn heads only. On photographs its figures are a rough guide; networks trained on photographs (ArcFace, pose
estimators) replace it through the registry of features.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from dnnlib import UserError
from dnnlib.util import written_whole
from torch_utils.ops.resize import resize
from training.synthetic.heads import CLOTH_KINDS, HAIR_STYLES
from training.synthetic.parts import PARTS

WEIGHTS = Path(__file__).with_name('weights.safetensors')
INPUT_SIZE = 64
PART_SIZE = 32                 # side of the part map
WIDTHS = (24, 48, 96, 160)     # channels at 1/2, 1/4, 1/8, 1/16 of the input
DEPTHS = (1, 3, 3, 2)          # convolutions of each stage after the one that halves it
EMBEDDING = 64
NECK = 32
NUM_ACCESSORIES = 3            # none, clip, band: training.synthetic.heads.Paint.accessory
SURFACES = ('skin', 'hair', 'clothes')   # whose colours are told
OUTPUTS = {'direction': 3, 'face': 1, 'colours': 3 * len(SURFACES), 'beard': 1, 'style': len(HAIR_STYLES),
           'cloth_kind': len(CLOTH_KINDS), 'accessory': NUM_ACCESSORIES}


def direction_angles_deg(direction):
    """(yaw, pitch) [N] in degrees of vectors [N, 3] from the head to the camera. Away from the horizon this yaw is not that of
    camera_utils.label_angles_deg, which turns about the camera's axes."""
    x, y, z = direction.unbind(1)
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))


@dataclass(frozen=True)
class HeadReading:
    """What the network saw in N images. direction [N, 3]: from the head to the camera in world axes, shorter than 1 where
    in doubt; face [N] probability that the face is seen; parts [N, 6, 32, 32] probabilities of training.synthetic.parts.PARTS;
    identity [N, 64] unit vectors, alike for views of one head; colours [N, 3, 3] of SURFACES in [0, 1]; beard [N] strength
    0..1; style, cloth_kind, accessory: logits [N, K] of the kinds of training.synthetic.heads."""
    direction: torch.Tensor
    face: torch.Tensor
    parts: torch.Tensor
    identity: torch.Tensor
    colours: torch.Tensor
    beard: torch.Tensor
    style: torch.Tensor
    cloth_kind: torch.Tensor
    accessory: torch.Tensor

    @property
    def yaw_deg(self):
        """[N] degrees in (-180, 180] round the vertical axis: 0 front, 90 the head's left side."""
        return direction_angles_deg(self.direction)[0]

    @property
    def pitch_deg(self):
        """[N] degrees above the horizon; positive where the camera looks down."""
        return direction_angles_deg(self.direction)[1]

    @property
    def mask(self):
        """[N, 1, 32, 32] probability of head, whatever part."""
        return 1 - self.parts[:, :1]


class _Convolution(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, num_in, num_out, stride=1):
        super().__init__(nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """Input plus a convolution of it, where `num_out` channels come of as many."""

    def __init__(self, channels):
        super().__init__()
        self.convolution = _Convolution(channels, channels)

    def forward(self, x):
        return x + self.convolution(x)


class HeadNet(nn.Module):
    """uint8 or float ([-1, 1]) images [N, 3, H, W] of any size, brought to 64x64 -> HeadReading.

    `features(images)` [N, 328] are the means of all stages, in units of their deviation over synthetic heads: what metrics
    of distributions compare.
    """

    def __init__(self):
        super().__init__()
        widths = (3, *WIDTHS)
        self.stages = nn.ModuleList(
            nn.Sequential(_Convolution(num_in, num_out, 2), *(_Residual(num_out) for _ in range(depth)))
            for num_in, num_out, depth in zip(widths, WIDTHS, DEPTHS))
        self.laterals = nn.ModuleList(nn.Conv2d(width, NECK, 1) for width in WIDTHS)
        self.merge = _Convolution(NECK, NECK)
        self.parts = nn.Conv2d(NECK, len(PARTS), 1)
        # The last stage keeps its 4x4 places: pooling would lose which side is which.
        flat = WIDTHS[-1] + 2 * WIDTHS[-1]
        self.squeeze = nn.Conv2d(WIDTHS[-1], 20, 1)
        self.readings = nn.ModuleDict({name: nn.Linear(flat, num) for name, num in OUTPUTS.items()})
        self.identity = nn.Linear(flat, EMBEDDING)
        self.register_buffer('feature_mean', torch.zeros(sum(WIDTHS)))
        self.register_buffer('feature_std', torch.ones(sum(WIDTHS)))

    @property
    def num_features(self):
        """Length of a feature vector."""
        return sum(WIDTHS)

    @staticmethod
    def prepare(images):
        """float [N, 3, 64, 64] in [-1, 1] of uint8 or float images [N, 3, H, W]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f'images must be [N, 3, H, W], got {tuple(images.shape)}')
        images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
        return resize(images, INPUT_SIZE)

    def _stages(self, images):
        """The maps of all stages, [N, WIDTHS[i], 32 / 2^i, 32 / 2^i]."""
        x, maps = self.prepare(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def raw(self, images):
        """{output: values [N, K]} before any squashing, with 'identity' [N, 64] and 'parts' [N, 6, 32, 32]; what is trained."""
        maps = self._stages(images)
        merged = self.laterals[3](maps[3])
        for lateral, stage in zip(self.laterals[2::-1], maps[2::-1]):
            merged = F.interpolate(merged, scale_factor=2, mode='nearest') + lateral(stage)
            if stage is maps[1]:
                merged = self.merge(merged)
        code = torch.cat([maps[3].mean([2, 3]), self.squeeze(maps[3]).flatten(1)], dim=1)
        out = {name: head(code) for name, head in self.readings.items()}
        return {**out, 'identity': self.identity(code), 'parts': self.parts(merged.relu())}

    def forward(self, images):
        raw = {name: values.float() for name, values in self.raw(images).items()}
        return HeadReading(raw['direction'], raw['face'][:, 0].sigmoid(), raw['parts'].softmax(1), F.normalize(raw['identity'], dim=1),
                           raw['colours'].unflatten(1, (len(SURFACES), 3)).clamp(0, 1), raw['beard'][:, 0].clamp(0, 1),
                           raw['style'], raw['cloth_kind'], raw['accessory'])

    def features(self, images):
        """[N, 328] of images [N, 3, H, W]: the mean over the picture of every channel of every stage, in its usual units."""
        pooled = torch.cat([stage.float().mean([2, 3]) for stage in self._stages(images)], dim=1)
        return (pooled - self.feature_mean) / self.feature_std


def save_weights(network, path):
    """Write float16 weights to `path`."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
             if not name.endswith('num_batches_tracked')}
    with written_whole(path) as temporary:
        safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, temporary)


def load_weights(path):
    """HeadNet of a file that save_weights wrote, ready to look. Raises UserError for a file of another kind."""
    network = HeadNet()
    try:
        state = safetensors.torch.load_file(path)
        wrong = [name for name, value in network.state_dict().items()
                 if not name.endswith('num_batches_tracked') and (name not in state or state[name].shape != value.shape)]
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such file; make it with python -m metrics.headnet.train') from error
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f'{path}: not the weights of the head network ({error})') from error
    if wrong:
        raise UserError(f'{path}: not the weights of the head network: {wrong[0]} is missing or of another shape')
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return network.eval().requires_grad_(False)


@functools.lru_cache(maxsize=2)
def head_network(device='cpu'):
    """The network carried with the code, on `device`; one copy a device."""
    return load_weights(WEIGHTS).to(device)
