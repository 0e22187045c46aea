"""train.py with something that goes wrong, for tests of what happens then.

    FAULT="raise 3 1" python tests/faulty_train.py ...       process 1 raises an exception in step 3 (counted from 0)
    FAULT="kill 3 1" ...                                     it is killed as the system does when memory runs out
    FAULT="stop 3 1" ...                                     it hangs
Only in the first attempt under torchrun, so that the restarted processes go well.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train  # noqa: E402
from torch_utils import distributed, watch  # noqa: E402
from training.trainer import Trainer  # noqa: E402

SIGNALS = {'kill': signal.SIGKILL, 'stop': signal.SIGSTOP, 'term': signal.SIGTERM}


def strike(kind):
    """Do to this process what the fault says."""
    if kind == 'raise':
        with watch.phase('being tested'):
            raise ValueError('injected fault')
    os.kill(os.getpid(), SIGNALS[kind])


def install(fault):
    """Let training steps fail as `fault` says, 'KIND STEP RANK'."""
    kind, step, rank = fault.split()
    plain = Trainer.step

    def faulty(self):
        if (self.batch_index, distributed.rank()) == (int(step), int(rank)):
            with watch.phase(f'step {self.batch_index}'):
                strike(kind)
        plain(self)
    Trainer.step = faulty


if os.environ.get('FAULT') and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
    install(os.environ['FAULT'])

if __name__ == '__main__':
    train.main()
