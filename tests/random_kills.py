"""Kills a small training run at random moments, goes on with it each time, and compares its end with that of a run which
nobody disturbed.

    OMP_NUM_THREADS=1 python tests/random_kills.py --kills 50

After every kill, each state in the folder must load, and nothing older than the last interval may be lost. At the end,
networks, optimisers, random state and logged figures must be those of the undisturbed run, bit for bit. The processes to be
killed are forked, so that a kill costs no start of Python; one thread, because threads do not survive a fork.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ['OMNIHEAD_NATIVE'] = '0'      # no compiler runs in here

import train  # noqa: E402
from tiny_runs import PANOHEAD_ONLY, TINY, write_heads  # noqa: E402
from training.state import content_digest, read_state, state_files  # noqa: E402
from training.trainer import Trainer  # noqa: E402

STEPS_PER_STATE = 2
# Everything that draws random numbers is on.
FLAGS = (f'{TINY} {PANOHEAD_ONLY} --aug=ada --augpipe bgcfnc --target 0.01 --density_reg 1 --density_noise_fade_kimg 1 '
         f'--style_mixing_prob 0.5 --set loss.noise_mode=random --set augment.p=0.5 --bcg_reg_prob 0.5 '
         f'--tick {STEPS_PER_STATE * 0.004} --state_ticks 1 --snap 10')
# What the clock and the machine say, and what they say it of.
OF_THE_MACHINE = ('Timing/', 'Resources/', 'timestamp')


def start(outdir, data, steps):
    """(process id, file descriptor) of a forked process that trains; it writes a byte a step into the pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        log = os.open(Path(outdir).with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        plain = Trainer.step

        def step(self):
            plain(self)
            os.write(writing, self.batch_index.to_bytes(4, 'little'))
        Trainer.step = step
        command = f'--outdir {outdir} --img_data {data[0]} --seg_data {data[1]} {FLAGS} --kimg {steps * 0.004}'
        train.main.main(command.split(), standalone_mode=False)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def finish(child, reading):
    """(exit status, last step done or None) of a process that was started."""
    parts = []
    while part := os.read(reading, 2 ** 16):
        parts.append(part)
    os.close(reading)
    done = b''.join(parts)
    return os.waitpid(child, 0)[1], int.from_bytes(done[-4:], 'little') if done else None


def killed_after(outdir, data, steps, seconds):
    """Train, kill it after so long, and return the last step done, None where there was none; 'ended' if it was too late."""
    child, reading = start(outdir, data, steps)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status, done = finish(child, reading)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, Path(outdir).with_suffix('.log').read_text()[-3000:]
        return 'ended'
    return done


def train_to_the_end(outdir, data, steps):
    """Train; the run folder."""
    status, _ = finish(*start(outdir, data, steps))
    assert status == 0, Path(outdir).with_suffix('.log').read_text()[-3000:]
    return max(Path(outdir).iterdir())


def saved_step(run_dir):
    """Step of the newest state; all of them must load."""
    return max((read_state(path)['counters']['batch_index'] for path in state_files(run_dir)), default=0)


def results(run_dir):
    """What two runs must have in common: the last state without what the clock says, and the figures logged."""
    state = read_state(state_files(run_dir)[-1])
    assert state.pop('position')['nimg'] > 0
    lines = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    figures = [{name: value for name, value in line.items() if not name.startswith(OF_THE_MACHINE)} for line in lines]
    return state, figures


def compare(disturbed, undisturbed):
    """AssertionError naming the first part of two runs' results that differs."""
    (state, figures), (other_state, other_figures) = results(disturbed), results(undisturbed)
    assert state.keys() == other_state.keys()
    for key in state:
        assert content_digest(state[key]) == content_digest(other_state[key]), f'{key} of the states differ'
    assert len(figures) == len(other_figures), f'{len(figures)} and {len(other_figures)} lines of figures'
    for number, (line, other) in enumerate(zip(figures, other_figures)):
        assert line == other, f'line {number} of stats.jsonl differs: {[key for key in line if line[key] != other.get(key)]}'


def disturb(folder, data, kills, steps, seed=0, longest=1.5):
    """Kill a run of `steps` steps `kills` times; returns (run folder, kills that hit, states that were there)."""
    rng, last, hits = random.Random(seed), 0, 0
    for _ in range(kills):
        done = killed_after(folder, data, steps, rng.uniform(0.05, longest))
        if done == 'ended':
            break
        hits += 1
        run_dir = max(folder.iterdir()) if folder.is_dir() and any(folder.iterdir()) else None
        saved = saved_step(run_dir) if run_dir else 0
        expected = max(last, (done or 0) - (done or 0) % STEPS_PER_STATE - STEPS_PER_STATE)
        assert saved >= expected, f'step {done} was done, {last} saved before, and after the kill {saved} is left'
        last = saved
    assert not folder.is_dir() or len(list(folder.iterdir())) <= 1, 'every start must go on with the same run'
    return train_to_the_end(folder, data, steps), hits


@click.command()
@click.option('--kills', default=50, show_default=True)
@click.option('--steps', default=150, show_default=True)
@click.option('--seed', default=0, show_default=True)
@click.option('--longest', default=1.5, show_default=True, help='Longest time until a kill, in seconds')
def main(kills, steps, seed, longest):
    """Kill a run at random moments and compare its end with that of an undisturbed one."""
    assert torch.get_num_threads() == 1, 'set OMP_NUM_THREADS=1'
    with tempfile.TemporaryDirectory() as folder:
        data = write_heads(Path(folder))
        undisturbed = train_to_the_end(Path(folder) / 'undisturbed', data, steps)
        run_dir, hits = disturb(Path(folder) / 'disturbed', data, kills, steps, seed, longest)
        compare(run_dir, undisturbed)
    print(f'{hits} kills in a run of {steps} steps: every state loaded, at most the last interval was lost, and the end is that of '
          'the undisturbed run')


if __name__ == '__main__':
    main()
