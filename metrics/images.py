"""The images that metrics compare: real ones, and those a generator makes or another set holds. A source is a function
(start, stop) -> uint8 [stop - start, 3, H, W] on the device, called with this process's batches in order."""

import numpy as np
import torch
import torch.nn.functional as F

import camera_utils
from metrics.evaluation import BACKGROUNDS
from training.dataset import iterate_batches


def choose(dataset, most, seed):
    """Indices, sorted: every image if there are at most `most`, else so many drawn without repetition."""
    return np.sort(np.random.RandomState(seed).permutation(len(dataset))[:int(min(most, len(dataset)))])


def to_uint8(images):
    """Images in [-1, 1] as files hold them."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def replace_background(images, mask, background):
    """uint8 images [N, 3, H, W] where mask [N, 1, h, w] in 0..1 is one, and elsewhere the colour named `background`."""
    colour = BACKGROUNDS[background]
    if colour is None:
        return images
    mask = F.interpolate(mask.float().clamp(0, 1), size=images.shape[2:], mode='bilinear', align_corners=False)
    return (images.float() * mask + 255 * colour * (1 - mask)).round().to(torch.uint8)


def set_source(evaluation, dataset, order):
    """Source of the images of `dataset` with the indices `order`."""
    own = [i for start, stop in evaluation.own_batches(len(order)) for i in order[start:stop].tolist()]
    batches = iterate_batches(dataset, evaluation.batch_size, sampler=own)

    def images(start, stop):
        batch = next(batches)
        mask = batch['mask'].to(evaluation.device) / 255 if evaluation.background != 'keep' else None
        return replace_background(batch['image'].to(evaluation.device), mask, evaluation.background)
    return images


class Samples:
    """The latents and labels of a generator's images: `labels` [num, 25] drawn from the (filtered) data set, and a stream of
    z. The same for every batch size and number of processes; another `stream` is another draw of the same seed."""

    def __init__(self, evaluation, stream=0):
        e = evaluation
        self._evaluation, self._position = e, 0
        self._random = np.random.RandomState([e.seed, stream] if stream else e.seed)
        prior = e.generator.camera
        self.front = camera_utils.front_label(prior.pivot, prior.radius, prior.fov_deg)
        # Without labels the network has only ever been seen from the front.
        labels = torch.from_numpy(e.dataset.get_labels()) if e.dataset.has_labels else self.front
        self.labels = labels[self._random.randint(len(labels), size=e.num)]

    def __call__(self, start, stop):
        """(z [n, z_dim], c [n, 25]) of the samples start to stop on the device; start must not lie before an earlier stop."""
        z_dim = self._evaluation.generator.z_dim
        while self._position < start:         # those of other processes
            step = min(start - self._position, 1024)
            self._random.standard_normal([step, z_dim])
            self._position += step
        z = torch.from_numpy(self._random.standard_normal([stop - start, z_dim])).float()
        self._position = stop
        return z.to(self._evaluation.device), self.labels[start:stop].to(self._evaluation.device)


@torch.no_grad()
def map_latents(evaluation, z, c, conditioning=None):
    """(ws [N, num_ws, w_dim], camera labels [N, 25]) of latents z [N, z_dim] seen from labels c [N, 25], under the
    evaluation's conditioning protocol or the one named, and its truncation."""
    g = evaluation.generator
    if (conditioning or evaluation.conditioning) == 'front':
        front = camera_utils.front_label(g.camera.pivot, g.camera.radius, g.camera.fov_deg, c.device)
        return g.mapping(z, front.expand(len(c), -1)[:, :g.c_dim], truncation_psi=evaluation.truncation_psi), c
    ws = g.mapping(z, c[:, :g.c_dim], truncation_psi=evaluation.truncation_psi)
    offset = g.camera_offset(z, c)
    return ws, c if offset is None else g.move_camera(c, offset)


@torch.no_grad()
def render(evaluation, z, c, conditioning=None):
    """GeneratorOutput of latents z [N, z_dim] seen from labels c [N, 25]; see map_latents."""
    return evaluation.generator.synthesis(*map_latents(evaluation, z, c, conditioning))


def real_source(evaluation, number):
    """Source of `number` real images, drawn by the seed if that is not all."""
    return set_source(evaluation, evaluation.dataset, choose(evaluation.dataset, number, evaluation.seed))


def fake_source(evaluation):
    """Source of the images that are measured: `num` of the generator, or `num` at most of the other set."""
    if evaluation.fakes is not None:
        return set_source(evaluation, evaluation.fakes, choose(evaluation.fakes, evaluation.num, evaluation.seed))
    samples = Samples(evaluation)

    def images(start, stop):
        out = render(evaluation, *samples(start, stop))
        mask = out['image_mask'] if evaluation.background != 'keep' else None
        return replace_background(to_uint8(out['image']), mask, evaluation.background)
    return images
