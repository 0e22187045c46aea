"""One evaluator for training and command, for one process and many: same figures, kept statistics, records, what is refused."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from click.testing import CliRunner

import calc_metrics
import metrics
import metrics.evaluate
from dnnlib import UserError
from metrics import cache
from metrics.evaluate import Evaluator, Job, reproducible
from metrics.features import FeatureNetwork
from metrics.images import Samples, fake_source, map_latents, real_source
from metrics.path_length import EPSILON, in_float32, trimmed_mean
from project_files import ROOT
from small_sets import write_set
from tiny_runs import run_train, write_heads
from training.dataset import HeadDataset
from training.generators.base import CameraPrior
from training.generators.panohead import PanoHeadGenerator
from training.snapshot import save_snapshot

ALL = 'fid50k_full,kid50k_full,pr50k3_full,ppl2_wend,frechet_seeded'
HEADS = ('identity_consistency,pose_error,face_at_back,mask_agreement,depth_agreement,photometric_consistency,flicker,density_sanity,'
         'hollow_face,depth_synthetic')
SMALL = dict(img_resolution=32, features=4, z_dim=8, w_dim=12, channel_base=256, channel_max=8, plane_resolution=16,
             neural_rendering_resolution=8, sr_channel_scale=0.125,
             rendering={'ray_start': 2.3, 'depth_resolution': 6, 'depth_resolution_importance': 4})

pytestmark = pytest.mark.filterwarnings('ignore:.*samples instead of:UserWarning')


class Painter(torch.nn.Module):
    """A generator whose pictures are its latents, times a factor; size 32."""
    z_dim, c_dim, img_resolution, camera = 12, 25, 32, CameraPrior()
    factor = 0.1

    def mapping(self, z, c, truncation_psi=1):
        return torch.cat([z, c[:, :1] * 0], dim=1)[:, :12] * truncation_psi

    def camera_offset(self, z, c):
        return None

    def synthesis(self, ws, c):
        blocks = ws.reshape(-1, 3, 2, 2).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
        return {'image': blocks * self.factor, 'image_mask': torch.ones(len(ws), 1, 8, 8) * torch.tensor([0.0, 1]).repeat(4)}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """Statistics are kept in a folder of the test's own."""
    monkeypatch.setattr(cache, 'FOLDER', tmp_path / 'kept')
    return tmp_path / 'kept'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """(images, masks): folders of pictures all round, 32 pixels."""
    folder = tmp_path_factory.mktemp('data')
    write_set(folder / 'img', folder / 'seg', yaws=(0, 60, 120, -170, 30, 100, -80, 10), size=32)
    return folder / 'img', folder / 'seg'


@pytest.fixture
def network(tmp_path):
    """A network file."""
    torch.manual_seed(0)
    save_snapshot(tmp_path / 'network-snapshot-000000.pkl', {'G_ema': PanoHeadGenerator(**SMALL)})
    return tmp_path / 'network-snapshot-000000.pkl'


def records_of(network):
    """Records beside a network file, by metric."""
    return {path.stem.removeprefix('metric-'): [json.loads(line) for line in path.read_text().splitlines()]
            for path in network.parent.glob('metric-*.jsonl')}


