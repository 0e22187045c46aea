"""The two streams of images that metrics compare: uint8 batches of real images, and of a generator's."""

import numpy as np
import torch
from tqdm import tqdm

import camera_utils
from training.dataset import iterate_batches


def real_images(evaluation):
    """Yield uint8 [n, 3, H, W] on the device: every image if there are at most `num`, else `num` drawn without repetition."""
    e = evaluation
    order = np.random.RandomState(e.seed).permutation(len(e.dataset))[:e.num]
    batches = iterate_batches(e.dataset, e.batch_size, sampler=np.sort(order).tolist())
    with tqdm(total=len(order), desc='reals', disable=not e.progress) as bar:
        for batch in batches:
            yield batch['image'].to(e.device)
            bar.update(len(batch['image']))


@torch.no_grad()
def fake_images(evaluation):
    """Yield uint8 [n, 3, H, W] on the device, `num` in all, seen from labels drawn from the (filtered) data set.

    Modes 'all' and 'front': the label conditions and, moved by the learned translation, is the camera. Mode 'back', as
    published: heads are conditioned on the frontal camera and seen from the label without the translation.
    """
    e = evaluation
    random = np.random.RandomState(e.seed)
    front = camera_utils.front_label(e.generator.camera.pivot, e.generator.camera.radius, e.generator.camera.fov_deg)
    # Without labels the network has only ever been seen from the front.
    all_labels = torch.from_numpy(e.dataset.get_labels()) if e.dataset.has_labels else front
    labels = all_labels[random.randint(len(all_labels), size=e.num)]
    with tqdm(total=e.num, desc='fakes', disable=not e.progress) as bar:
        for c in labels.split(e.batch_size):
            z = torch.from_numpy(random.standard_normal([len(c), e.generator.z_dim])).float().to(e.device)
            c = c.to(e.device)
            if e.mode == 'back':
                ws = e.generator.mapping(z, front.to(e.device).expand(len(c), -1)[:, :e.generator.c_dim])
                images = e.generator.synthesis(ws, c)['image']
            else:
                images = e.generator(z, c)['image']
            yield (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
            bar.update(len(c))
