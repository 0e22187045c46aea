"""Inception score (Salimans et al., 1606.03498): how sure a classifier is of each picture, and how varied over all."""

import numpy as np
from scipy.special import xlogy

from metrics.collectors import Collector
from metrics.registry import register_metric

SPLITS = 10


class ClassSplits(Collector):
    """Class probabilities in SPLITS consecutive parts: of each the mean, and the mean of sum p log p."""
    needs = 'probabilities'

    def __init__(self, total):
        super().__init__(total)
        self._edges = [i * total // SPLITS for i in range(SPLITS + 1)]
        self._sums, self._negentropy = None, np.zeros(SPLITS)
        self._position = 0

    def work_in(self, rows):
        """Add a chunk of probabilities to its parts."""
        rows = rows.astype(np.float64)
        if self._sums is None:
            self._sums = np.zeros([SPLITS, rows.shape[1]])
        split = np.searchsorted(self._edges, np.arange(self._position, self._position + len(rows)), side='right') - 1
        np.add.at(self._sums, split, rows)
        np.add.at(self._negentropy, split, xlogy(rows, rows).sum(axis=1))
        self._position += len(rows)

    @property
    def num_retained(self):
        return super().num_retained + (0 if self._sums is None else self._sums.size) + SPLITS

    def scores(self):
        """exp of the mean KL divergence to the part's mean, for each part that has pictures."""
        self.flush()
        counts = np.diff(self._edges)
        used = counts > 0
        mean = self._sums[used] / counts[used, None]
        return np.exp(self._negentropy[used] / counts[used] - xlogy(mean, mean).sum(axis=1))


@register_metric('is50k', features='inception', collects=ClassSplits, real=False)
def is50k(fake):
    """Inception score of 50,000 fakes in 10 parts: mean and deviation. Higher is better, from 1 to the number of classes; one
    kind of object scores low whatever its quality (FFHQ: about 5), so it says little about heads."""
    scores = fake.scores()
    return {'is50k_mean': float(scores.mean()), 'is50k_std': float(scores.std())}
