"""One photograph becomes prepared heads: the family's crop, a mask, a camera label, and a judgement of each.

With a face: detector, landmarks, first quad, pose in a working crop, corrected quad, final crop, as published. Without one
(back, far profile, something in front of the face): the crop follows the head's silhouette and the angles are given.
"""

import dataclasses

import numpy as np
import PIL.Image

from dnnlib import UserError
from preprocessing import crops, outlines, poses, silhouette
from preprocessing.faceboxes import detect_faces
from preprocessing.masks import find_matting
from preprocessing.photos import MIN_SIDE, Photo, read_mask, read_photo
from preprocessing.regressor import NUM_LANDMARKS, decompose_projection, regress_faces, roi_of_box
from preprocessing.face_tools import load_tools

ROUTES = ('auto', 'face', 'silhouette')
OK, LOW_CONFIDENCE, NO_FACE, TOO_SMALL, OUT_OF_RANGE, UNREADABLE = STATUSES = (
    'ok', 'low confidence', 'no face', 'too small', 'out of range', 'unreadable')
GOOD_SCORE = 0.9              # of the detector; faces behind hands, helmets or blur stay below
GOOD_DEVIATION = 1.0          # root mean square of the shape coefficients; faces stay below 0.6
MAX_TURN_DEG = 12             # between the two passes; upright faces stay below 8, heads upside down do not
MAX_OUTSIDE = 0.25            # share of the crop that lies outside of the picture
MASK_SHARE = (0.05, 0.98)     # of the crop that is head, between these
MEASURED_SIZE = 1024          # pixels of the longer side in which silhouettes are measured


class PhotoError(UserError):
    """Why a photograph, or a face in it, gives no head; `status` is one of STATUSES."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class PhotoOptions:
    """How photographs are prepared.

    `face`: 'largest', 'all', or the number of a face from the left, from 0. `route`: 'face' needs one, 'silhouette' goes by
    the mask and the given angles, 'auto' takes the face if there is one. `yaw`, `pitch` in degrees: where the camera stands
    (poses.label_of_camera); given ones win over measured ones. `roll`: how far a head without a face leans clockwise in the
    picture; its crop is turned upright, as one with a face always is.
    `matting`: 'built-in', 'rembg', 'none' (no mask), a TorchScript file, or a function from an RGB picture uint8 [H, W, 3] to
    a mask uint8 [H, W]. `estimator`: function (picture, mask) -> (yaw, pitch, roll) in degrees, asked where there is no
    face. `relation`: of crop and silhouette (silhouette.fit_relation); `person`: outlines of the same head in views whose
    crop is known (outlines.fit_outlines). `keep_rejected`: also return heads that are out of range or too small, with that status.
    """
    face: str | int = 'largest'
    route: str = 'auto'
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    matting: object = 'built-in'
    estimator: object = None
    relation: silhouette.Relation | None = None
    person: outlines.Outlines | None = None
    keep_rejected: bool = False

    def __post_init__(self):
        if self.route not in ROUTES:
            raise UserError(f'--route {self.route}: must be one of {", ".join(ROUTES)}')
        if self.face not in ('largest', 'all') and not (isinstance(self.face, int) and self.face >= 0):
            raise UserError(f"--face {self.face}: must be 'largest', 'all' or a number from 0, counted from the left")
        for name, limit in (('yaw', 180), ('pitch', 90), ('roll', 180)):
            value = getattr(self, name)
            if value is not None and not abs(value) <= limit:
                raise UserError(f'--{name} {value}: must lie within +-{limit} degrees')


@dataclasses.dataclass(frozen=True)
class PreparedHead:
    """One head cut out of a photograph.

    `image` uint8 [563, 563, 3] RGB and `mask` uint8 [563, 563] (255 = head; None without matting): the published crop;
    `label` float64 [25]: its camera, for every size it is resized to; `status`: 'ok' or 'low confidence' (with
    `keep_rejected` also 'out of range', 'too small'); `messages`: what a user should know; `source`: the file; `face`: its number
    from the left, None without one, of `num_faces`; `quad` float64 [4, 2]: where it lies in the picture; `box`: the face's
    x1, y1, x2, y2 there; `label_source`: 'measured', 'given', 'estimated', 'interpolated'; `mask_source`; `quality`: numbers by name.
    """
    image: np.ndarray
    mask: np.ndarray | None
    label: np.ndarray
    status: str
    messages: tuple
    source: str
    face: int | None
    num_faces: int
    quad: np.ndarray
    box: tuple | None
    landmarks: np.ndarray | None
    label_source: str
    mask_source: str
    quality: dict

    def resized(self, size):
        """(image, mask) resized to size x size pixels, 512 for the published networks."""
        return crops.resized(self.image, size), None if self.mask is None else crops.resized(self.mask, size)

    @property
    def angles_deg(self):
        """(yaw, pitch, roll) in degrees of where the camera stands: poses.camera_angles."""
        return poses.camera_angles(self.label)

    @property
    def back_label(self):
        """Label [25] of the camera on the other side of the head (the pseudo label of PSO-HEAD)."""
        return poses.half_turn(self.label)


@dataclasses.dataclass(frozen=True)
class Examination:
    """What became of one photograph: prepared `heads`, and `failures`: a PhotoError for each face, or for the picture, that
    gave none; `photo` as it was read; `has_face`: whether heads and failures are of faces, or the silhouette's."""
    heads: tuple
    failures: tuple
    photo: Photo
    has_face: bool = False


