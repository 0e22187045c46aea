"""Perceptual path length (Karras et al., 1812.04948, section 4.1; 1912.04958): how fast pictures change along latents."""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

import dnnlib
from metrics.images import Samples, map_latents
from metrics.registry import register_metric
from torch_utils import persistence

EPSILON = 1e-4
LARGEST = 256               # pixels; bigger pictures are averaged down
PERCENTILES = (1, 99)       # samples beyond are left out


def in_float32(generator):
    """The generator itself if it computes in float32 throughout, else a copy that does: a path of 1e-4 is shorter than the
    rounding of 16 bits."""
    if not any(getattr(module, 'use_fp16', False) for module in generator.modules()):
        return generator
    meta = persistence.describe(generator, {'num_fp16_res': 0, 'sr_num_fp16_res': 0}, training=False, requires_grad=False)
    device = next(generator.parameters()).device
    return persistence.instantiate(type(generator), meta, persistence.unpack_state(meta)).to(device)


def trimmed_mean(distances):
    """Mean of the distances between the 1st and the 99th percentile, both included."""
    low = np.percentile(distances, PERCENTILES[0], method='lower')
    high = np.percentile(distances, PERCENTILES[1], method='higher')
    return float(distances[(distances >= low) & (distances <= high)].mean())


def _comparable(images):
    """Images [-1, 1] as float32 in 0..255, LARGEST pixels at most, not rounded."""
    images = (images.float() + 1) * 127.5
    factor = images.shape[-1] // LARGEST
    return F.avg_pool2d(images, factor) if factor > 1 else images


@register_metric('ppl2_wend', features='vgg16')
def ppl2_wend(evaluation):
    """Perceptual path length in W at path ends, epsilon 1e-4, without cropping, of 50,000 paths: lower is smoother. PanoHead's
    ancestors report 100 to 200 on FFHQ with the literature's VGG; a constant generator has 0. Both ends of a path share
    condition and camera."""
    if evaluation.generator is None:
        raise dnnlib.UserError('--metrics ppl2_wend: a set of images has no latents; give --network instead of --fakes')
    evaluation = dataclasses.replace(evaluation, generator=in_float32(evaluation.generator))
    samples, others = Samples(evaluation), Samples(evaluation, stream=1)
    generator = evaluation.generator

    @torch.no_grad()
    def distances(start, stop):
        z, c = samples(start, stop)
        ws, camera = map_latents(evaluation, z, c)
        other_ws, _ = map_latents(evaluation, others(start, stop)[0], c)
        features = [evaluation.features.perceptual_features(_comparable(generator.synthesis(w, camera)['image']))
                    for w in (ws, ws.lerp(other_ws, EPSILON))]
        return ((features[0] - features[1]).double().square().sum(dim=1) / EPSILON ** 2).cpu().numpy()

    return {'ppl2_wend': trimmed_mean(np.concatenate(list(evaluation.map(evaluation.num, distances, 'paths'))))}
