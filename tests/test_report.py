"""The HTML report of calc_metrics.py: what stands in it, what it is made of, and what is refused."""

import base64
import html.parser
import io
import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import calc_metrics
from dnnlib import UserError
from metrics import report
from training.synthetic.write import write_dataset

SIZE = 32


def record(metric='pose_error', **figures):
    return {'metric': metric, 'results': figures, 'num': 4, 'mode': 'all', 'data': 'heads', 'data_digest': 'd' * 64, 'seed': 0}


def networks():
    """Two networks: the second is better by every figure."""
    round_ = {f'pose_error/yaw{yaw:+04d}': 3.0 + abs(yaw) / 90 for yaw in range(-180, 180, 30)}
    identity = {'identity_consistency': 0.9, 'identity_consistency/odd': float('nan')}
    return [report.Measured('a/<one>.pkl', [record(pose_error=4.0, **round_), record('identity_consistency', identity_consistency=0.8)],
                            {'': [('head 0', 'data:x')], 'pose_error': [('worst 1: head 7', 'data:y')]}),
            report.Measured('b.pkl', [record(pose_error=2.5, **round_), record('identity_consistency', **identity)], {})]


class Reader(html.parser.HTMLParser):
    """Collects tags, the cells of tables, and the addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.sources, self._cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ('src', 'href')]
        if tag in ('td', 'th'):
            self._cell = [dict(attrs).get('class'), '']

    def handle_data(self, data):
        if self._cell:
            self._cell[1] += data

    def handle_endtag(self, tag):
        if tag in ('td', 'th') and self._cell:
            self.cells.append(tuple(self._cell))
            self._cell = None


def test_page_has_tables_plots_and_pictures():
    text = report.page(networks())
    page = Reader(text)
    assert '<one>' not in text and 'a/&lt;one&gt;.pkl' in text
    # The better figure of a row is marked, whichever direction is the better one.
    assert ('best', '2.5') in page.cells and (None, '4') in page.cells
    assert ('best', '0.9') in page.cells and (None, '0.8') in page.cells
    assert (None, 'pose_error ↓') in page.cells and (None, 'identity_consistency ↑') in page.cells and (None, '–') in page.cells
    assert not any('yaw' in cell for _, cell in page.cells)
    assert page.tags.count('svg') == 1 and page.tags.count('polyline') == 2
    assert page.sources == ['data:x', 'data:y'] and 'worst 1: head 7' in text
    assert 'yaw that the built-in network reads' in text           # what the metric is
    assert json.loads(text[text.index('<pre>') + 5:text.index('</pre>')].replace('&quot;', '"'))[0]['metric'] == 'pose_error'


def test_better_is_told_by_the_metric_whatever_its_figures_are_called():
    def measured(name, sign):
        return report.Measured(name, [record('pr50k3_full', **{'pr2k3_full-builtin_precision': 0.5 + 0.3 * sign}),
                                      record('is50k', is2k_mean=3.5 + sign, is2k_std=0.6 + 0.1 * sign),
                                      record('fid50k_full', **{'fid2k_full-builtin': 6.5 + sign})], {})
    cells = Reader(report.page([measured('a', -1), measured('b', 1)])).cells
    assert {('best', '0.8'), ('best', '4.5'), ('best', '5.5'), (None, '0.5'), (None, '0.7'), (None, 'is2k_std')} <= set(cells)


def test_curves_close_the_round():
    lines = report.curves(networks())
    assert set(lines) == {'pose_error'} and set(lines['pose_error']) == {0, 1}
    points = lines['pose_error'][0]
    assert points[0] == (-180, 5.0) and points[-1] == (180, 5.0) and len(points) == 13
    flat = report.plot({0: [(-180, 0.0), (180, 0.0)]})
    assert 'nan' not in flat and 'inf' not in flat


@pytest.mark.parametrize('values', [[0.00327], [176.0, 3], [-0.5, 16.4], [1.0], [4.0, 8.0], [1e-9, -1e-9], [-3.0], [99999.0]])
def test_axes_have_round_numbers(values):
    marks = report.axis_marks(values)
    assert 4 <= len(marks) <= 11 and 0.0 in marks
    assert marks[0] <= min(values) and marks[-1] >= max(values) * (1 - 1e-9)
    for mark in marks:
        assert float(f'{mark:.4g}') == pytest.approx(mark, rel=1e-9)        # what is printed is where the line is


def test_equal_figures_have_no_best():
    same = [report.Measured(name, [record(pose_error=3.0)], {}) for name in 'ab']
    assert 'class=best' not in report.table(same)


def test_names_tell_networks_apart():
    assert report.short_names(['runs/1/x.pkl', 'runs/2/y.pkl']) == ['x.pkl', 'y.pkl']
    assert report.short_names(['runs/1/x.pkl', 'runs/2/x.pkl', 'demo']) == ['1/x.pkl', '2/x.pkl', 'demo']
    assert len(set(report.short_names(['x.pkl', 'x.pkl']))) == 2


@pytest.mark.parametrize('path, words', [('out.txt', 'ends in .html'), ('absent/out.html', 'not there')])
def test_places_that_do_not_do_are_refused_before_work(tmp_path, path, words):
    result = CliRunner().invoke(calc_metrics.main, ['--network', 'demo', '--data', str(tmp_path), '--report', str(tmp_path / path)])
    assert result.exit_code == 2 and words in result.output and 'Traceback' not in result.output


def test_report_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match='--report .* cannot be written'):
        report.write_report(tmp_path / 'gone' / 'out.html', networks())


def test_command_writes_a_report(tmp_path):
    """Perfect heads and mirrored ones side by side; the worst heads are pictures."""
    data, path = tmp_path / 'heads.zip', tmp_path / 'out.html'
    write_dataset(4, SIZE, data, samples=1, progress=False)
    result = CliRunner().invoke(calc_metrics.main, [
        '--network', 'synthetic', '--network', 'synthetic:mirrored', '--data', str(data), '--metrics', 'pose_error,hollow_face',
        '--num', '8', '--device', 'cpu', '--report', str(path)])
    assert result.exit_code == 0, result.output
    page = Reader(path.read_text(encoding='utf-8'))
    assert (None, 'synthetic') in page.cells and (None, 'synthetic:mirrored') in page.cells
    assert page.sources and all(source.startswith('data:image/jpeg;base64,') for source in page.sources)
    # Four heads and the three worst of two metrics, of two networks.
    assert len(page.sources) == 2 * (report.EXAMPLES + 3 + 3)
    picture = Image.open(io.BytesIO(base64.b64decode(page.sources[0].partition(',')[2])))
    assert picture.size == (8 * report.PICTURE, report.PICTURE)
    assert len(set(page.sources[:report.EXAMPLES])) == report.EXAMPLES


def test_sets_of_images_have_figures_but_no_pictures():
    measured = report.collect({None: [{**record(pose_error=3.0), 'fakes': 'others'}]}, torch.device('cpu'), 0, 1.0)
    assert measured[0].name == 'others' and measured[0].pictures == {}
