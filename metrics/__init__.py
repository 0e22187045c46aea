"""Measures of what a generator makes: a registry of metrics and one of feature networks by name, and `measure`, which
computes metrics of a network file."""

from metrics import frechet, seeded
from metrics.evaluate import append_record, measure
from metrics.evaluation import Evaluation
from metrics.features import FeatureNetwork, list_features, open_features, register_features
from metrics.registry import MODES, list_metrics, metric_function, register_metric

__all__ = ['MODES', 'Evaluation', 'FeatureNetwork', 'append_record', 'frechet', 'list_features', 'list_metrics', 'measure',
           'metric_function', 'open_features', 'register_features', 'register_metric', 'seeded']
