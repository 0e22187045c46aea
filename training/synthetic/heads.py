"""Identities of synthetic heads: every proportion, colour, light and background drawn from one seed.

Lengths are head units: the skull is about 0.37 high and stands around the origin, y up, the face to +z. `scale` turns
them into world units. Left is +x, the side that is right in the picture of the face.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from training.synthetic import hair
from training.synthetic.geometry import CLOTH, NUM_GROUPS, SKIN, Geometry, euler_rotation

HAIR_STYLES = hair.STYLES
CLOTH_KINDS = ('plain', 'stripes', 'buttons', 'vneck', 'hoodie', 'vest')
BACKDROPS = ('plain', 'gradient', 'blobs', 'both')
IDENTITY_STREAM = 0   # see cameras.CAMERA_STREAM
NUM_DRAWS = 160
BEAD = (0.0, 0.06, -0.03, 0.02, 0.02, 0.02, 0.0, 0.0, 0.0)

SKIN_TONES = ((1.00, 0.84, 0.74), (0.98, 0.78, 0.66), (0.93, 0.71, 0.57), (0.84, 0.60, 0.44), (0.70, 0.47, 0.33),
              (0.58, 0.39, 0.28), (0.46, 0.30, 0.22))
SKIN_WEIGHTS = (3, 3, 3, 3, 2.5, 2, 1.5)
HAIR_COLOURS = ((0.13, 0.11, 0.11), (0.20, 0.13, 0.10), (0.33, 0.20, 0.12), (0.50, 0.31, 0.16), (0.86, 0.66, 0.34),
                (0.95, 0.82, 0.56), (0.70, 0.27, 0.10), (0.58, 0.13, 0.10), (0.66, 0.66, 0.68), (0.24, 0.32, 0.58),
                (0.80, 0.40, 0.58), (0.20, 0.46, 0.42))
HAIR_WEIGHTS = (5, 5, 5, 4, 4, 3, 3, 2, 2, 0.7, 0.7, 0.7)
IRIS_COLOURS = ((0.25, 0.14, 0.07), (0.40, 0.25, 0.11), (0.22, 0.42, 0.66), (0.26, 0.48, 0.30), (0.42, 0.50, 0.54))
CLOTH_COLOURS = ((0.90, 0.90, 0.88), (0.14, 0.15, 0.18), (0.16, 0.27, 0.52), (0.70, 0.16, 0.18), (0.93, 0.72, 0.22),
                 (0.20, 0.48, 0.36), (0.48, 0.30, 0.58), (0.88, 0.48, 0.30), (0.42, 0.62, 0.80), (0.90, 0.62, 0.70),
                 (0.45, 0.34, 0.26))


@dataclass(frozen=True)
class Paint:
    """What is painted on the surfaces. Colours [N, 3] in [0, 1]; `face` [N, 16] holds the columns FACE_COLUMNS."""
    skin: torch.Tensor
    lips: torch.Tensor
    iris: torch.Tensor
    hair: torch.Tensor
    hair_tips: torch.Tensor
    brow: torch.Tensor
    cloth: torch.Tensor
    trim: torch.Tensor
    accent: torch.Tensor
    cloth_kind: torch.Tensor   # [N] index into CLOTH_KINDS
    accessory: torch.Tensor    # [N] 0 none, 1 clip at one side, 2 band over the hair
    strands: torch.Tensor      # [N, 4] number round the head, contrast, phase, curliness 0..1
    face: torch.Tensor


FACE_COLUMNS = ('eye_x', 'eye_y', 'eye_w', 'eye_h', 'eye_slant', 'gaze_x', 'gaze_y', 'brow_y', 'brow_arch', 'brow_h',
                'mouth_y', 'mouth_w', 'smile', 'lip_h', 'beard', 'scalp')


@dataclass(frozen=True)
class Light:
    """Key light: unit `direction` [N, 3] towards it, world axes; strengths [N]; `tint` [N, 3] multiplies the key light."""
    direction: torch.Tensor
    ambient: torch.Tensor
    diffuse: torch.Tensor
    specular: torch.Tensor
    tint: torch.Tensor


@dataclass(frozen=True)
class Backdrop:
    """Picture behind the head: `kind` [N] index into BACKDROPS, colours [N, 5, 3], `angle` [N] radians of the gradient,
    blobs [N, 3, 3]: u, v, radius as fractions of the image."""
    kind: torch.Tensor
    colours: torch.Tensor
    angle: torch.Tensor
    blobs: torch.Tensor


@dataclass(frozen=True)
class Identities:
    """N heads. `seeds` [N] int64 are their identity numbers, `style` [N] indexes HAIR_STYLES, `scale` [N] is world units
    per head unit, `handedness` [N] is 1 or -1: -1 mirrors the whole head, its light and its background at x = 0."""
    seeds: torch.Tensor
    style: torch.Tensor
    scale: torch.Tensor
    handedness: torch.Tensor
    geometry: Geometry
    paint: Paint
    light: Light
    backdrop: Backdrop

    def __len__(self):
        return len(self.seeds)

    def __getitem__(self, index):
        """The identities at `index`: a slice, a list of positions or an index tensor."""
        if isinstance(index, int):
            index = [index]
        return _map_tensors(self, lambda tensor: tensor[index])

    def to(self, device):
        """The same identities on another device."""
        return _map_tensors(self, lambda tensor: tensor.to(device))

    def mirrored(self):
        """The mirror images (x to -x) of these heads, with their light and background."""
        return replace(self, handedness=-self.handedness)


def _map_tensors(record, function):
    """A copy of a (nested) dataclass with `function` applied to every tensor."""
    changed = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, torch.Tensor):
            changed[field.name] = function(value)
        elif hasattr(value, '__dataclass_fields__'):
            changed[field.name] = _map_tensors(value, function)
    return replace(record, **changed)


class Draws:
    """Columns of uniform random numbers, one row per seed, handed out in order."""

    def __init__(self, seeds):
        rows = [np.random.default_rng([seed, IDENTITY_STREAM]).random(NUM_DRAWS) for seed in seeds]
        self._columns = torch.from_numpy(np.array(rows).reshape(-1, NUM_DRAWS)).float().unbind(1)
        self._next = 0

    def unit(self):
        """[N] uniform in [0, 1)."""
        self._next += 1
        return self._columns[self._next - 1]

    def around(self, mean, spread):
        """[N] uniform in mean +- spread."""
        return mean + spread * (2 * self.unit() - 1)

    def between(self, low, high):
        """[N] uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def choice(self, weights):
        """[N] int64: index i with probability weights[i] / sum."""
        edges = torch.tensor(weights, dtype=torch.float32).cumsum(0)
        return torch.bucketize(self.unit() * edges[-1], edges, right=True).clamp_max(len(weights) - 1)

    def colour(self, palette, weights=None, spread=0.04):
        """[N, 3]: a colour of the palette, varied in brightness and a little in each channel."""
        base = torch.tensor(palette)[self.choice(weights or [1.0] * len(palette))]
        noise = torch.stack([self.around(0, spread) for _ in range(3)], dim=1)
        return (base * self.around(1, 0.1)[:, None] + noise * base.mean(1, keepdim=True)).clamp(0.02, 1)


