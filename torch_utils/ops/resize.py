"""Antialiased bilinear resizing, the one way the family changes the size of images between networks."""

import torch.nn.functional as F


def resize(x, size, antialias=True):
    """x [N, C, H, W] resized bilinearly to size x size pixels (corners not aligned); x itself if it has that size."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False, antialias=antialias)
