"""What all tests share: a fixed seed, and skipping of GPU tests where there is no GPU."""

import random

import numpy as np
import pytest
import torch


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped, with a reason, where torch finds no NVIDIA GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason='needs an NVIDIA GPU, torch finds none')
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test draws the same numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
