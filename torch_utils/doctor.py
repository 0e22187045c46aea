"""What is fast here, what is not, why, and what to do about it: python -m torch_utils.doctor

For every operator: what carries it out on the device, and a self-test of about a second: its largest difference to plain
PyTorch, relative to the values' range, and how many times faster it is on a small example. Exit code 1 if an operator is
missing or differs.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from typing import Callable, NamedTuple

import click
import torch
import torch.nn.functional as F

import dnnlib
from dnnlib.cli import user_errors
from torch_utils import misc
from torch_utils.ops import bias_act, cuda_build, native, upfirdn2d, volume_render, winograd

TOLERANCE = 1e-3   # largest difference of the self-tests, relative to the range of values
TOLERANCES = {'float32': TOLERANCE, 'int16': 2e-3, 'bfloat16': 2e-2}
LIBRARIES = ('numpy', 'click', 'pillow', 'imageio-ffmpeg', 'ninja', 'cuda-core')


class Check(NamedTuple):
    """An operator: ours and the plain way as functions of nothing, and what carries ours out."""
    name: str
    backend: str
    ours: Callable
    plain: Callable
    tolerance: float = TOLERANCE


def machine(device):
    """Lines on versions, processor and device."""
    found = {'torch': torch.__version__, **{name: version_of(name) for name in LIBRARIES}}
    flags = sorted(misc.cpu_flags() & {'avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'asimd'})
    yield f'python {platform.python_version()}, ' + ', '.join(f'{name} {version or "absent"}' for name, version in found.items())
    yield f'processor: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {" ".join(flags) or platform.machine()}'
    yield f'device: {device}' + (f', {torch.cuda.get_device_name(device)}' if device.type == 'cuda' else '')
    half = str(misc.half_dtype(device)).removeprefix('torch.')
    integers = device.type == 'cpu' and winograd.integers_pay()
    yield f'16-bit convolutions: {half if half != "float32" else "int16, without gradients" if integers else "none that pay"}'
    yield f'compiler: {shutil.which((os.environ.get("CXX") or "c++").split()[0]) or "none"}; cache: {dnnlib.util.cache_folder()}'


def version_of(package):
    """Version of an installed package, None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def backend_of(device):
    """(whether our operators run on `device`, what carries them out or why not, remedy)."""
    if device.type == 'cuda':
        return (*cuda_build.status(device), "pip install 'omnihead[cuda]', and a driver that nvidia-smi can talk to")
    if device.type == 'cpu':
        return (*native.status(), 'install a C++ compiler (Debian and Ubuntu: sudo apt install g++) and pip install ninja')
    return False, f'there are none for {device.type}', 'use --device cpu, which may well be faster'


