"""Image sets for training and metrics: images, masks and labels of a folder or zip, and the order they are drawn in."""

import contextlib
import hashlib
import os
import time

import numpy as np
import torch

import camera_utils
from dnnlib import UserError
from torch_utils import signals
from training.dataset_check import check_dataset, faults_error
from training.dataset_labels import parse_labels, read_labels, within_angles
from training.dataset_store import ImageStore, name_stem


class HeadDataset(torch.utils.data.Dataset):
    """Images with labels and masks, in the order of their sorted names.

    `path`, `seg_path`: folder or zip of the images (with dataset.json at its root for labels) and of their masks.
    `use_labels` False passes dataset.json over; `xflip` doubles the set with mirrored images and labels;
    `min_yaw`, `max_yaw`, `max_pitch` bound |yaw| and |pitch| in degrees; `back_repeat` is how many times each image
    with max(90, min_yaw) <= |yaw| <= max_yaw appears; `max_size` keeps that many of the list so far, before xflip,
    drawn by `random_seed`; `resolution`, when given, must be that of the images.

    An item is a dict of `image` uint8 [3, H, W], `label` float32 [25] ([0] without labels) and, when there are masks,
    `mask` uint8 [1, H, W] (255 = head). Instances can be pickled and read from DataLoader workers.
    Raises UserError listing every fault that the cheap checks of training.dataset_check find, naming an option that does
    not fit the data, or, while reading, naming the damaged file.
    """

    def __init__(self, path, seg_path=None, use_labels=True, xflip=False, min_yaw=0, max_yaw=180, max_pitch=90,
                 back_repeat=1, max_size=None, random_seed=0, resolution=None):
        super().__init__()
        _check_options(min_yaw, max_yaw, max_pitch, back_repeat, max_size)
        faults = check_dataset(path, seg_path, use_labels=use_labels)
        if faults:
            raise faults_error(faults, str(path))
        self._images = ImageStore(path)
        self._names = self._images.names
        self._masks = None
        if seg_path is not None:
            self._masks = ImageStore(seg_path)
            by_stem = {name_stem(name): name for name in self._masks.names}
            self._mask_names = [by_stem[name_stem(name)] for name in self._names]
        self._labels = self._load_labels() if use_labels else None
        self.resolution = self._images.read_image(self._names[0]).size[0]
        if resolution not in (None, self.resolution):
            raise UserError(f'{path}: images are {self.resolution}x{self.resolution}, asked for was resolution {resolution}; '
                            f'convert them with dataset_tool_seg.py --resolution {resolution}x{resolution}')
        index = self._select(min_yaw, max_yaw, max_pitch, back_repeat)
        if max_size is not None and max_size < len(index):
            index = index[np.sort(np.random.RandomState(random_seed).permutation(len(index))[:max_size])]
        self._index = np.tile(index, 2) if xflip else index
        self._flip = np.arange(len(self._index)) >= len(index)

    def _load_labels(self):
        """float32 [n, 25] in the order of the names, or None."""
        raw, _ = read_labels(self._images)
        if raw is None:
            return None
        array, names, _ = parse_labels(self._images, raw)
        row = {name: i for i, name in enumerate(names)}
        return array[[row[name] for name in self._names]]

    def _select(self, min_yaw, max_yaw, max_pitch, back_repeat):
        """Indices into the names that the angles leave, those of the back `back_repeat` times in a row."""
        index = np.arange(len(self._names))
        if (min_yaw, max_yaw, max_pitch, back_repeat) == (0, 180, 90, 1):
            return index
        if self._labels is None:
            raise UserError(f'{self._images.path}: min_yaw, max_yaw, max_pitch and back_repeat need labels, and there are none; '
                            'add them to dataset.json or leave these options out')
        keep = np.ones(len(index), dtype=bool)
        # At their defaults the bounds let everything through, also what rounding or a tilted camera puts past them.
        if (min_yaw, max_yaw, max_pitch) != (0, 180, 90):
            keep = within_angles(self._labels, min_yaw, max_yaw, max_pitch)
        if not keep.any():
            raise UserError(f'{self._images.path}: none of {len(index)} images has min_yaw {min_yaw:g} <= |yaw| <= max_yaw '
                            f'{max_yaw:g} and |pitch| <= max_pitch {max_pitch:g} degrees; widen the range')
        back = within_angles(self._labels, max(90, min_yaw), max_yaw, max_pitch=180)
        return np.repeat(index[keep], np.where(back, back_repeat, 1)[keep])

    def __len__(self):
        return len(self._index)

    def __getitem__(self, i):
        raw = self._index[i]
        item = {'image': self._pixels(self._images, self._names[raw], 'RGB', self._flip[i]), 'label': self.get_label(i)}
        if self._masks is not None:
            item['mask'] = self._pixels(self._masks, self._mask_names[raw], 'L', self._flip[i])
        return item

    def _pixels(self, store, name, mode, flip):
        """uint8 [C, H, W] of one file, which must look like the first of the set."""
        image = store.read_image(name)
        if image.mode != mode or image.size != (self.resolution, self.resolution):
            raise UserError(f'{store.locate(name)}: {image.size[0]}x{image.size[1]} of mode {image.mode}, wanted '
                            f'{self.resolution}x{self.resolution} of mode {mode}; see dataset_tool_seg.py --check')
        array = np.asarray(image).reshape(self.resolution, self.resolution, -1).transpose(2, 0, 1)
        return np.array(array[:, :, ::-1] if flip else array, order='C')  # a copy: PIL's own memory is read-only

    @property
    def name(self):
        """The folder's or zip's name without extension; run folders carry it."""
        return self._images.path.absolute().stem

    @property
    def num_channels(self):
        """Channels of an image: 3."""
        return 3

    @property
    def label_dim(self):
        """Length of a label: 25, or 0 without labels."""
        return camera_utils.LABEL_DIM if self.has_labels else 0

    @property
    def has_labels(self):
        """Whether items carry labels."""
        return self._labels is not None

    @property
    def has_masks(self):
        """Whether items carry masks."""
        return self._masks is not None

    def get_label(self, i):
        """Label float32 [25] of item `i` ([0] without labels)."""
        if self._labels is None:
            return np.zeros([0], dtype=np.float32)
        label = self._labels[self._index[i]]
        return camera_utils.flip_label(torch.from_numpy(label)).numpy() if self._flip[i] else label.copy()

    def get_labels(self):
        """All labels, float32 [len, 25] ([len, 0] without labels)."""
        if self._labels is None:
            return np.zeros([len(self), 0], dtype=np.float32)
        labels = torch.from_numpy(self._labels[self._index])
        return torch.where(torch.from_numpy(self._flip)[:, None], camera_utils.flip_label(labels), labels).numpy()

    def content_digest(self):
        """sha256 of the whole set, whatever the options select of it: names, labels, and size and CRC-32 of every image and
        mask. The same for a folder and a zip of the same files. Folders are read through, zips only listed."""
        digest = hashlib.sha256()
        for i, name in enumerate(self._names):
            digest.update(f'{name} {self._images.checksum(name)}'.encode())
            if self._masks is not None:
                digest.update(f' {self._masks.checksum(self._mask_names[i])}'.encode())
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        return digest.hexdigest()

    def close(self):
        """Close the files; a later read opens them again."""
        self._images.close()
        if self._masks is not None:
            self._masks.close()