class Shapes:
    """Collects ellipsoids group by group and stacks them into a Geometry's arrays."""

    def __init__(self, num):
        self._num = num
        self._rows = []

    def add(self, group, centre, radii, tilt=0.0, turn=0.0, roll=0.0, paired=False, used=True):
        """One ellipsoid per identity; each number is a float or [N]. Angles in radians about x, y and z. Identities that
        are not `used` (bool or [N]) get a bead inside the skull, which nothing sees."""
        values = torch.stack([torch.as_tensor(v, dtype=torch.float32).expand(self._num)
                              for v in (*centre, *radii, tilt, turn, roll)], dim=1)
        used = torch.as_tensor(used).expand(self._num)
        self._rows.append((group, paired, used, torch.where(used[:, None], values, torch.tensor(BEAD))))

    def build(self, cut, collar, curl):
        """The Geometry of everything added."""
        rows = sorted(self._rows, key=lambda row: row[0])
        assert {row[0] for row in rows} == set(range(NUM_GROUPS))
        used = torch.stack([row[2] for row in rows], dim=1)
        values = torch.stack([row[3] for row in rows], dim=1)
        return Geometry(values[..., :3], values[..., 3:6], euler_rotation(*values[..., 6:].unbind(-1)), used,
                        tuple(row[0] for row in rows), tuple(row[1] for row in rows), cut, collar, curl)


