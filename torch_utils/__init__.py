"""PyTorch helpers shared by every network family: operators, portable networks, distributed runs, statistics."""
