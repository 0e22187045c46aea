"""Photographs become training pictures and inversion targets: face box, landmarks and pose, crop, mask, camera label.

    from preprocessing import prepare_photo
    head = prepare_photo('photo.jpg')[0]
    head.image, head.mask, head.label        # uint8 [563, 563, 3], uint8 [563, 563], float64 [25]
    image, mask = head.resized(512)          # the same, ready for a network; the label stays as it is
"""

from preprocessing.prepare import PhotoOptions, PreparedHead, examine_photo, prepare_photo
from preprocessing.face_tools import FaceTools, load_tools

__all__ = ['FaceTools', 'PhotoOptions', 'PreparedHead', 'examine_photo', 'load_tools', 'prepare_photo']
