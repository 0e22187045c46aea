"""Measures of what a generator makes: a registry of metrics by name, and `compute_metric` to run one."""

from metrics import frechet
from metrics.evaluate import append_record, measure
from metrics.registry import MODES, Evaluation, compute_metric, list_metrics, metric_function

__all__ = ['MODES', 'Evaluation', 'append_record', 'compute_metric', 'frechet', 'list_metrics', 'measure', 'metric_function']
