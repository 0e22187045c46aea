"""Colours and light: what is painted on skin, hair and clothes, how it is lit, and the picture behind.

All functions take points [B, 3, M] in head units (x mirrored already where the identity is) and give colours [B, 3, M].
"""

import torch

from training.synthetic.cameras import pixel_centres
from training.synthetic.geometry import EXPONENT_LIMIT, unit
from training.synthetic.heads import CLOTH_KINDS, FACE_COLUMNS

SOFT = 0.0022          # half width of painted edges, head units
EYE_WHITE = (0.97, 0.96, 0.95)
DARK = (0.07, 0.05, 0.05)
AO_REACH = 0.035       # how far ambient occlusion looks along the normal, head units


def _cover(inside, soft=SOFT):
    """Coverage in [0, 1] from a signed distance that is positive inside."""
    return (inside * (0.5 / soft) + 0.5).clamp(0, 1)


def _over(base, colour, alpha):
    """`base` [B, 3, M] painted over with `colour` [B, 3] or a tuple, `alpha` [B, M]."""
    if isinstance(colour, tuple):
        colour = torch.tensor(colour, device=base.device)[None]
    return torch.lerp(base, colour[:, :, None].expand_as(base), alpha[:, None].expand_as(base))


def _spot(squared, radius):
    """Gaussian of a squared distance; cut where exp would leave the range of normal floats."""
    return (squared * (-0.5 / radius ** 2)).clamp_min(-EXPONENT_LIMIT).exp()


def skin_colour(paint, p, normal, carve):
    """Skin with eyes, brows, lips, cheeks, beard and shaved scalp. `carve` [B, M] is positive off the face."""
    f = dict(zip(FACE_COLUMNS, (column[:, None] for column in paint.face.unbind(1))))
    x, y, z = p.unbind(1)
    ax, front = x.abs(), _cover(z - 0.04, 0.02)
    colour = paint.skin[:, :, None].expand_as(p)
    flushed = paint.skin * torch.tensor([1.0, 0.80, 0.78], device=p.device)
    cheeks = _spot((ax - 0.072).square() + (y + 0.038).square(), 0.022) + 0.8 * _spot(x.square() + (y + 0.036).square(), 0.016)
    ears = _cover(ax - 0.135, 0.01) * _spot((y - 0.002).square() + (z + 0.020).square(), 0.020)
    colour = _over(colour, flushed, (front * cheeks * 0.6 + ears * 0.9).clamp(0, 1))
    colour = _over(colour, paint.hair, _cover(carve, 0.008) * _cover(y + 0.02 - 0.35 * z, 0.02) * f['scalp'])
    colour = _beard(paint, f, colour, ax, y, z, front)
    colour = _mouth(paint, f, colour, x, y, front)
    nostrils = _spot((ax - 0.012).square() + (y - f['mouth_y'] - 0.043).square(), 0.0055) * _cover(-normal[:, 1] - 0.15, 0.2)
    colour = _over(colour, paint.skin * 0.35, front * nostrils * 0.8)
    return _eyes(paint, f, colour, x, ax, y, front)


def _beard(paint, f, colour, ax, y, z, front):
    jaw = -0.072 + 0.62 * (ax - 0.050).clamp_min(0) - y
    moustache = torch.minimum(0.050 - ax, torch.minimum(f['mouth_y'] + 0.036 - 0.25 * ax - y, y + 0.12))
    area = _cover(torch.maximum(jaw, moustache), 0.006) * _cover(z + 0.01, 0.02) * _cover(y + 0.185, 0.012)
    return _over(colour, paint.brow * 1.1, area * f['beard'])