def prepare_photo(path, options=None, tools=None, weights=None, mask=None, **settings):
    """List of PreparedHead, at least one, of the photograph `path` (file name, Photo, or RGB array uint8 [H, W, 3]).

    `options`: PhotoOptions, or `settings`: its fields (`face='all'`, `yaw=170`, ...). `tools`: what load_tools gave, to load
    the networks once; else they are loaded from the folder `weights` or the cache. `mask`: file, or array uint8 [H, W] of
    the picture's size, 255 = head. Raises UserError saying why there is no head, PhotoError with a `status`.
    """
    options = dataclasses.replace(options or PhotoOptions(), **settings)
    if tools is None and options.route != 'silhouette':
        tools = load_tools(weights)
    found = examine_photo(path, options, tools, mask)
    if not found.heads:
        raise found.failures[0]
    return list(found.heads)


def examine_photo(path, options, tools=None, mask=None, landmarks=None):
    """Examination of one photograph; arguments as of prepare_photo; `landmarks` [68, 2] of another detector take the place of
    the face found here. Raises UserError only where the picture cannot be read or
    an option does not fit it."""
    photo = _as_photo(path)
    height, width = photo.image.shape[:2]
    mask, mask_source = _given_mask(mask, photo)
    if min(height, width) < MIN_SIDE:
        return Examination((), (PhotoError(TOO_SMALL, f'{photo.name}: is {width}x{height} pixels'),), photo)
    faces = [] if options.route == 'silhouette' or landmarks is not None else find_faces(photo.image, tools)
    heads, failures = [], []
    has_face = landmarks is not None or bool(faces)
    if landmarks is not None:
        try:
            heads.append(_head_of_landmarks(photo, np.asarray(landmarks, dtype=np.float64), options, tools, mask, mask_source))
        except PhotoError as error:
            failures.append(error)
    elif faces:
        chosen = choose_faces(faces, options.face, photo.name)
        for number in chosen:
            notes = photo.messages + _face_note(number, faces, options.face)
            try:
                heads.append(_head_of_face(photo, number, faces, options, tools, notes, mask, mask_source))
            except PhotoError as error:
                failures.append(error)
    elif options.route == 'face':
        failures.append(PhotoError(NO_FACE, f'{photo.name}: no face found; for a back or profile give --yaw'))
    # A profile in which a face was seen, but not well: its angles are given, so its silhouette is enough.
    unfit = has_face and not heads and options.yaw is not None and all(f.status in (OUT_OF_RANGE, NO_FACE) for f in failures)
    if options.route != 'face' and (not has_face or unfit):
        try:
            heads.append(_head_of_silhouette(photo, options, mask, mask_source))
            failures = []
        except PhotoError as error:
            failures.append(error)
    return Examination(tuple(heads), tuple(failures), photo, has_face and not unfit)


def _as_photo(path):
    if isinstance(path, Photo):
        return path
    if isinstance(path, np.ndarray):
        if path.dtype != np.uint8 or path.ndim != 3 or path.shape[2] != 3:
            raise UserError(f'a picture must be an RGB array uint8 [H, W, 3], got {path.dtype} {path.shape}')
        return Photo(path, None, 'picture')
    return read_photo(path)


