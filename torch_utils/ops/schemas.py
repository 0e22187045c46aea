"""Signatures of the operators torch.ops.omnihead, which C++ (CPU) and CUDA implement independently of one another.

They are declared here, so that a machine that has only one of the two, or neither, still knows them.
"""

import torch

_FIELD = 'Tensor planes, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2'
_LAYOUT = 'float box_warp, int[] axes, bool trilinear'
_MARCH = 'int activation, float crop_limit, bool white_back'

SCHEMAS = {
    'volume_render':
        f'({_FIELD}, Tensor origins, Tensor directions, Tensor depths, Tensor? fine_noise, Tensor? coarse_density_noise, '
        f'Tensor? fine_density_noise, {_LAYOUT}, {_MARCH}) '
        '-> (Tensor features, Tensor depth, Tensor opacity, Tensor sorted_depths, Tensor sorted_density)',
    'volume_render_backward':
        f'({_FIELD}, Tensor origins, Tensor directions, Tensor sorted_depths, Tensor sorted_density, Tensor features_grad, '
        f'Tensor depth_grad, Tensor opacity_grad, {_LAYOUT}, {_MARCH}, bool rays_grad, bool decoder_grad=True) '
        '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
    'plane_query': f'({_FIELD}, Tensor points, {_LAYOUT}, int activation) -> (Tensor density, Tensor features)',
    'plane_density': f'({_FIELD}, Tensor points, {_LAYOUT}) -> Tensor',
    'upfirdn2d': '(Tensor x, Tensor f, int[2] up, int[2] down, int[4] padding) -> Tensor',
    'bias_act': '(Tensor x, Tensor? b, int dim, int act, float gain, float clamp) -> Tensor',
    'bias_act_grad': '(Tensor dy, Tensor x, Tensor? b, int dim, int act, float gain, float clamp) -> Tensor',
    'bias_act_grad2': '(Tensor dy, Tensor ddx, Tensor x, Tensor? b, int dim, int act, float gain, float clamp) -> Tensor',
}


def _declare():
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.omnihead, name):   # a module that is loaded twice declares once
            torch.library.define(f'omnihead::{name}', schema)


_declare()
