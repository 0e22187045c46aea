"""A generator opened for looking at: seeds become identities, identities are seen from cameras.

All heavy synthesis is in the identity's field. It is built by `Session.identity` and held by the caller, so a
camera that moves round a head costs rendering alone.
"""

import contextlib
import dataclasses
from typing import Optional

import torch

from dnnlib import UserError
from inference import latents, trajectories
from torch_utils import misc
from training.networks.precision import set_precision
from training.snapshot import load_network


@dataclasses.dataclass(frozen=True)
class Identity:
    """One head: its latents ws [1, num_ws, w_dim], and of them the field and the background's features, if there are any."""
    ws: torch.Tensor
    field: object
    background: Optional[torch.Tensor] = None


class Session:
    """A generator in evaluation mode on `device`.

    `resolution`: neural rendering resolution, None for the network's own; `sample_mult`: factor on the number of
    depth samples of every ray.
    """

    def __init__(self, generator, device, resolution=None, sample_mult=1):
        self.generator = generator
        self.device = device
        self.resolution = resolution
        self.precision = 'auto'
        rendering = generator.rendering
        self.options = dataclasses.replace(
            rendering,
            depth_resolution=max(round(rendering.depth_resolution * sample_mult), 4),
            depth_resolution_importance=round(rendering.depth_resolution_importance * sample_mult))

    @classmethod
    def open(cls, network, device='auto', resolution=None, sample_mult=1, precision='auto'):
        """The session of a network file, address or 'demo' on `device` ('auto', 'cpu', 'cuda', 'mps'), computed in a precision
        of training.networks.precision. Raises UserError if the file is no network or the device or precision is not there."""
        device = misc.resolve_device(device)
        generator = load_network(network, 'G_ema', device)
        set_precision(generator, precision, device)
        misc.reuse_freed_memory()
        session = cls(generator, device, resolution, sample_mult)
        session.precision = precision
        return session

    def camera(self, fov_deg=None):
        """The CameraPrior the generator was trained with, at the angle of view `fov_deg` if that is given."""
        prior = self.generator.camera
        return prior if fov_deg is None else dataclasses.replace(prior, fov_deg=fov_deg)

    def depth_range(self, labels):
        """(nearest, farthest) depth at which cameras labels [F, 25] may meet the head: one range for a whole film, so that
        a depth has the same grey in all of its frames."""
        distance = labels[:, [3, 7, 11]].norm(dim=1)
        half = self.options.box_warp / 2
        return max(float(distance.min()) - half, 0.0), float(distance.max()) + half

    @torch.inference_mode()
    def seeds_to_ws(self, seeds, truncation_psi=1, truncation_cutoff=None, pose_cond=90, fov_deg=None):
        """ws [N, num_ws, w_dim] of the seeds, conditioned on one camera: `pose_cond` is its horizontal angle in
        degrees, 90 the front. Every seed is mapped by itself, so it gives the same head in any company."""
        label = trajectories.turned(self.camera(fov_deg), pose_cond - 90).to(self.device)
        c = latents.conditioning(self.generator, label)
        z = latents.seeds_to_z(seeds, self.generator.z_dim).to(self.device)
        mapping = self.generator.mapping
        return torch.cat([mapping(row[None], c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
                          for row in z])

    def given_ws(self, head):
        """Latents ws [N, num_ws, w_dim] of a Head from a file (see inference.heads), on the session's device. What the head
        changes in the network is changed, and where the session's precision is 'auto' the head's is taken, if the device has it.
        Raises UserError if the head is another network's."""
        rendering = head.use_on(self.generator)
        if self.precision == 'auto' and 'precision' in head.record:
            with contextlib.suppress(UserError):
                set_precision(self.generator, head.record['precision'], self.device)
        self.options = dataclasses.replace(self.options, ray_start=rendering.ray_start)
        return head.ws.to(self.device)

    @torch.inference_mode()
    def identity(self, ws):
        """The Identity of latents ws [1, num_ws, w_dim]: the one place where a field is built."""
        return Identity(ws, self.generator.build_field(ws), self.generator.background(ws))

    @torch.inference_mode()
    def view(self, identity, label):
        """GeneratorOutput of `identity` from one camera `label` [1, 25]. The learned camera translation belongs to
        training's cameras and is not applied."""
        return self.generator.render(identity.field, identity.ws, label.to(self.device), resolution=self.resolution,
                                     options=self.options, background=identity.background)

    def film(self, ws, labels):
        """Yield a GeneratorOutput for every frame: latents ws [F, num_ws, w_dim] seen from labels [F, 25].
        A field is built when the latents change and kept while only the camera moves."""
        identity = None
        for frame_ws, label in zip(ws.split(1), labels.split(1), strict=True):
            if identity is None or not torch.equal(identity.ws, frame_ws):
                identity = self.identity(frame_ws)
            yield self.view(identity, label)
