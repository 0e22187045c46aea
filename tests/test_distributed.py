"""Run helpers: several processes that agree, statistics, copies of parameters, devices."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import dnnlib
from torch_utils import distributed, misc, training_stats


class Net(torch.nn.Module):
    def __init__(self, seed=0, width=3):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(2, width)
        self.second = torch.nn.Linear(width, 1).to(torch.float64)
        self.register_buffer('steps', torch.tensor(seed))
        self.register_buffer('scratch', torch.zeros(2), persistent=False)

    def forward(self, x):
        return {'out': (self.second(self.first(x).double()), None)}


# ---------------------------------------------------------------------------------------------------------------------
# Several processes. They write what they saw, the test looks at it.

def work(folder, device):
    device = distributed.init(device)
    rank = distributed.rank()
    seen = {'device': str(device), 'rank': rank, 'world_size': distributed.world_size(), 'RANK': os.environ['RANK']}
    distributed.print0(f'printed by {rank}', flush=True)

    module = Net(seed=rank + 1)
    try:
        misc.check_ddp_consistency(module)
    except RuntimeError as error:
        seen['inconsistent'] = str(error)
    distributed.broadcast_params(module)
    module.scratch.fill_(float('nan'))
    misc.check_ddp_consistency(module)
    seen['steps'] = module.steps.item()

    module.first.weight.grad = torch.full_like(module.first.weight, 1.0 + rank)
    if rank == 1:
        module.second.bias.grad = torch.full_like(module.second.bias, 5.0)
    distributed.all_reduce_mean_gradients(module.parameters())
    seen['gradients'] = {name: None if p.grad is None else p.grad.flatten().tolist() for name, p in module.named_parameters()}

    collector = training_stats.Collector('loss.*')
    training_stats.report('loss', [1.0 + rank, 3.0 + rank])
    training_stats.report0('loss0', 10.0 + rank)
    if rank == 1:
        training_stats.report('loss1', torch.tensor([4.0]))
    collector.update()
    seen['stats'] = collector.as_dict()
    seen['sum'] = distributed.sum_over_ranks(torch.tensor(rank + 1.0)).item()
    seen['gathered'] = distributed.gather_objects(rank)
    seen['from first'] = distributed.broadcast_object(f'by {rank}')
    seen['shard'] = distributed.shard(range(5)) == range(rank, 5, 2)
    seen['whole'] = distributed.gather_shards([item * 10 for item in distributed.shard(range(5))])
    with distributed.first_process('writing') as first:
        if first:
            time.sleep(0.3)
            (folder / 'written').touch()
    seen['order'] = [first, (folder / 'written').exists()]
    (folder / f'{rank}.json').write_text(json.dumps(seen))


def fail(device):
    distributed.init(device)
    if distributed.rank() == 1:
        raise dnnlib.UserError('--data x.zip: absent')
    distributed.gather_objects(0)   # waits for the process that failed


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    distributed.spawn(work, 2, folder, 'cpu')
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(2)]


def test_processes_know_each_other(seen):
    assert [(s['rank'], s['world_size'], s['RANK'], s['device']) for s in seen] == [(0, 2, '0', 'cpu'), (1, 2, '1', 'cpu')]
    assert [s['sum'] for s in seen] == [3, 3] and [s['gathered'] for s in seen] == [[0, 1], [0, 1]]


def test_parameters_are_compared_and_broadcast(seen):
    for s in seen:
        assert 'Net: processes disagree in first.bias, first.weight' in s['inconsistent'] and 'steps' in s['inconsistent']
        assert 'scratch' not in s['inconsistent']
        assert s['steps'] == 1


def test_gradients_are_averaged_and_absent_ones_agree(seen):
    for s in seen:
        assert s['gradients'] == {'first.weight': [1.5] * 6, 'first.bias': None, 'second.weight': None, 'second.bias': [2.5]}


def test_statistics_cover_all_processes(seen):
    for s in seen:
        assert s['stats']['loss'] == {'num': 4, 'mean': 2.5, 'std': pytest.approx(math.sqrt(1.25))}
        assert s['stats']['loss0'] == {'num': 1, 'mean': 10.0, 'std': 0.0}
        assert s['stats']['loss1'] == {'num': 1, 'mean': 4.0, 'std': 0.0}


def test_work_is_split_and_put_together(seen):
    assert [s['whole'] for s in seen] == [[0, 10, 20, 30, 40], None] and all(s['shard'] for s in seen)
    assert [s['from first'] for s in seen] == ['by 0', 'by 0']


def test_others_wait_for_the_first_process(seen):
    assert [s['order'] for s in seen] == [[True, True], [False, True]]


def test_error_of_the_user_comes_back_from_a_process():
    with pytest.raises(dnnlib.UserError, match='^--data x.zip: absent$'):
        distributed.spawn(fail, 2, 'cpu')


STARTING = """
import os, sys, time
sys.path.insert(0, os.environ['PROJECT'])
from torch_utils import distributed

