"""training.plan: arithmetic on a made-up table, the committed table, and counting by shapes against numbers counted by hand."""

import json
import os

import pytest
import torch
from click.testing import CliRunner

import dnnlib
from torch_utils import training_stats
from training import plan
from training.presets import PRESETS

GB = 10 ** 9
MEASURED = {'peak_bytes': {'1': 4 * GB, '2': 5 * GB, '4': 7 * GB}, 'precision': 'auto', 'device': 'a machine', 'torch': '2',
            'date': 'today', 'seconds_per_image': {'Gmain': 2.0, 'Dmain': 1.0, 'Dreg': 16.0}}
OPERATIONS = {'Gmain': [2 * 10 ** 12, 1], 'Dmain': [10 ** 12, 1], 'Dreg': [16 * 10 ** 12, 16]}
TABLE = {
    'panohead-512': {'preset': 'panohead-512', 'fixed_bytes': 2 * GB, 'saved_bytes': 2 * GB, 'operations': OPERATIONS,
                     'measured': MEASURED},
    'eg3d-512': {'preset': 'eg3d-512', 'fixed_bytes': GB, 'saved_bytes': 3 * GB, 'operations': OPERATIONS},
}


def test_memory_is_a_line_through_the_measurements():
    row = TABLE['panohead-512']
    assert plan.bytes_per_image(row, TABLE) == (GB, True)
    for batch, peak in MEASURED['peak_bytes'].items():
        assert plan.needed_bytes(row, TABLE, int(batch)) == pytest.approx(peak * 1.1 + plan.RESERVE)


def test_memory_without_a_measurement_is_computed_from_what_others_took():
    row = TABLE['eg3d-512']
    assert plan.bytes_per_image(row, TABLE) == (1.5 * GB, False)
    assert plan.needed_bytes(row, TABLE, 2) == pytest.approx(4 * GB * 1.1 + plan.RESERVE)


@pytest.mark.parametrize('memory, chosen, rounds', [(8, 2, 16), (12, 4, 8), (14, 8, 4), (60, 32, 1), (6, 1, 32)])
def test_the_largest_batch_that_fits(memory, chosen, rounds):
    text = '\n'.join(plan.make_plan('panohead-512', memory * GB, table=TABLE))
    assert f'--gpus 1 --batch 32 --batch-gpu {chosen}\n' in text and f'{rounds} round' in text
    assert plan.needed_bytes(TABLE['panohead-512'], TABLE, chosen) <= memory * GB
    assert chosen == 32 or plan.needed_bytes(TABLE['panohead-512'], TABLE, 2 * chosen) > memory * GB


def test_time_follows_operations_and_speed():
    lines = plan.make_plan('panohead-512', 80 * GB, gpus=8, tflops=10, table=TABLE)
    text = '\n'.join(lines)
    # 4 TFLOP an image, 1000 images, 8 GPUs of 10 TFLOP/s; Dreg counts by its interval.
    assert '50 s per kimg' in text and '4.00 TFLOP an image (counted) at 10 TFLOP/s' in text
    assert 'it took 1h 06m 40s per kimg' in text


def test_what_is_measured_and_what_is_not_is_said():
    measured, computed = ('\n'.join(plan.make_plan(preset, 80 * GB, table=TABLE)) for preset in TABLE)
    assert 'GB an image (measured)' in measured and 'on a machine' in measured
    assert 'GB an image (computed from shapes' in computed and 'measured  ' not in computed
    for text in (measured, computed):
        assert text.count('(assumed)') == 1 and '--tflops, assumed' in text and '(counted)' in text


@pytest.mark.parametrize('arguments, message', [
    (dict(preset='panohead-512', memory=4 * GB), r'--memory 4.0GB: panohead-512 needs 5.5 GB for one image'),
    (dict(preset='panohead-512', memory=80 * GB, gpus=5), '--batch 32: must be a multiple of --gpus 5'),
    (dict(preset='banana', memory=80 * GB), '--preset banana: is not in the table')])