def _check_options(min_yaw, max_yaw, max_pitch, back_repeat, max_size):
    """Raise UserError naming the first option that no set could fit."""
    if not 0 <= min_yaw <= max_yaw <= 180:
        raise UserError(f'min_yaw {min_yaw} and max_yaw {max_yaw} must satisfy 0 <= min_yaw <= max_yaw <= 180 degrees')
    if not 0 <= max_pitch <= 90:
        raise UserError(f'max_pitch must lie in 0..90 degrees, got {max_pitch}')
    if back_repeat != int(back_repeat) or back_repeat < 1:
        raise UserError(f'back_repeat must be a whole number of at least 1, got {back_repeat}')
    if max_size is not None and max_size < 1:
        raise UserError(f'max_size must be at least 1, got {max_size}')


class InfiniteSampler(torch.utils.data.Sampler):
    """Endless indices into a set of `dataset_len` items: one permutation after another, each drawn by `seed` and its number.

    `position` is the number of items that all `num_replicas` ranks together have drawn before; a sampler made with it goes
    on exactly where that one stopped, also under another number of ranks. `shuffle` False gives the plain order.
    """

    def __init__(self, dataset_len, rank=0, num_replicas=1, seed=0, shuffle=True, position=0):
        super().__init__()
        if dataset_len < 1 or not 0 <= rank < num_replicas or position < 0:
            raise ValueError(f'need dataset_len >= 1, 0 <= rank < num_replicas, position >= 0; '
                             f'got {dataset_len}, {rank}, {num_replicas}, {position}')
        self._len, self._rank, self._replicas = dataset_len, rank, num_replicas
        self._seed, self._shuffle, self._position = seed, shuffle, position

    def _order(self, epoch):
        if not self._shuffle:
            return np.arange(self._len)
        return np.random.default_rng([self._seed, epoch]).permutation(self._len)

    def __iter__(self):
        epoch, order = None, None
        position = self._position + self._rank
        while True:
            if epoch != position // self._len:
                epoch = position // self._len
                order = self._order(epoch)
            yield int(order[position % self._len])
            position += self._replicas


