"""A report of measured networks as one HTML file without outside parts: tables, plots over yaw, the worst heads, protocols.

Made of the records that metrics.evaluate.measure yields. Figures named METRIC/yaw+030 become plots, METRIC/worst1 pictures
of the heads with these numbers (metrics.heads).
"""

import base64
import datetime
import html
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dnnlib import UserError
from dnnlib.util import written_whole
from metrics.evaluate import open_generator
from metrics.heads import Heads, labels_around
from metrics.images import to_uint8
from metrics.registry import metric_function
from torch_utils.ops.resize import resize

HIGHER_IS_BETTER = ('identity_consistency', 'is50k', 'pr50k3_full')     # metrics; of all others less is better
VIEWS_DEG = (0, 45, 90, 135, 180, -135, -90, -45)
PICTURE = 96                 # pixels of a view in the report
EXAMPLES = 4                 # heads shown of every network
COLOURS = ('#1668b8', '#c4501b', '#2a8a4a', '#8a4ab0', '#a0831d', '#c03a75', '#3b8d97', '#666666')
PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 460, 200, 56
PROTOCOL = ('num', 'num_real', 'mode', 'conditioning', 'truncation_psi', 'seed', 'background', 'mirror', 'resolution', 'features',
            'total_sec')
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #1c1c1e; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em } h3 { font-size: 1em; margin: 1.2em 0 .3em }
table { border-collapse: collapse } th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left } td.best { font-weight: 700 } .note { color: #666; font-size: .87em; max-width: 62em }
.plots { display: flex; flex-wrap: wrap; gap: 1.5em } figure { margin: 0 } figcaption { font-weight: 600 }
.strip img { display: block; max-width: 100% } svg text { font: 11px system-ui, sans-serif; fill: #555 }
.key { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .35em 0 1em; vertical-align: -.1em }
@media (prefers-color-scheme: dark) { body { background: #16171a; color: #e4e4e6 } th, td { border-color: #3a3b40 }
.note { color: #a0a0a6 } svg text { fill: #b5b5ba } }
"""


@dataclass
class Measured:
    """One network of a report: what it is called, its records, pictures {metric: [(caption, data: URL)]} of its worst
    heads, and of its first ones under ''."""
    name: str
    records: list
    pictures: dict

    def figures(self):
        """{figure: number} of all records together."""
        return {name: value for record in self.records for name, value in record['results'].items()}

    def metrics(self):
        """{figure: metric that it is of}; figures of other counts or feature networks have names of their own."""
        return {name: record['metric'] for record in self.records for name in record['results']}


def short_names(paths):
    """Names that tell network paths apart: the file's name, and as many folders before it as it takes."""
    parts = [Path(path).parts if '://' not in path else path.split('/') for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{index + 1}: {path}' for index, path in enumerate(paths)]


def picture_url(pixels):
    """data: URL of uint8 [H, W, 3] as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format='JPEG', quality=88)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()


def strip(heads, number):
    """Head `number` of metrics.heads.Heads from eight sides as uint8 [PICTURE, 8 * PICTURE, 3]."""
    opened = heads.open(number, number + 1)
    views = [to_uint8(resize(opened.view(labels_around(heads.camera, yaw))['image'].float(), PICTURE))[0] for yaw in VIEWS_DEG]
    return torch.cat(views, dim=2).permute(1, 2, 0).cpu().numpy()


def worst_heads(record):
    """[(rank, number of the head)] that a record names as its worst."""
    found = [(int(match[1]), int(value)) for name, value in record['results'].items() if (match := re.search(r'/worst(\d+)$', name))]
    return sorted(found)


def pictures_of(heads, records):
    """Measured.pictures of a network: `heads` are those that the records are about."""
    known = {}

    def url(number):
        if number not in known:
            known[number] = picture_url(strip(heads, number))
        return known[number]

    pictures = {'': [(f'head {number}', url(number)) for number in range(EXAMPLES)]}
    for record in records:
        worst = worst_heads(record)
        if worst:
            pictures[record['metric']] = [(f'worst {rank}: head {number}', url(number)) for rank, number in worst]
    return pictures


# ---------------------------------------------------------------------------------------------------------------------
# HTML.

def number(value):
    """A figure as text; what is not finite is a dash."""
    if value is None or not math.isfinite(value):
        return '–'
    return f'{value:.4g}' if abs(value) < 1e5 else f'{value:.3e}'


def is_detail(name):
    """Whether a figure belongs to a plot or to the pictures instead of the table."""
    return re.search(r'/(yaw[+-]\d+|worst\d+)$', name) is not None


def higher_is_better(name, metric):
    """True or False for a metric's own figures, None for those that are neither good nor bad."""
    return None if '/' in name or name.endswith('_std') else metric in HIGHER_IS_BETTER


def table(networks):
    """Figures in rows, networks in columns, the best of a row bold unless all are equal."""
    names = list(dict.fromkeys(name for network in networks for name in network.figures() if not is_detail(name)))
    metrics = {name: metric for network in networks for name, metric in network.metrics().items()}
    head = ''.join(f'<th>{html.escape(network.name)}</th>' for network in networks)
    rows = []
    for name in names:
        values = [network.figures().get(name) for network in networks]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        upwards = higher_is_better(name, metrics[name])
        best = None if upwards is None or len(set(finite)) < 2 else (max if upwards else min)(finite)
        cells = ''.join(f'<td{" class=best" if value is not None and value == best else ""}>{number(value)}</td>' for value in values)
        arrow = '' if upwards is None else ' ↑' if upwards else ' ↓'
        rows.append(f'<tr><td>{html.escape(name)}{arrow}</td>{cells}</tr>')
    return f'<table><tr><th>figure</th>{head}</tr>{"".join(rows)}</table>'


def curves(networks):
    """{metric's figure: {network's index: [(yaw, value)]}} of all figures over yaw; a closed round ends where it began."""
    found = {}
    for index, network in enumerate(networks):
        for name, value in network.figures().items():
            match = re.fullmatch(r'(.+)/yaw([+-]\d+)', name)
            if match and math.isfinite(value):
                found.setdefault(match[1], {}).setdefault(index, []).append((int(match[2]), value))
    for lines in found.values():
        for index, points in lines.items():
            points = sorted((-180 if yaw == 180 else yaw, value) for yaw, value in points)
            lines[index] = points + [(180, points[0][1])] if points[0][0] == -180 else points
    return found


def axis_marks(values):
    """Round numbers, ascending and equally far apart, that enclose the values and 0: four to nine of them, or two."""
    low, high = min(0.0, *values), max(0.0, *values)
    if high == low:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(factor * power for factor in (1, 2, 2.5, 5) if factor * power <= (high - low) / 4 * (1 + 1e-9))
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def plot(lines):
    """SVG of curves {network's index: [(yaw, value)]} over -180..180 degrees; the axis takes in 0."""
    marks = axis_marks([value for points in lines.values() for _, value in points])
    low, high = marks[0], marks[-1]
    width, height = PLOT_WIDTH - 1.5 * MARGIN, PLOT_HEIGHT - MARGIN

    def place(yaw, value):
        return f'{MARGIN + (yaw + 180) / 360 * width:.1f},{12 + (high - value) / (high - low) * height:.1f}'

    parts = []
    for value in marks:
        x, y = place(-180, value).split(',')
        parts.append(f'<line x1="{x}" y1="{y}" x2="{MARGIN + width:.1f}" y2="{y}" stroke="#8884"/>'
                     f'<text x="{float(x) - 5}" y="{float(y) + 4}" text-anchor="end">{value:.4g}</text>')
    for yaw, label in ((-180, 'back'), (-90, '−90°'), (0, 'front'), (90, '90°'), (180, 'back')):
        x = place(yaw, low).split(',')[0]
        parts.append(f'<text x="{x}" y="{PLOT_HEIGHT - 12}" text-anchor="middle">{label}</text>')
    for index, points in lines.items():
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(place(*p) for p in points)}"/>')
        parts += ['<circle cx="{}" cy="{}" r="3" fill="{}"><title>{}° {}</title></circle>'.format(
            *place(*p).split(','), colour, p[0], number(p[1])) for p in points]
    return f'<svg viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" width="{PLOT_WIDTH}" role="img">{"".join(parts)}</svg>'


def strips(pictures):
    """Pictures under their captions."""
    return ''.join(f'<figure class="strip"><span class=note>{html.escape(caption)}</span><img src="{url}" alt="{html.escape(caption)}">'
                   '</figure>' for caption, url in pictures)


def explanations(networks):
    """What each metric is and what a good value is: its docstring."""
    names = dict.fromkeys(record['metric'] for network in networks for record in network.records)
    said = {name: ' '.join((metric_function(name).function.__doc__ or '').split()) for name in names}
    return ''.join(f'<p class=note><b>{html.escape(name)}</b>: {html.escape(text)}</p>' for name, text in said.items())


def protocols(networks):
    """How every record was made."""
    head = ''.join(f'<th>{field.replace("_", " ")}</th>' for field in PROTOCOL)
    rows = ''.join(f'<tr><td>{html.escape(network.name)}: {html.escape(record["metric"])}</td>'
                   + ''.join(f'<td>{html.escape(str(record.get(field, "")))}</td>' for field in PROTOCOL) + '</tr>'
                   for network in networks for record in network.records)
    return f'<table><tr><th>record</th>{head}</tr>{rows}</table>'


def page(networks):
    """The whole report as HTML text."""
    data = sorted({f'{record["data"]} ({record["data_digest"][:12]})' for network in networks for record in network.records})
    keys = ''.join(f'<span class=key style="background:{COLOURS[i % len(COLOURS)]}"></span>{html.escape(network.name)}'
                   for i, network in enumerate(networks))
    when = f'{datetime.datetime.now():%Y-%m-%d %H:%M} · data: {html.escape(", ".join(data))}'
    sections = [f'<h1>Measured heads</h1><p class=note>{when}</p>',
                f'<h2>Figures</h2>{table(networks)}', explanations(networks)]
    found = curves(networks)
    if found:
        drawn = ''.join(f'<figure><figcaption>{html.escape(name)}</figcaption>{plot(lines)}</figure>' for name, lines in found.items())
        sections.append(f'<h2>Over yaw</h2><p>{keys}</p><div class="plots">{drawn}</div>')
    views = ', '.join(f'{yaw}°' for yaw in VIEWS_DEG)
    if any(network.pictures for network in networks):
        sections.append(f'<h2>Heads</h2><p class=note>Seen from {views}.</p>')
        sections += [f'<h3>{html.escape(network.name)}</h3>{strips(network.pictures.get("", []))}' for network in networks]
        for metric in dict.fromkeys(name for network in networks for name in network.pictures if name):
            sections.append(f'<h2>Worst by {html.escape(metric)}</h2>')
            sections += [f'<h3>{html.escape(network.name)}</h3>{strips(network.pictures[metric])}'
                         for network in networks if metric in network.pictures]
    records = [record for network in networks for record in network.records]
    sections.append(f'<h2>Protocols</h2>{protocols(networks)}<details><summary>Records as JSON</summary>'
                    f'<pre>{html.escape(json.dumps(records, indent=1))}</pre></details>')
    return ('<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f'<title>Measured heads</title><style>{STYLE}</style><body>{"".join(sections)}</body></html>')


def collect(measured, device, seed, truncation_psi):
    """Measured networks of {network as measure takes it, None for a set of images: its records}, with pictures."""
    names = short_names([network or records[0]['fakes'] for network, records in measured.items()])
    found = []
    for name, (network, records) in zip(names, measured.items()):
        pictures = {}
        if network is not None:
            generator = open_generator(network, records[0]['resolution'], device)
            pictures = pictures_of(Heads(generator, device, seed, truncation_psi), records)
        found.append(Measured(name, records, pictures))
    return found


def check_report_path(path):
    """Raise UserError, before hours of measuring, for a report that could not be written."""
    if path.suffix not in ('.html', '.htm'):
        raise UserError(f'--report {path}: is written as HTML; give a name that ends in .html')
    if not path.absolute().parent.is_dir():
        raise UserError(f'--report {path}: the folder {path.parent} is not there; make it first')


def write_report(path, networks):
    """Write the report of Measured `networks` to `path`. Raises UserError where it cannot be written."""
    try:
        with written_whole(Path(path)) as temporary:
            Path(temporary).write_text(page(networks), encoding='utf-8')
    except OSError as error:
        raise UserError(f'--report {path}: cannot be written ({error.strerror or error}); choose another place') from error
