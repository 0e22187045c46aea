"""How alike two pictures look, as the squared distance between their features.

Two sets of features, behind one interface (`encode`, `description`):

- VGGFeatures: VGG16 features scaled as LPIPS weighs them (1801.03924), from a TorchScript file that takes
  `return_lpips=True`, as the StyleGAN family's metrics use it. Published inversions were made with these.
- StructuralFeatures: a normalised Laplacian pyramid, every band divided by its local strength (Laparra, Balle,
  Berardino, Simoncelli: Perceptual image quality assessment using a normalized Laplacian pyramid, 2016). It needs no
  file and sees structure at all scales, but knows nothing of what pictures show.
"""

import functools
import io

import torch
import torch.nn.functional as F

import dnnlib
from dnnlib.util import cache_folder

LARGEST_INPUT = 256        # pictures beyond this size are reduced first, as published
SMALLEST_BAND = 8          # pixels on a side of the pyramid's coarsest band
PROBE_SIZE = 64
BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)
BAND_FLOOR = 0.17          # local strength below which a band counts as flat, for colours in [0, 1]; from the paper


def _reduced(images):
    """Images [N, 3, H, W] at most LARGEST_INPUT pixels wide, by area average."""
    if images.shape[-1] <= LARGEST_INPUT:
        return images
    return F.interpolate(images, size=(LARGEST_INPUT, LARGEST_INPUT), mode='area')


@functools.lru_cache(maxsize=32)
def _matrices(size, device, dtype):
    """What the pyramid does to a line of `size` pixels, as matrices: the blur [size, size], the blur of every other pixel
    [size/2, size], and doubling by linear interpolation [2*size, size]."""
    with torch.inference_mode(False):      # what is kept here may meet pictures that want gradients
        return _made_matrices(size, device, dtype)


def _made_matrices(size, device, dtype):
    taps = torch.tensor(BINOMIAL, dtype=torch.double)
    rows, columns = torch.arange(size)[:, None], torch.arange(len(BINOMIAL)) - len(BINOMIAL) // 2
    blur = torch.zeros(size, size, dtype=torch.double)
    blur.scatter_add_(1, (rows + columns).clamp(0, size - 1), (taps / taps.sum()).expand(size, -1))   # borders repeated
    double = F.interpolate(torch.eye(size, dtype=torch.double)[None], scale_factor=2, mode='linear', align_corners=False)[0].T
    return tuple(matrix.to(device, dtype).contiguous() for matrix in (blur, blur[::2], double))


def _both_ways(matrix, x):
    """The lines and then the columns of x [N, C, H, H] through a matrix."""
    return matrix @ (x @ matrix.T)


class _Products:
    """The pyramid's steps as products with small matrices: on processors a third of the convolutions' time at 64 pixels, half
    of it at 256, gradients included. GPUs would round such products to TF32 where that is allowed."""

    @staticmethod
    def blur(x):
        return _both_ways(_matrices(x.shape[-1], x.device, x.dtype)[0], x)

    @staticmethod
    def halve(x):
        return _both_ways(_matrices(x.shape[-1], x.device, x.dtype)[1], x)

    @staticmethod
    def double(x):
        return _both_ways(_matrices(x.shape[-1], x.device, x.dtype)[2], x)


class _Convolutions:
    """The pyramid's steps as they are defined."""

    @staticmethod
    def blur(x):
        taps = torch.tensor(BINOMIAL, device=x.device, dtype=x.dtype)
        taps = (taps / taps.sum()).repeat(x.shape[1], 1, 1, 1)                     # [C, 1, 1, 5]
        x = F.pad(x, [2, 2, 2, 2], mode='replicate')
        x = F.conv2d(x, taps, groups=x.shape[1])
        return F.conv2d(x, taps.transpose(2, 3), groups=x.shape[1])

    @staticmethod
    def halve(x):
        return _Convolutions.blur(x)[:, :, ::2, ::2]

    @staticmethod
    def double(x):
        return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)


class StructuralFeatures:
    """Features without a download; the squared distance of two pictures is the sum, over the bands, of the mean squared
    difference of their normalised values."""

    description = 'built-in multi-scale structural distance (normalised Laplacian pyramid)'

    def encode(self, images):
        """Features [N, F] of images [N, 3, H, W] in [-1, 1], H = W a power of two."""
        x = (_reduced(images) + 1) / 2
        steps = _Products if x.device.type == 'cpu' else _Convolutions
        features = []
        while x.shape[-1] > SMALLEST_BAND:
            coarse = steps.halve(x)
            band = x - steps.double(coarse)
            features.append(band / (BAND_FLOOR + steps.blur(band.abs())))
            x = coarse
        features.append(x)
        return torch.cat([f.flatten(1) / f[0].numel() ** 0.5 for f in features], dim=1)


class VGGFeatures:
    """LPIPS-scaled features of the TorchScript file or address `path` on `device`; the squared distance of two pictures
    is their LPIPS distance. Raises UserError if the file cannot be read or is not such a network."""

    def __init__(self, path, device):
        self.description = f'VGG features of {path}'
        with dnnlib.open_url(path) as file:
            data = file.read()
        try:
            self._network = torch.jit.load(io.BytesIO(data), map_location=device).eval()
            for parameter in self._network.parameters():
                parameter.requires_grad_(False)
            features = self.encode(torch.zeros([1, 3, PROBE_SIZE, PROBE_SIZE], device=device))
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1:] or ['no reason given']
            raise dnnlib.UserError(f'--perceptual {path}: not a TorchScript network that gives features for return_lpips=True '
                                   f'({reason[0]}); give the vgg16.pt of the literature or leave the flag out') from error
        if not features.isfinite().all():
            raise dnnlib.UserError(f'--perceptual {path}: its features of a grey picture are not finite; download it again')

    def encode(self, images):
        """Features [N, F] of images [N, 3, H, W] in [-1, 1]."""
        return self._network((_reduced(images) + 1) * 127.5, resize_images=False, return_lpips=True).flatten(1)


def load_features(path='auto', device='cpu'):
    """VGGFeatures of a file or address; for 'auto' those of vgg16.pt in the folder `features` of the cache, where the metrics
    look for it too, or StructuralFeatures if it is not there."""
    if path == 'auto':
        path = cache_folder() / 'features' / 'vgg16.pt'
        if not path.is_file():
            return StructuralFeatures()
    return VGGFeatures(path, device)


def squared_distances(a, b):
    """Squared distances [N] of features a and b [N, F]."""
    return (a - b).square().sum(dim=1)


def squared_distance(a, b):
    """Squared distance, a scalar, of features a and b [N, F], averaged over N."""
    return squared_distances(a, b).mean()
