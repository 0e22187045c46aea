"""Console line, stats.jsonl, TensorBoard events and image grids."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib
from training.reporting import Reporter, grid_image, save_image_grid, save_turntable_sheet, to_uint8, value_range


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def lines(path):
    return [json.loads(line) for line in (path / 'stats.jsonl').read_text().splitlines()]


def test_ticks(tmp_path, capsys):
    clock = Clock()
    nothing = {'num': 0, 'mean': float('nan'), 'std': float('nan')}
    stats = {'Loss/G/loss': {'num': 8, 'mean': 0.75, 'std': 0.1}, 'Loss/D/loss': nothing}
    with Reporter(tmp_path, start_nimg=1000, clock=clock) as reporter:
        clock.now += 5                                   # maintenance before the first tick
        reporter.start_tick()
        clock.now += 20
        record = reporter.end_tick(0, 5000, stats, augment_p=0.125)
        clock.now += 3
        reporter.start_tick()
        clock.now += 10
        reporter.end_tick(1, 6000)
    first, second = lines(tmp_path)
    assert first == record and first['Loss/G/loss'] == {'num': 8, 'mean': 0.75, 'std': 0.1}
    assert first['Loss/D/loss']['mean'] is None          # not NaN, which JSON does not know
    assert first['Timing/sec_per_kimg']['mean'] == 5 and first['Timing/maintenance_sec']['mean'] == 5
    assert second['Timing/sec_per_kimg']['mean'] == 10 and second['Timing/maintenance_sec']['mean'] == 3
    assert second['Timing/total_sec']['mean'] == 38 and second['timestamp'] == 1038
    assert first['Progress/augment']['mean'] == 0.125 and 'Progress/augment' not in second
    out = capsys.readouterr().out.splitlines()[-2:]
    for part in ('tick 0', 'kimg 5.0', 'sec/tick 20.0', 'sec/kimg 5.00', 'maintenance 5.0', 'cpumem', 'gpumem', 'augment 0.125',
                 'G 0.750', 'D none'):
        assert part in out[0]
    assert 'augment' not in out[1]


def test_resuming_appends_and_log_takes_the_line(tmp_path):
    position = None
    for tick in range(2):
        with dnnlib.Logger(tmp_path / 'log.txt'), Reporter(tmp_path, position=position) as reporter:
            reporter.end_tick(tick, 0)                   # no image since the start: no pace to report
            position = reporter.position()
    assert len(lines(tmp_path)) == 2 and lines(tmp_path)[0]['Timing/sec_per_kimg']['mean'] is None
    assert (tmp_path / 'log.txt').read_text().count('kimg 0.0') == 2


def test_figures_of_starts_without_a_state_are_kept_aside(tmp_path):
    for tick in range(3):
        with Reporter(tmp_path) as reporter:
            if tick != 1:                                # that start reported nothing
                reporter.end_tick(tick, 1000 * tick)
    assert [line['Progress/kimg']['mean'] for line in lines(tmp_path)] == [2.0]
    kept = (tmp_path / 'stats.jsonl.abandoned').read_text().splitlines()
    assert [json.loads(line)['Progress/kimg']['mean'] for line in kept] == [0.0]


def test_figures_where_there_is_a_folder_of_their_name(tmp_path):
    (tmp_path / 'stats.jsonl').mkdir()
    with pytest.raises(dnnlib.UserError, match='cannot write stats.jsonl there'):
        Reporter(tmp_path)


def test_tensorboard_events(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    with Reporter(tmp_path) as reporter:
        reporter.end_tick(0, 4000, {'Loss/G/loss': {'num': 1, 'mean': 2.5, 'std': 0}})
        reporter.add_metric('frechet_seeded', 7.0, 4000)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    loss, = events.Scalars('Loss/G/loss')
    assert (loss.value, loss.step) == (2.5, 4000)
    assert events.Scalars('Metrics/frechet_seeded')[0].value == 7.0


def test_without_tensorboard(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with Reporter(tmp_path) as reporter:
        reporter.end_tick(0, 1000)
        reporter.add_metric('x', 1, 1000)
    assert 'tensorboard is not installed' in capsys.readouterr().out and len(lines(tmp_path)) == 1


def test_run_folder_missing(tmp_path):
    with pytest.raises(dnnlib.UserError, match='--outdir'):
        Reporter(tmp_path / 'absent')


def test_to_uint8_and_range():
    assert to_uint8(torch.tensor([-1.5, -1, 0, 1, 2])).tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(np.array([2.0, 3.0, np.nan, np.inf]), (2, 3)).tolist() == [0, 255, 0, 255]
    with pytest.raises(ValueError, match='drange'):
        to_uint8(np.zeros(2), (1, 1))
    assert value_range(torch.tensor([1.0, float('inf'), 3.0])) == (1, 3) and value_range(np.full(3, 2.0)) == (0, 1)


def test_grid_places_images_row_by_row(tmp_path):
    images = torch.arange(5).float().reshape(5, 1, 1, 1).expand(5, 3, 2, 4)
    grid = grid_image(images, (3, 2), drange=(0, 255))
    assert grid.shape == (4, 12, 3) and grid[::2, ::4, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
    with pytest.raises(ValueError, match='3x1'):
        grid_image(images, (3, 1))
    save_image_grid(images, tmp_path / 'a.png', (0, 4), (3, 2))
    assert np.asarray(Image.open(tmp_path / 'a.png'))[3, 4].tolist() == [255] * 3
    save_image_grid(images[:, :1].numpy(), tmp_path / 'depth.png', None)         # one channel, range found, one row
    depth = Image.open(tmp_path / 'depth.png')
    assert depth.mode == 'L' and depth.size == (20, 2) and np.asarray(depth)[0, ::4].tolist() == [0, 64, 128, 191, 255]
    with pytest.raises(dnnlib.UserError, match='absent'):
        save_image_grid(images, tmp_path / 'absent' / 'a.png')


def test_turntable_sheet(tmp_path):
    view = [torch.full([2, 3, 2, 2], float(i)) + torch.tensor([0.0, 10]).reshape(2, 1, 1, 1) for i in range(8)]
    save_turntable_sheet(view, tmp_path / 'turn.png', drange=(0, 255))
    sheet = np.asarray(Image.open(tmp_path / 'turn.png'))
    assert sheet[::2, ::2, 0].tolist() == [list(range(8)), list(range(10, 18))]
    save_turntable_sheet([v[0] for v in view], tmp_path / 'one.png', drange=(0, 255))
    assert Image.open(tmp_path / 'one.png').size == (16, 2)
    with pytest.raises(ValueError, match='one shape'):
        save_turntable_sheet([torch.zeros(3, 2, 2), torch.zeros(3, 4, 4)], tmp_path / 'bad.png')


def test_brief_names_are_a_choice(tmp_path, capsys):
    with Reporter(tmp_path, brief=(('Loss/x', 'x'),)) as reporter:
        reporter.end_tick(0, 10, {'Loss/x': {'num': 1, 'mean': 1, 'std': 0}, 'Loss/G/loss': {'num': 1, 'mean': 1, 'std': 0}})
    out = capsys.readouterr().out
    assert out.rstrip().endswith('x 1.000') and 'G 1.0' not in out
