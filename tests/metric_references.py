"""Two sets of features, and what an independent implementation makes of them: torch-fidelity, which is not among our
dependencies because it needs torchvision. The recorded figures come from

    pip install --no-deps torch-fidelity==0.4.0 && python tests/metric_references.py
"""

import sys
from unittest.mock import MagicMock

import numpy as np

RECORDED = {'fid': 13.690237389577945, 'is_mean': 2.51289078616063, 'is_std': 0.10627812120684162, 'kid': 1.0449024200439454,
            'precision': 0.5059999823570251, 'recall': 0.2328571379184723}


def feature_sets():
    """(real [700, 24], fake [500, 24], logits [500, 10]) float32 from NumPy's frozen legacy streams; the sets overlap."""
    random = np.random.RandomState(7)
    real = random.standard_normal([700, 24]) * np.linspace(0.5, 2, 24) + 1
    mixed = random.standard_normal([500, 24]) @ (np.eye(24) + 0.2 * random.standard_normal([24, 24])) * 0.9
    return tuple(x.astype(np.float32) for x in (real, mixed + 0.9, random.standard_normal([500, 10]) * 2))


def reference_figures():
    """The figures of torch-fidelity."""
    import torch
    # Its package imports torchvision for feature extractors, none of which is used here.
    for part in ('', '.transforms', '.transforms.functional', '.datasets', '.models', '.models.vgg', '.io'):
        sys.modules.setdefault(f'torchvision{part}', MagicMock())
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    real, fake, logits = map(torch.from_numpy, feature_sets())
    fid = metric_fid.fid_statistics_to_metric(*map(metric_fid.fid_features_to_statistics, (fake, real)), verbose=False)
    isc = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    kid = metric_kid.kid_features_to_metric(real, fake, kid_subsets=100, kid_subset_size=400, rng_seed=0, verbose=False)
    prc = metric_prc.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    return {'fid': fid['frechet_inception_distance'], 'is_mean': isc['inception_score_mean'], 'is_std': isc['inception_score_std'],
            'kid': kid['kernel_inception_distance_mean'], 'precision': prc['precision'], 'recall': prc['recall']}


if __name__ == '__main__':
    print(reference_figures())