def _mouth(paint, f, colour, x, y, front):
    across = x / f['mouth_w']
    bow = (1 - across.square()).clamp_min(0)
    line = y - f['mouth_y'] - f['smile'] * across.square() * 0.010
    upper = f['lip_h'] * bow * (1 - 0.3 * _spot(across.square(), 0.16)) - line
    lips = _cover(torch.minimum(upper, f['lip_h'] * 1.2 * bow + line)) * _cover(0.99 - across.abs(), 0.02)
    colour = _over(colour, paint.lips, front * lips)
    seam = _cover(0.0016 * bow.sqrt() + 0.0006 - line.abs()) * _cover(1.06 - across.abs(), 0.05)
    return _over(colour, paint.lips * 0.35, front * seam * 0.9)


def _eyes(paint, f, colour, x, ax, y, front):
    dx = ax - f['eye_x']
    dy = y - f['eye_y'] - f['eye_slant'] * dx
    arc = 1 - (dx / f['eye_w']).square()
    upper, lower = f['eye_h'] * arc, -0.8 * f['eye_h'] * arc
    socket = _spot((dx / 1.6).square() + (dy - 0.006).square(), 0.016)
    colour = _over(colour, paint.skin * 0.72, front * socket * 0.45)
    opening = torch.minimum(upper - dy, dy - lower)
    eye = torch.tensor(EYE_WHITE, device=x.device)[None, :, None].expand_as(colour)
    gx, gy = dx - f['gaze_x'] * x.sign(), dy - f['gaze_y'] - 0.001
    out = (gx.square() + gy.square()).sqrt()
    eye = _over(eye, paint.iris * 0.55, _cover(0.0150 - out))
    eye = _over(eye, paint.iris, _cover(0.0125 - out, 0.003))
    eye = _over(eye, DARK, _cover(0.0068 - out))
    glint = ((x - x.sign() * (f['eye_x'] + f['gaze_x'] * x.sign()) + 0.005).square() + (gy - 0.005).square()).sqrt()
    eye = _over(eye, (1.0, 1.0, 1.0), _cover(0.0036 - glint))
    colour = torch.lerp(colour, eye, (front * _cover(opening))[:, None].expand_as(colour))
    lash = _cover(0.0030 - (upper - dy).abs()) * _cover(f['eye_w'] * 1.08 - dx.abs())
    colour = _over(colour, DARK, front * lash * 0.9)
    along = dx / (f['eye_w'] * 1.28)
    brow = y - f['brow_y'] + f['brow_arch'] * (along - 0.1).square() - 0.02 * dx
    brow = _cover(f['brow_h'] * (1 - 0.45 * along) * (1 - along.square()).clamp_min(0).sqrt() - brow.abs())
    return _over(colour, paint.brow, front * brow * _cover(0.98 - along.abs(), 0.03) * 0.95)


def hair_colour(paint, p):
    """Hair with strands, tips and accessories."""
    x, y, z = p.unbind(1)
    count, contrast, phase, curly = (column[:, None] for column in paint.strands.unbind(1))
    around = torch.atan2(x, -0.03 - z)
    wave = (around * count + phase + 2.5 * (y * 9).sin()).sin() + 0.6 * (around * (2 * count + 3) + 1.7 * phase + 14 * y).sin()
    tufts = ((x * 62 + phase).sin() * (y * 62).sin() + (y * 58).sin() * (z * 62 - phase).sin()) * 1.2
    shade = 1 + contrast * torch.lerp(wave, tufts, curly.expand_as(wave))
    tips = _cover(-y - 0.02, 0.07)
    colour = torch.lerp(paint.hair[:, :, None].expand_as(p), paint.hair_tips[:, :, None].expand_as(p), tips[:, None].expand_as(p))
    colour = colour * shade[:, None] + 0.02 * (shade[:, None] - 1)
    clip = (x - 0.145).square() + (y - 0.125).square() + (z - 0.035).square()
    clip = _cover(0.030 - clip.sqrt()) * (paint.accessory == 1)[:, None]
    band = _cover(0.013 - (z - 0.015 + 0.25 * (y - 0.2)).abs()) * _cover(y - 0.03, 0.01) * (paint.accessory == 2)[:, None]
    return _over(colour, paint.accent, torch.maximum(clip, band))


