"""Adaptive discriminator augmentation of image, raw image and mask together (StyleGAN2-ADA, 2006.06676, appendix B).

One random geometric transform per sample, in coordinates normalised by image size, moves every picture of the sample;
colour, filtering and noise change the colour pictures only. `AdaController` steers the probability (section 3.2).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from torch_utils import streams

# Scaling coefficients of the sym6 wavelet (Daubechies 1992): orthogonal to its even shifts, so that upsampling with it
# and downsampling with it again is the identity.
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
NUM_BANDS = 4                          # octaves of the filter bank, lowest first
EXPECTED_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)   # of natural images in the bands, appendix B

_BLIT = {'shift': 0.125}
_GEOM = {'scale': 0.2, 'rotation': 1.0, 'stretch': 0.2, 'drift': 0.125}
_COLOR = {'brightness': 0.2, 'contrast': 0.5, 'luma_flip': 1.0, 'hue': 1.0, 'saturation': 1.0}
_FILTER = {'filtering': 1.0}
_NOISE = {'noise': 0.1}
_CUTOUT = {'cutout': 0.5}

# Strengths as in the paper. Mirroring and quarter turns are in no preset: they would contradict the camera label.
# 'head' is the choice for labelled heads: all of colour, and moves as small as the errors of estimated cameras.
PRESETS = {
    'head':   {'shift': 0.02, 'scale': 0.04, 'rotation': 0.02, 'drift': 0.01, **_COLOR},
    'blit':   _BLIT,
    'geom':   _GEOM,
    'color':  _COLOR,
    'filter': _FILTER,
    'noise':  _NOISE,
    'cutout': _CUTOUT,
    'bg':     {**_BLIT, **_GEOM},
    'bgc':    {**_BLIT, **_GEOM, **_COLOR},
    'bgcf':   {**_BLIT, **_GEOM, **_COLOR, **_FILTER},
    'bgcfn':  {**_BLIT, **_GEOM, **_COLOR, **_FILTER, **_NOISE},
    'bgcfnc': {**_BLIT, **_GEOM, **_COLOR, **_FILTER, **_NOISE, **_CUTOUT},
}


class AdaController:
    """Moves the augmentation probability so that the mean sign of D on reals settles at `target` (paper, section 3.2).

    `target` in (0, 1], or None for a fixed `p`; `interval` batches between updates; `kimg` thousand images for p to go
    from 0 to 1. Raises ValueError for values outside these ranges.
    """

    def __init__(self, target=0.6, interval=4, kimg=500, p=0.0):
        if target is not None and not 0 < target <= 1:
            raise ValueError(f'target must lie in (0, 1] or be None, got {target}')
        if interval < 1 or kimg <= 0 or not 0 <= p <= 1:
            raise ValueError(f'need interval >= 1, kimg > 0 and p in [0, 1], got {interval}, {kimg}, {p}')
        self.target, self.interval, self.kimg, self.p = target, interval, kimg, float(p)

    def due(self, batch_idx):
        """Whether the batch numbered `batch_idx` (from 0) is one after which to update."""
        return self.target is not None and batch_idx % self.interval == 0

    def update(self, sign_mean, nimg_since):
        """New p in [0, 1] from the mean of sign(D(real)) over the `nimg_since` images since the last update.
        A mean that is not a number (nothing was collected) leaves p as it is."""
        if self.target is not None and not math.isnan(sign_mean):
            direction = (sign_mean > self.target) - (sign_mean < self.target)
            self.p = min(max(self.p + direction * nimg_since / (self.kimg * 1000), 0.0), 1.0)
        return self.p

    def state_dict(self):
        """What resuming needs."""
        return {'p': self.p}

    def load_state_dict(self, state):
        """Go on from `state_dict()` of an earlier controller."""
        self.p = float(state['p'])


class AugmentPipe(nn.Module):
    """Random augmentation of what a discriminator sees; each transform hits a sample with probability `p` (a buffer).

    Every argument is the strength of one transform, 0 = off. Moves: `mirror` and `quarter_turns` (0 or 1), `shift`
    (largest translation by whole pixels, part of the width), `scale` and `stretch` (deviation of log2 of the isotropic
    and the anisotropic factor), `rotation` (largest angle / pi), `drift` (deviation of the translation, part of the
    width). Colour: `brightness` (deviation, range of images is [-1, 1]), `contrast`, `saturation` (deviation of log2),
    `luma_flip` (0 or 1), `hue` (largest angle / pi). `filtering` (deviation of log2 of a band's gain), `noise`
    (deviation of the half-normal sigma), `cutout` (side of the square, part of the width). Defaults: nothing.
    """

    def __init__(self, mirror=0.0, quarter_turns=0.0, shift=0.0, scale=0.0, rotation=0.0, stretch=0.0, drift=0.0,
                 brightness=0.0, contrast=0.0, luma_flip=0.0, hue=0.0, saturation=0.0, filtering=0.0, noise=0.0, cutout=0.0):
        super().__init__()
        self.strengths = {name: float(value) for name, value in locals().items() if name not in ('self', '__class__')}
        bad = {name: value for name, value in self.strengths.items() if not (value >= 0 and math.isfinite(value))}
        if bad:
            raise ValueError(f'strengths must be finite and not negative, got {bad}')
        self.register_buffer('p', torch.zeros([]))
        self.bank = _filter_bank()

    def set_p(self, p):
        """Set the probability, in [0, 1]."""
        if not 0 <= p <= 1:
            raise ValueError(f'p must lie in [0, 1], got {p}')
        self.p.fill_(p)

    def forward(self, images, generator=None):
        """Augmented copy of the dict `images`: square float tensors of any resolutions with the same N.

        Keys ending in 'mask' are masks [N, 1, h, w] in [0, 1]: they move and are cut out with the others, but keep
        their values otherwise. All other entries are colour images [N, 3, h, w] in [-1, 1]. None entries stay None.
        `generator`: CPU torch.Generator of all random numbers, None for the samples' own (torch_utils.streams). Samples
        that draw no transform pass bit-equal; p = 0 returns the very tensors. Differentiable any number of times with
        respect to the images.
        """
        p = float(self.p)
        present = {key: x for key, x in images.items() if x is not None}
        if p == 0 or not present:
            return dict(images)
        colour = [key for key in present if not key.endswith('mask')]
        sizes = [x.shape[-1] for x in present.values()]
        draw = _Draw(next(iter(present.values())).shape[0], p, self.strengths, generator)
        theta = draw.geometry(coarsest=min(sizes))
        out = {key: _on_rows(x, theta != torch.eye(3), _move, theta, key not in colour) for key, x in present.items()}
        matrix = draw.colour()
        gains = draw.band_gains()
        noise = draw.noise()
        for key in colour:
            x = _on_rows(out[key], matrix != torch.eye(4), _recolour, matrix)
            octaves = max(round(math.log2(max(sizes) / x.shape[-1])), 0)
            own = gains[:, (torch.arange(NUM_BANDS) - octaves).clamp(min=0)]
            x = _on_rows(x, own != 1, _filter, own @ self.bank)
            out[key] = _on_rows(x, noise[:, 0] != 0, _add_noise, noise)
        centre = draw.cutout()
        for key, x in out.items():
            # Mid-grey in either range: the discriminator sees a mask m as 2m - 1.
            out[key] = _on_rows(x, ~centre.isnan(), _cut, centre, self.strengths['cutout'], 0.0 if key in colour else 0.5)
        return {**images, **out}


class _Draw:
    """The random parameters of one batch of N samples, as CPU tensors: which samples a transform misses is known to the
    host, and the parameters are the same on every device."""

    def __init__(self, num, p, strengths, generator):
        self.num, self.p, self.strengths, self.generator = num, p, strengths, generator

    def uniform(self):
        return streams.uniform([self.num]) if self.generator is None else torch.rand([self.num], generator=self.generator)

    def normal(self):
        return streams.normal([self.num]) if self.generator is None else torch.randn([self.num], generator=self.generator)

    def pick(self, name, values, neutral, p=None):
        """`values` [N, ...] where the transform hits, `neutral` elsewhere."""
        hit = (self.uniform() < (self.p if p is None else p)) & (self.strengths[name] > 0)
        return torch.where(hit.reshape(-1, *[1] * (values.ndim - 1)), values, neutral)

    def geometry(self, coarsest):
        """[N, 3, 3] from output to input coordinates, both [-1, 1] across the picture. Order as in the paper: the
        content is mirrored first and shifted by `drift` last."""
        s = self.strengths
        g = torch.eye(3).repeat(self.num, 1, 1)
        g = _scaling(1 - 2 * self.pick('mirror', (self.uniform() * 2).floor(), torch.zeros(1)), torch.ones(self.num)) @ g
        g = _rotation(self.pick('quarter_turns', (self.uniform() * 4).floor(), torch.zeros(1)) * (math.pi / 2)) @ g
        # Whole pixels of the coarsest picture are whole pixels of all that are a multiple of it.
        whole = ((torch.stack([self.uniform(), self.uniform()], 1) * 2 - 1) * s['shift'] * coarsest).round() / coarsest
        g = _translation(self.pick('shift', whole * 2, torch.zeros(1))) @ g
        factor = self.pick('scale', torch.exp2(self.normal() * s['scale']), torch.ones(1))
        g = _scaling(factor, factor) @ g
        p_half = 1 - math.sqrt(1 - self.p)             # so that either rotation hits with probability p
        g = _rotation(self.pick('rotation', (self.uniform() * 2 - 1) * math.pi * s['rotation'], torch.zeros(1), p_half)) @ g
        factor = self.pick('stretch', torch.exp2(self.normal() * s['stretch']), torch.ones(1))
        g = _scaling(factor, 1 / factor) @ g
        g = _rotation(self.pick('rotation', (self.uniform() * 2 - 1) * math.pi * s['rotation'], torch.zeros(1), p_half)) @ g
        offset = torch.stack([self.normal(), self.normal()], 1) * s['drift']
        g = _translation(self.pick('drift', offset * 2, torch.zeros(1))) @ g
        return torch.where((g == torch.eye(3)).all(dim=(1, 2))[:, None, None], g, torch.linalg.inv(g))

    def colour(self):
        """[N, 4, 4] acting on (r, g, b, 1)."""
        s = self.strengths
        eye = torch.eye(4)
        luma = torch.tensor([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
        along = torch.outer(luma, luma)
        c = eye.repeat(self.num, 1, 1)
        c[:, :3, 3] = self.pick('brightness', self.normal() * s['brightness'], torch.zeros(1))[:, None]
        factor = self.pick('contrast', torch.exp2(self.normal() * s['contrast']), torch.ones(1))
        c = torch.diag_embed(torch.stack([factor, factor, factor, torch.ones(self.num)], 1)) @ c
        flip = self.pick('luma_flip', (self.uniform() * 2).floor(), torch.zeros(1))[:, None, None]
        c = (eye - 2 * along * flip) @ c
        c = _hue_rotation(self.pick('hue', (self.uniform() * 2 - 1) * math.pi * s['hue'], torch.zeros(1))) @ c
        factor = self.pick('saturation', torch.exp2(self.normal() * s['saturation']), torch.ones(1))[:, None, None]
        # Written as a change from the identity, so that a factor of 1 leaves the matrix bit-equal.
        keep = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])) - along
        return (eye + keep * (factor - 1)) @ c

    def band_gains(self):
        """[N, 4] amplification of the octaves, lowest first; the expected power of the picture stays as it was."""
        gains = torch.ones(self.num, NUM_BANDS)
        power = torch.tensor(EXPECTED_POWER)
        for band in range(NUM_BANDS):
            one = torch.ones(self.num, NUM_BANDS)
            one[:, band] = torch.exp2(self.normal() * self.strengths['filtering'])
            gains = gains * self.pick('filtering', one / (one.square() @ power).sqrt()[:, None], torch.ones(1))
        return gains

    def noise(self):
        """[N, 2] standard deviation (0 = none) and seed of the noise."""
        sigma = self.pick('noise', self.normal().abs() * self.strengths['noise'], torch.zeros(1))
        return torch.stack([sigma, self.uniform()], dim=1)

    def cutout(self):
        """[N, 2] centre (x, y) of the square in [0, 1], NaN = none."""
        return self.pick('cutout', torch.stack([self.uniform(), self.uniform()], 1), torch.full([1], math.nan))


def _matrix3(rows):
    """[N, 3, 3] from three rows of three [N] tensors."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _scaling(x, y):
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix3([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def _rotation(angle):
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    return _matrix3([[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero], [zero, zero, one]])


def _translation(offset):
    zero, one = torch.zeros_like(offset[:, 0]), torch.ones_like(offset[:, 0])
    return _matrix3([[one, zero, offset[:, 0]], [zero, one, offset[:, 1]], [zero, zero, one]])


def _hue_rotation(angle):
    """[N, 4, 4] rotations by `angle` [N] about the grey axis (Rodrigues)."""
    k = torch.zeros(4, 4)
    k[:3, :3] = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    angle = angle[:, None, None]
    return torch.eye(4) + angle.sin() * k + (1 - angle.cos()) * (k @ k)


def _on_rows(x, hit, function, parameters, *args):
    """x [N, ...] with function(x_n, parameters_n, *args) in place of the samples n for which anything in hit[n] is true;
    the others are untouched."""
    rows = hit.reshape(hit.shape[0], -1).any(dim=1).nonzero()[:, 0]
    if rows.numel() == 0:
        return x
    index = rows.to(x.device)
    return x.index_copy(0, index, function(x[index], parameters[rows].to(x), *args))


def _mirror_pad(x, pad):
    """x [N, C, H, W] with `pad` pixels more on every side, mirrored at the outer edge of the border pixels; any pad."""
    for dim in (2, 3):
        size = x.shape[dim]
        i = torch.arange(-pad, size + pad, device=x.device) % (2 * size)
        x = x.index_select(dim, torch.minimum(i, 2 * size - 1 - i))
    return x


def _move(x, theta, is_mask):
    """x [N, C, H, W] moved by theta [N, 3, 3] (output to input); what comes from outside is mirrored at the edge.
    Masks are looked up bilinearly and so stay in [0, 1]; colours at twice the resolution through sym6 (appendix B),
    which is exact for whole pixels except within six of the border: there the taps are taken for symmetric."""
    if is_mask:
        return _lookup(_mirror_pad(x, 1), theta, x.shape[-1], pad=1, margin=0, delay=0.0)
    size = x.shape[-1]
    taps = torch.tensor(SYM6).to(x) * math.sqrt(2)
    num, channels = x.shape[:2]
    row = taps.reshape(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    column = row.transpose(2, 3)
    x = _mirror_pad(x, 4)
    x = F.conv_transpose2d(F.conv_transpose2d(x, row, stride=(1, 2), groups=channels), column, stride=(2, 1), groups=channels)
    # Pixel i of x now lies around 2 i + 8 + (mean position of the taps). Five before and six after belong to it.
    x = x[:, :, 11:11 + 2 * size + 4, 11:11 + 2 * size + 4]
    mean = sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6)
    x = _lookup(x, theta, 2 * size, pad=2, margin=5, delay=mean - 5.5)
    return F.conv2d(F.conv2d(x, row / 2, stride=(1, 2), groups=channels), column / 2, stride=(2, 1), groups=channels)


def _lookup(x, theta, size, pad, margin, delay):
    """Bilinear lookup of a picture of `size` pixels that lies in x with `pad` more on every side, into one with `margin`
    more on every side. `delay`: by how many pixels the content of x lies too far right and down."""
    steps = (torch.arange(-margin, size + margin, device=x.device, dtype=x.dtype) + (0.5 - delay)) * (2 / size) - 1
    rows, columns = torch.meshgrid(steps, steps, indexing='ij')
    coords = torch.einsum('nij,hwj->nhwi', theta[:, :2], torch.stack([columns, rows, torch.ones_like(rows)], -1))
    coords = 1 - (torch.remainder(coords + 1, 4) - 2).abs()                 # mirrored at -1 and 1
    return _Lookup.apply(x, (coords * size + 2 * delay) / (size + 2 * pad))


class _Lookup(torch.autograd.Function):
    """grid_sample as a linear map of the picture. PyTorch's own has no second derivative in all the versions we support;
    the derivative of a linear map is its adjoint, whose derivative is the map again."""

    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(grid)
        ctx.size = x.shape[2:]
        return F.grid_sample(x, grid, align_corners=False)

    @staticmethod
    def backward(ctx, grad):
        return _LookupAdjoint.apply(grad, ctx.saved_tensors[0], ctx.size), None


class _LookupAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, grid, size):
        ctx.save_for_backward(grid)
        with torch.enable_grad():
            x = grad.new_zeros([*grad.shape[:2], *size]).requires_grad_()
            return torch.autograd.grad(F.grid_sample(x, grid, align_corners=False), x, grad.detach())[0]

    @staticmethod
    def backward(ctx, grad):
        return _Lookup.apply(grad, ctx.saved_tensors[0]), None, None


def _recolour(x, matrix):
    """x [N, 3, H, W] with the affine map matrix [N, 4, 4] on every pixel."""
    return torch.einsum('nij,njhw->nihw', matrix[:, :3, :3], x) + matrix[:, :3, 3][:, :, None, None]


def _filter_bank():
    """[4, K] taps of zero-phase band filters, lowest octave first, which add up to the unit impulse: dyadic products of
    the half-band low-pass of sym2 with itself and its complement."""
    taps = torch.tensor(SYM2, dtype=torch.float64)
    low = F.conv1d(F.pad(taps.reshape(1, 1, -1), [3, 3]), taps.reshape(1, 1, -1))[0, 0] / 2      # 7 taps of sum 1

    def convolve(a, b):
        return F.conv1d(F.pad(a.reshape(1, 1, -1), [len(b) - 1] * 2), b.flip(0).reshape(1, 1, -1))[0, 0]

    passed, bands = torch.ones(1, dtype=torch.float64), []
    for octave in range(NUM_BANDS - 1):
        dilated = torch.zeros(6 * 2 ** octave + 1, dtype=torch.float64)
        dilated[::2 ** octave] = low
        lower = convolve(passed, dilated)
        bands.append(F.pad(passed, [3 * 2 ** octave] * 2) - lower)
        passed = lower
    bands.append(passed)
    return torch.stack([F.pad(band, [(len(passed) - len(band)) // 2] * 2) for band in reversed(bands)]).float()


def _filter(x, taps):
    """x [N, C, H, W] filtered along x and y with taps [N, K] of its own."""
    num, channels, height, width = x.shape
    weight = taps.repeat_interleave(channels, dim=0)[:, None, None, :]
    x = _mirror_pad(x, taps.shape[1] // 2).reshape(1, num * channels, -1, width + taps.shape[1] - 1)
    x = F.conv2d(F.conv2d(x, weight, groups=num * channels), weight.transpose(2, 3), groups=num * channels)
    return x.reshape(num, channels, height, width)


def _add_noise(x, parameters):
    """x [N, C, H, W] plus white noise of deviation parameters[:, 0], drawn on the device of x from parameters[:, 1]."""
    noise = torch.empty_like(x)
    for row, seed in zip(noise, parameters[:, 1].tolist()):
        row.normal_(generator=torch.Generator(x.device).manual_seed(int(seed * 2 ** 24)))
    return x + noise * parameters[:, 0, None, None, None]


def _cut(x, centre, side, value):
    """x [N, C, H, W] with `value` in the square of `side` about centre [N, 2], both parts of the width."""
    at = (torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) + 0.5) / x.shape[-1]
    inside = (at - centre[:, :, None]).abs() < side / 2                     # [N, 2, W]
    return torch.where(inside[:, None, 1, :, None] & inside[:, None, 0, None, :], torch.full_like(x, value), x)
