"""DINOv2 features (Oquab et al., 2304.07193) from the published weights, where the user has them: the class token of a
vision transformer, which sees quality and variety more as people do than Inception does (Stein et al., 2306.04675).

`--features dinov2` (the large network), dinov2_vits14, dinov2_vitb14 or dinov2_vitl14 look for NAME_pretrain.pth in
torch.hub's folder and in the cache; `--features path/to/dinov2_vits14_pretrain.pth` names the file.
"""

import hashlib
import io
import math
import pickle
import re
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import dnnlib
from metrics.features import FOLDER, FeatureNetwork, register_features, register_reader

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = {384: 6, 768: 12, 1024: 16}                  # by width
NAMES = {384: 'dinov2_vits14', 768: 'dinov2_vitb14', 1024: 'dinov2_vitl14'}
# What torch.load and a look at the first entries raise for other files.
NOT_WEIGHTS = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError,
               UnicodeDecodeError, zipfile.BadZipFile)
POSITION_OFFSET = 0.1                                # of the published interpolation of position embeddings


class Attention(nn.Module):
    """Self-attention over tokens [N, T, C]."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)      # [N, heads, T, C / heads]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """A learned factor a channel."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    """Pre-normalised transformer block over tokens [N, T, C]."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.ls1, self.ls2 = Attention(width, heads), LayerScale(width), LayerScale(width)
        self.mlp = nn.ModuleDict({'fc1': nn.Linear(width, 4 * width), 'fc2': nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x)))))


class DinoV2(nn.Module):
    """float32 images [N, 3, H, W] in 0..255 -> class token [N, width] after the last norm. Parameters have the published
    names; `positions` is the number of position embeddings, the class token's included."""

    def __init__(self, width, depth, positions):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(3, width, kernel_size=14, stride=14)})
        self.blocks = nn.ModuleList(Block(width, HEADS[width]) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.register_buffer('mean', torch.tensor(MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(STD).reshape(1, 3, 1, 1), persistent=False)

    def positions(self, side):
        """Position embeddings [1, 1 + side^2, width] of a square of patches."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        trained = math.isqrt(grid.shape[1])
        if trained != side:
            grid = grid.reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, scale_factor=(side + POSITION_OFFSET) / trained, mode='bicubic')
            grid = grid.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([first, grid], dim=1)

    def forward(self, images):
        x = F.interpolate(images, size=(SIZE, SIZE), mode='bicubic', antialias=True, align_corners=False).clamp(0, 255) / 255
        x = self.patch_embed['proj']((x - self.mean) / self.std)                            # [N, C, side, side]
        side = x.shape[-1]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + self.positions(side)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


@register_reader
def read_dinov2(data, device, flag):
    """FeatureNetwork of the bytes of a published weights file, None if they are something else. UserError if weights are
    missing."""
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                    return None                      # TorchScript
        state = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
        width, depth = state['cls_token'].shape[-1], 1 + max(int(m[1]) for m in (re.match(r'blocks\.(\d+)\.', k) for k in state) if m)
    except NOT_WEIGHTS:
        return None
    if width not in HEADS:
        raise dnnlib.UserError(f'{flag}: DINOv2 of width {width}; known are {", ".join(f"{NAMES[w]} ({w})" for w in HEADS)}')
    module = DinoV2(width, depth, state['pos_embed'].shape[1])
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise dnnlib.UserError(f'{flag}: not the weights of {NAMES[width]} as published ({str(error).splitlines()[-1].strip()})') from error
    module = module.eval().requires_grad_(False).to(device)
    return FeatureNetwork(NAMES[width], hashlib.sha256(data).hexdigest(), SIZE, module)


def _named(name):
    file = f'{name}_pretrain.pth'

    def load(device):
        folders = [dnnlib.util.cache_folder() / FOLDER, Path(torch.hub.get_dir()) / 'checkpoints']
        for path in (folder / file for folder in folders):
            if path.is_file():
                network = read_dinov2(path.read_bytes(), device, f'--features {name}')
                if network is None:
                    raise dnnlib.UserError(f'--features {name}: {path} does not hold DINOv2 weights; download it again')
                return network
        raise dnnlib.UserError(f'--features {name}: {file} is in none of {", ".join(map(str, folders))}; download it from DINOv2\'s '
                               'page, or give its path')
    return load


for _name in NAMES.values():
    register_features(_name)(_named(_name))
register_features('dinov2')(_named(NAMES[1024]))
