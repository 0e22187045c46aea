"""Kernel distance between two sets of features (KID: Binkowski et al., 1801.01401), and the metrics made of it."""

import numpy as np

from metrics.collectors import Rows
from metrics.registry import register_metric

SUBSETS = 100
SUBSET_SIZE = 1000
SEED = 0              # of the subsets


def polynomial_mmd2(x, y):
    """Unbiased squared maximum mean discrepancy of features x [m, F] and y [n, F], m, n >= 2, under the kernel
    (x.y / F + 1)^3 (1801.01401, equation 4 and section 4); it can be negative."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return float(mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean())


def kernel_distance(real, fake, subsets=SUBSETS, subset_size=SUBSET_SIZE):
    """Mean of polynomial_mmd2 over pairs of random subsets of two metrics.collectors.Rows, drawn by a fixed seed."""
    random = np.random.RandomState(SEED)
    size = min(len(real), len(fake), subset_size)
    return float(np.mean([polynomial_mmd2(*(rows.take(random.choice(len(rows), size, replace=False)) for rows in (real, fake)))
                          for _ in range(subsets)]))


@register_metric('kid50k_full', max_real=1_000_000, features='inception', collects=Rows)
def kid50k_full(real, fake):
    """KID of the literature: all real images against 50,000 fakes, over 100 subsets of 1000. 0 is best and it does not
    grow as counts fall; good generators of faces reach 0.001 over Inception features."""
    return {'kid50k_full': kernel_distance(real, fake)}


@register_metric('kid50k', features='inception', collects=Rows)
def kid50k(real, fake):
    """KID of 50,000 real images at most; good values as for kid50k_full."""
    return {'kid50k': kernel_distance(real, fake)}
