"""Layers of networks in training, on CPU, in few passes over their images: one forward, one backward, besides the convolutions.

The derivative of a leaky ReLU, and where a clamp holds, are read from the layer's result: only that and the input are kept.
Definitions: bias_act.bias_act and conv2d_resample.modulated_layer; C++: csrc/activation.cpp, csrc/winograd.cpp.
"""

import contextlib
import math

import torch
from torch.autograd.forward_ad import unpack_dual
from torch.nn.grad import conv2d_weight

from torch_utils.ops import conv_gradients, upfirdn2d, winograd
from torch_utils.ops.conv_gradients import STRIDED
from torch_utils.ops.native import load_native

SLOPES = {'linear': 1.0, 'lrelu': 0.2}   # activations that are told by the slope of negative values


def can_activate(x, act, gain):
    """Whether `activation` takes images x [N, C, H, W] and the activation of that name with a gain: one above 0, for the
    result's sign is to tell that of its argument."""
    return (x.device.type == 'cpu' and x.ndim == 4 and act in SLOPES and gain > 0 and x.dtype in upfirdn2d.NATIVE_TYPES and x.shape[1] > 0
            and x.is_contiguous(memory_format=torch.channels_last) and load_native())


def _limit(x, clamp):
    """The clamp as the operators take it; bfloat16 is not clamped, see bias_act."""
    return float('inf') if clamp is None or x.dtype == torch.bfloat16 else float(clamp)


def activation(x, bias, act, gain, clamp):
    """bias_act.bias_act(x, bias, act=act, gain=gain, clamp=clamp) with derivatives of any order; ask can_activate first.

    The derivative is read from the result, which therefore may not be changed in place; a value exactly at the clamp counts as
    held, where PyTorch's clamp lets the gradient through.
    """
    return _Activation.apply(x, None if bias is None else bias.float().contiguous(), SLOPES[act], float(gain), _limit(x, clamp))


class _Activation(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, bias, slope, gain, clamp):
        y = torch.ops.omnihead.activate(x, bias, slope, gain, clamp)
        ctx.save_for_backward(y)
        ctx.arguments = slope, gain, clamp
        return y

    @staticmethod
    def backward(ctx, grad):
        dx, dbias = _ActivationGradient.apply(grad, *ctx.saved_tensors, *ctx.arguments)
        return dx, dbias if ctx.needs_input_grad[1] else None, None, None, None


class _ActivationGradient(torch.autograd.Function):
    """(gradient of x, of the bias) from that of y. By y itself there is no derivative: it tells on which straight piece it lies."""

    @staticmethod
    def forward(ctx, grad, y, slope, gain, clamp):
        ctx.save_for_backward(y)
        ctx.set_materialize_grads(False)
        ctx.arguments = slope, gain, clamp
        return torch.ops.omnihead.activate_grad(grad.to(y.dtype), y, slope, gain, clamp)

    @staticmethod
    def backward(ctx, by_dx, by_dbias):
        (y,) = ctx.saved_tensors
        if by_dbias is not None:
            by_dbias = by_dbias.to(y.dtype)[:, None, None]
            by_dx = by_dbias.expand_as(y) if by_dx is None else by_dx + by_dbias
        by_grad = None if by_dx is None else _ActivationGradient.apply(by_dx, y, *ctx.arguments)[0]
        return by_grad, None, None, None, None


def can_train(x, weight, styles, noise, bias, act, gain, up, padding, resample_filter, demodulate):
    """Whether `layer` takes these arguments of conv2d_resample.modulated_layer."""
    return (demodulate and bias is not None and act in SLOPES and gain > 0 and padding == 1
            and winograd.can_convolve(x, weight, up, resample_filter) and plain_shapes(x, weight, styles, noise, bias, up))


def plain_shapes(x, weight, styles, noise, bias, up):
    """Whether styles, noise and bias have the shapes that the operators take: what only broadcasts to them is for the definition,
    and so is what torch.func transforms, and derivatives in forward mode."""
    n, _, height, width = x.shape
    tensors = x, weight, styles, noise, bias
    return (not winograd.are_transformed(*tensors) and not have_tangents(*tensors) and styles.shape == (n, weight.shape[1])
            and (bias is None or bias.shape == (weight.shape[0],))
            and (noise is None or (noise.ndim == 4 and noise.shape[0] in (1, n) and noise.shape[1:] == (1, height * up, width * up))))


