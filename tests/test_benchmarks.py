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
from torch_utils.ops import native, winograd
from training.networks.stylegan2 import SynthesisBlock

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


@pytest.fixture
def traced_layer(benchmark, monkeypatch):
    """(layer, input, latent) of a size that our C++ convolves, in a process that benchmarks/compiled.py has helped to trace."""
    if not native.load_native():
        pytest.skip('no C++ operators here: no compiler, or switched off')
    monkeypatch.setattr(winograd, 'types', winograd.types)    # help_tracing replaces it
    monkeypatch.setattr(native.load_native, '_dynamo_marked_constant', False, raising=False)
    benchmark('compiled').help_tracing()
    torch.manual_seed(0)
    block = SynthesisBlock(16, 32, 8, 64, 3).eval().requires_grad_(False)
    yield block, (torch.randn(1, 16, 32, 32), torch.randn(1, 3, 32, 32), torch.randn(1, 3, 8))
    torch.compiler.reset()


def test_operators_are_calls_in_one_graph(traced_layer):
    block, inputs = traced_layer
    seen = []

    def backend(graph, _):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    with torch.inference_mode():
        expected = block(*inputs, noise_mode='const')
        found = torch.compile(block, backend=backend, fullgraph=True)(*inputs, noise_mode='const')
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert len(seen) == 1
    assert [sum(name in target for target in seen[0]) for name in ('winograd_convolve', 'upsample_add')] == [3, 1]


@pytest.mark.parametrize('operator', ['winograd_convolve', 'upsample_add'])
@pytest.mark.parametrize('up', [1, 2])
def test_fake_results_are_laid_out_as_the_operators(traced_layer, benchmark, operator, up):
    compiled = benchmark('compiled')
    if operator == 'upsample_add':
        args = torch.randn(up, 3, 16, 16), torch.ones(4, 4), torch.randn(up, 3, 32, 32)
        fake = compiled._fake_upsample_add(*args)
    else:
        args = (torch.randn(1, 16, 32, 32), torch.randn(48, 16, 3, 3), torch.ones(4, 4) if up == 2 else None, None, False, None, None,
                1.0, 1.0, float('inf'), 'float32')
        fake = compiled._fake_convolution(*args)
    real = getattr(torch.ops.omnihead, operator)(*args)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_break_even_is_what_the_first_call_costs_over_the_gain(benchmark):
    compare = benchmark('compiled').compare
    figure = {'cpu_sec': 1.5, 'first_cpu_sec': 51.5, 'again_cpu_sec': 2.0}
    compare(figure, {'cpu_sec': 2.0})
    assert (figure['ratio'], figure['first_break_even'], figure['again_break_even']) == (1.333, 100, 1)
    slower = {'cpu_sec': 2.5, 'first_cpu_sec': 51.5, 'again_cpu_sec': 2.0}
    compare(slower, {'cpu_sec': 2.0})
    assert slower['ratio'] < 1 and slower['first_break_even'] is None


def test_unknown_variants_are_refused(benchmark):
    result = CliRunner().invoke(benchmark('compiled').main, ['--variants', 'eager,fastest', '--device', 'cpu'])
    assert result.exit_code == 2 and '--variants fastest: must be of eager, parts' in result.output


def test_frames_compiled_are_timed(benchmark):
    """One part of the table, with nothing that takes Inductor's minutes."""
    compiled = benchmark('compiled')
    options = benchmark('harness').Options('cpu', 1, 'float32', {'network': 'demo'})
    figures = compiled.timed('kept field', {'eager': (False, ''), 'plain eager': (True, '')}, options, 1)
    assert list(figures) == ['eager', 'plain eager'] and all(f['first_cpu_sec'] > 0 < f['cpu_sec'] for f in figures.values())
