"""The benchmarks' tables, and that a benchmark measures what it is given."""

import importlib
import json
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from dnnlib import UserError
from project_files import ROOT

RECORD = {'benchmark': 'frame', 'size': 512, 'figures': {'whole': {'fast': {'wall_sec': 1.5, 'cpu_sec': 2.0, 'peak_mb': 100.0},
                                                                   'reference': {'wall_sec': 6.0, 'cpu_sec': 16.0, 'peak_mb': 50.0}}},
          'repeats': 3, 'precision': 'auto', 'commit': 'abc', 'date': '2026-01-01', 'device': 'cpu: some', 'threads': 1,
          'python': '3.11', 'versions': {'torch': '2.9'}}


@pytest.fixture
def benchmark(monkeypatch):
    """Function that imports a module of benchmarks/."""
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'benchmarks'), *sys.path])
    return importlib.import_module


def test_table_has_figures_and_ratios(benchmark):
    text = benchmark('table').table(RECORD)
    assert '| whole | 1.5 | 2 | 100 | 6 | 16 | 50 | 4 | 8 | 0.5 |' in text
    assert 'size 512' in text and 'commit abc' in text and 'torch 2.9' in text


def test_last_line_counts(benchmark):
    table = benchmark('table')
    other = {**RECORD, 'size': 256}
    lines = [json.dumps(r) for r in (RECORD, other, {**RECORD, 'commit': 'def'})]
    assert [(r['size'], r['commit']) for r in table.read_records(lines)] == [(512, 'def'), (256, 'abc')]
    with pytest.raises(UserError, match='line 2 is no result'):
        table.read_records([lines[0], '{}'])


def test_tables_replace_what_stood_there(benchmark, tmp_path):
    table = benchmark('table')
    (tmp_path / 'results.jsonl').write_text(json.dumps(RECORD))
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{table.BEGIN}\nold\n{table.END}\nafter\n')
    for _ in range(2):
        result = CliRunner().invoke(table.main, [str(tmp_path / 'results.jsonl'), '--write', str(page)])
        assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith('before') and text.endswith('after\n') and 'old' not in text and text.count('| whole |') == 1
    page.write_text('no marks')
    assert CliRunner().invoke(table.main, [str(tmp_path / 'results.jsonl'), '--write', str(page)]).exit_code == 2


def test_measures_time_by_unit_and_memory(benchmark):
    harness, cpu = benchmark('harness'), torch.device('cpu')

    def sleep_twice():
        time.sleep(0.02)
        return 2

    assert 0.01 <= harness.time_call(sleep_twice, cpu)['wall_sec']
    if not harness.Path('/proc/self/clear_refs').exists():
        pytest.skip('memory is measured on Linux only')
    assert harness.memory_of_call(lambda: torch.ones(2 ** 24), cpu)['peak_mb'] > 60


@pytest.mark.parametrize('stage', ['latents', 'generator'])
def test_an_inversion_takes_the_steps_that_are_asked_for(benchmark, stage):
    speed = benchmark('inversion_speed')
    options = benchmark('harness').Options('cpu', 1, 'auto', {'network': 'demo', 'recipe': 'panohead'})
    work = speed.build(False, options)
    assert list(work) == ['panohead stage 1', 'panohead stage 2']
    seen = []
    paused = speed.start('panohead', stage, options, observe=lambda *told: seen.append(told[:2]))
    assert paused.take(2) == 2 and seen[-2:] == [(stage, 0), (stage, 1)]
    assert paused.take(1) == 1 and seen[-1] == (stage, 2)
    paused.close()


def test_an_inversion_that_fails_says_so(benchmark):
    def fail(journal):
        journal.offer('x', None)
        raise ValueError('no picture')
    paused = benchmark('inversion_speed').Pauses('x', fail)
    for _ in range(2):
        with pytest.raises(ValueError, match='no picture'):
            paused.take(1)


def test_faces_behind_stand_where_the_backs_stood(benchmark):
    back = benchmark('metrics_back')
    yaws = torch.tensor([170.0, -100, 95, 20, -45, 80, -10, -170])
    real, other = back.choose(yaws.numpy(), 4, 0.5)
    assert len({*real, *other}) == 8
    for order in (real, other):
        assert (yaws[order].abs() >= 90).tolist() == [True, True, False, False]


def test_too_few_heads_are_refused(benchmark):
    with pytest.raises(UserError, match='--data: 1 heads seen from behind, 2 are needed'):
        benchmark('metrics_back').choose(torch.tensor([170.0, 0, 1, 2, 3, 4]).numpy(), 3, 0.3)


def test_the_opposite_of_a_back_view_is_as_high_and_as_far_aside(benchmark):
    back = benchmark('metrics_back')
    labels = back.label_at(torch.tensor([170.0, -100]), torch.tensor([12.0, -8]))
    fronts = back.opposite(labels)
    assert torch.allclose(fronts, back.label_at(torch.tensor([10.0, -80]), torch.tensor([12.0, -8])), atol=1e-5)
    assert torch.allclose(back.opposite(fronts), labels, atol=1e-5)