def command(*args):
    """Result of calc_metrics.py, which must succeed."""
    result = CliRunner().invoke(calc_metrics.main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The same figures, whoever asks.

def test_training_and_command_agree(tmp_path):
    heads = write_heads(tmp_path)
    run_dir = run_train(tmp_path / 'runs', heads, f'--metrics {ALL} --metrics_num 10 --metrics_features seeded --snap 9 --kimg 0.004')
    network = max(run_dir.glob('network-snapshot-*.pkl'))
    trained = {name: rows[-1] for name, rows in records_of(network).items()}
    assert set(trained) == set(ALL.split(','))
    assert trained['fid50k_full']['results'].keys() == {'fid0.01k_full-seeded'}
    command('--network', network, '--metrics', ALL, '--num', 10, '--features', 'seeded', '--device', 'cpu', '--no-cache')
    again = {name: rows[-1] for name, rows in records_of(network).items()}
    for name, record in again.items():
        assert record['results'] == trained[name]['results'], name             # exactly
        assert {k: v for k, v in record.items() if k not in ('fakes_per_sec', 'total_sec', 'timestamp')} == {
            k: v for k, v in trained[name].items() if k not in ('fakes_per_sec', 'total_sec', 'timestamp')}
        assert len(records_of(network)[name]) == 2


@pytest.mark.parametrize('names, num, processes', [(ALL, 21, 3), (HEADS, 7, 2), ('fid50k_yaw12,fid50k_random_camera', 240, 2)],
                         ids=['published', 'heads', 'views'])
def test_one_and_three_processes_agree(names, num, processes, tmp_path, network):
    """Batches that do not divide among the processes, the last of them short."""
    write_set(tmp_path / 'img', yaws=(0, 60, 120, -170, 30, 100, -80, 10) if processes == 3 else (5, 175) * 21, size=32)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
    for gpus in (1, processes):
        options = f'--metrics {names} --num {num} --batch 2 --features seeded --device cpu --no-cache --gpus {gpus}'
        done = subprocess.run([sys.executable, ROOT / 'calc_metrics.py', '--network', network, '--data', tmp_path / 'img',
                               *options.split()], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert records_of(network).keys() == set(names.split(','))
    for name, (one, several) in records_of(network).items():
        assert (one['num_processes'], several['num_processes']) == (1, processes)
        assert several['results'] == pytest.approx(one['results'], rel=1e-6), name


def test_training_settings_do_not_reach_the_figures(data, network):
    def figure():
        return next(metrics.measure(network, data[0], num=8, device='cpu', use_cache=False))['results']
    noisy = PanoHeadGenerator(**SMALL, sr_noise_mode='random')      # draws as it goes
    for name, parameter in noisy.named_parameters():
        if name.endswith('noise_strength'):
            parameter.data.fill_(1)
    save_snapshot(network, {'G_ema': noisy})
    expected = figure()
    torch.rand(5)
    state = torch.get_rng_state()
    torch.backends.cudnn.benchmark = True
    try:
        assert figure() == expected and torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert torch.equal(torch.get_rng_state(), state)          # nor the other way round


# ---------------------------------------------------------------------------------------------------------------------
# Streams and protocols.

def evaluation(data, num=6, **changes):
    """An Evaluation of the Painter."""
    dataset = HeadDataset(data[0], data[1])
    return metrics.Evaluation(**{'generator': Painter(), 'dataset': dataset, 'num': num, 'batch_size': 4, **changes})


def stream(e, source):
    """All images of a source of `num`."""
    return torch.cat([torch.from_numpy(part) for part in e.map(e.num, lambda *part: source(*part).numpy(), '')])


def test_truncation(data):
    grey = stream(evaluation(data, truncation_psi=0.0), fake_source(evaluation(data, truncation_psi=0.0)))
    assert (grey == 128).all()
    e = evaluation(data)
    assert not (stream(e, fake_source(e)) == 128).all()


def test_background(data):
    plain, white = evaluation(data), evaluation(data, background='white')
    before, after = stream(plain, fake_source(plain)), stream(white, fake_source(white))
    assert (after[..., 0] == 255).all() and torch.equal(after[..., 31], before[..., 31])
    before, after = stream(plain, real_source(plain, 6)), stream(white, real_source(white, 6))
    assert (after[:, :, 0] == 255).all() and not (before[:, :, 0] == 255).all() and torch.equal(after[:, :, 5, 5], before[:, :, 5, 5])
    with pytest.raises(UserError, match='--background white: needs the masks'):
        evaluation(data, background='white', dataset=HeadDataset(data[0]))
    with pytest.raises(UserError, match='--background blue: unknown, choose one of keep, black'):
        evaluation(data, background='blue')


def test_path_length_in_closed_form(data):
    """Pictures that are their latents: the length is the difference of the latents, as the pictures show it."""
    network = FeatureNetwork('pixels', 'pixels', None, None, perceptual=lambda images: images.flatten(1))
    e = evaluation(data, num=50, features=network)
    e.generator.double()
    samples, others = Samples(e), Samples(e, stream=1)
    z, c = samples(0, 50)
    difference = map_latents(e, others(0, 50)[0], c)[0] - map_latents(e, z, c)[0]
    expected = trimmed_mean((difference * 0.1 * 127.5).square().sum(dim=1).numpy() * 256)
    assert EPSILON == 1e-4
    measured = metrics.path_length.ppl2_wend(e)['ppl2_wend']
    assert measured == pytest.approx(expected, rel=2e-2)         # of float32 pictures at steps of 1e-4
    with pytest.raises(UserError, match='ppl2_wend: a set of images has no latents'):
        metrics.path_length.ppl2_wend(evaluation(data, generator=None, fakes=HeadDataset(data[0])))


def test_path_length_is_measured_in_float32():
    torch.manual_seed(0)
    half, full = PanoHeadGenerator(**SMALL, num_fp16_res=4, sr_num_fp16_res=4), PanoHeadGenerator(**SMALL)
    assert in_float32(full) is full
    copy = in_float32(half)
    assert copy is not half and not any(getattr(m, 'use_fp16', False) for m in copy.modules())
    assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), half.parameters()))