def checks(device, backend):
    """The operators with their self-tests on `device`."""
    torch.manual_seed(0)
    planes, points = torch.randn(1, 3, 32, 3, 64, 64, device=device), torch.rand(1, 4096, 3, device=device) - 0.5
    decoder = volume_render.PlaneDecoder(*(torch.randn(shape, device=device) * 0.2 for shape in ((64, 32), (64,), (33, 64), (33,))))
    axes = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    layout = volume_render.PlaneLayout(1.0, axes, True, 'none')

    def plain_query():
        grid = (points * 2)[:, :, torch.tensor(axes, device=device)].transpose(1, 2).reshape(3, 1, 1, -1, 3)
        x = F.grid_sample(planes[0], grid, align_corners=False).flatten(1).reshape(3, 32, -1).mean(0).t()
        return F.softplus(x @ decoder.weight1.t() + decoder.bias1) @ decoder.weight2.t() + decoder.bias2

    def fused_query():
        if not volume_render.can_render(planes, decoder):
            raise dnnlib.UserError(f'the volume renderer does not run on {device}, though kernels can be compiled')
        return torch.cat(volume_render.plane_query(planes, decoder, layout, points), dim=-1)[0]

    yield Check('volume renderer (points)', backend, fused_query, plain_query)
    x = torch.randn(1, 64, 64, 64, device=device).contiguous(memory_format=torch.channels_last)
    f = upfirdn2d.setup_filter([1, 3, 3, 1]).to(device)
    yield Check('upfirdn2d (upsampling)', backend, lambda: upfirdn2d.upsample2d(x, f), lambda: plain_upsampling(x, f))
    weight = torch.randn(64, 64, 3, 3, device=device)
    if device.type == 'cpu':
        for products in ('float32', *(name for name in ('bfloat16', 'int16') if winograd.multiplies(name))):
            yield Check(f'convolution 3x3, {products}', f'{backend}, F(4x4, 3x3)', lambda products=products: winograd.convolve(
                x, weight, products=products), lambda: F.conv2d(x.contiguous(), weight, padding=1), TOLERANCES[products])
            yield Check(f'doubling layer, {products}', f'{backend}, F(4x4, 2x2)', lambda products=products: winograd.convolve(
                x, weight, 2, f, products=products), lambda: plain_doubling(x, weight, f), TOLERANCES[products])
    if device.type in ('cpu', 'cuda'):
        bias = torch.randn(64, device=device)
        yield Check('bias_act', backend, lambda: bias_act.bias_act(x, bias, act='lrelu', clamp=256),
                    lambda: (F.leaky_relu(x + bias[:, None, None], 0.2) * 2 ** 0.5).clamp(-256, 256))


def plain_upsampling(x, f):
    """upsample2d by zero insertion and a depthwise convolution."""
    n, c, h, w = x.shape
    y = F.pad(x.reshape(n, c, h, 1, w, 1), [0, 1, 0, 0, 0, 1]).reshape(n, c, 2 * h, 2 * w)
    return F.conv2d(F.pad(y, (2, 1, 2, 1)), (f * 4).flip([0, 1]).expand(c, 1, 4, 4), groups=c)


def plain_doubling(x, weight, f):
    """conv2d_resample of twice the size by a transposed convolution and a depthwise one."""
    y = F.conv_transpose2d(x.contiguous(), weight.transpose(0, 1), stride=2)
    return F.conv2d(F.pad(y, (1, 1, 1, 1)), (f * 4).flip([0, 1]).expand(y.shape[1], 1, 4, 4), groups=y.shape[1])


def compare(check, device):
    """(largest difference relative to the range of values, how many times faster ours is)."""
    ours, plain = check.ours(), check.plain()
    error = float((ours - plain).abs().max() / (plain.max() - plain.min()))
    return error, best_time(check.plain, device) / best_time(check.ours, device)


def best_time(function, device, repeats=5):
    """Least seconds of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@click.command()
@click.option('--device', default='auto', show_default=True, help='auto, cpu, cuda or mps')
@user_errors
@torch.no_grad()
def main(device):
    """Say which operators are fast on DEVICE, test them, and suggest remedies."""
    device = misc.resolve_device(device)
    if device.type == 'cuda' and device.index is None:
        device = torch.device(device.type, torch.cuda.current_device())
    for line in machine(device):
        click.echo(line)
    usable, reason, remedy = backend_of(device)
    faults = [] if usable else [f'our operators do not run on {device}: {reason}. Remedy: '
                                + ('unset OMNIHEAD_NATIVE' if not native.enabled() else remedy)]
    for check in checks(device, reason) if usable else ():
        error, ratio = compare(check, device)
        click.echo(f'{check.name:26} {check.backend}; differs by {error:.1e} from plain PyTorch; {ratio:.1f} times as fast here')
        if not error <= check.tolerance:
            faults.append(f'{check.name} differs by {error:.1e}: set OMNIHEAD_NATIVE=0 and report it')
    for fault in faults:
        click.echo(f'FAULT: {fault}')
    click.echo('Nothing is wrong: --require-fast will run.' if not faults else 'Without a remedy everything runs in plain PyTorch, slower.')
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
