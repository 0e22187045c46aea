"""The heads that 3D metrics look at: conditioned on the frontal camera, then seen from wherever the metric asks, without the
learned camera translation. One field a head, however many views."""

from dataclasses import dataclass

import numpy as np
import torch

from camera_utils import fov_to_intrinsics, front_label, look_at_pose, make_label
from dnnlib import UserError

PROTOCOL = {'conditioning': 'front'}   # of the metrics that look at these heads
HEAD_STREAM = 11        # keeps the heads' random numbers apart from others made of the same seed


def labels_around(camera, yaw_deg, pitch_deg=0.0):
    """Labels [V, 25] of cameras whose position is turned by `yaw_deg` and raised by `pitch_deg` (floats or [V]) about the
    origin; `camera`: the generator's CameraPrior, which says where they look, from how far and how wide."""
    yaw, pitch = (torch.as_tensor(value, dtype=torch.float32).reshape(-1) for value in (yaw_deg, pitch_deg))
    vertical = torch.pi / 2 * (1 - torch.deg2rad(pitch).sin())     # look_at_pose's parameter, uniform in area
    pose = look_at_pose(torch.pi / 2 + torch.deg2rad(yaw), vertical, camera.pivot, camera.radius)
    return make_label(pose, fov_to_intrinsics(camera.fov_deg))


@dataclass(frozen=True)
class OpenHeads:
    """Some heads with their fields: latents z [n, z_dim] and ws [n, num_ws, w_dim]."""
    generator: object
    ws: torch.Tensor
    field: object

    @torch.no_grad()
    def view(self, labels, ws_bcg=None):
        """GeneratorOutput of head i from labels[i], labels [n, 25] or [25] for all; `ws_bcg`: latents whose background is to
        stand behind the heads."""
        labels = labels.to(self.ws.device).expand(len(self.ws), -1)
        return self.generator.render(self.field, self.ws, labels, ws_bcg=ws_bcg)


class Heads:
    """Heads of a generator by number: head i has the same latents whatever the batch size, processes and their count."""

    def __init__(self, generator, device='cpu', seed=0, truncation_psi=1.0):
        if generator.cond_spec:
            raise UserError(f'--network: this metric knows no values for its inputs {", ".join(generator.cond_spec)}')
        self.generator, self.camera = generator, generator.camera
        self._device, self._seed, self._psi = device, seed, truncation_psi

    @classmethod
    def of(cls, evaluation):
        """The heads of an evaluation. UserError where there is no generator to make them."""
        if evaluation.generator is None:
            raise UserError('--fakes: this metric looks at heads from many sides and needs --network')
        return cls(evaluation.generator, evaluation.device, evaluation.seed, evaluation.truncation_psi)

    @torch.no_grad()
    def latents(self, start, stop):
        """ws [n, num_ws, w_dim] of heads start to stop."""
        g = self.generator
        z = np.stack([np.random.default_rng([self._seed, HEAD_STREAM, i]).standard_normal(g.z_dim) for i in range(start, stop)])
        c = front_label(self.camera.pivot, self.camera.radius, self.camera.fov_deg, self._device).expand(len(z), -1)[:, :g.c_dim]
        return g.mapping(torch.from_numpy(z).float().to(self._device), c, truncation_psi=self._psi)

    @torch.no_grad()
    def open(self, start, stop):
        """OpenHeads of heads start to stop."""
        ws = self.latents(start, stop)
        return OpenHeads(self.generator, ws, self.generator.build_field(ws))

    def rows(self, evaluation, measure, desc):
        """Rows of `measure(open_heads, start, stop)` -> {name: array [n, ...]} of the evaluation's `num` heads, joined in their
        order, the work shared among the processes."""
        parts = list(evaluation.map(evaluation.num, lambda start, stop: measure(self.open(start, stop), start, stop), desc))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def random_angles(seed, start, stop, max_pitch_deg, stream):
    """(yaw, pitch) in degrees, float32 [n] each, of heads start to stop: yaw uniform all round, pitch uniform."""
    draws = np.stack([np.random.default_rng([seed, stream, i]).uniform(-1, 1, 2) for i in range(start, stop)])
    return torch.from_numpy(draws[:, 0] * 180).float(), torch.from_numpy(draws[:, 1] * max_pitch_deg).float()
