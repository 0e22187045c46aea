"""Random numbers that belong to samples, not to processes.

Inside `per_sample(key, samples)` every sample of the batch has a stream of its own, seeded by the key and its number in
the whole batch. What a sample draws then depends neither on how many processes share the batch, nor on how many parts it
is worked off in, nor on what was drawn before: a training step can be repeated from its number alone. Outside, the same
functions draw from PyTorch's own generators. Code that runs in training and wants noise asks here.
"""

import contextlib
import hashlib

import torch

_streams = None     # the _Streams of the batch in work, or None


def seed_of(*key):
    """A seed in [0, 2^63) from anything that prints."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'little') >> 1


class _Streams:
    """Generators of one batch, made where they are first needed."""

    def __init__(self, key, samples):
        self.key, self.samples, self._made = key, tuple(samples), {}

    def generator(self, device, sample=None):
        """The generator of a sample's number, or of the batch (None), on a device."""
        at = (str(device), sample)
        if at not in self._made:
            self._made[at] = torch.Generator(device).manual_seed(seed_of(self.key, sample))
        return self._made[at]


@contextlib.contextmanager
def per_sample(key, samples):
    """Context in which the n-th row of a batch draws from the stream of `key` (anything that prints) and samples[n], its
    number in the batch of all processes."""
    global _streams
    former, _streams = _streams, _Streams(key, samples)
    try:
        yield
    finally:
        _streams = former


def _fill(out, fill):
    """Fill out [N, ...] by fill(tensor, generator), row by row where every row has a stream."""
    if _streams is None:
        return fill(out, None)
    if out.ndim == 0 or out.shape[0] != len(_streams.samples):
        return fill(out, _streams.generator(out.device))
    for row, sample in zip(out, _streams.samples):
        fill(row, _streams.generator(out.device, sample))
    return out


def uniform(shape, device='cpu'):
    """Uniform numbers in [0, 1), float32. Rows of a shape [N, ...] with the N of the batch are the samples' own; other
    shapes are drawn from the batch's stream, which is the same in all processes."""
    return _fill(torch.empty(shape, device=device), lambda tensor, generator: tensor.uniform_(generator=generator))


def normal(shape, device='cpu'):
    """Standard normal numbers, float32; rows as in `uniform`."""
    return _fill(torch.empty(shape, device=device), lambda tensor, generator: tensor.normal_(generator=generator))


def integers(high, shape, device='cpu'):
    """Whole numbers in [0, high), int64; rows as in `uniform`."""
    return _fill(torch.empty(shape, device=device, dtype=torch.int64),
                 lambda tensor, generator: tensor.random_(high, generator=generator))