def test_plans_that_cannot_be(arguments, message):
    with pytest.raises(dnnlib.UserError, match=message):
        plan.make_plan(table=TABLE, **arguments)


def test_whole_groups_of_the_minibatch_deviation():
    assert plan.allowed_batches(24, 4) == [24, 12, 8, 4, 3, 2, 1]
    assert plan.allowed_batches(6, 4) == [3, 2, 1]


def test_every_preset_has_a_row():
    table = plan.read_table()
    assert set(table) <= set(PRESETS)
    assert any('measured' in row for row in table.values())
    for row in table.values():
        assert row['fixed_bytes'] > 0 and row['saved_bytes'] > 0 and plan.operations_per_image(row) > 0
    for preset in PRESETS:
        assert plan.make_plan(preset, 10 ** 12)[0].startswith(f'{preset} on 1 GPU')
    assert plan.find_row('panohead-512-backs', table) is table['panohead-512']
    assert plan.find_row('panohead-512-stage2', table) is table['panohead-512-stage2']
    assert table['panohead-512']['saved_bytes'] > table['panohead-128']['saved_bytes'] > table['synthetic-64']['saved_bytes']


def test_counting_by_shapes(monkeypatch):
    monkeypatch.setattr(training_stats, 'report', lambda name, value: value)
    row = plan.outline('synthetic-64')
    phases, _, score = plan._step('synthetic-64', 2, 'float32', torch.device('cpu'))
    networks = {phase.owner: phase.network for phase in phases}
    parameters = {key: sum(p.numel() for p in network.parameters()) for key, network in networks.items()}
    buffers = sum(b.numel() for network in networks.values() for b in network.buffers())
    # Weights, gradients and Adam's two means of both, and the moving average of one.
    assert row['fixed_bytes'] == 4 * (4 * (parameters['G'] + parameters['D']) + parameters['G'] + buffers)
    assert set(row['operations']) == {'Gmain', 'Dmain', 'Dreg'} and row['operations']['Dreg'][1] == 16
    with plan.FlopCounterMode(display=False) as counter:
        score()
    counted = row['operations']['Dreg'][0] * 2 / plan.R1_SCORES     # two images; the operators are those of meta tensors
    assert counted >= counter.get_total_flops() * 0.99
    committed = plan.read_table()['synthetic-64']
    for name, (operations, interval) in committed['operations'].items():
        assert row['operations'][name] == (pytest.approx(operations, rel=0.02), interval), 'the table is old: measure --save again'


def test_a_process_that_dies_is_told():
    with pytest.raises(dnnlib.UserError, match='measuring 3: the process died'):
        plan._in_new_process(os._exit, 3)
    assert plan._in_new_process(max, 3, 4) == 4


@pytest.mark.parametrize('command, code, message', [
    ('--preset panohead-512 --memory 24GB --gpus 8', 0, '--batch-gpu'), ('--preset panohead-512', 2, '--preset and --memory are needed'),
    ('--preset panohead-512 --memory lots', 2, 'is not a size'), ('--preset panohead-512 --memory 1GB', 2, 'for one image at a time'),
    ('measure --preset synthetic-64 --batches 2', 2, '--batches 2: give two or more')])
def test_command(command, code, message):
    result = CliRunner().invoke(plan.main, command.split())
    assert result.exit_code == code and message in result.output and 'Traceback' not in result.output


def test_rows_are_saved_in_the_order_of_the_presets(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, 'TABLE', tmp_path / 'table.json')
    monkeypatch.setattr(plan, 'measure', lambda preset, batches, precision, device: {'preset': preset, 'new': list(batches)})
    for preset in ('eg3d-128', 'panohead-512', 'eg3d-128'):
        result = CliRunner().invoke(plan.main, ['measure', '--preset', preset, '--batches', '1,4', '--save'], catch_exceptions=False)
        assert result.exit_code == 0
    assert [row['preset'] for row in json.loads((tmp_path / 'table.json').read_text())] == ['panohead-512', 'eg3d-128']
