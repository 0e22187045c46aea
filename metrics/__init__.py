"""Measures of what a generator makes: a registry of metrics and one of feature networks by name, and `measure`, which
computes metrics of a network file."""

from metrics import (builtin, consistency, dinov2, frechet, inception_score, kernel, path_length, precision_recall, reading,
                     report, seeded, shape, views)
from metrics.evaluate import append_record, check_metrics, measure, snapshot_evaluator
from metrics.evaluation import BACKGROUNDS, Evaluation
from metrics.features import FeatureNetwork, list_features, open_features, register_features
from metrics.registry import MODES, list_metrics, metric_function, register_metric

__all__ = ['BACKGROUNDS', 'MODES', 'Evaluation', 'FeatureNetwork', 'append_record', 'builtin', 'check_metrics', 'consistency',
           'dinov2', 'frechet', 'inception_score', 'kernel', 'list_features', 'list_metrics', 'measure', 'metric_function',
           'open_features', 'path_length', 'precision_recall', 'reading', 'register_features', 'register_metric', 'report', 'seeded',
           'shape', 'snapshot_evaluator', 'views']