def sample_identities(seeds):
    """Identities of the given seeds (whole numbers >= 0, [N]); the same seed always gives the same head."""
    seeds = [int(seed) for seed in seeds]
    draws = Draws(seeds)
    style = draws.choice(hair.STYLE_WEIGHTS)
    scale = draws.between(1.0, 1.08)
    handedness = torch.where(draws.unit() < 0.5, -1.0, 1.0)
    shapes = Shapes(len(seeds))
    cloth_kind = draws.choice((3, 2, 3, 2, 2, 2))
    face = _face(draws, shapes)
    collar = _body(draws, shapes, cloth_kind)
    cut, curl, scalp = hair.add_hair(draws, shapes, style)
    face['scalp'] = scalp
    light = _light(draws)
    paint = _paint(draws, style, cloth_kind, face)
    backdrop = _backdrop(draws)
    return Identities(torch.tensor(seeds, dtype=torch.int64), style, scale, handedness, shapes.build(cut, collar, curl),
                      paint, light, backdrop)


def _face(draws, shapes):
    """Skull, face, neck; returns the places of what is painted on the face."""
    width, jaw, chin = draws.around(1, 0.06), draws.around(1, 0.14), draws.around(0, 0.010)
    eye_x, eye_y = draws.around(0.056, 0.004), draws.around(0.030, 0.006)
    shapes.add(SKIN, (0, 0.075, -0.030), (0.146 * width, 0.163, 0.182))
    shapes.add(SKIN, (0, -0.020, 0.045), (0.116 * width, 0.143 - chin, 0.118))
    shapes.add(SKIN, (0, -0.098 + chin, 0.052), (0.086 * width * jaw, 0.066, 0.084))
    shapes.add(SKIN, (0, -0.147 + chin, 0.112), (0.038 * jaw, 0.030, 0.034))
    cheek = draws.around(0.045, 0.007)
    shapes.add(SKIN, (0.062, -0.045, 0.104), (cheek, 0.042, cheek), paired=True)
    shapes.add(SKIN, (0.045, 0.072, 0.120), (0.052, 0.018, 0.030), roll=-0.1, paired=True)
    shapes.add(SKIN, (eye_x, eye_y, 0.117), (0.036, 0.030, 0.034), paired=True)
    nose_y, nose = draws.around(-0.034, 0.006), draws.around(1, 0.16)
    reach = draws.around(0.190, 0.010)
    shapes.add(SKIN, (0, 0.5 * (nose_y + 0.044), 0.5 * reach + 0.074), (0.014 * nose, 0.048, 0.021), tilt=-0.45)
    shapes.add(SKIN, (0, nose_y + 0.002, reach), (0.019 * nose, 0.016 * nose, 0.024), tilt=0.15)
    shapes.add(SKIN, (0.019 * nose, nose_y - 0.004, reach - 0.018), (0.012 * nose, 0.011, 0.017), paired=True)
    mouth_y, mouth_w = draws.around(-0.094, 0.005), draws.around(0.044, 0.007)
    lip = draws.around(0.013, 0.004)
    # Each lip is two halves that follow the curve of the face, so that its ends sink into the cheeks.
    shapes.add(SKIN, (0.014, mouth_y + 0.008, 0.146), (mouth_w * 0.6, lip, 0.014), turn=0.55, paired=True)
    shapes.add(SKIN, (0.012, mouth_y - 0.011, 0.143), (mouth_w * 0.5, lip, 0.014), turn=0.55, paired=True)
    ear = draws.around(1, 0.15)
    shapes.add(SKIN, (0.146 * width, 0.005, -0.022), (0.017, 0.048 * ear, 0.030 * ear), tilt=-0.15, turn=0.35, roll=-0.15,
               paired=True)
    shapes.add(SKIN, (0, -0.24, -0.040), (0.074 * width, 0.30, 0.078), tilt=0.12)
    return {'eye_x': eye_x, 'eye_y': eye_y, 'eye_w': draws.around(0.034, 0.003), 'eye_h': draws.around(0.0185, 0.0035),
            'eye_slant': draws.around(0.08, 0.16), 'gaze_x': draws.around(0, 0.006), 'gaze_y': draws.around(0, 0.002),
            'brow_y': eye_y + draws.between(0.034, 0.043), 'brow_arch': draws.between(0.001, 0.010),
            'brow_h': draws.between(0.004, 0.0085), 'mouth_y': mouth_y, 'mouth_w': mouth_w, 'smile': draws.between(-0.1, 1),
            'lip_h': lip}


