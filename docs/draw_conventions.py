"""Draws docs/images/conventions.png, the picture of docs/conventions.md: world, cameras, label, picture, planes.

Every line goes through camera_utils (the view of the scene is itself a label), the heads are synthetic ones seen through
the labels shown, and the plane axes are read from training.representations.planes, so the picture says what the code does.

    python docs/draw_conventions.py
"""

import math
import sys
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import camera_utils as cu                                          # noqa: E402
from training.representations.planes import PLANE_AXES             # noqa: E402
from training.synthetic.heads import sample_identities             # noqa: E402
from training.synthetic.render import render_heads                 # noqa: E402

SIZE = (1600, 1210)
OVERSAMPLING = 2
PAPER, INK, GREY, PALE = (255, 255, 255), (38, 42, 50), (125, 130, 140), (216, 219, 225)
AXES = {'x': (208, 52, 44), 'y': (30, 138, 62), 'z': (36, 92, 200)}
# Cameras of the orbit: name, yaw and elevation in degrees, colour.
CAMERAS = (('front', 0, 0, (36, 92, 200)), ('left ear', 90, 0, (208, 52, 44)), ('back', 180, 0, (120, 84, 180)),
           ('right ear', -90, 0, (0, 140, 150)), ('between', 45, 0, (214, 128, 0)), ('above', 0, 35, (176, 44, 130)))
FRUSTUM_DEPTH = 0.75   # world units
AXIS_LENGTH = 1.15
SCENE_YAW, SCENE_ELEVATION, SCENE_RADIUS, SCENE_FOV = 28, 27, 12.0, 38.0


