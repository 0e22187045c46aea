"""Latents: from seed numbers to ws, glides between identities, and mixtures of two identities.

A seed is the state of numpy's RandomState, as everywhere in this family, so a seed number names the same
person on every machine. ws are the mapping network's outputs, one row a layer: [N, num_ws, w_dim]. Inverted pictures
have theirs in a file, projected_w.npz, under the name `w`.
"""

import zipfile

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from dnnlib import UserError


def seeds_to_z(seeds, z_dim):
    """z [N, z_dim] float32 on the CPU: one row of RandomState(seed).randn for every seed in `seeds`."""
    rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def conditioning(generator, label):
    """What the mapping network is conditioned on [N, c_dim]: the cameras `label` [N, 25], or nothing [N, 0] for a
    generator that takes no labels."""
    if generator.c_dim == 0:
        return torch.zeros([len(label), 0], device=label.device)
    return label


def load_ws(path):
    """ws float32 [N, num_ws, w_dim] on the CPU, of the array `w` in the .npz file `path`. Raises UserError naming --latent
    and the file if it holds no such thing."""
    try:
        with np.load(path, allow_pickle=False) as file:
            w = file['w']
    except OSError as error:
        raise UserError(f'--latent {path}: cannot be read ({error.strerror or error})') from error
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f'--latent {path}: holds no array "w"; give a projected_w.npz written by projector.py') from error
    if w.ndim != 3 or not w.size or w.dtype.kind != 'f' or not np.isfinite(w).all():
        raise UserError(f'--latent {path}: "w" must be finite floats [heads, layers, numbers], got {w.dtype} {w.shape}')
    return torch.from_numpy(w.astype(np.float32))


def glide(ws, num_frames):
    """ws [F, num_ws, w_dim] of a closed, smooth path that passes through the keyframes ws [K, num_ws, w_dim].

    A periodic cubic spline: frame k * F / K is keyframe k, and the frame after the last would be the first.
    One keyframe stands still.
    """
    num_keyframes = ws.shape[0]
    if num_keyframes == 1:
        return ws.expand(num_frames, -1, -1)
    knots = ws.double().cpu().numpy()
    spline = CubicSpline(np.arange(num_keyframes + 1), np.concatenate([knots, knots[:1]]), bc_type='periodic')
    frames = spline(np.arange(num_frames) * num_keyframes / num_frames)
    return torch.from_numpy(frames.astype(np.float32)).to(ws.device)


def mix_styles(first, second, layer):
    """ws of `first` [N, num_ws, w_dim] with those of `second` from `layer` (0 ... num_ws) on: 0 gives the second
    identity, num_ws and beyond the first. Early layers hold shape, late ones colour."""
    return torch.cat([first[:, :layer], second[:, layer:]], dim=1)