def cloth_colour(paint, p, collar):
    """Clothes: stripes, buttons, neckline, zip, vest, label. `collar` [B, M] is 1 on the collar."""
    x, y, z = p.unbind(1)
    ax, ahead = x.abs(), _cover(z - 0.0, 0.02)

    def kind(name):
        return (paint.cloth_kind == CLOTH_KINDS.index(name)).float()[:, None]

    colour = paint.cloth[:, :, None].expand_as(p)
    stripes = _cover((y * 130).sin(), 0.25)
    placket = _cover(0.017 - ax) * ahead
    button = _cover(0.0075 - (x.square() + ((y + 0.01).remainder(0.042) - 0.021).square()).sqrt()) * ahead
    vest = _cover(ax - 0.115 - 0.5 * (y + 0.30).clamp(-0.1, 0))
    zip_line = _cover(0.006 - ax) * ahead
    trim = stripes * kind('stripes') + vest * kind('vest') + zip_line * kind('hoodie') + collar * 0.85
    colour = _over(colour, paint.trim, trim.clamp_max(1))
    colour = _over(colour, paint.trim, placket * kind('buttons') * 0.5 * (1 - collar))
    colour = _over(colour, paint.trim * 0.35, button * kind('buttons') * (1 - collar))
    opening = _cover(0.60 * (y + 0.395) - ax) * ahead * kind('vneck')
    colour = _over(colour, paint.skin * 0.95, opening)
    label = _cover(0.030 - ax) * _cover(0.012 - (y + 0.276).abs()) * _cover(-z - 0.05, 0.02) * (1 - kind('hoodie'))
    return _over(colour, (0.96, 0.94, 0.88), label * 0.9)


def shade(light, albedo, normal, view, occlusion, gloss):
    """Lit colours [B, 3, M]: ambient from above, wrapped diffuse, a Blinn-Phong highlight of `gloss` [B, M], dim rim light.
    `view` [B, 3, M] points from the surface to the camera; `occlusion` [B, M] is 1 in the open."""
    key = light.direction[:, :, None]
    facing = (normal * key).sum(1)
    diffuse = (facing * 0.8 + 0.2).clamp_min(0)
    half = unit(view + key)
    highlight = ((normal * half).sum(1).clamp_min(0) ** 24) * gloss * light.specular[:, None] * occlusion
    rim = (1 - (normal * view).sum(1).clamp(0, 1)) ** 3 * 0.08
    soft = (light.ambient[:, None] * (0.86 + 0.14 * normal[:, 1]) * occlusion + rim)[:, None]
    lit = albedo * (soft + light.tint[:, :, None] * (light.diffuse[:, None] * diffuse * (0.5 + 0.5 * occlusion))[:, None])
    return (lit + highlight[:, None]).clamp(0, 1)


def backdrop_colour(backdrop, handedness, height, width):
    """Pictures [N, 3, height, width] in [0, 1] behind the heads."""
    u, v = pixel_centres(height, width, device=backdrop.angle.device)
    u = torch.where(handedness[:, None, None] < 0, 1 - u, u)
    slope = ((u - 0.5) * backdrop.angle.cos()[:, None, None] + (v - 0.5) * backdrop.angle.sin()[:, None, None]) * 0.8 + 0.5
    gradient, blobs = backdrop.kind.remainder(2) == 1, backdrop.kind >= 2
    colours = backdrop.colours[..., None, None]
    picture = torch.lerp(colours[:, 0], colours[:, 1], slope.clamp(0, 1)[:, None] * gradient[:, None, None, None])
    for i in range(backdrop.blobs.shape[1]):
        x, y, radius = (column[:, None, None] for column in backdrop.blobs[:, i].unbind(1))
        alpha = _spot(((u - x).square() + (v - y).square()) / radius.square(), 1.0) * blobs[:, None, None] * 0.85
        picture = torch.lerp(picture, colours[:, 2 + i].expand_as(picture), alpha[:, None].expand_as(picture))
    return picture
