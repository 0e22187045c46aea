"""Exponential moving average of a network's weights, the one that is sampled from (StyleGAN2, 1912.04958)."""

import copy

import torch

from training.schedules import ema_beta


class Ema:
    """Keeps `average`, a network of its own that follows `model`.

    `halfkimg`: half life in thousand images; `rampup`: see schedules.ema_beta. The average needs no gradients and is
    in evaluation mode.
    """

    def __init__(self, model, halfkimg, rampup=0.05):
        if halfkimg < 0:
            raise ValueError(f'halfkimg must not be negative, got {halfkimg}')
        self.halfkimg, self.rampup = halfkimg, rampup
        self.average = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model, cur_nimg, batch_size):
        """One step: parameters move towards the model's, buffers become the model's. `cur_nimg` images have been shown,
        `batch_size` of them since the last call."""
        beta = ema_beta(cur_nimg, batch_size, self.halfkimg, self.rampup)
        for target, source in zip(self.average.parameters(), model.parameters(), strict=True):
            target.lerp_(source, 1 - beta)
        for target, source in zip(self.average.buffers(), model.buffers(), strict=True):
            target.copy_(source)

    def state_dict(self):
        """What resuming needs."""
        return self.average.state_dict()

    def load_state_dict(self, state):
        """Go on from `state_dict()` of an earlier average."""
        self.average.load_state_dict(state)
