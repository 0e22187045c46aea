"""Going on with a run: after kills, after signals, in another number of processes, with other settings, from damaged files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from dnnlib import UserError
from tiny_runs import PANOHEAD_ONLY, TINY, invoke, run_train, write_heads
from training import state as states
from training.trainer import Trainer

HERE = Path(__file__).resolve().parent
EVERY_STEP = '--tick 0.004 --state_ticks 1 --snap 0'


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp('heads'))


@pytest.fixture(scope='module')
def run(heads, tmp_path_factory):
    """Folder of a finished run of three steps with a state after each."""
    return run_train(tmp_path_factory.mktemp('runs'), heads, f'--kimg 0.012 {EVERY_STEP}')


@pytest.fixture
def copy(run, tmp_path):
    """A copy of that run in a folder of its own."""
    return Path(shutil.copytree(run, tmp_path / 'runs' / run.name))


def train_again(outdir, heads, flags=''):
    """Result of the command of `run` with more flags."""
    return invoke(train, f'--outdir {outdir} --img_data {heads[0]} --seg_data {heads[1]} {TINY} {PANOHEAD_ONLY} {EVERY_STEP} {flags}')


def kimgs(run_dir):
    """kimg of the lines of stats.jsonl."""
    return [json.loads(line)['Progress/kimg']['mean'] for line in (run_dir / 'stats.jsonl').read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Kills.

def test_killed_runs_end_as_if_undisturbed():
    """The short form of the tool's fifty kills: a run killed at random moments, saving included, loses at most one interval
    and ends bit for bit like a run in one go."""
    command = [sys.executable, HERE / 'random_kills.py', '--kills', '3', '--steps', '12', '--longest', '4']
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'kills in a run of 12 steps' in done.stdout


def test_run_killed_before_its_first_state_starts_its_figures_anew(copy, heads):
    """What it had reported is set aside: it is trained again."""
    reported = (copy / 'stats.jsonl').read_text()
    for path in (*states.state_files(copy), copy / states.FINISHED):
        path.unlink()
    result = train_again(copy.parent, heads, '--kimg 0.008')
    assert result.exit_code == 0 and f'Run folder: {copy}, which is gone on with' in result.output
    assert kimgs(copy) == pytest.approx([0.004, 0.008])
    assert (copy / 'stats.jsonl.abandoned').read_text() == reported


# ---------------------------------------------------------------------------------------------------------------------
# Which run is gone on with.

def test_unfinished_run_is_gone_on_with(copy, heads):
    """The same command with more to train goes on in the same folder; done, it starts anew; so does --fresh at any time."""
    result = train_again(copy.parent, heads, '--kimg 0.02 --workers 1')
    assert result.exit_code == 0 and f'Run folder: {copy}, which is gone on with' in result.output
    assert 'Going on from' in result.output and '0.012 kimg' in result.output
    assert kimgs(copy) == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02])
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    for flags in ('--kimg 0.02', '--kimg 0.024 --fresh'):
        result = train_again(copy.parent, heads, flags)
        assert result.exit_code == 0 and 'gone on with' not in result.output
    assert len(list(copy.parent.iterdir())) == 3


def test_other_settings_start_a_new_run_and_say_so(copy, heads):
    result = train_again(copy.parent, heads, '--kimg 0.02 --gamma 3')
    assert result.exit_code == 0 and '00001-ffhq-heads-gpus1-batch4-gamma3' in result.output
    assert f'Not gone on with: {copy}' in result.output and 'loss.r1_gamma: 0.2 -> 3.0' in result.output


def test_changed_settings_are_refused_unless_allowed(copy, heads):
    result = train_again(copy.parent, heads, f'--kimg 0.016 --resume {copy} --gamma 3 --glr 0.001')
    assert result.exit_code == 2 and 'loss.r1_gamma: 0.2 -> 3.0' in result.output and 'G_opt.lr: 0.0025 -> 0.001' in result.output
    assert '--allow-changes' in result.output and 'Traceback' not in result.output
    result = train_again(copy.parent, heads, f'--kimg 0.016 --resume {copy} --gamma 3 --glr 0.001 --allow-changes')
    assert result.exit_code == 0 and kimgs(copy)[-1] == pytest.approx(0.016)
    state, _ = states.newest_state(copy)
    assert state['optimizers']['G']['param_groups'][0]['lr'] == 0.001
    assert json.loads((copy / 'training_options.json').read_text())['loss']['r1_gamma'] == 3


def test_earlier_state_is_gone_on_with(copy, heads):
    """--resume names one state: later ones are set aside, and what was logged after it is written anew."""
    first = states.state_files(copy)[0]
    before = kimgs(copy)
    result = train_again(copy.parent, heads, f'--kimg 0.012 --resume {first}')
    assert result.exit_code == 0 and '0.004 kimg' in result.output
    assert kimgs(copy) == pytest.approx(before) and len(list(copy.glob('*.abandoned'))) == 2


def test_second_stage_is_found_again(run, heads, tmp_path):
    """--resume with a snapshot starts a stage of its own, in which the same command goes on."""
    flags = f'--resume {max(run.glob("network-snapshot-*.pkl"))} --resume_kimg 1'
    assert train_again(tmp_path, heads, f'{flags} --kimg 1.004').exit_code == 0
    result = train_again(tmp_path, heads, f'{flags} --kimg 1.008')
    assert 'which is gone on with' in result.output and kimgs(max(tmp_path.iterdir())) == pytest.approx([1.004, 1.008])


def test_two_processes_cannot_write_one_run(copy, heads, monkeypatch):
    monkeypatch.setattr(states, 'LOCK_SECONDS', 0.1)
    with states.only_writer(copy):
        result = train_again(copy.parent, heads, '--kimg 0.02')
    assert result.exit_code == 2 and 'another process trains this run' in result.output and '--fresh' in result.output


def test_folder_without_state_is_refused(heads, tmp_path):
    result = train_again(tmp_path / 'out', heads, f'--resume {tmp_path}')
    assert result.exit_code == 2 and 'no training-state-NNNNNN.pt' in result.output


# ---------------------------------------------------------------------------------------------------------------------
# The files.

def test_state_holds_everything(run):
    state, path = states.newest_state(run)
    assert path == states.state_files(run)[-1] and state['schema'] == states.SCHEMA
    assert state['counters']['nimg'] == 12 and state['counters']['batch_index'] == 3 and state['counters']['drawn'] == 12
    assert set(state['networks']) == {'G', 'D', 'G_ema'} and set(state['optimizers']) == {'G', 'D'}
    assert state['config'] == json.loads((run / 'training_options.json').read_text())
    assert set(state['ranks'][0]['random']) == {'torch', 'cuda', 'numpy', 'python'}
    assert state['optimizers']['G']['state'][0]['exp_avg'].isfinite().all()


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'text', 'code'])
def test_damaged_state_is_set_aside(copy, damage):
    newest = states.state_files(copy)[-1]
    data = bytearray(newest.read_bytes())
    if damage == 'flip':
        data[len(data) // 2] ^= 1
    elif damage == 'cut':
        data = data[:len(data) * 2 // 3]
    elif damage == 'code':
        torch.save({'format': states.FORMAT, 'schema': states.SCHEMA, 'x': Trap(copy / 'ran')}, newest)
        data = newest.read_bytes()
    else:
        data = b'' if damage == 'empty' else b'not a state'
    newest.write_bytes(data)
    with pytest.raises(UserError, match=newest.name):
        states.read_state(newest)
    state, path = states.newest_state(copy)
    assert path == states.state_files(copy)[-1] != newest and state['counters']['nimg'] == 8
    assert newest.with_name(f'{newest.name}.damaged').exists() and not (copy / 'ran').exists()


class Trap:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_every_flipped_bit_is_noticed(tmp_path):
    """Also where PyTorch's own reader would not look."""
    path = tmp_path / 'state.pt'
    states.write_state(path, {'x': torch.arange(300.0), 'y': 'plain'})
    whole = path.read_bytes()
    silent = []
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1:])
        try:
            if states.content_digest(states.read_state(path)) != states.content_digest({
                    'format': states.FORMAT, 'schema': states.SCHEMA, 'x': torch.arange(300.0), 'y': 'plain'}):
                silent.append(position)
        except UserError:
            pass
    assert silent == []


