"""What goes wrong in long runs, injected one by one: figures that are not finite, damaged and lost images, a full disk, a killed
reader. Each test looks at what was kept."""

import errno
import json
import math
import os
import subprocess
import sys
import zipfile

import pytest
import torch

import train
from project_files import ROOT
from tiny_runs import PANOHEAD_ONLY, TINY, invoke, write_heads
from training import state as states
from training import trainer as trainer_module
from training.dataset import reader_died
from training.losses.adversarial import AdversarialLoss
from training.trainer import Trainer


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp('heads'))


def run(outdir, data, flags):
    """(result, run folder) of a small run with a state after each step."""
    data = f'--img_data {data[0]} --seg_data {data[1]}'
    result = invoke(train, f'--outdir {outdir} {data} {TINY} {PANOHEAD_ONLY} --state_ticks 1 --snap 0 {flags}')
    return result, max(outdir.iterdir())


def stats(run_dir):
    """Lines of stats.jsonl."""
    return [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Loss and gradients.

def spoil(monkeypatch, when, what):
    """Where when(trainer) holds, the phase Gmain gives a loss or a gradient that is not finite."""
    accumulate, run_phase, now = AdversarialLoss.accumulate, Trainer.run_phase, []

    def noting(self, *args):
        now[:] = [self]
        run_phase(self, *args)

    def spoiled(self, phase, *args, **kwargs):
        loss = accumulate(self, phase, *args, **kwargs)
        if phase != 'Gmain' or not when(now[0]):
            return loss
        if what == 'gradient':
            next(p for p in self.generator.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
        return loss * math.nan if what == 'loss' else loss
    monkeypatch.setattr(Trainer, 'run_phase', noting)
    monkeypatch.setattr(AdversarialLoss, 'accumulate', spoiled)


@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_step_is_skipped_and_counted(heads, tmp_path, monkeypatch, what):
    spoil(monkeypatch, lambda trainer: trainer.batch_index == 1, what)
    result, run_dir = run(tmp_path, heads, '--kimg 0.012 --tick 0.004')
    assert result.exit_code == 0
    skipped = [line['Progress/skipped_steps'] for line in stats(run_dir)]
    assert [round(entry['num'] * entry['mean']) for entry in skipped] == [0, 1, 0]
    assert all(tensor.isfinite().all() for tensor in states.newest_state(run_dir)[0]['networks']['G'].values())


def test_run_goes_back_to_its_last_good_state_and_on(heads, tmp_path, monkeypatch):
    """From step 2 on nothing is finite, until the run goes back and takes other random numbers."""
    monkeypatch.setattr(trainer_module, 'MAX_SKIPPED_STEPS', 4)
    spoil(monkeypatch, lambda trainer: trainer.salt == 0 and trainer.batch_index >= 2, 'gradient')
    result, run_dir = run(tmp_path, heads, '--kimg 0.032 --tick 0.004')
    assert result.exit_code == 0, result.output
    assert '4 steps in a row of phase Gmain were not finite' in result.output and 'going back' in result.output
    # Steps 2 and 3 were skipped, and states kept with them; from three skipped steps in a row none is.
    assert 'Going on from' in result.output and 'at 0.016 kimg' in result.output
    state, _ = states.newest_state(run_dir)
    assert state['counters']['salt'] == 1 and state['counters']['nimg'] == 32
    assert len(stats(run_dir)) == 8


def test_run_that_cannot_be_saved_says_what_it_knows(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, 'MAX_SKIPPED_STEPS', 3)
    spoil(monkeypatch, lambda trainer: trainer.batch_index >= 2, 'gradient')
    result, run_dir = run(tmp_path, heads, '--kimg 0.1 --tick 0.004')
    assert result.exit_code == 2 and 'Traceback' not in result.output
    assert result.output.count('going back') == 2 and 'Going back 2 times' in result.output
    assert 'phase Gmain' in result.output and 'gradients of 1 parameters: backbone.' in result.output and '--glr' in result.output
    assert states.newest_state(run_dir)[0]['networks']['G']['backbone.synthesis.b4.const'].isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Images.

def damage(path, name):
    """Spoil the content of one file in a zip."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data[info.header_offset + info.compress_size // 2] ^= 255
    path.write_bytes(data)


def test_damaged_image_is_named_passed_over_and_counted(tmp_path, monkeypatch):
    data = write_heads(tmp_path, num=8)
    with zipfile.ZipFile(data[0]) as archive:
        name = sorted(name for name in archive.namelist() if name.endswith('.png'))[5]
    step = Trainer.step

    def damaging(self):
        step(self)
        if self.batch_index == 2:
            damage(data[0], name)
    monkeypatch.setattr(Trainer, 'step', damaging)
    result, run_dir = run(tmp_path / 'runs', data, '--kimg 0.024 --tick 0.008')
    assert result.exit_code == 0, result.output
    assert result.output.count(f'passed over {data[0]}/{name}') == 1
    counted = [line['Progress/damaged_images'] for line in stats(run_dir)]
    # Eight images are drawn a tick, each of the set once.
    assert [round(entry['num'] * entry['mean']) for entry in counted] == [0, 1, 1]
    assert name in (run_dir / 'log.txt').read_text()


def test_lost_data_end_the_run(tmp_path, monkeypatch):
    folders = [tmp_path / 'images', tmp_path / 'masks']
    for source, folder in zip(write_heads(tmp_path), folders):
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)
    step = Trainer.step

    def losing(self):
        step(self)
        if self.batch_index == 2:
            folders[0].rename(tmp_path / 'elsewhere')
    monkeypatch.setattr(Trainer, 'step', losing)
    result, run_dir = run(tmp_path / 'runs', folders, '--kimg 1 --tick 0.004')
    assert result.exit_code == 2 and 'are the data still there?' in result.stderr.splitlines()[-1]
    assert str(folders[0]) in result.stderr.splitlines()[-1]
    assert states.newest_state(run_dir)[0]['counters']['nimg'] == 8


# In a process of its own: PyTorch tells of dead readers by an interruption that may come at any time, and nobody else's children
# shall be killed.
KILLING = """
import os, signal, sys
import psutil
import train
from training.trainer import Trainer

read = Trainer.real_batch

def killing(self):
    if self.batch_index < 2:
        return read(self)
    for child in psutil.Process().children():
        os.kill(child.pid, signal.SIGKILL)
    while True:     # the next images, until the news arrives
        read(self)

Trainer.real_batch = killing
train.main(sys.argv[1:])
"""


def test_killed_reader_ends_the_run(heads, tmp_path):
    flags = f'{TINY} {PANOHEAD_ONLY} --state_ticks 1 --snap 0 --kimg 1 --tick 0.004 --workers 1'.split()
    done = subprocess.run([sys.executable, '-c', KILLING, '--outdir', tmp_path, '--img_data', heads[0], '--seg_data', heads[1], *flags],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and '--workers: a process that reads images ended' in done.stderr.splitlines()[-1], done.stderr
    assert states.newest_state(max(tmp_path.iterdir()))[0]['counters']['nimg'] >= 8


@pytest.mark.parametrize('error, reason', [(EOFError(), '(EOFError)'), (ConnectionResetError(104, 'reset'), '([Errno 104] reset)'),
                                           (RuntimeError('DataLoader worker is killed\nmore'), '(DataLoader worker is killed)')])
def test_news_of_a_dead_reader(error, reason):
    """Also an error without words, as a connection gives that is cut off in the middle."""
    assert reason in str(reader_died(error))
    assert reader_died(RuntimeError('of something else')) is None


# ---------------------------------------------------------------------------------------------------------------------
# Full disk.

def fill_disk(monkeypatch, full):
    """Where full() holds, half a training state fits on the disk."""
    save = torch.save

    def saving(value, file):
        if full():
            file.write(b'PK\x03\x04' * 100)
            file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(value, file)
    monkeypatch.setattr(torch, 'save', saving)


def test_full_disk_keeps_the_previous_state(heads, tmp_path, monkeypatch):
    calls = []
    fill_disk(monkeypatch, lambda: calls.append(1) or len(calls) > 1)
    result, run_dir = run(tmp_path, heads, '--kimg 0.012 --tick 0.004')
    assert result.exit_code == 2 and 'Traceback' not in result.output
    assert 'NOT WRITTEN: training state' in result.output and 'No space left on device' in result.stderr.splitlines()[-1]
    state, path = states.newest_state(run_dir)
    assert state['counters']['nimg'] == 4 and states.state_files(run_dir) == [path]
    assert not list(run_dir.glob('.partial-*')) and len(stats(run_dir)) == 3       # training went on


def test_disk_that_was_full_for_a_while(heads, tmp_path, monkeypatch):
    calls = []
    fill_disk(monkeypatch, lambda: calls.append(1) or len(calls) == 2)
    result, run_dir = run(tmp_path, heads, '--kimg 0.012 --tick 0.004')
    assert result.exit_code == 0 and result.output.count('NOT WRITTEN') == 1
    assert states.newest_state(run_dir)[0]['counters']['nimg'] == 12
