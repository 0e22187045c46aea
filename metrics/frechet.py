"""Frechet distance between two sets of features (Dowson and Landau 1982; FID: Heusel et al., 1706.08500), and the metrics
made of it."""

import numpy as np

from metrics.collectors import Moments
from metrics.registry import ALL, register_metric


def feature_statistics(features):
    """(mean [F], covariance [F, F]) in float64 of features [N, F], N >= 2, all finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f'features must be [N, F] with N >= 2, got shape {features.shape}')
    moments = Moments(len(features))
    moments.add(features)
    return moments.mean, moments.covariance


def _root(covariance):
    """Symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def gaussian_distance(mean_a, covariance_a, mean_b, covariance_b):
    """Squared Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians, at least 0.

    The trace of the root is the sum of the singular values of A^(1/2) B^(1/2): no root of a non-symmetric matrix, so
    singular covariances (fewer images than features) do no harm.
    """
    cross = np.linalg.svd(_root(covariance_a) @ _root(covariance_b), compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(float(distance), 0.0)


def frechet_distance(features_a, features_b):
    """Squared Frechet distance between Gaussians fitted to features [N, F] and [M, F]."""
    return gaussian_distance(*feature_statistics(features_a), *feature_statistics(features_b))


def moments_distance(real, fake):
    """Squared Frechet distance of two metrics.collectors.Moments."""
    return gaussian_distance(real.mean, real.covariance, fake.mean, fake.covariance)


@register_metric('fid50k_full', max_real=ALL, features='inception', collects=Moments)
def fid50k_full(real, fake):
    """FID of the literature: all real images against 50,000 fakes. 0 is best; PanoHead reports 5.4 on FFHQ-F at 512 pixels,
    and 40.9 (its ablation) for backs alone. It grows as counts fall: compare at equal counts only."""
    return {'fid50k_full': moments_distance(real, fake)}


@register_metric('fid50k', features='inception', collects=Moments)
def fid50k(real, fake):
    """FID of 50,000 real images at most against 50,000 fakes; good values as for fid50k_full, a little higher."""
    return {'fid50k': moments_distance(real, fake)}


@register_metric('frechet_seeded', num=2000, features='seeded', collects=Moments, fixed_features=True)
def frechet_seeded(real, fake):
    """Frechet distance over seeded random convolutional features (metrics.seeded); 0 is best. NOT the FID of the literature:
    its figures compare only with each other, at the same number of images. Untrained networks give hundreds, the carried
    one some tens."""
    return {'frechet_seeded': moments_distance(real, fake)}
