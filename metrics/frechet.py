"""Frechet distance between two sets of features (Dowson and Landau 1982; FID: 1706.08500), and metrics made of it.

`frechet_seeded` uses the seeded features of metrics.features. It is NOT the FID of the literature, which needs the
Inception network: its figures compare only with each other, at the same number of images.
"""

import numpy as np

from metrics.features import SeededFeatures
from metrics.images import fake_images, real_images
from metrics.registry import register_metric


def feature_statistics(features):
    """(mean [F], covariance [F, F]) in float64 of features [N, F], N >= 2, all finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f'features must be [N, F] with N >= 2, got shape {features.shape}')
    if not np.isfinite(features).all():
        raise ValueError('features must be finite')
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


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


def collect_features(network, batches):
    """float64 [N, F] of network(batch) over all uint8 batches."""
    return np.concatenate([network(batch).double().cpu().numpy() for batch in batches])


@register_metric('frechet_seeded')
def frechet_seeded(evaluation):
    """Frechet distance of seeded random convolutional features between reals and fakes; 0 is best."""
    network = SeededFeatures().to(evaluation.device)
    real = collect_features(network, real_images(evaluation))
    return {'frechet_seeded': frechet_distance(real, collect_features(network, fake_images(evaluation)))}
