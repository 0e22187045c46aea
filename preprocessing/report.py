"""report.html: what became of every photograph, with the axes drawn on each head and the histogram of yaws. One file."""

import base64
import html
import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from dnnlib import UserError
from dnnlib.util import written_whole

TILE = 220                    # pixels
AXES = (((1, 0, 0), '#e03030'), ((0, 1, 0), '#20a020'), ((0, 0, 1), '#3060ff'))   # the head's left, up, and where it looks
AXIS_LENGTH = 0.15            # world units
YAW_BIN_DEG = 30
COLOURS = {'ok': '#2a7', 'low confidence': '#c90'}
STYLE = ('body{font:14px sans-serif;margin:2em;color:#222}div.tile{display:inline-block;width:230px;margin:6px;vertical-align:top}'
         'img{display:block}b{padding:1px 6px;border-radius:3px;color:#fff}p{margin:3px 0;overflow-wrap:anywhere}'
         'td.bar{background:#58c;height:1em}')


def tile_of_head(head):
    """Small RGB picture uint8 [220, 220, 3] of a PreparedHead: its crop, what is no head faded, the head's axes drawn from the
    label: red to its left, green up, blue where it looks."""
    image = head.image.astype(np.float32)
    if head.mask is not None:
        image = image * (0.35 + 0.65 * head.mask[..., None] / np.float32(255))
    picture = PIL.Image.fromarray(image.astype(np.uint8)).resize((TILE, TILE), PIL.Image.Resampling.LANCZOS)
    draw = PIL.ImageDraw.Draw(picture)
    points = project(np.array([(0, 0, 0)] + [np.array(axis) * AXIS_LENGTH for axis, _ in AXES]), head.label) * TILE
    camera = np.asarray(head.label[:12]).reshape(3, 4)[:, 2]
    # Far axes first, so that those towards the viewer are on top.
    for k in sorted(range(3), key=lambda k: -np.dot(camera, AXES[k][0])):
        draw.line([tuple(points[0]), tuple(points[k + 1])], fill=AXES[k][1], width=4)
    return np.asarray(picture)


def project(points, label):
    """Where world points [n, 3] lie in the picture of a label [25], as fractions of its sides [n, 2]."""
    label = np.asarray(label, dtype=np.float64)
    camera = np.linalg.inv(label[:16].reshape(4, 4))[:3] @ np.concatenate([np.asarray(points).T, np.ones([1, len(points)])])
    pixels = label[16:].reshape(3, 3) @ camera
    return (pixels[:2] / pixels[2]).T


def tile_of_photo(image):
    """Small RGB picture of a photograph uint8 [H, W, 3] that gave no head."""
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((TILE, TILE))
    return np.asarray(picture)


def _embedded(tile):
    buffer = io.BytesIO()
    PIL.Image.fromarray(tile).save(buffer, 'JPEG', quality=85)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def yaw_counts(yaws):
    """List of (lower edge in degrees, count) over -180..180."""
    counts, edges = np.histogram(yaws, bins=360 // YAW_BIN_DEG, range=(-180, 180))
    return [(int(edge), int(count)) for edge, count in zip(edges, counts)]


def write_report(path, tiles, title):
    """Write report.html of `tiles`: (batch.Line, small picture or None) of every head and failure. Raises UserError."""
    lines = [line for line, _ in tiles]
    used = [line for line in lines if line.name is not None]
    parts = [f'<!DOCTYPE html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
             f'<h1>{html.escape(title)}</h1>'
             f'<p>{len(used)} of {len(lines)} used. Red: to the left of the head; green: up; blue: where it looks.</p>']
    if used:
        counts = yaw_counts([line.angles[0] for line in used])
        most = max(count for _, count in counts)
        rows = ''.join(f'<tr><td>{low} to {low + YAW_BIN_DEG}</td><td>{count}</td><td><table><tr><td class="bar" style="width:'
                       f'{300 * count / most:.0f}px"></td></tr></table></td></tr>' for low, count in counts)
        parts.append(f'<h2>Yaw in degrees, 0 front, beyond 90 back</h2><table>{rows}</table>')
    parts.append('<h2>Photographs</h2>')
    for line, tile in tiles:
        picture = '' if tile is None else f'<img src="{_embedded(tile)}" width="{tile.shape[1]}" height="{tile.shape[0]}" alt="">'
        angles = '' if line.angles is None else 'yaw {:.1f}, pitch {:.1f}, roll {:.1f} ({})'.format(*line.angles, line.label_source)
        texts = [line.source, angles, f'mask: {line.mask_source}' if line.mask_source else '', *line.messages]
        colour = COLOURS.get(line.status, '#c33')
        parts.append(f'<div class="tile">{picture}<p><b style="background:{colour}">{html.escape(line.status)}</b></p>'
                     + ''.join(f'<p>{html.escape(text)}</p>' for text in texts if text) + '</div>')
    try:
        with written_whole(Path(path)) as temporary:
            temporary.write_text('\n'.join(parts), encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from error