# ---------------------------------------------------------------------------------------------------------------------
# Kept statistics.

def test_statistics_are_kept_by_content(data, tmp_path, kept, monkeypatch):
    folder = tmp_path / 'img'
    write_set(folder, yaws=(0, 60, 120, -170), size=32)
    read = []
    real = metrics.evaluate.images.real_source
    monkeypatch.setattr(metrics.evaluate.images, 'real_source', lambda *args: read.append(1) or real(*args))

    def measured(**changes):
        names = ['fid50k_full', 'kid50k']
        records = metrics.measure(None, **{'data': folder, 'fakes': data[0], 'metrics': names, 'features': ['seeded'], 'device': 'cpu',
                                           **changes})
        return [record['results'] for record in records], len(read)
    first, reads = measured()
    assert measured() == (first, reads) and len(list(kept.iterdir())) == 2
    for path in kept.iterdir():
        path.write_bytes(path.read_bytes()[:40])                           # damaged: read again, and kept again
    assert measured() == (first, reads + 1) and measured() == (first, reads + 1)
    assert measured(mirror=True)[1] == reads + 2 and measured(batch_size=2)[1] == reads + 3
    zipped = tmp_path / 'other name.zip'
    write_set(zipped, yaws=(0, 60, 120, -170), size=32)
    assert measured(data=zipped) == (first, reads + 3)                     # the same content elsewhere
    first_picture, *_, last_picture = sorted(folder.rglob('*.png'))
    first_picture.write_bytes(last_picture.read_bytes())
    assert measured()[1] == reads + 4


# ---------------------------------------------------------------------------------------------------------------------
# Fifty thousand.

def test_fifty_thousand_hold_little(tmp_path, monkeypatch):
    """What is held after 50,000 fakes is what the moments take, whatever else is collected."""
    class Small(Painter):
        img_resolution = 4

        def synthesis(self, ws, c):
            return {'image': ws.repeat(1, 4).reshape(-1, 3, 4, 4) * 0.1}

    write_set(tmp_path / 'four', size=4)
    network = FeatureNetwork('pixels', 'pixels', None, lambda images: images.flatten(1), lambda images: images.flatten(1).softmax(dim=1))
    jobs = [Job(metrics.metric_function(name), 50_000, network) for name in ('fid50k_full', 'kid50k_full', 'is50k')]
    e = metrics.Evaluation(Small(), HeadDataset(tmp_path / 'four'), 50_000, batch_size=500)
    evaluator = Evaluator(e, jobs)
    with reproducible(torch.device('cpu')):
        results = evaluator.compute(jobs[0])
    fakes = [collector for (source, *_), collector in evaluator._collected.items() if source == 'fake']
    assert len(fakes) == 3 and all(collector.count == 50_000 for collector in fakes)
    assert results.keys() == {'fid50k_full-pixels'}
    assert max(collector.num_retained for collector in fakes) <= 48 * 48 + 48 + 512 * 48
    evaluator.close()


# ---------------------------------------------------------------------------------------------------------------------
# Records and the command line.

def test_record(data, network):
    command('--network', network, '--seg', data[1], '--data', data[0], *(
        '--metrics kid50k --features seeded --num 6 --mode back --mirror True --trunc 0.7 --background gray --seed 3 --device cpu').split())
    (record,) = records_of(network)['kid50k']
    expected = {'metric': 'kid50k', 'num': 6, 'num_real': 6, 'mode': 'back', 'seed': 3, 'mirror': True, 'background': 'gray',
                'resolution': 32,
                'filter': {'min_yaw': 90, 'max_yaw': 180}, 'truncation_psi': 0.7, 'conditioning': 'front', 'features': 'seeded',
                'network': network.name, 'neural_rendering_resolution': 8, 'device': 'cpu', 'num_processes': 1, 'data': 'img',
                'data_digest': HeadDataset(*data).content_digest()}
    assert {name: record[name] for name in expected} == expected
    assert record['results'].keys() == {'kid0.006k-seeded'} and len(record['features_digest']) == len(record['network_digest']) == 64
    assert record['fakes_per_sec'] > 0