def _wants_definition(grad):
    """Whether second derivatives are wanted, or first ones of many `grad` at once."""
    return torch.is_grad_enabled() or winograd.are_transformed(grad)


def _differentiable(ctx, tensors, grad):
    """Gradients, with a graph of their own, of what ctx.definition makes of the tensors, the second of which is a weight."""
    wanted = enumerate(ctx.needs_input_grad[1:1 + len(tensors)])
    needed = [i for i, need in wanted if need and not (i == 1 and conv_gradients.skip_weights())]
    if not needed:
        return [None] * len(tensors)
    with torch.enable_grad():
        # Views: where one input was made of another, what flows that way is the outer pass's to count.
        inputs = [None if t is None else t.view_as(t) for t in tensors]
        found = torch.autograd.grad(ctx.definition(*inputs), [inputs[i] for i in needed], grad, create_graph=True)
    grads = dict(zip(needed, found))
    return [grads.get(i) for i in range(len(tensors))]


def have_tangents(*tensors):
    """Whether a derivative of one of the tensors (None: none) is carried along, in forward mode."""
    return any(t is not None and unpack_dual(t).tangent is not None for t in tensors)


def layer(definition, x, weight, styles, noise, bias, act, gain, clamp, up, resample_filter):
    """conv2d_resample.modulated_layer of these arguments; ask can_train first. `definition` computes the same from (x, weight,
    styles, noise, bias): where second derivatives are wanted these are its own."""
    noise = None if noise is None else noise.float()
    return _Layer.apply(definition, x, weight, styles.float(), noise, bias.float(), SLOPES[act], float(gain), _limit(x, clamp),
                        resample_filter if up == 2 else None)


class _Layer(torch.autograd.Function):

    @staticmethod
    def forward(ctx, definition, x, weight, styles, noise, bias, slope, gain, clamp, resample_filter):
        y, scale, energy = torch.ops.omnihead.winograd_layer(
            x, weight.float().contiguous(), resample_filter, styles.contiguous(), None if noise is None else noise[:, 0].contiguous(),
            bias.contiguous(), slope, gain, clamp, winograd.products_of(x))
        ctx.save_for_backward(x, weight, styles, noise, bias, y, scale, energy, resample_filter)
        ctx.definition, ctx.arguments = definition, (slope, gain, clamp)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, styles, noise, bias, y, scale, energy, resample_filter = ctx.saved_tensors
        if _wants_definition(grad):
            return None, *_differentiable(ctx, (x, weight, styles, noise, bias), grad), None, None, None, None
        _, need_x, need_weight, need_styles, need_noise, *_ = ctx.needs_input_grad
        need_weight = need_weight and not conv_gradients.skip_weights()
        dz, dbias, dnoise, dscale = torch.ops.omnihead.layer_grad(
            grad.to(y.dtype), y, scale, None if noise is None else noise[:, 0].contiguous(), bias.contiguous(), *ctx.arguments)
        dx = dweight = dstyles = None
        if resample_filter is not None:
            dz = upfirdn2d.upfirdn2d(dz, resample_filter, padding=2, flip_filter=True, gain=4)
        if need_x or need_styles:
            dx = winograd.KIND.spread(dz, weight, None) if resample_filter is None \
                else STRIDED.convolve(dz, weight.to(x.dtype).transpose(0, 1))
            dstyles = torch.ops.omnihead.modulation_grad(dx, x, styles.contiguous())
        # The demodulation: scale = (styles^2 energy + 1e-8)^(-1/2).
        by_square = -0.5 * scale ** 3 * dscale                                                       # [N, O]
        if need_styles:
            dstyles.addcmul_(styles, by_square @ energy.t(), value=2)
        if need_weight:
            dweight = _weight_gradient(x, dz, styles, weight, resample_filter is not None)
            dweight.addcmul_(weight, (by_square.t() @ styles.square())[:, :, None, None], value=2)
        if need_noise and noise.shape[0] == 1:
            dnoise = dnoise.sum(dim=0, keepdim=True)
        return None, dx, dweight, dstyles, dnoise[:, None] if need_noise else None, dbias, None, None, None, None


