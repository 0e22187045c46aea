"""Several processes train as one: the same weights, resumed in another number, and the end of all when one fails."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gen_samples
import train
from tiny_runs import PANOHEAD_ONLY, TINY, invoke, write_heads
from torch_utils import distributed, misc
from training import state as states
from training.keeper import Keeper
from training.trainer import Trainer

HERE = Path(__file__).resolve().parent
# Everything that draws random numbers or looks at more than one sample is on. Groups of two samples lie within a process
# whether 1, 2 or 4 share the batch of 8. No bfloat16, and an epsilon above the rounding of gradients that are next to nothing:
# with the usual 1e-8 Adam makes whole steps of it.
FLAGS = (f'{TINY} {PANOHEAD_ONLY} --batch 8 --mbstd-group 2 --aug=ada --augpipe bgcfnc --target 0.01 --density_reg 1 '
         '--density_noise_fade_kimg 1 --style_mixing_prob 0.5 --set loss.noise_mode=random --set augment.p=0.5 --bcg_reg_prob 0.5 '
         '--c-noise 0.5 --disc_c_noise 0.5 --trans_reg 1 --gpc_reg_prob 0.5 --gen_pose_cond True '
         '--g_num_fp16_res 0 --d_num_fp16_res 0 --sr_num_fp16_res 0 --set G_opt.eps=1e-5 --set D_opt.eps=1e-5')
STEPS = 10


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp('heads'))


def config_of(heads, flags):
    """Configuration of a run."""
    return json.loads(invoke(train, f'--outdir x --img_data {heads[0]} --seg_data {heads[1]} {FLAGS} {flags} -n').stdout)


def train_some(config, run_dir, steps):
    """In each of several processes: steps until there are so many in all, then a state of them; rank 0 notes statistics."""
    trainer = Trainer(config, run_dir, distributed.init(misc.resolve_device('cpu')))
    keeper = Keeper(trainer, 0, 0, 9)
    keeper.restore()
    while trainer.batch_index < steps:
        trainer.step()
    keeper.save(None, {})
    trainer.collector.update()
    misc.check_ddp_consistency(trainer.G)
    misc.check_ddp_consistency(trainer.D)
    misc.check_ddp_consistency(trainer.ema.average)
    if trainer.rank == 0:
        (Path(run_dir) / 'stats.json').write_text(json.dumps(trainer.collector.as_dict()))


def tensors(value, name=''):
    """(name, tensor) of all in nested dicts."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from tensors(item, f'{name}{key}.')
        elif isinstance(item, torch.Tensor):
            yield f'{name}{key}', item.double()


def difference(run_dir, other):
    """(largest difference, where) of networks and optimisers in the last states of two runs; of numbers beyond 1, such as
    the weights of mapping networks, the part that differs."""
    (a, _), (b, _) = (states.newest_state(folder) for folder in (run_dir, other))
    a, b = ([pair for key in ('networks', 'optimizers') for pair in tensors(state[key])] for state in (a, b))
    assert [name for name, _ in a] == [name for name, _ in b]
    return max((float(((x - y).abs() / y.abs().clamp(min=1)).max()), name) for (name, x), (_, y) in zip(a, b))