def test_state_of_another_schema_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'training-state-000001.pt'
    monkeypatch.setattr(states, 'SCHEMA', 99)
    states.write_state(path, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match='schema 99'):
        states.read_state(path)


def test_names_of_moments():
    taken = {}
    assert [states.label(nimg, taken) for nimg in (0, 400, 1200, 1999, 1200)] == ['000000', '000000_400', '000001', '000001_999', '000001']


def test_last_states_are_kept(heads, tmp_path):
    run_dir = run_train(tmp_path, heads, f'--kimg 0.02 {EVERY_STEP} --keep_states 2')
    assert [path.name for path in states.state_files(run_dir)] == ['training-state-000000_016.pt', 'training-state-000000_020.pt']


def test_state_by_the_clock(heads, tmp_path):
    """Without ticks and snapshots there is one as soon as the clock says so."""
    run_dir = run_train(tmp_path, heads, '--kimg 0.02 --tick 1 --snap 0 --state_minutes 0.00001')
    assert len(states.state_files(run_dir)) > 1


# ---------------------------------------------------------------------------------------------------------------------
# SIGTERM.

def test_terminated_run_saves_and_says_run_again(heads, tmp_path, monkeypatch):
    """The step is finished, only the state is written, the exit code says that there is more to do; the figures of the tick
    that was cut short are those of a run in one go."""
    whole = run_train(tmp_path / 'whole', heads, '--kimg 0.024 --tick 0.012 --snap 0')
    step = Trainer.step

    def terminated(self):
        step(self)
        if self.batch_index == 4:
            os.kill(os.getpid(), 15)
    monkeypatch.setattr(Trainer, 'step', terminated)
    command = (f'--outdir {tmp_path / "cut"} --img_data {heads[0]} --seg_data {heads[1]} {TINY} {PANOHEAD_ONLY} '
               '--kimg 0.024 --tick 0.012 --snap 0')
    result = invoke(train, command)
    assert result.exit_code == 75 and 'Terminated. The same command goes on from 0.016 kimg' in result.output
    monkeypatch.undo()
    assert invoke(train, command).exit_code == 0
    lines = [[json.loads(line) for line in (max(folder.glob('0*')) / 'stats.jsonl').read_text().splitlines()]
             for folder in (whole.parent, tmp_path / 'cut')]
    assert len(lines[0]) == len(lines[1]) == 2
    for name in lines[0][1]:
        if name.startswith(('Loss/', 'Gradients/')):
            assert lines[0][1][name]['num'] == lines[1][1][name]['num'], name
            assert lines[0][1][name]['mean'] == pytest.approx(lines[1][1][name]['mean'], abs=1e-6), name