def _weight_gradient(x, dz, styles, weight, upsampled):
    if not upsampled:
        return torch.ops.omnihead.winograd_weight_gradient(x, dz, winograd.products_of(x), styles.contiguous()).to(weight.dtype)
    x = x * styles.to(x.dtype)[:, :, None, None]
    if x.dtype == torch.bfloat16:
        found = conv2d_weight(dz, weight.transpose(0, 1).shape, x, stride=conv_gradients.STRIDE)
    else:
        found = STRIDED.correlate(dz, x, weight.shape[-1])
    return found.transpose(0, 1).to(weight.dtype).contiguous()


def can_multiply(x, weight, styles, noise, bias, act, gain, up, padding, demodulate):
    """Whether `multiply` takes these arguments of conv2d_resample.modulated_layer. Not under torch.compile, which makes its own of
    the definition."""
    return (not torch.compiler.is_compiling() and not demodulate and act == 'linear' and gain == 1 and up == 1 and padding == 0
            and noise is None and bias is not None and weight.shape[2:] == (1, 1) and winograd.takes_input(x, weight)
            and x.numel() > 0 < weight.shape[0] and all(t.dtype == torch.float32 for t in (x, weight, styles, bias))
            and plain_shapes(x, weight, styles, noise, bias, up) and load_native())


def multiply(definition, x, weight, styles, bias, clamp):
    """conv2d_resample.modulated_layer of one tap without demodulation; ask can_multiply first. `definition`: as for `layer`, of
    (x, weight, styles, bias)."""
    return _Products.apply(definition, x, weight, styles.contiguous(), bias, _limit(x, clamp))


class _Products(torch.autograd.Function):
    """Pixels are the rows of one product a sample, whose styles go into the weights, so that no scaled image is made or kept."""

    @staticmethod
    def forward(ctx, definition, x, weight, styles, bias, clamp):
        styled = weight.flatten(1) * styles[:, None]                                                 # [N, O, I]
        y = torch.empty([x.shape[0], weight.shape[0], *x.shape[2:]], device=x.device, memory_format=torch.channels_last)
        torch.baddbmm(bias, _rows(x), styled.transpose(1, 2), out=_rows(y))
        passed = None
        if math.isfinite(clamp) and not _lies_within(y, clamp):
            passed = (y >= -clamp) & (y <= clamp)
            y.clamp_(-clamp, clamp)
        ctx.save_for_backward(x, weight, styles, bias, passed)
        ctx.definition = definition
        return y

    @staticmethod
    def backward(ctx, grad):
        x, weight, styles, bias, passed = ctx.saved_tensors
        if _wants_definition(grad):
            return None, *_differentiable(ctx, (x, weight, styles, bias), grad), None
        _, need_x, need_weight, need_styles, need_bias, _ = ctx.needs_input_grad
        if passed is not None:
            grad = torch.where(passed, grad, 0.0)
        rows, dx, dweight, dstyles = _rows(grad), None, None, None
        with _without_autocast():
            if need_x or need_styles:
                dx = _image(rows @ weight.flatten(1), x.shape)
                dstyles = torch.ops.omnihead.modulation_grad(dx, x, styles)
            if need_weight and not conv_gradients.skip_weights():
                by_sample = rows.transpose(1, 2) @ _rows(x)                                          # [N, O, I]
                dweight = (by_sample * styles[:, None]).sum(dim=0)[:, :, None, None]
        return None, dx, dweight, dstyles, rows.sum(dim=(0, 1)) if need_bias else None, None


def _lies_within(x, clamp):
    """Whether all values lie between -clamp and clamp, as they nearly always do: it guards 16 bits from overflow."""
    least, most = x.aminmax()
    return bool(-clamp < least and most < clamp)


def _without_autocast():
    """Context in which products are of their operands' type."""
    return torch.autocast('cpu', enabled=False) if torch.is_autocast_enabled('cpu') else contextlib.nullcontext()


def _rows(x):
    """Pixels [N, H*W, C] of images [N, C, H, W]; a view of dense ones whose channels are last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(rows, shape):
    """Images of the height and width of `shape`, channels last, of _rows."""
    return rows.unflatten(1, shape[2:]).permute(0, 3, 1, 2)