def work():
    time.sleep(60)

if __name__ == '__mp_main__':
    print('importing', flush=True)
    time.sleep(1)
if __name__ == '__main__':
    try:
        distributed.spawn(work, 2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, distributed.EXIT_AGAIN)], ids=['Ctrl-C', 'SIGTERM'])
def test_signals_are_heard_while_processes_start(tmp_path, number, code):
    """By those that are only importing, and by those that are not there yet; without a traceback."""
    (tmp_path / 'starting.py').write_text(STARTING)
    environment = {**os.environ, 'PROJECT': os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    with subprocess.Popen([sys.executable, tmp_path / 'starting.py'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment, start_new_session=True) as process:
        try:
            process.stdout.readline()
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            _, errors = process.communicate(timeout=50)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert (process.returncode, errors) == (code, '')


def test_torchrun(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('import sys\nfrom pathlib import Path\nfrom test_distributed import distributed, work\n'
                      'distributed.run_processes(work, 1, Path(sys.argv[1]), "cpu")\n')
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(os.path.dirname(distributed.__file__))])
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(script),
                           str(tmp_path)], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': path})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'printed by 0'
    assert json.loads((tmp_path / '1.json').read_text())['gathered'] == [0, 1]


# ---------------------------------------------------------------------------------------------------------------------
# One process.

def test_alone(capsys):
    assert distributed.init('cpu') == torch.device('cpu')
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    module = Net()
    module.first.weight.grad = torch.ones_like(module.first.weight)
    distributed.all_reduce_mean_gradients(module.parameters())
    distributed.broadcast_params(module)
    misc.check_ddp_consistency(module)
    distributed.cleanup()
    assert module.first.weight.grad.sum() == 6 and module.first.bias.grad is None
    called = []
    distributed.run_processes(called.append, 1, 'here')
    distributed.print0('hello')
    assert distributed.gather_shards(distributed.shard([1, 2, 3])) == [1, 2, 3] and distributed.broadcast_object(5) == 5
    with distributed.first_process('writing') as first:
        assert first
    assert called == ['here'] and capsys.readouterr().out == 'hello\n'


def test_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    for name, value in {'RANK': '1', 'LOCAL_RANK': '1', 'WORLD_SIZE': '2'}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(dnnlib.UserError, match='--gpus: process 2 of this machine has no GPU, there are 1'):
        distributed.init('cuda')


# ---------------------------------------------------------------------------------------------------------------------
# Statistics.

@pytest.fixture
def no_stats(monkeypatch):
    monkeypatch.setattr(training_stats, '_pending', {})
    monkeypatch.setattr(training_stats, '_totals', {})