def test_data_of_the_training_is_the_default(data, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'X.pkl'
    save_snapshot(path, {'G_ema': PanoHeadGenerator(**SMALL)}, {'path': str(data[0]), 'seg_path': str(data[1])})
    command('--network', path, '--num', 4, '--device', 'cpu')
    assert records_of(path)['frechet_seeded'][0]['data'] == 'img'
    save_snapshot(path, {'G_ema': PanoHeadGenerator(**SMALL)})
    refused(['--network', path, '--device', 'cpu'], '--data is missing')


def refused(arguments, *words):
    """calc_metrics.py must end with code 2 and these words."""
    result = CliRunner().invoke(calc_metrics.main, [str(argument) for argument in arguments])
    message = ' '.join(result.output.replace('│', ' ').split())
    assert result.exit_code == 2 and 'Traceback' not in message and all(word in message for word in words), message


def test_refusals(data, network, tmp_path):
    write_set(tmp_path / 'fronts', yaws=(0, 10), size=32)
    (tmp_path / 'features.pt').write_bytes(b'no features')
    sound = ['--network', network, '--data', data[0], '--device', 'cpu']
    refused([*sound, '--metrics', 'fid50k_ful'], '--metrics fid50k_ful: unknown, choose from', 'fid50k_full', 'ppl2_wend', 'pr50k3_full')
    refused([*sound, '--mode', 'sides'], "'--mode'", 'all', 'front', 'back')
    refused([*sound, '--features', tmp_path / 'features.pt', '--metrics', 'fid50k'], 'features.pt', 'not a TorchScript file')
    refused([*sound, '--features', 'seeded', '--metrics', 'is50k'], 'is50k', 'tells classes')
    refused(['--network', network, '--data', tmp_path / 'fronts', '--mode', 'back', '--device', 'cpu'], '--mode back', 'none of 2 images')
    refused(['--network', network, '--data', data[0], '--fakes', data[0], '--device', 'cpu'], 'either --network or --fakes')
    refused(['--data', data[0], '--device', 'cpu'], 'either --network or --fakes')
    refused(['--fakes', tmp_path / 'fronts', '--data', data[0], '--mode', 'back', '--device', 'cpu'], '--fakes', 'none of 2 images')
    with pytest.raises(UserError, match='--mode sides: unknown, choose one of all, front, back'):
        next(metrics.measure(network, data[0], mode='sides'))


def test_one_image_of_a_mode_is_too_few(tmp_path, network):
    write_set(tmp_path / 'one', yaws=(0, 10, 170), size=32)
    arguments = ['--network', network, '--data', tmp_path / 'one', '--mode', 'back', '--num', 4, '--device', 'cpu']
    refused(arguments, '--mode back', 'needs at least 2')


def test_small_counts_warn(data, network):
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        result = command('--network', network, '--data', data[0], *(
            '--metrics fid50k,frechet_seeded,ppl2_wend --features seeded --num 4 --device cpu').split())
    assert 'Warning: fid50k with 4 samples instead of 50000: reported as fid0.004k-seeded; distances' in result.output
    assert 'Warning: frechet_seeded with 4 samples instead of 2000: distances from few samples come out too large' in result.output
    assert 'Warning: ppl2_wend with 4 samples instead of 50000: reported as ppl2_wend_0.004k-seeded; figures' in result.output
    assert records_of(network)['ppl2_wend'][0]['results'].keys() == {'ppl2_wend_0.004k-seeded'}


def test_ctrl_c_keeps_what_is_finished(data, network, monkeypatch):
    def interrupted(self, job, compute=Evaluator.compute):
        if job.metric.name == 'kid50k':
            raise KeyboardInterrupt
        return compute(self, job)
    monkeypatch.setattr(Evaluator, 'compute', interrupted)
    result = CliRunner().invoke(calc_metrics.main, ['--network', str(network), '--data', str(data[0]), '--metrics', 'frechet_seeded,kid50k',
                                                    '--features', 'seeded', '--num', '4', '--device', 'cpu'])
    assert result.exit_code == 1 and 'Aborted' in result.output
    assert records_of(network).keys() == {'frechet_seeded'}


def test_place_that_cannot_be_written_stops_nothing(data, network):
    """Somebody else's network, in a folder of theirs: the figures are on the screen."""
    (network.parent / 'metric-fid50k.jsonl').mkdir()
    result = command('--network', network, '--data', data[0], *(
        '--metrics fid50k,frechet_seeded --features seeded --num 4 --device cpu').split())
    assert 'cannot write metric-fid50k.jsonl beside it' in result.output and '"fid0.004k-seeded"' in result.output
    assert [path.stem for path in network.parent.glob('metric-*.jsonl') if path.is_file()] == ['metric-frechet_seeded']


def test_pictures_are_made_once_for_all_metrics(data, network, monkeypatch):
    made = []
    fake = metrics.evaluate.images.fake_source
    monkeypatch.setattr(metrics.evaluate.images, 'fake_source', lambda e: made.append(e.num) or fake(e))
    names = ['fid50k', 'kid50k', 'pr50k3_full', 'frechet_seeded']
    list(metrics.measure(network, data[0], metrics=names, num=6, features=['seeded'], device='cpu'))
    assert made == [6]
