"""An inverted head as one file, and its use with the network it was found with.

`head.safetensors` holds the latents, the cameras and what changes in the network; its header says, as JSON, which network
that is (by the digest of its weights), how it is rendered and how the head was found. Nothing in it can be executed. The
published pair, projected_w.npz with the latents alone and a whole tuned network, is read and written too.
"""

import dataclasses
import json
from pathlib import Path

import torch

from dnnlib import UserError
from dnnlib.util import written_whole
from inference import latents
from inference.noise_buffers import noise_buffers
from torch_utils.misc import weights_digest

SUFFIX = '.safetensors'
FORMAT = 'omnihead-head-1'
DELTA = 'delta.'            # before a parameter's name


@dataclasses.dataclass(frozen=True)
class Head:
    """One or several heads: `ws` [N, num_ws, w_dim]; of a head.safetensors also the cameras `labels` [V, 25] of its views,
    `deltas`, float16 changes of parameters and noise images by name, and `record`: network, network_digest, ray_start, and settings."""
    ws: torch.Tensor
    labels: torch.Tensor | None = None
    deltas: dict = dataclasses.field(default_factory=dict)
    record: dict = dataclasses.field(default_factory=dict)

    def __len__(self):
        return len(self.ws)

    def use_on(self, generator):
        """Change `generator` in place into the one of this head, and return its RenderOptions. Raises UserError if the head
        is another network's."""
        wanted = generator.num_ws, generator.w_dim
        if tuple(self.ws.shape[1:]) != wanted:
            raise UserError(f'--latent: its heads have {self.ws.shape[1]} layers of {self.ws.shape[2]} numbers, those of --network '
                            f'{wanted[0]} of {wanted[1]}; use the network they were found with')
        if not self.record:
            return generator.rendering
        if weights_digest(generator) != self.record['network_digest']:
            raise UserError(f'--latent: this head was found with the network {self.record["network"]} and changes it; --network '
                            'has other weights. Give that one, or projected_w.npz to use the latents alone')
        apply_deltas(generator, self.deltas)
        return dataclasses.replace(generator.rendering, ray_start=self.record['ray_start'])


@torch.no_grad()
def apply_deltas(generator, deltas):
    """Add float16 `deltas` by name to the generator's parameters and noise images. Raises UserError if they are another
    network's."""
    parameters = dict(generator.named_parameters())
    if not deltas.keys() <= parameters.keys():
        parameters.update(noise_buffers(generator))
    for name, delta in deltas.items():
        if name not in parameters or parameters[name].shape != delta.shape:
            raise UserError(f'--latent: the head changes a parameter {name} {list(delta.shape)} that --network does not have; '
                            'use the network it was found with')
        parameters[name].add_(delta.to(parameters[name].device))


def save_head(path, head):
    """Write a Head with its record to `path` (.safetensors). Raises UserError if that fails."""
    from safetensors.torch import save    # imported here: only those who share heads this way need the package
    tensors = {'ws': head.ws, 'labels': head.labels, **{DELTA + name: delta for name, delta in head.deltas.items()}}
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                {FORMAT: json.dumps(head.record)})      # one entry: the order of several changes from run to run
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error}; free some space or choose another --outdir') from error


def load_head(path):
    """Head of a head.safetensors or projected_w.npz. Raises UserError naming --latent and the file."""
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        return Head(latents.load_ws(path))
    from safetensors import SafetensorError, safe_open
    try:
        with open(path, 'rb'), safe_open(str(path), framework='pt') as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}     # noqa: SIM118, the file is no dict
    except OSError as error:
        raise UserError(f'--latent {path}: cannot be read ({error.strerror or error})') from error
    except SafetensorError as error:
        raise UserError(f'--latent {path}: is not a whole .safetensors file ({error}); copy it again') from error
    fault = _fault(meta, tensors)
    if fault:
        raise UserError(f'--latent {path}: {fault}; give a head.safetensors or projected_w.npz written by projector.py')
    deltas = {name.removeprefix(DELTA): tensor for name, tensor in tensors.items() if name.startswith(DELTA)}
    return Head(tensors['ws'], tensors['labels'], deltas, json.loads(meta[FORMAT]))


def _fault(meta, tensors):
    """What is wrong with a file's header and tensors, or None."""
    if FORMAT not in meta:
        return 'holds no head'
    try:
        record = json.loads(meta[FORMAT])
        complete = {'network', 'network_digest', 'ray_start'} <= set(record)
    except (KeyError, ValueError, TypeError, RecursionError):
        return 'its record cannot be read'
    ws, labels = tensors.get('ws'), tensors.get('labels')
    if not complete or ws is None or labels is None:
        return 'is not complete'
    if ws.ndim != 3 or len(ws) != 1 or labels.ndim != 2 or labels.shape[1] != 25 or not len(labels):
        return f'ws {list(ws.shape)} and labels {list(labels.shape)} have odd shapes'
    if not all(t.is_floating_point() and t.isfinite().all() for t in tensors.values()):
        return 'holds numbers that are not finite'
    return None
