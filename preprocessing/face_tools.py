"""The networks that look at faces: their weight files, checksums, and loading; preprocessing.weights fetches the files."""

import dataclasses
import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch

from dnnlib import UserError
from dnnlib.util import cache_folder
from preprocessing.faceboxes import FaceBoxes
from preprocessing.numpy_pickle import load_numbers
from preprocessing.regressor import NUM_PARAMETERS, Regressor

DETECTOR, STATISTICS = 'FaceBoxesProd.pth', 'param_mean_std_62d_120x120.pkl'
REGRESSORS = {'mb1': ('mb1_120x120.pth', 1.0), 'mb05': ('mb05_120x120.pth', 0.5)}   # best first


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A published file: its place in the source, size in bytes and SHA-256."""
    place: str
    size: int
    sha256: str


FILES = {
    DETECTOR: WeightFile('FaceBoxes/weights/FaceBoxesProd.pth', 4072492,
                         'c0cb2b1e40710c0aa5fc32a8759b1496a0fe0a126c907ca0ffe35b4bd0709d09'),
    'mb05_120x120.pth': WeightFile('weights/mb05_120x120.pth', 3752462,
                                   'f93ed7f1c4c0382b16d7c18480a5f67473c1917a47475a9823924f38aeb27280'),
    STATISTICS: WeightFile('configs/param_mean_std_62d_120x120.pkl', 713,
                           '090d7150f77cb66c29ddae21e4508fbde59123dcd1dea7facc24a7ed06d1c795'),
}
REMEDY = 'fetch the files with: python -m preprocessing.weights, or name a folder that has them with --weights'


@dataclasses.dataclass(frozen=True)
class FaceTools:
    """The two networks and what belongs to them: load_tools makes one."""
    detector: FaceBoxes
    regressor: Regressor          # gives the pose
    landmarker: Regressor         # gives the landmarks: the same one if it has that head
    statistics: tuple             # mean and standard deviation [62] of the parameters
    description: str


def default_folder():
    """Where downloaded weights are kept: 3ddfa_v2 in the cache folder."""
    return cache_folder() / '3ddfa_v2'


def check_file(path):
    """Raise UserError unless the file `path` is there and, where its checksum is published, has it."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: weights cannot be read ({error.strerror}); {REMEDY}') from error
    known = FILES.get(path.name)
    if known is not None and hashlib.sha256(data).hexdigest() != known.sha256:
        raise UserError(f'{path}: {len(data)} bytes with SHA-256 {hashlib.sha256(data).hexdigest()[:12]}..., published are '
                        f'{known.size} bytes with {known.sha256[:12]}...; the file is damaged or another one: delete it and {REMEDY}')


def _state_dict(path):
    """The tensors of a weight file by name. Raises UserError naming it."""
    check_file(path)
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f'{path}: not a file of weights ({str(error).splitlines()[0]}); {REMEDY}') from error
    state = state.get('state_dict', state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f'{path}: holds no weights by name; {REMEDY}')
    return {name.removeprefix('module.'): value for name, value in state.items()}


def _filled(network, state, path):
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f'{path}: weights do not fit {type(network).__name__}: {str(error).splitlines()[1].strip()}; {REMEDY}') from error
    return network.eval().requires_grad_(False)


def _load_regressor(path, width):
    state = _state_dict(path)
    with_landmarks = 'fc_lm.weight' in state
    if 'fc.weight' in state:     # mb1 as published names its only head so
        state = {name.replace('fc.', 'fc_param.') if name.startswith('fc.') else name: value for name, value in state.items()}
    return _filled(Regressor(width, with_landmarks), state, path)


def _load_statistics(path):
    check_file(path)
    numbers = load_numbers(path)
    values = [np.asarray(numbers.get(key), dtype=object) for key in ('mean', 'std')] if isinstance(numbers, dict) else []
    if [value.shape for value in values] != [(NUM_PARAMETERS,)] * 2:
        raise UserError(f'{path}: wanted "mean" and "std" of {NUM_PARAMETERS} numbers each; {REMEDY}')
    return tuple(value.astype(np.float64) for value in values)


def load_tools(weights=None, device='cpu', architecture=None):
    """FaceTools of the folder `weights` (default: the cache folder) on `device`.

    `architecture`: 'mb1' or 'mb05'; by default mb1 if its file is there. Landmarks come from a network with a landmark head,
    which mb05 has. Raises UserError naming the file that is missing, damaged or another, and how to get it.
    """
    folder = default_folder() if weights is None else Path(weights)
    if weights is not None and not folder.is_dir():
        raise UserError(f'--weights {folder}: no such folder; {REMEDY}')
    if architecture is None:
        architecture = next((name for name, (file, _) in REGRESSORS.items() if (folder / file).is_file()), 'mb05')
    detector = _filled(FaceBoxes(), _state_dict(folder / DETECTOR), folder / DETECTOR).to(device)
    file, width = REGRESSORS[architecture]
    regressor = _load_regressor(folder / file, width).to(device)
    landmarker = regressor
    if regressor.fc_lm is None:
        landmarker = _load_regressor(folder / REGRESSORS['mb05'][0], REGRESSORS['mb05'][1]).to(device)
        if landmarker.fc_lm is None:
            raise UserError(f'{folder}: neither file of the regressor has a landmark head; {REMEDY}')
    return FaceTools(detector, regressor, landmarker, _load_statistics(folder / STATISTICS), f'FaceBoxes and {architecture} of {folder}')