@pytest.fixture(scope='module')
def single(heads, tmp_path_factory):
    """A run of ten steps in one process."""
    folder = tmp_path_factory.mktemp('single')
    train_some(config_of(heads, ''), folder, STEPS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('stages', [[(4, 2, STEPS)], [(2, 4, 4), (1, 2, 7), (2, 2, STEPS)]], ids=['four', 'two-one-two'])
def test_split_makes_no_difference(single, heads, tmp_path, stages):
    """Four processes; and two, one and two again, each going on from the state of the one before, some in rounds of
    accumulation: weights, optimisers and statistics are those of ten steps in one process. Stages: (processes, --batch-gpu,
    steps in all)."""
    for num, batch_gpu, steps in stages:
        distributed.spawn(train_some, num, config_of(heads, f'--gpus {num} --batch-gpu {batch_gpu}'), tmp_path, steps)
    assert difference(tmp_path, single)[0] < 1e-5, difference(tmp_path, single)
    figures, expected = (json.loads((folder / 'stats.json').read_text()) for folder in (tmp_path, single))
    for name in ('Loss/scores/real', 'Loss/scores/fake', 'Loss/r1_penalty', 'Progress/damaged_images'):
        assert figures[name]['num'] == expected[name]['num'] and figures[name]['mean'] == pytest.approx(expected[name]['mean'], abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What happens when one of several fails.

def faulty(outdir, heads, launcher, fault, flags, timeout=300):
    """(exit code, lines of output, seconds) of two processes training under `launcher`, one of them with a fault."""
    command = [sys.executable, *launcher, HERE / 'faulty_train.py', '--outdir', outdir, '--img_data', heads[0], '--seg_data', heads[1],
               *f'{TINY} {PANOHEAD_ONLY} --gpus 2 {flags}'.split()]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMNIHEAD_NATIVE': '0', 'FAULT': fault}
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=timeout)
    return done.returncode, done.stdout.strip().splitlines(), time.monotonic() - start


def torchrun(restarts):
    """How torchrun is called."""
    return ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', f'--max-restarts={restarts}']


@pytest.mark.slow
@pytest.mark.parametrize('fault, cause', [
    ('raise 2 1', 'rank 1 failed in phase "step 2, being tested": ValueError: injected fault'),
    ('kill 2 1', 'rank 1 was killed by signal 9 (SIGKILL) in phase "')], ids=['raises', 'killed'])
def test_failing_process_ends_all_and_is_named(heads, tmp_path, fault, cause):
    """With --gpus: the last line is the first cause. That the processes end is what the time-out of the call demands."""
    code, lines, _ = faulty(tmp_path, heads, [], fault, '--kimg 1')
    assert code == 1 and cause in lines[-1], lines[-12:]


@pytest.mark.slow
def test_failing_process_under_torchrun_is_named(heads, tmp_path):
    code, lines, _ = faulty(tmp_path, heads, torchrun(0), 'raise 2 1', '--kimg 1')
    last = '\n'.join(lines[-60:])
    assert code == 1 and 'Root Cause (first observed failure)' in last and 'rank      : 1 (local_rank: 1)' in last, last
    assert 'rank 1 failed in phase "step 2, being tested": ValueError: injected fault' in last


@pytest.mark.slow
def test_elastic_restart_goes_on_from_the_last_state(heads, tmp_path):
    """torchrun starts all processes again after one was killed; they go on in the same folder."""
    code, lines, _ = faulty(tmp_path, heads, torchrun(1), 'kill 3 1', '--kimg 0.02 --state_ticks 1')
    assert code == 0, lines[-25:]
    assert any(re.search('Going on from .* at 0.0(08|12) kimg', line) for line in lines), lines
    run_dir, = tmp_path.iterdir()
    kimgs = [json.loads(line)['Progress/kimg']['mean'] for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert kimgs == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02])


@pytest.mark.slow
def test_generation_is_shared(tmp_path):
    """Two processes write what one writes."""
    for num in (1, 2):
        command = f'--network demo --seeds 0-2 --views 1 --nrr 8 --grid 3x1 --device cpu --gpus {num} --outdir {tmp_path / str(num)}'
        assert invoke(gen_samples, command).exit_code == 0
    written = sorted(path.name for path in (tmp_path / '1').iterdir())
    assert written == sorted(path.name for path in (tmp_path / '2').iterdir()) == [
        'grid.png', 'seed0000.png', 'seed0001.png', 'seed0002.png']
    for name in written:
        one, two = (np.asarray(Image.open(tmp_path / str(num) / name)).astype(int) for num in (1, 2))
        assert np.abs(one - two).max() <= 1, name
