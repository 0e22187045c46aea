"""In which type a network's convolutions are computed. Parameters, sums, volume rendering and images stay float32.

What 16 bits cost is measured: docs/benchmarks.md has the differences to float32, tests/test_precision.py holds them.
"""

import torch

from dnnlib import UserError
from torch_utils.misc import cpu_multiplies_bfloat16
from torch_utils.ops import winograd

PRECISIONS = ('auto', 'float32', 'tf32', 'bf16', 'fp16')
INFERENCE_PRECISIONS = (*PRECISIONS, 'int16')   # layers that no gradient passes multiply scaled integers, see ops.winograd
HALF_TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
FP16_CLAMP = 256.0   # of activations, as in the published networks: float16 ends at 65504


def resolve_precision(precision, device):
    """'auto' as what is fastest on `device` (torch.device) among those whose images stay within 45 dB of float32's: fp16 on
    CUDA, bf16 on processors that multiply it, int16 on those with AVX2 but not AVX-512, else float32. Raises UserError for a
    precision the device has not."""
    if precision not in INFERENCE_PRECISIONS:
        raise UserError(f'--precision {precision}: must be one of {", ".join(INFERENCE_PRECISIONS)}')
    if precision == 'auto':
        if device.type == 'cuda':
            return 'fp16'
        if device.type == 'cpu' and cpu_multiplies_bfloat16():
            return 'bf16'
        return 'int16' if device.type == 'cpu' and winograd.integers_pay() else 'float32'
    if precision == 'int16' and not (device.type == 'cpu' and winograd.multiplies('int16')):
        raise UserError(f'--precision int16: needs our C++ operators on a processor with AVX2, which are not there for {device.type} '
                        '(OMNIHEAD_ISA and OMNIHEAD_NATIVE can forbid them); '
                        'use float32, or auto (python -m torch_utils.doctor says what is missing)')
    if precision == 'tf32' and device.type != 'cuda':
        raise UserError(f'--precision tf32: exists on NVIDIA GPUs only, not on {device.type}; use float32, or auto')
    if precision == 'fp16' and device.type == 'cpu':
        raise UserError('--precision fp16: processors have no fast products of this type; use bf16, or auto')
    return precision


def set_precision(network, precision, device):
    """Let all convolution blocks of `network` compute in one of INFERENCE_PRECISIONS on `device`, and PyTorch's matrix products where
    they are float32 in tf32 if the device has it and float32 was not asked for. Returns the precision 'auto' stands for."""
    precision = resolve_precision(precision, device)
    dtype = HALF_TYPES.get(precision, torch.float32)
    for block in network.modules():
        if hasattr(block, 'products'):
            block.products = 'int16' if precision == 'int16' else None
        if hasattr(block, 'compute_dtype'):
            block.compute_dtype = dtype
            for layer in block.modules() if dtype == torch.float16 else ():
                if getattr(layer, 'conv_clamp', 0) is None:
                    layer.conv_clamp = FP16_CLAMP
    _allow_tf32(precision, device)
    return precision


def set_half_type(network, precision, device):
    """For training: let the blocks of `network` that were built to compute in 16 bits do so in the type `precision` names;
    'auto' leaves them torch_utils.misc.half_dtype. Raises UserError for a precision the device has not."""
    if precision == 'auto':
        return
    precision = resolve_precision(precision, device)
    for block in network.modules():
        if getattr(block, 'use_fp16', False):
            block.compute_dtype = HALF_TYPES.get(precision, torch.float32)
    _allow_tf32(precision, device)


def _allow_tf32(precision, device):
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != 'float32'
