"""data.pkl of the family: path of a photograph -> list of 68 (x, y), written by dlib_kps.py or by dlib itself."""

import numpy as np

from dnnlib import UserError
from preprocessing.numpy_pickle import load_numbers
from preprocessing.prepare import NO_FACE, PhotoError, choose_faces, find_faces, quad_of_face
from preprocessing.regressor import NUM_LANDMARKS


def find_landmarks(photo, tools, face='largest'):
    """(landmarks float64 [68, 2], message) of a Photo. Raises PhotoError where there is no face."""
    if face == 'all':
        raise UserError('--face all: data.pkl has room for one face a photograph; recrop_images.py takes all')
    faces = find_faces(photo.image, tools)
    if not faces:
        raise PhotoError(NO_FACE, f'{photo.name}: no face found')
    number = choose_faces(faces, face, photo.name)[0]
    _, landmarks, _ = quad_of_face(photo.image, faces[number], tools)
    return landmarks, 'one face' if len(faces) == 1 else f'{len(faces)} faces, number {number} from the left'


def landmark_list(landmarks):
    """The list of 68 arrays (x, y) that data.pkl holds."""
    return [np.array(point) for point in np.asarray(landmarks)]


def read_landmarks(path, prefix=''):
    """Dict of photograph -> landmarks float64 [68, 2] of a data.pkl, `prefix` put before every name. Raises UserError."""
    data = load_numbers(path)
    if not isinstance(data, dict) or not data:
        raise UserError(f'{path}: wanted a dict of photograph -> {NUM_LANDMARKS} landmarks, got {type(data).__name__}; see dlib_kps.py')
    found = {}
    for name, points in data.items():
        try:
            array = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.shape != (NUM_LANDMARKS, 2) or not np.isfinite(array).all():
            raise UserError(f'{path}: {name} has landmarks of shape {array.shape}, wanted {NUM_LANDMARKS} pairs of numbers')
        found[f'{prefix}{name}'] = array
    return found