def _given_mask(mask, photo):
    """(mask uint8 [H, W] or None, where it is from) of the picture."""
    if mask is None:
        return photo.alpha, 'alpha channel' if photo.alpha is not None else None
    name = mask if not isinstance(mask, np.ndarray) else 'mask'
    mask = mask if isinstance(mask, np.ndarray) else read_mask(mask)
    if mask.dtype != np.uint8 or mask.shape != photo.image.shape[:2]:
        raise UserError(f'{name}: mask is {mask.dtype} {mask.shape[1]}x{mask.shape[0]}, its picture {photo.name} '
                        f'{photo.image.shape[1]}x{photo.image.shape[0]} of uint8; give one of the same size')
    return mask, 'given'


def find_faces(image, tools):
    """Detections, list of (x1, y1, x2, y2, score) in pixels of an RGB picture uint8 [H, W, 3], from left to right."""
    boxes = detect_faces(tools.detector, image)
    return [tuple(float(v) for v in box) for box in boxes[np.argsort(boxes[:, 0] + boxes[:, 2], kind='stable')]]


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def choose_faces(faces, face, name):
    """Numbers of the `faces` (from find_faces) wanted by `face`, as in PhotoOptions; `name` of the photograph for messages."""
    if face == 'all':
        return range(len(faces))
    if face == 'largest':
        return [int(np.argmax([_area(box) for box in faces]))]
    if face >= len(faces):
        raise UserError(f'--face {face}: {name} shows {len(faces)}; choose 0 to {len(faces) - 1}, counted from the left')
    return [face]


def _face_note(number, faces, face):
    if len(faces) == 1:
        return ()
    why = ', the largest (--face N or all for others)' if face == 'largest' else ''
    return (f'{len(faces)} faces, this is number {number} from the left{why}',)


def measure_pose(image, quad, tools):
    """(face, tx, ty, S) of the head in a quad: the regressor's second look, in the working crop. `face` is None where the
    detector finds none there."""
    crop = crops.working_crop(image, quad)
    rois = [roi_of_box(box) for box in detect_faces(tools.detector, crop)]
    if not rois:
        return None, 0.0, 0.0, 1.0
    middle = (crops.WORKING_SIZE - 1) / 2
    nearest = min(rois, key=lambda roi: np.hypot((roi[0] + roi[2]) / 2 - middle, (roi[1] + roi[3]) / 2 - middle))
    face = regress_faces(tools.regressor, tools.statistics, crop, [nearest])[0]
    return face, *crops.crop_offset(face.projection, face.roi)


def quad_of_face(image, box, tools):
    """(first quad, landmarks [68, 2], first look as a Face) of a detection. Raises PhotoError where it is no face."""
    first = regress_faces(tools.landmarker, tools.statistics, image, [roi_of_box(box)])[0]
    try:
        return crops.quad_of_landmarks(first.landmarks), first.landmarks, first
    except ValueError as error:
        raise PhotoError(NO_FACE, str(error)) from error


def _head_of_face(photo, number, faces, options, tools, notes, mask, mask_source):
    """PreparedHead of face `number`. Raises PhotoError where it cannot be used."""
    where = f'{photo.name}, face {number}' if len(faces) > 1 else photo.name
    box = faces[number]
    if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        raise PhotoError(TOO_SMALL, f'{where}: the face is {box[2] - box[0]:.0f}x{box[3] - box[1]:.0f} pixels')
    quad, landmarks, first = quad_of_face(photo.image, box, tools)
    face, tx, ty, scale = measure_pose(photo.image, quad, tools)
    if face is None:
        raise PhotoError(NO_FACE, f'{where}: a face was found in the picture but not in its crop')
    return finish_face(photo, where, quad, (face, tx, ty, scale), options, notes, mask, mask_source,
                       dict(face=number, num_faces=len(faces), box=box, landmarks=landmarks, first=first))


def _head_of_landmarks(photo, landmarks, options, tools, mask, mask_source):
    """PreparedHead of the face with given landmarks. Raises PhotoError where it cannot be used."""
    try:
        if landmarks.shape != (NUM_LANDMARKS, 2):
            raise ValueError(f'wanted {NUM_LANDMARKS} landmarks (x, y), got an array {landmarks.shape}')
        quad = crops.quad_of_landmarks(landmarks)
    except ValueError as error:
        raise PhotoError(NO_FACE, f'{photo.name}: {error}') from error
    measured = measure_pose(photo.image, quad, tools)
    if measured[0] is None:
        raise PhotoError(NO_FACE, f'{photo.name}: no face found where the landmarks are')
    return finish_face(photo, photo.name, quad, measured, options, photo.messages, mask, mask_source,
                       dict(face=0, num_faces=1, box=None, landmarks=landmarks, first=None))