def _body(draws, shapes, cloth_kind):
    """Shoulders and clothes; returns the collar's numbers [N, 5]."""
    hoodie, buttons = cloth_kind == CLOTH_KINDS.index('hoodie'), cloth_kind == CLOTH_KINDS.index('buttons')
    broad = draws.around(1, 0.10)
    shapes.add(CLOTH, (0, -0.425, -0.035), (0.30 * broad, 0.165, 0.140))
    shapes.add(CLOTH, (0, -0.500, 0.000), (0.26 * broad, 0.230, 0.175))
    shapes.add(CLOTH, (0, -0.318, -0.060), (0.165, 0.080, 0.085))
    shapes.add(CLOTH, (0.255 * broad, -0.405, -0.040), (0.085, 0.120, 0.100), paired=True)
    shapes.add(CLOTH, (0, -0.232, -0.132), (0.118, 0.050, 0.062), tilt=-0.3, used=hoodie)
    tube = torch.where(hoodie, 0.026, torch.where(buttons, 0.030, draws.between(0.012, 0.020)))
    ring = torch.where(hoodie, 0.092, draws.between(0.080, 0.086))
    return torch.stack([torch.full_like(tube, -0.256), torch.full_like(tube, -0.034), torch.full_like(tube, 0.26), ring, tube], 1)


def _paint(draws, style, cloth_kind, face):
    skin = draws.colour(SKIN_TONES, SKIN_WEIGHTS, spread=0.02)
    hair_colour = draws.colour(HAIR_COLOURS, HAIR_WEIGHTS)
    tips = draws.colour(HAIR_COLOURS)
    two_tone = (draws.unit() < 0.12)[:, None]
    lip_red = torch.stack([draws.between(0.60, 0.90), draws.between(0.18, 0.36), draws.between(0.20, 0.36)], dim=1)
    lips = torch.lerp(skin * torch.tensor([0.92, 0.66, 0.64]), lip_red, draws.between(0.0, 0.7)[:, None] ** 1.5)
    grey = draws.colour(((0.12, 0.09, 0.08), (0.3, 0.2, 0.13)))
    brow = torch.lerp(hair_colour, grey, 0.5) * 0.8
    cloth, trim = draws.colour(CLOTH_COLOURS), draws.colour(CLOTH_COLOURS)
    # A trim of nearly the cloth's colour would not be seen: take the cloth darkened or lightened instead.
    alike = (cloth - trim).abs().sum(1, keepdim=True) < 0.5
    trim = torch.where(alike, torch.where(cloth.mean(1, keepdim=True) > 0.5, cloth * 0.45, cloth * 0.4 + 0.55), trim)
    bearded = draws.unit()
    smooth = (style == HAIR_STYLES.index('long')) | (style == HAIR_STYLES.index('bun'))
    beard = torch.where((bearded < 0.30) & ~smooth, draws.between(0.3, 1.0), 0.0)
    face = torch.stack([{**face, 'beard': beard}[name] for name in FACE_COLUMNS], dim=1)
    accessory = torch.where(style == HAIR_STYLES.index('bald'), 0, draws.choice((6, 2, 1)))
    curly = (style == HAIR_STYLES.index('curly')).float()
    strands = torch.stack([draws.between(9, 16).round(), draws.between(0.10, 0.22), draws.between(0, 6.28), curly], dim=1)
    return Paint(skin, lips, draws.colour(IRIS_COLOURS), hair_colour, torch.where(two_tone, tips, hair_colour), brow, cloth, trim,
                 draws.colour(CLOTH_COLOURS[2:]), cloth_kind, accessory, strands, face)


def _light(draws):
    azimuth, height = draws.around(0, 1.3), draws.between(0.15, 0.9)
    direction = torch.stack([height.cos() * azimuth.sin(), height.sin(), height.cos() * azimuth.cos()], dim=1)
    warm = draws.around(0, 0.05)
    tint = torch.stack([1 + warm, torch.ones_like(warm), 1 - warm], dim=1)
    return Light(direction, draws.between(0.60, 0.72), draws.between(0.36, 0.52), draws.between(0.04, 0.16), tint)


def _backdrop(draws):
    kind = draws.choice((1, 2, 1, 2))
    level = draws.unit()[:, None, None]
    colours = torch.stack([torch.stack([draws.unit() for _ in range(3)], dim=1) for _ in range(5)], dim=1)
    # Muted: pulled towards a common grey of the identity, so heads stand out without the backdrop being predictable.
    colours = 0.55 * colours + 0.45 * (0.1 + 0.85 * level)
    blobs = torch.stack([torch.stack([draws.unit(), draws.unit(), draws.between(0.12, 0.35)], dim=1) for _ in range(3)], dim=1)
    return Backdrop(kind, colours, draws.between(0, 6.28), blobs)