class Canvas:
    """Anti-aliased drawing in picture coordinates (pixels of the finished image)."""

    def __init__(self, size):
        self.image = Image.new('RGB', (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def line(self, points, colour=INK, width=1.5):
        """Open polyline through `points` [(x, y), ...]."""
        scaled = [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(width * OVERSAMPLING), joint='curve')

    def arrow(self, start, end, colour=INK, width=2.0, head=9):
        """Line with a filled head at `end`."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        self.line([start, (x1 - ux * head * 0.8, y1 - uy * head * 0.8)], colour, width)
        corners = [(x1, y1)] + [(x1 - ux * head + s * uy * head * 0.45, y1 - uy * head - s * ux * head * 0.45) for s in (1, -1)]
        self.draw.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in corners], fill=colour)

    def text(self, place, words, colour=INK, size=15, anchor='la', halo=0):
        """Words at `place`; `anchor` as in Pillow; `halo` is the width of a white rim."""
        font = ImageFont.load_default(size * OVERSAMPLING)
        self.draw.text((place[0] * OVERSAMPLING, place[1] * OVERSAMPLING), words, fill=colour, font=font, anchor=anchor,
                       spacing=4 * OVERSAMPLING, stroke_width=halo * OVERSAMPLING, stroke_fill=PAPER)

    def box(self, corner, size, fill=None, outline=None, width=1.0):
        """Rectangle from its upper left corner."""
        x, y = (v * OVERSAMPLING for v in corner)
        w, h = (v * OVERSAMPLING for v in size)
        self.draw.rectangle([x, y, x + w, y + h], fill=fill, outline=outline, width=round(width * OVERSAMPLING))

    def paste(self, picture, corner, mask=None):
        """A picture of OVERSAMPLING times the wanted size, its upper left corner at `corner`."""
        self.image.paste(picture, (round(corner[0] * OVERSAMPLING), round(corner[1] * OVERSAMPLING)), mask)

    def save(self, path):
        """Write the picture at its finished size."""
        size = (self.image.width // OVERSAMPLING, self.image.height // OVERSAMPLING)
        self.image.resize(size, Image.LANCZOS).save(path, optimize=True)


def camera_label(yaw_deg, elevation_deg, radius=cu.HEAD_RADIUS, fov_deg=cu.FOV_DEG, lookat=(0.0, 0.0, 0.0)):
    """Label [1, 25] of a camera at a true elevation above the head; look_at_pose's vertical angle is found for it."""
    vertical = math.pi / 2 * (1 - math.sin(math.radians(elevation_deg)))
    return cu.label_from_yaw(yaw_deg, vertical, lookat, radius, fov_deg)


def project(points, label):
    """(u, v) [M, 2] and distance to the camera [M] of world points [M, 3] seen through a label [1, 25]."""
    cam2world, intrinsics = cu.split_label(label)
    points = torch.as_tensor(np.asarray(points, dtype=np.float32))
    local = (points - cam2world[0, :3, 3]) @ cam2world[0, :3, :3]
    uvw = local @ intrinsics[0].T
    return (uvw[:, :2] / uvw[:, 2:]).numpy(), local.norm(dim=1).numpy()


def picture_of(head, label, pixels):
    """(RGB picture, mask, distances [H, W]) of a synthetic head, `pixels` wide and high."""
    batch = render_heads(head, label, resolution=pixels)
    rgb = ((batch.image[0].permute(1, 2, 0) * 0.5 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(rgb), Image.fromarray((batch.mask[0, 0] * 255).round().byte().numpy()), batch.depth[0, 0].numpy()


class Scene:
    """A view of the world on a canvas: a square of `side` pixels around `centre`, with the head in it."""

    def __init__(self, canvas, head, centre, side):
        self.canvas, self.side = canvas, side
        self.left, self.top = centre[0] - side / 2, centre[1] - side / 2
        self.label = camera_label(SCENE_YAW, SCENE_ELEVATION, SCENE_RADIUS, SCENE_FOV, (0, -0.05, 0.0))
        # The head needs many pixels, the rest of the view none: render the window of its box, by moving the intrinsics.
        corners = np.array(np.meshgrid(*[[-0.62, 0.62]] * 3)).reshape(3, 8).T
        uv, _ = project(corners, self.label)
        self.low, span = uv.min(axis=0), (uv.max(axis=0) - uv.min(axis=0)).max()
        self.pixels, self.span = round(span * side * OVERSAMPLING), span
        window = self.label.clone()
        window[:, [16, 20]] /= float(span)
        window[:, 18], window[:, 21] = ((0.5 - float(v)) / float(span) for v in self.low)
        picture, mask, self.depth = picture_of(head, window, self.pixels)
        canvas.paste(picture, self.place(self.low), mask)

    def place(self, uv):
        """Canvas coordinates of view coordinates (u, v)."""
        return self.left + uv[0] * self.side, self.top + uv[1] * self.side

    def at(self, point):
        """Canvas coordinates of a world point."""
        return self.place(project([point], self.label)[0][0])

    def hidden(self, uv, distance):
        """Whether the head stands before a point of the view."""
        column, row = ((uv - self.low) / self.span * self.pixels).astype(int)
        inside = 0 <= column < self.pixels and 0 <= row < self.pixels
        return bool(inside and self.depth[row, column] < distance)

    def line(self, points, colour, width=1.5):
        """Polyline of world points [M, 3]; parts behind the head are left out."""
        uv, distance = project(points, self.label)
        behind = [self.hidden(*point) for point in zip(uv, distance)]
        start = 0
        for end in range(1, len(uv) + 1):
            # One stroke for each run of points that are all in front of the head or all behind it.
            if end == len(uv) or behind[end] != behind[start]:
                if not behind[start] and end - start > 1:
                    self.canvas.line([self.place(point) for point in uv[start:end]], colour, width)
                start = end


def segment(start, end, steps=80):
    """World points [steps, 3] along a segment."""
    return np.linspace(start, end, steps, dtype=np.float32)


def draw_frustum(scene, label, colour, name):
    """A camera of the scene: its pyramid of view, the side that is up in the picture, its axis and its name."""
    cam2world, intrinsics = cu.split_label(label)
    eye, rotation, k = cam2world[0, :3, 3], cam2world[0, :3, :3], intrinsics[0]
    corners = []
    for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
        ray = torch.tensor([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], 1.0]) * FRUSTUM_DEPTH
        corners.append((eye + rotation @ ray).numpy())
    eye = eye.numpy()
    for i in range(4):
        scene.line(segment(eye, corners[i], 12), colour, 2)
        scene.line(segment(corners[i], corners[(i + 1) % 4], 12), colour, 3.5 if i == 0 else 2)
    scene.line(segment(eye, np.zeros(3)), tuple((c + 2 * 225) // 3 for c in colour), 1)
    x, y = scene.at(eye)
    scene.canvas.draw.ellipse([(v + d) * OVERSAMPLING for d in (-4, 4) for v in (x, y)], fill=colour)
    return x, y, name


def draw_world(canvas, head):
    """The big panel: axes, box, orbit and cameras around the head."""
    canvas.text((30, 22), 'World', size=26)
    canvas.text((30, 56), 'y up, the face looks to +z, the head\'s left ear is at +x.  One unit is about 42 cm.', GREY)
    scene = Scene(canvas, head, (480, 358), 900)
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, 8).T
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                scene.line(segment(corners[a], corners[b]), (160, 165, 175), 1.2)
    orbit = cu.split_label(cu.label_from_yaw(torch.linspace(0, 360, 181), lookat=(0, 0, 0)))[0][:, :3, 3]
    scene.line(orbit.numpy(), PALE, 2)
    arc = cu.split_label(cu.label_from_yaw(torch.linspace(3, 37, 30), lookat=(0, 0, 0)))[0][:, :3, 3].numpy() * 0.86
    scene.line(arc, INK, 2)
    canvas.arrow(scene.at(arc[-2]), scene.at(arc[-1] + (arc[-1] - arc[-2]) * 2), INK)
    canvas.text(scene.at(arc[13] * 0.9), 'yaw > 0', anchor='mb', halo=3)
    offsets = {'front': (-14, 26, 'rm'), 'left ear': (0, 30, 'ma'), 'back': (16, -14, 'lm'), 'right ear': (-4, 14, 'ma'),
               'between': (16, 24, 'lm'), 'above': (10, -12, 'mb')}
    for name, yaw, elevation, colour in CAMERAS:
        x, y, _ = draw_frustum(scene, camera_label(yaw, elevation), colour, name)
        dx, dy, anchor = offsets[name]
        words = f'yaw {yaw}°' if not elevation else f'yaw {yaw}°, {elevation}° up'
        canvas.text((x + dx, y + dy), words, colour, 17, anchor, halo=3)
    for axis, (name, colour) in enumerate(AXES.items()):
        tip = np.eye(3)[axis] * AXIS_LENGTH
        scene.line(segment(np.zeros(3), tip * 0.97), colour, 3.5)
        canvas.arrow(scene.at(tip * 0.94), scene.at(tip), colour, 3.5, 14)
        canvas.text(scene.at(tip * 1.12), name, colour, 24, 'mm', halo=3)
    canvas.text((30, 618), f'Cameras stand {cu.HEAD_RADIUS} from the origin (radius); the thick edge is up in their pictures.  '
                'Grey cube: box_warp = 1, [-0.5, 0.5]^3.', GREY)


def draw_views(canvas, head):
    """What each camera sees, with the numbers of its label."""
    canvas.text((985, 22), 'What they see', size=26)
    side = 168
    for i, (name, yaw, elevation, colour) in enumerate(CAMERAS):
        x, y = 985 + i % 3 * (side + 32), 66 + i // 3 * (side + 106)
        label = camera_label(yaw, elevation)
        picture, _, _ = picture_of(head, label, side * OVERSAMPLING)
        canvas.box((x - 3, y - 3), (side + 6, side + 6), fill=colour)
        canvas.paste(picture, (x, y))
        yaw, pitch, _ = (f'{round(v) + 0}°' for v in cu.label_angles_deg(label)[0].tolist())
        position = ', '.join(f'{round(v, 2) + 0.0:.2f}' for v in label[0, [3, 7, 11]].tolist())
        canvas.text((x, y + side + 10), name, colour, 17)
        canvas.text((x, y + side + 34), f'yaw {yaw}   pitch {pitch}\nat ({position})', GREY, 14)
    canvas.text((985, 618), 'yaw and pitch as label_angles_deg measures them; |yaw| > 90° is the back', GREY)


def draw_picture(canvas, head):
    """Coordinates in a picture, camera axes, mask and depth."""
    x0, y0, side = 66, 750, 250
    canvas.text((30, 678), 'Picture', size=26)
    label = camera_label(0, 0)
    picture, mask, depth = picture_of(head, label, side * OVERSAMPLING)
    canvas.paste(picture, (x0, y0))
    canvas.arrow((x0, y0), (x0 + side + 26, y0), INK, 2.5, 11)
    canvas.arrow((x0, y0), (x0, y0 + side + 26), INK, 2.5, 11)
    canvas.text((x0 + side + 8, y0 - 12), 'u, camera x', size=14, anchor='rb')
    canvas.text((x0 + 4, y0 + side + 30), 'v, camera y', size=14, anchor='la')
    canvas.text((x0 - 8, y0 - 6), '(0, 0)', size=14, anchor='rb')
    canvas.text((x0 + side + 6, y0 + side + 6), '(1, 1)', size=14)
    middle = (x0 + side / 2, y0 + side / 2)
    canvas.draw.ellipse([(v + d) * OVERSAMPLING for d in (-5, 5) for v in middle], fill=PAPER, outline=INK, width=3)
    canvas.text((30, 1070), 'The centre of pixel (row i, column j) of R x R is\nu = (j + 0.5) / R,  v = (i + 0.5) / R.\n'
                'The intrinsics are divided by the image size.\nCamera z goes into the picture, at the dot.', GREY)
    small = 112
    shown = np.isfinite(depth)
    near, far = depth[shown].min(), depth[shown].max()
    grey = np.where(shown, 255 - 205 * (np.where(shown, depth, near) - near) / (far - near), 255).astype(np.uint8)
    size = (small * OVERSAMPLING, small * OVERSAMPLING)
    for y, pixels, words in ((y0, mask, 'mask\n1 = head'),
                             (y0 + small + 26, Image.fromarray(grey), f'depth\n{near:.1f} to {far:.1f}\nunits')):
        canvas.paste(pixels.resize(size, Image.LANCZOS).convert('RGB'), (x0 + side + 60, y))
        canvas.box((x0 + side + 60, y), (small, small), outline=GREY)
        canvas.text((x0 + side + 60 + small + 10, y + 2), words, size=14)


def draw_label(canvas):
    """The 25 numbers and what each is, with the values of the front camera of the head presets."""
    x0, y0, w, h = 590, 762, 98, 50
    canvas.text((590, 678), 'Label', size=26)
    canvas.text((590, 714), 'c = cam2world (16, row by row), intrinsics (9); the front camera:', GREY)
    values = cu.front_label()[0]
    heads = (('right', AXES['x']), ('down', AXES['y']), ('forward', AXES['z']), ('position', (176, 112, 0)))
    rows = 'xyz'
    for column, (word, colour) in enumerate(heads):
        canvas.text((x0 + column * w + w / 2, y0 - 9), word, colour, 15, 'ms')
    for entry in range(16):
        row, column = divmod(entry, 4)
        colour = heads[column][1] if row < 3 else GREY
        draw_cell(canvas, (x0 + column * w, y0 + row * h), (w, h), entry, values[entry], colour)
        if column == 0 and row < 3:
            canvas.text((x0 - 8, y0 + row * h + h / 2), rows[row], AXES[rows[row]], 15, 'rm')
    canvas.text((x0, y0 + 4 * h + 10), 'Columns: the camera\'s axes and place, in world axes (the rows).', GREY, 14)
    y1 = y0 + 4 * h + 62
    names = ('focal x', 'skew', 'centre u', '', 'focal y', 'centre v', '', '', '')
    for i in range(9):
        row, column = divmod(i, 3)
        draw_cell(canvas, (x0 + column * w, y1 + row * h), (w, h), 16 + i, values[16 + i], INK if names[i] else GREY, names[i])
    flipped = (cu.flip_label(values[None])[0].sign() * values.sign() < 0)
    negated = [i for i in range(25) if cu.flip_label(torch.ones(1, 25))[0, i] < 0]
    assert set(torch.nonzero(flipped).flatten().tolist()) <= set(negated)
    numbers = ', '.join(map(str, negated[:-1])) + f' and {negated[-1]}'
    canvas.text((x0 + 3 * w + 14, y1 + 2), f'A mirrored\npicture negates\n{numbers}.', GREY, 14)


def draw_cell(canvas, corner, size, entry, value, colour, name=''):
    """One entry of the label: its number, value and name."""
    canvas.box(corner, size, outline=PALE)
    canvas.text((corner[0] + 6, corner[1] + 4), str(entry), GREY, 12)
    canvas.text((corner[0] + size[0] - 6, corner[1] + 5), name, GREY, 11, 'ra')
    canvas.text((corner[0] + size[0] / 2, corner[1] + size[1] / 2 + 6), f'{round(value.item(), 3) + 0.0:g}', colour, 17, 'mm')


def draw_planes(canvas):
    """Which world axis runs along width, height and depth of each feature plane."""
    canvas.text((1085, 678), 'Feature planes', size=26)
    canvas.text((1085, 714), 'a point p is looked up at p * 2 / box_warp', GREY)
    titles = {'orthogonal': 'tri-grid (PanoHead)', 'eg3d': 'tri-plane (EG3D as released)'}
    for row, (kind, planes) in enumerate(PLANE_AXES.items()):
        y0 = 782 + row * 208
        canvas.text((1085, y0 - 34), titles.get(kind, kind), size=16)
        for plane, axes in enumerate(planes):
            draw_plane(canvas, (1100 + plane * 168, y0), ['xyz'[a] for a in axes], plane, layers=3 if kind == 'orthogonal' else 1)


def draw_plane(canvas, corner, names, plane, layers):
    """One plane with its width, height and (for a grid of several layers) depth axis."""
    (x, y), side, shift = corner, 96, 13
    for layer in reversed(range(layers)):
        canvas.box((x + layer * shift, y + (layers - 1 - layer) * shift), (side, side), fill=(246, 247, 250), outline=PALE)
    y += (layers - 1) * shift
    canvas.arrow((x, y), (x + side, y), AXES[names[0]], 3, 11)
    canvas.arrow((x, y), (x, y + side), AXES[names[1]], 3, 11)
    canvas.text((x + side - 14, y + 6), names[0], AXES[names[0]], 18, 'ra')
    canvas.text((x + 8, y + side - 6), names[1], AXES[names[1]], 18, 'ls')
    canvas.text((x + side / 2 + 4, y + side / 2 + 4), f'plane {plane}', GREY, 13, 'mm')
    if layers > 1:
        reach = (layers - 1) * shift + 14
        canvas.arrow((x + side, y + side), (x + side + reach, y + side - reach), AXES[names[2]], 3, 11)
        canvas.text((x + side + reach - 4, y + side - reach + 14), names[2], AXES[names[2]], 18, 'la')


@click.command()
@click.option('--out', help='Picture to write', type=click.Path(dir_okay=False), show_default=True,
              default=str(Path(__file__).resolve().parent / 'images' / 'conventions.png'))
@click.option('--seed', help='Identity of the synthetic head', type=click.IntRange(0), default=14, show_default=True)
def main(out, seed):
    """Draw the picture of docs/conventions.md."""
    canvas = Canvas(SIZE)
    head = sample_identities([seed])
    draw_world(canvas, head)
    draw_views(canvas, head)
    canvas.line([(30, 658), (SIZE[0] - 30, 658)], PALE, 1)
    draw_picture(canvas, head)
    draw_label(canvas)
    draw_planes(canvas)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    canvas.save(out)
    print(f'{out}: {SIZE[0]}x{SIZE[1]}')


if __name__ == '__main__':
    main()
