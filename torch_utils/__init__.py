"""PyTorch helpers shared by every network family: operators, portable networks, distributed runs, statistics."""

import os

# Large tensors on pages of 2 MB where the system offers them (Linux): 2 to 4 % of the time of a large image on processors. PyTorch
# reads it before its first tensor; 0 turns it off.
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
