"""The crop of a head without a face, from its silhouette and its angles."""

import numpy as np

from preprocessing import crops


def quad_of_mask(mask, yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0):
    """Quad of the head in a mask uint8 [H, W], 255 = head. Raises ValueError where there is none."""
    rows, columns = np.nonzero(np.any(mask > 127, axis=1))[0], np.nonzero(np.any(mask > 127, axis=0))[0]
    if not len(rows):
        raise ValueError('the mask is empty')
    size = columns[-1] - columns[0] + 1
    return crops.upright_quad(((columns[0] + columns[-1]) / 2, rows[0] + 0.6 * size), 0.6 * size, roll_deg)
