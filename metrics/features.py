"""Feature networks by name, behind one interface: what the distances between sets of images are measured in.

`open_features('builtin', device)` knows the names that are registered; anything else is a file or its address: TorchScript,
or what metrics.dinov2 reads. 'inception' and 'vgg16' are the two files of the StyleGAN family's metrics and nothing else:
they are taken from a path, the cache or their public address, and accepted under their names by digest alone.

A TorchScript file is called with float32 images [N, 3, H, W] in 0..255 and must give one row of numbers an image.
"""

import hashlib
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import torch

import dnnlib

MIRROR = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/'
PROBE_SIZE = 64
FOLDER = 'features'          # of the cache, where files of the literature may be laid by hand

_LOADERS = {}
_READERS = []


@dataclass(frozen=True)
class FeatureNetwork:
    """Images [N, 3, H, W], uint8 or float32 in 0..255 -> float32 features [N, F].

    `digest` is the sha256 of the weights; `resolution` is what the network resizes images to, None if it takes them as
    they are. `features`, `classes` and `perceptual` take float32 images in 0..255: classes gives probabilities [N, K],
    perceptual features whose squared distance says how different two images look; None where a network has none.
    """
    name: str
    digest: str
    resolution: Optional[int]
    features: Callable
    classes: Optional[Callable] = None
    perceptual: Optional[Callable] = None

    @torch.no_grad()
    def __call__(self, images):
        return self.features(_checked(images)).float()

    @torch.no_grad()
    def class_probabilities(self, images):
        """float32 [N, K], rows summing to 1. UserError for networks that know no classes."""
        if self.classes is None:
            raise dnnlib.UserError(f'--features {self.name}: has no classes, which the Inception score is made of; use inception')
        return self.classes(_checked(images)).float()

    @torch.no_grad()
    def perceptual_features(self, images):
        """float32 [N, P]; |a - b|^2 of two rows is the perceptual distance."""
        return (self.perceptual or self.features)(_checked(images)).float()


def _checked(images):
    if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f'images must be uint8, or float32 in 0..255, [N, 3, H, W], got {images.dtype} {tuple(images.shape)}')
    return images.float()


def register_features(name):
    """Decorator: enter a loader, function(device) -> FeatureNetwork, under `name`."""
    def decorator(loader):
        if name in _LOADERS:
            raise ValueError(f'feature network {name!r} is registered twice')
        _LOADERS[name] = loader
        return loader
    return decorator


def register_reader(reader):
    """Decorator: enter a function(bytes, device, flag) -> FeatureNetwork of a kind of file, or None for files of others."""
    _READERS.append(reader)
    return reader


def list_features():
    """The known names, sorted."""
    return sorted(_LOADERS)


def open_features(name_or_path, device='cpu'):
    """The FeatureNetwork of a known name, a TorchScript file or its address, on `device`.
    Raises UserError if there is no such name or file, or if the file is another kind of thing."""
    name = str(name_or_path)
    if name in _LOADERS:
        return _LOADERS[name](device)
    if not dnnlib.util.is_url(name) and not Path(name).is_file():
        raise dnnlib.UserError(f'--features {name}: neither a known network ({", ".join(list_features())}) nor a file')
    with dnnlib.open_url(name) as file:
        data = file.read()
    digest = hashlib.sha256(data).hexdigest()
    for known in PUBLISHED.values():
        if digest == known.digest:
            return known.wrap(data, device)
    for reader in _READERS:
        network = reader(data, device, f'--features {name}')
        if network is not None:
            return network
    stem = re.sub(r'[^\w.-]', '_', Path(name.split('?')[0]).stem)
    if stem in _LOADERS:
        stem += f'-{digest[:8]}'       # never the name of a network that it is not
    return torchscript_features(data, stem, digest, device, flag=f'--features {name}')


# ---------------------------------------------------------------------------------------------------------------------
# TorchScript files.