def finish_face(photo, where, quad, measured, options, notes, mask, mask_source, found):
    """PreparedHead of a first quad and what measure_pose gave for it; `found`: dict of face, num_faces, box, landmarks and
    first (a Face or None). Raises PhotoError where it cannot be used."""
    face, tx, ty, scale = measured
    _, rotation, _ = decompose_projection(face.projection)
    label = poses.label_of_rotation(rotation)
    yaw, pitch, roll = poses.angles_of_label(label)
    final = crops.corrected_quad(quad, tx, ty, scale)
    reason = _out_of_range(scale, tx, ty, yaw, pitch, roll)
    status, side = OK, crops.quad_side(final)
    if reason is not None:
        status, notes = _rejected(OUT_OF_RANGE, f'{where}: {reason}', options, notes)
    elif side < crops.MIN_QUAD_SIDE:
        status, notes = _rejected(TOO_SMALL, f'{where}: the crop is {side:.0f} pixels of the picture wide, '
                                             f'wanted {crops.MIN_QUAD_SIDE}', options, notes)
    quality = {'score': found['box'][4] if found['box'] is not None else 1.0, 'deviation': face.deviation, 'side': side,
               'scale': scale, 'tx': tx, 'ty': ty, 'outside': crops.share_outside(final, photo.image.shape)}
    if found['first'] is not None:
        _, first_rotation, _ = decompose_projection(found['first'].projection)
        turned = (poses.angles_of_label(poses.label_of_rotation(first_rotation))[0] - yaw)
        quality['turn'] = abs(turned)
    image = crops.final_crop(photo.image, final)
    mask, mask_source = _crop_mask(image, mask, mask_source, final, options, landmarks=_in_crop(found['landmarks'], final))
    doubts = _doubts(quality, found['landmarks'], photo.image.shape, mask)
    if doubts and status == OK:
        status = LOW_CONFIDENCE
    label, label_source = _label(label, options)
    return PreparedHead(image, mask, label, status, notes + doubts, photo.name, found['face'], found['num_faces'], final,
                        found['box'], found['landmarks'], label_source, mask_source, quality)


def _in_crop(points, quad):
    """Points [K, 2] of the picture as pixels of the published crop."""
    if points is None:
        return None
    matrix = crops.crop_map(quad)
    return (np.asarray(points) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T


def _rejected(status, message, options, notes):
    if not options.keep_rejected:
        raise PhotoError(status, message)
    return status, notes + (message,)


def _out_of_range(scale, tx, ty, yaw, pitch, roll):
    """Why the published tool would leave a measured head out, or None."""
    for name, value, low, high in (
            ('scale', scale, crops.MIN_SCALE, crops.MAX_SCALE), ('tx', tx, -crops.MAX_OFFSET, crops.MAX_OFFSET),
            ('ty', ty, -crops.MAX_OFFSET, crops.MAX_OFFSET), ('yaw', yaw, -crops.MAX_YAW_DEG, crops.MAX_YAW_DEG),
            ('pitch', pitch, -crops.MAX_PITCH_DEG, crops.MAX_PITCH_DEG), ('roll', roll, -crops.MAX_ROLL_DEG, crops.MAX_ROLL_DEG)):
        if not low <= value <= high:
            return f'{name} {value:.2f} is not within {low:g} to {high:g}'
    return None


def _measured_size(mask):
    """(mask uint8 no larger than MEASURED_SIZE, pixels of the picture [2] that one of its pixels stands for)."""
    height, width = mask.shape
    factor = MEASURED_SIZE / max(height, width)
    if factor >= 1:
        return mask, np.ones(2)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.BOX)), np.array([width, height]) / size


