"""What tests of inversions share: small networks, a folder of crops, a network's own picture, a stand-in for VGG."""

import json
import warnings

import numpy as np
import torch
from PIL import Image

import camera_utils
from inference.inversion_options import InversionOptions
from inference.inversion_run import Journal
from inference.targets import Target
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator
from training.snapshot import load_network, save_snapshot

SMALL = dict(img_resolution=32, z_dim=16, w_dim=32, channel_base=512, channel_max=16, plane_resolution=16,
             neural_rendering_resolution=16, rendering={'depth_resolution': 8, 'depth_resolution_importance': 8})
SHORT = InversionOptions(steps_w=12, steps_g=6, num_statistics=200)
LABEL = camera_utils.label_from_yaw(20.0, lookat=(0, 0, 0))
RECORD = {'network': 'small.pkl', 'settings': {}, 'precision': 'float32'}


def write_files(folder):
    """The folder with snapshots of two small untrained networks and crops/, three pictures with labels."""
    torch.manual_seed(0)
    save_snapshot(folder / 'small.pkl', {'G_ema': PanoHeadGenerator(**SMALL)}, {})
    save_snapshot(folder / 'unlabelled.pkl', {'G_ema': EG3DGenerator(c_dim=0, **SMALL)}, {})
    (folder / 'crops').mkdir()
    labels = []
    for i, size in enumerate([(40, 40), (64, 48), (32, 32)]):
        name = f'{"cab"[i]}.png'
        Image.fromarray(np.random.RandomState(i).randint(0, 256, [*size, 3], dtype=np.uint8)).save(folder / 'crops' / name)
        labels.append([name, camera_utils.label_from_yaw(10.0 * i, lookat=(0, 0, 0))[0].tolist()])
    (folder / 'crops' / 'dataset.json').write_text(json.dumps({'labels': labels}))
    return folder


def network(files, name='small'):
    return load_network(str(files / f'{name}.pkl'))


def own_target(generator, seed=5, label=LABEL):
    """The generator's picture of a seed from `label`, as 8-bit values."""
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, generator.z_dim).astype(np.float32))
    with torch.no_grad():
        image = generator.synthesis(generator.mapping(z, label[:, :generator.c_dim]), label).image
    image = (image * 127.5 + 127.5).round().clamp(0, 255) / 127.5 - 1
    return Target(image, label, 'own', 'own.png')


class Interruption(Journal):
    """A journal that is interrupted when it is offered something for the nth time."""

    def __init__(self, path, digest, after):
        super().__init__(path, digest)
        self.after = after

    def offer(self, stage, make_state):
        self.after -= 1
        self._stop = self.after < 0
        super().offer(stage, make_state)


class FakeVGG(torch.nn.Module):
    """The interface of the TorchScript file of the literature; its features say what it was given."""

    def forward(self, x, resize_images: bool = True, return_lpips: bool = False):
        if resize_images or not return_lpips:
            raise RuntimeError('wrong call')
        return torch.stack([x.amin(dim=[1, 2, 3]), x.amax(dim=[1, 2, 3]), torch.full([x.shape[0]], float(x.shape[3]))], dim=1)


def write_vgg(path):
    """The path of a TorchScript file of FakeVGG."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(FakeVGG()).save(str(path))
    return str(path)