class _ErrorsAsItems(torch.utils.data.Dataset):
    """Wraps a dataset so that a UserError is returned, not raised: a worker process would bury its message in a traceback.
    Items are pairs (item, messages): up to `substitutes` times the next item takes the place of one that cannot be read."""

    def __init__(self, dataset, substitutes):
        self._dataset, self._substitutes = dataset, substitutes

    def __getitem__(self, i):
        messages = []
        for offset in range(self._substitutes + 1):
            try:
                return self._dataset[(i + offset) % len(self._dataset)], messages
            except UserError as error:
                messages.append(str(error))
        return UserError(messages[0] if len(messages) == 1 else
                         f'{messages[0]} (and so for the {len(messages) - 1} files after it; are the data still there?)')


class _Collate:
    """Stacks items into a batch; `damaged` is added where unreadable items are replaced."""

    def __init__(self, substitutes):
        self._named = substitutes > 0

    def __call__(self, items):
        errors = [item for item in items if isinstance(item, UserError)]
        if errors:
            return errors[0]
        batch = torch.utils.data.default_collate([item for item, _ in items])
        return {**batch, 'damaged': [message for _, messages in items for message in messages]} if self._named else batch


def reader_died(error):
    """The UserError to raise for an exception by which PyTorch says that a reading process is gone, None for others. It may
    interrupt the main thread wherever that is at the time."""
    if isinstance(error, RuntimeError) and 'DataLoader worker' not in str(error):
        return None
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f'--workers: a process that reads images ended ({reason}); the system kills processes '
                     'when memory runs out: take fewer')


def _leave_signals_to_training(_):
    """For a reading process: Ctrl-C of a terminal and SIGTERM of a cluster reach it as well, but the step in progress wants its
    data. It ends with the process that reads from it."""
    signals.ignore()


def iterate_batches(dataset, batch_size, sampler, num_workers=0, pin_memory=False, substitutes=0):
    """Yields batches, dicts of stacked tensors, of `dataset` in the order of `sampler`, read by `num_workers` processes
    (0: this one). Raises UserError naming a damaged file with a clean message, whichever process met it.

    `substitutes` > 0: up to so many of the next items are tried in the place of one that cannot be read, and batches have
    an entry `damaged`, the list of messages about those passed over."""
    num_workers = min(num_workers, os.cpu_count() or 1)   # more would only wait for one another
    # A generator of its own: PyTorch's is the training's, and prefetching must leave no trace in it.
    loader = torch.utils.data.DataLoader(_ErrorsAsItems(dataset, substitutes), batch_size=batch_size, sampler=sampler,
                                         collate_fn=_Collate(substitutes), num_workers=num_workers, pin_memory=pin_memory,
                                         generator=torch.Generator(), worker_init_fn=_leave_signals_to_training)
    error = None
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                error = batch
                break
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as failure:
        error = reader_died(failure)
        if error is None:
            raise
        # Of a lost connection PyTorch hears first, and of the death that was its cause a little later, by an interruption
        # that ends the waiting; on a busy machine much later.
        with contextlib.suppress(RuntimeError):
            time.sleep(10 if isinstance(failure, (ConnectionError, EOFError)) else 0.5)
    # Raised outside the loop: the workers are gone by now, instead of living on in the error's traceback.
    if error is not None:
        raise error