def _doubts(quality, landmarks, shape, mask):
    """Reasons to look at a head before it is used."""
    doubts = []
    if mask is not None and not MASK_SHARE[0] <= np.mean(mask > 127) <= MASK_SHARE[1]:
        doubts.append(f'the mask covers {np.mean(mask > 127):.0%} of the crop: is it that of the head?')
    if quality['score'] < GOOD_SCORE:
        doubts.append(f'the detector is only {quality["score"]:.2f} sure')
    if quality['deviation'] > GOOD_DEVIATION:
        doubts.append(f'an unlikely face, {quality["deviation"]:.1f} standard deviations')
    if quality.get('turn', 0) > MAX_TURN_DEG:
        doubts.append(f'two looks differ by {quality["turn"]:.0f} degrees yaw')
    if landmarks is not None:
        outside = np.mean(np.any((landmarks < 0) | (landmarks > [shape[1] - 1, shape[0] - 1]), axis=1))
        if outside > 0.05:
            doubts.append(f'{outside:.0%} of the landmarks lie outside of the picture')
    if quality['outside'] > MAX_OUTSIDE:
        doubts.append(f'{quality["outside"]:.0%} of the crop lies outside of the picture')
    return tuple(doubts)


def _label(measured, options):
    """(label, where it is from): given angles in place of the measured ones; the crop's own roll stays."""
    if options.yaw is None and options.pitch is None:
        return measured, 'measured'
    yaw, pitch, roll = poses.camera_angles(measured)
    return poses.label_of_camera(yaw if options.yaw is None else options.yaw, pitch if options.pitch is None else options.pitch,
                                 roll), 'given'


def _crop_mask(image, mask, mask_source, quad, options, landmarks=None):
    """(mask uint8 [563, 563] or None, where it is from) of a crop."""
    if mask is not None:
        return crops.crop_mask(mask, quad), mask_source
    matting = find_matting(options.matting)
    if matting.function is None:
        return None, matting.name
    return matting(image, landmarks), matting.name


def _head_of_silhouette(photo, options, mask, mask_source):
    """PreparedHead of a head without a face. Raises PhotoError where its angles or its mask are missing."""
    matting = find_matting(options.matting)
    if options.yaw is None and options.estimator is None:
        raise PhotoError(NO_FACE, f'{photo.name}: no face found and no angles given; for a back or profile give --yaw')
    if mask is None:
        if matting.function is None:
            raise PhotoError(NO_FACE, f'{photo.name}: no face found and no mask given; give one, or --matting built-in')
        mask, mask_source = matting(photo.image), matting.name
    angles, label_source = (options.yaw, options.pitch or 0.0, options.roll or 0.0), 'given'
    if options.yaw is None:
        angles, label_source = options.estimator(photo.image, mask), 'estimated'
    try:
        small, scale = _measured_size(mask)
        quad, measures, mismatch = outlines.quad_of_outline(small, options.person, *angles, relation=options.relation)
        quad = (quad + 0.5) * scale - 0.5
    except ValueError as error:
        raise PhotoError(NO_FACE, f'{photo.name}: {error}') from error
    notes, status, side = photo.messages + ('cropped by its silhouette',), OK, crops.quad_side(quad)
    if side < crops.MIN_QUAD_SIDE:
        status, notes = _rejected(TOO_SMALL, f'{photo.name}: the crop is {side:.0f} pixels of the picture wide, '
                                             f'wanted {crops.MIN_QUAD_SIDE}', options, notes)
    quality = {'side': side, 'outside': crops.share_outside(quad, photo.image.shape)}
    crop_mask = crops.crop_mask(mask, quad)
    doubts = _doubts({'score': 1.0, 'deviation': 0.0, **quality}, None, photo.image.shape, crop_mask)
    if measures.cut:
        doubts += ('the silhouette runs out of the picture',)
    if abs(angles[1]) > outlines.MAX_PITCH_DEG:
        doubts += (f'seen from {abs(angles[1]):.0f} degrees {"above" if angles[1] > 0 else "below"}: silhouettes tell little from '
                   f'more than {outlines.MAX_PITCH_DEG:.0f}',)
    if mismatch > outlines.UNLIKE:
        doubts += (f"{mismatch:.0%} of its outline is unlike the person's other views: look at it",)
    if mask_source == 'built-in':
        doubts += ('without a face the built-in mask is a guess: look at it',)
    status = LOW_CONFIDENCE if doubts and status == OK else status
    # The crop is turned upright, so that its label has no roll.
    return PreparedHead(crops.final_crop(photo.image, quad), crop_mask,
                        poses.label_of_camera(angles[0], angles[1]), status, notes + doubts, photo.name, None, 0, quad, None,
                        None, label_source, mask_source, quality)
