"""Two image sets as one: a set and an enhanced one of views that it lacks, such as backs of heads."""

import hashlib

import numpy as np
import torch

from dnnlib import UserError
from training.dataset import HeadDataset


class JoinedDataset(torch.utils.data.Dataset):
    """A HeadDataset of `path` and `seg_path` followed by the whole one of `extra_path` and `extra_seg_path`, whose items come
    `extra_repeat` times; further arguments, and the items, are HeadDataset's. The angles and max_size select from the first
    set only. Raises UserError where the two do not go together."""

    def __init__(self, path, seg_path=None, extra_path=None, extra_seg_path=None, extra_repeat=1, use_labels=True, xflip=False,
                 resolution=None, **selection):
        super().__init__()
        if (seg_path is None) != (extra_seg_path is None):
            raise UserError('--seg_data and --extra_seg: give masks for both sets or for none')
        if extra_repeat != int(extra_repeat) or extra_repeat < 1:
            raise UserError(f'--extra_repeat must be a whole number of at least 1, got {extra_repeat}')
        self._base = HeadDataset(path, seg_path, use_labels, xflip, resolution=resolution, **selection)
        self._extra = HeadDataset(extra_path, extra_seg_path, use_labels, xflip, resolution=self._base.resolution)
        if self._base.has_labels != self._extra.has_labels:
            raise UserError(f'{extra_path}: has {"no labels" if self._base.has_labels else "labels"}, unlike {path}; both sets need '
                            'labels, or neither')
        self._repeat = extra_repeat

    def _find(self, i):
        """(set, index in it) of item `i`."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return (self._base, i) if i < len(self._base) else (self._extra, (i - len(self._base)) % len(self._extra))

    def __len__(self):
        return len(self._base) + self._repeat * len(self._extra)

    def __getitem__(self, i):
        dataset, index = self._find(i)
        return dataset[index]

    def get_label(self, i):
        """Label of item `i`, as HeadDataset's."""
        dataset, index = self._find(i)
        return dataset.get_label(index)

    def get_labels(self):
        """All labels, as HeadDataset's."""
        return np.concatenate([self._base.get_labels(), *[self._extra.get_labels()] * self._repeat])

    def content_digest(self):
        """sha256 of both sets' contents and of how often the second comes."""
        parts = (self._base.content_digest(), self._extra.content_digest(), str(self._repeat))
        return hashlib.sha256(' '.join(parts).encode()).hexdigest()

    def __getattr__(self, name):
        # What both sets share: resolution, num_channels, label_dim, has_labels, has_masks, name.
        if name.startswith('_'):
            raise AttributeError(name)
        return getattr(self._base, name)

    def close(self):
        """Close the files of both sets."""
        self._base.close()
        self._extra.close()