def test_report_returns_its_value_and_collects_mean_and_std(no_stats):
    collector = training_stats.Collector('a/.*')
    value = torch.tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    assert training_stats.report('a/x', value) is value
    assert training_stats.report('a/y', 5) == 5 and training_stats.report('b/x', 1.0) == 1.0
    training_stats.report('a/empty', [])
    collector.update()
    assert collector.as_dict() == {'a/x': {'num': 4, 'mean': 3.0, 'std': pytest.approx(math.sqrt(3.5))},
                                   'a/y': {'num': 1, 'mean': 5.0, 'std': 0.0}}
    assert math.isnan(collector.mean('a/empty')) and math.isnan(collector.std('absent'))
    json.dumps(collector.as_dict())


def test_statistics_are_those_between_updates(no_stats):
    training_stats.report('x', 100.0)
    kept, dropped = training_stats.Collector(), training_stats.Collector(keep_previous=False)
    training_stats.report('x', 1.0)
    kept.update()
    training_stats.report('x', 3.0)
    kept.update()
    dropped.update()
    assert (kept.mean('x'), dropped.mean('x')) == (3.0, 2.0)
    kept.update()
    dropped.update()
    assert kept.mean('x') == 3.0 and math.isnan(dropped.mean('x'))


def test_nan_is_not_hidden_and_large_values_keep_their_deviation(no_stats):
    collector = training_stats.Collector()
    training_stats.report('nan', float('nan'))
    training_stats.report('large', torch.tensor([10000.0, 10001.0]))
    collector.update()
    assert math.isnan(collector.mean('nan')) and math.isnan(collector.std('nan'))
    assert collector.std('large') == pytest.approx(0.5)


# ---------------------------------------------------------------------------------------------------------------------
# Modules and devices.

def test_copy_of_parameters_and_buffers():
    src, dst = Net(1), Net(2)
    assert misc.copy_params_and_buffers(src, dst, require_all=True) == []
    for (name, a), (_, b) in zip(misc.named_params_and_buffers(src), misc.named_params_and_buffers(dst)):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), name
    assert all(p.requires_grad for p in dst.parameters())


def test_copy_reports_what_is_missing_and_refuses_other_shapes():
    src, dst = Net(1), Net(2)
    del src.second, src.steps
    before = dst.second.weight.clone()
    assert misc.copy_params_and_buffers(src, dst) == ['second.weight', 'second.bias', 'steps']
    assert torch.equal(dst.first.weight, src.first.weight) and torch.equal(dst.second.weight, before)
    with pytest.raises(dnnlib.UserError, match='3 parameters are missing: second.weight'):
        misc.copy_params_and_buffers(src, dst, require_all=True)
    with pytest.raises(dnnlib.UserError, match=r'first.weight \(3, 2\) instead of \(4, 2\)'):
        misc.copy_params_and_buffers(src, Net(width=4))


def test_module_summary():
    lines = misc.module_summary(Net(), [torch.ones(5, 2)]).splitlines()
    assert [line.split() for line in lines] == [
        ['module', 'parameters', 'buffers', 'output'], ['first', '9', '0', '[5,', '3]'], ['second', '4', '0', '[5,', '1]'],
        ['Net', '13', '3', '[5,', '1]']]


# Asked for as in --device; {last} is the index of the last of the GPUs, {beyond} of one more.
@pytest.mark.parametrize('gpus, mps, name, expected', [
    (0, False, 'auto', 'cpu'), (2, False, 'auto', 'cuda'), (0, True, 'auto', 'mps'), (2, True, 'auto', 'cuda'),
    (2, False, 'cuda:{last}', 'cuda:{last}'), (2, False, 'cpu', 'cpu'), (0, True, 'mps', 'mps'),
    (0, False, 'cuda', None), (2, False, 'cuda:{beyond}', None), (0, False, 'mps', None), (0, False, 'banana', None),
    (2, False, 'cuda:x', None), (0, False, 'meta', None), (0, False, '', None)])
def test_resolve_device(monkeypatch, gpus, mps, name, expected):
    name = name.format(last=gpus - 1, beyond=gpus)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
    if expected:
        assert misc.resolve_device(name) == torch.device(expected.format(last=gpus - 1))
    else:
        with pytest.raises(dnnlib.UserError, match=f'--device {name}: '):
            misc.resolve_device(name)
