"""What a metric measures: a generator, or a second set of images, against a data set, under a stated protocol."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from tqdm import tqdm

import dnnlib
from metrics.features import FeatureNetwork
from metrics.registry import MODES
from torch_utils import distributed

BACKGROUNDS = {'keep': None, 'black': 0.0, 'gray': 0.5, 'white': 1.0}


@dataclass(frozen=True)
class Evaluation:
    """`generator` on `device`, or instead the images of `fakes` (training.dataset.HeadDataset), against `dataset` (the same,
    already filtered to the yaws of `mode`), with `num` fakes.

    `truncation_psi`: truncation of the fakes' latents. `background`: 'keep', or a colour that replaces what the masks leave
    out, in reals and fakes. `features`: the open FeatureNetwork of the metric at hand. Results depend on `seed`, and on
    `batch_size` and the number of processes by rounding at most. Raises UserError if the parts do not fit together.
    """
    generator: Optional[nn.Module]
    dataset: object
    num: int
    mode: str = 'all'
    device: torch.device = torch.device('cpu')
    batch_size: int = 16
    seed: int = 0
    progress: bool = False        # show bars
    truncation_psi: float = 1.0
    background: str = 'keep'
    features: Optional[FeatureNetwork] = None
    fakes: Optional[object] = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise dnnlib.UserError(f'--mode {self.mode}: unknown, choose one of {", ".join(MODES)}')
        if self.background not in BACKGROUNDS:
            raise dnnlib.UserError(f'--background {self.background}: unknown, choose one of {", ".join(BACKGROUNDS)}')
        if self.num < 2 or self.batch_size < 1:
            raise dnnlib.UserError(f'--num {self.num}, --batch {self.batch_size}: a metric needs --num of at least 2 and --batch '
                                   'of at least 1')
        if (self.generator is None) == (self.fakes is None):
            raise dnnlib.UserError('give either --network or --fakes: what is to be measured')
        if self.background != 'keep' and not self.dataset.has_masks:
            raise dnnlib.UserError(f'--background {self.background}: needs the masks of --data; give them as --seg')
        if self.fakes is not None:
            self._check_fakes()
        else:
            self._check_generator()

    def _check_generator(self):
        if self.dataset.label_dim != self.generator.c_dim:
            raise dnnlib.UserError(f'--data: labels have {self.dataset.label_dim} numbers, the network takes '
                                   f'{self.generator.c_dim}; give images with a dataset.json')
        if self.dataset.resolution != self.generator.img_resolution:
            raise dnnlib.UserError(f'--data: images are {self.dataset.resolution} pixels wide, the network\'s are '
                                   f'{self.generator.img_resolution}; convert them with dataset_tool_seg.py --resolution')

    def _check_fakes(self):
        if self.dataset.resolution != self.fakes.resolution:
            raise dnnlib.UserError(f'--data: images are {self.dataset.resolution} pixels wide, those of --fakes '
                                   f'{self.fakes.resolution}; convert them with dataset_tool_seg.py --resolution')
        if self.background != 'keep':
            raise dnnlib.UserError(f'--background {self.background}: needs masks, which --fakes does not take; measure with keep')

    @property
    def conditioning(self):
        """How heads are conditioned. 'camera': on the camera they are seen from, which is then moved by the learned
        translation (modes all and front). 'front': on the frontal camera, and seen without the translation (mode back, as
        published)."""
        return 'front' if self.mode == 'back' else 'camera'

    def own_batches(self, total):
        """(start, stop) of the batches of range(total) that this process computes: every world_size-th one, so that a batch
        holds the same items whatever the number of processes."""
        step = distributed.world_size() * self.batch_size
        for start in range(distributed.rank() * self.batch_size, total, step):
            yield start, min(start + self.batch_size, total)

    def map(self, total, function, desc):
        """Yield function(start, stop), a picklable value such as NumPy rows, for the consecutive batches of range(total), in
        order, to every process; each is computed by one of them. All processes must iterate to the end."""
        own = self.own_batches(total)
        with tqdm(total=total, desc=desc, unit='img', disable=not self.progress or distributed.rank() > 0) as bar:
            for first in range(0, total, distributed.world_size() * self.batch_size):
                batch = next(own, None)
                if batch is not None:
                    torch.manual_seed((self.seed << 31) + batch[0])     # for networks whose noise is drawn as they go
                for value in distributed.gather_objects(None if batch is None else (function(*batch),)):
                    if value is not None:
                        yield value[0]
                bar.update(min(distributed.world_size() * self.batch_size, total - first))