def load_torchscript(data, device, flag):
    """The module of a TorchScript file's bytes, in evaluation mode on `device`. UserError starting with `flag` if the file
    is of another kind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)     # files of this kind remain what the literature uses
            module = torch.jit.load(io.BytesIO(data), map_location=device)
    except (RuntimeError, ValueError, TypeError) as error:
        raise dnnlib.UserError(f'{flag}: not a TorchScript file; save one with torch.jit.save, or choose one of '
                               f'{", ".join(list_features())}') from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _probe(call, device, flag, what, columns=None):
    """Rows that `call` gives for two grey images, after checking that they are `what`."""
    grey = torch.full([2, 3, PROBE_SIZE, PROBE_SIZE], 127.0, device=device)
    try:
        with torch.no_grad():
            rows = call(grey)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or ['no reason given'])[-1]
        raise dnnlib.UserError(f'{flag}: gives no {what} for float32 images [N, 3, H, W] in 0..255 ({reason})') from error
    shape = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != 2 or not rows.is_floating_point():
        raise dnnlib.UserError(f'{flag}: must give {what} as float rows [N, F], gives {shape}')
    if not rows.isfinite().all():
        raise dnnlib.UserError(f'{flag}: its {what} of a grey image are not finite; the file is damaged')
    if columns not in (None, rows.shape[1]):
        raise dnnlib.UserError(f'{flag}: must give {columns} {what}, gives {rows.shape[1]}')


def torchscript_features(data, name, digest, device, flag):
    """FeatureNetwork of any TorchScript file's bytes. UserError if its output is not one row of features an image."""
    module = load_torchscript(data, device, flag)
    _probe(module, device, flag, 'features')
    return FeatureNetwork(name, digest, None, module)


@dataclass(frozen=True)
class Published:
    """A file of the literature: where it is, what it is, and how it is called."""
    name: str
    file: str
    digest: str
    size: Optional[int]                # pixels it resizes images to
    features: int
    calls: dict                        # arguments of the file's forward, by field of FeatureNetwork

    def load(self, device):
        """FeatureNetwork from the cache or the public address. UserError if it is at neither, or is another file."""
        local = dnnlib.util.cache_folder() / FOLDER / self.file
        path = local if local.is_file() else MIRROR + self.file
        try:
            with dnnlib.open_url(path) as file:
                data = file.read()
        except dnnlib.UserError as error:
            others = ', '.join(sorted(set(_LOADERS) - set(PUBLISHED)))
            raise dnnlib.UserError(f'--features {self.name}: {self.file} is neither in {local.parent} nor can it be downloaded; give '
                                   f'its path, or one of {others} whose figures compare only with their own ({error})') from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.digest:
            raise dnnlib.UserError(f'--features {self.name}: {path} is not the published {self.file} (sha256 {found[:16]}..., should be '
                                   f'{self.digest[:16]}...); remove it, or give its path as --features to use it under its own name')
        return self.wrap(data, device)

    def wrap(self, data, device):
        """FeatureNetwork of the file's bytes, whose digest has been checked."""
        flag = f'--features {self.name}'
        module = load_torchscript(data, device, flag)
        calls = {key: lambda images, arguments=arguments: module(images, **arguments) for key, arguments in self.calls.items()}
        _probe(calls['features'], device, flag, 'features', self.features)
        return FeatureNetwork(self.name, self.digest, self.size, **calls)


PUBLISHED = {p.name: p for p in (
    Published('inception', 'inception-2015-12-05.pt', 'f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4', 299, 2048,
              {'features': {'return_features': True}, 'classes': {'no_output_bias': True}}),
    Published('vgg16', 'vgg16.pt', 'b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3', 224, 4096,
              {'features': {'return_features': True}, 'perceptual': {'return_lpips': True, 'resize_images': False}}),
)}
for _published in PUBLISHED.values():
    register_features(_published.name)(_published.load)
