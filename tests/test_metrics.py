"""Frechet distance against closed forms, the seeded features, the two image streams, and calc_metrics.py."""

import json
import re
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import calc_metrics
import camera_utils
import metrics
from dnnlib import UserError
from metrics.frechet import feature_statistics, frechet_distance, gaussian_distance
from metrics.images import fake_source, real_source
from metrics.registry import register_metric
from metrics.seeded import SeededFeatures
from training.dataset import HeadDataset

SIZE = 32
FROZEN = [-0.2824, 0.3732, 1.0434, 0.5493, 0.7437, 0.1610, 0.2044]


@pytest.fixture(scope='module')
def network():
    return SeededFeatures()


def discs(num, seed, sharp=1.0):
    """uint8 [num, 3, 32, 32]: one-coloured discs on one-coloured ground; a small `sharp` blurs them."""
    g = torch.Generator().manual_seed(seed)
    at = (torch.arange(SIZE) + 0.5) / SIZE
    centre, radius = torch.rand(num, 2, 1, 1, generator=g) * 0.3 + 0.35, torch.rand(num, 1, 1, generator=g) * 0.1 + 0.2
    distance = ((at - centre[:, 0]) ** 2 + (at[:, None] - centre[:, 1]) ** 2).sqrt() - radius
    inside = torch.sigmoid(-distance * 60 * sharp)[:, None]
    colours = torch.rand(2, num, 3, 1, 1, generator=g)
    return ((inside * colours[0] + (1 - inside) * colours[1]) * 255).to(torch.uint8)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folder of 12 discs with labels all round: six in front, six behind."""
    folder = tmp_path_factory.mktemp('data')
    labels = camera_utils.label_from_yaw(torch.tensor([-150.0, -120, -100, -70, -40, -10, 10, 40, 70, 100, 120, 150]),
                                         lookat=(0, 0, 0))
    entries = []
    for i, image in enumerate(discs(12, seed=1)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f'img{i:02d}.png')
        entries.append([f'img{i:02d}.png', labels[i].tolist()])
    (folder / 'dataset.json').write_text(json.dumps({'labels': entries}))
    return folder


class PlainGenerator(torch.nn.Module):
    """Paints the first entry of z and the label's camera height; records how it was asked."""
    z_dim, c_dim, img_resolution = 4, 25, SIZE
    camera = types.SimpleNamespace(pivot=(0, 0, 0.2), radius=2.7, fov_deg=20.0)

    def __init__(self):
        super().__init__()
        self.mapped, self.seen = [], []

    def mapping(self, z, c, truncation_psi=1):
        self.mapped.append(c)
        return z[:, None] * truncation_psi

    def synthesis(self, ws, c):
        self.seen.append(c)
        return {'image': ws[:, :, :3, None].transpose(1, 2).expand(-1, 3, SIZE, SIZE)}

    def camera_offset(self, z, c):
        return None


def test_distance_of_gaussians_in_closed_form():
    random = np.random.RandomState(0)
    eye = np.eye(3)
    assert gaussian_distance(np.zeros(3), eye, np.array([1.0, 2, 2]), eye) == pytest.approx(9)
    a, b = np.diag([1.0, 4, 9]), np.diag([4.0, 9, 0])           # commuting: sum of squared differences of the roots
    assert gaussian_distance(np.zeros(3), a, np.zeros(3), b) == pytest.approx(1 + 1 + 9)
    rotation = np.linalg.qr(random.randn(3, 3))[0]
    assert gaussian_distance(np.zeros(3), rotation @ a @ rotation.T, np.zeros(3), rotation @ b @ rotation.T) == pytest.approx(11)
    # Not commuting, 2 x 2: tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det A det B)).
    a, b = np.array([[2.0, 1], [1, 2]]), np.array([[3.0, 0], [0, 1]])
    expected = 4 + 4 - 2 * np.sqrt(np.trace(a @ b) + 2 * np.sqrt(3 * 3))
    assert gaussian_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected)


def test_distance_of_sets():
    random = np.random.RandomState(0)
    features = random.randn(50, 128)                            # fewer samples than features: singular covariance
    assert 0 <= frechet_distance(features, features) < 1e-8
    assert frechet_distance(features, features + 3) == pytest.approx(9 * 128)
    assert frechet_distance(features, random.randn(60, 128)) > 1
    mean, covariance = feature_statistics(np.array([[0.0], [2.0]]))
    assert mean.tolist() == [1] and covariance.tolist() == [[2]]
    for bad in (np.zeros([1, 3]), np.zeros(3), np.full([3, 2], np.nan)):
        with pytest.raises(ValueError, match='features must be'):
            feature_statistics(bad)


def test_features_are_fixed(network):
    image = discs(2, seed=0)
    features = network(image)
    assert features.shape == (2, network.num_features) == (2, 256)
    assert torch.allclose(features[1:], network(image[1:]), atol=1e-4)
    ramp = (torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32) % 251).to(torch.uint8)
    # Frozen figures: a change of them makes all earlier results of frechet_seeded incomparable.
    assert torch.allclose(network(ramp)[0, [0, 48, 64, 100, 150, 200, 255]], torch.tensor(FROZEN), atol=1e-3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads != 3 else 2)
        assert torch.allclose(SeededFeatures()(image), features, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize('size', [32, 48, 128])
def test_features_take_many_sizes(network, size):
    assert network(torch.zeros(1, 3, size, size, dtype=torch.uint8)).isfinite().all()


def test_features_refuse(network):
    with pytest.raises(UserError, match='16x16'):
        network(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    for bad in (torch.zeros(1, 3, 32, 32).double(), torch.zeros(1, 1, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ValueError, match='uint8'):
            network(bad)


def test_distance_falls_as_images_get_closer(network):
    def features(*args):
        return network(discs(300, *args)).numpy()

    real = features(0)
    blurred = [frechet_distance(real, features(1, sharp)) for sharp in (0.05, 0.2, 1.0)]
    noise = frechet_distance(real, network(torch.randint(256, [300, 3, SIZE, SIZE], dtype=torch.uint8)).numpy())
    assert frechet_distance(real, real) < 1e-6
    assert noise > blurred[0] > 2 * blurred[1] and blurred[1] > 1.5 * blurred[2] > 0


def all_images(evaluation, number, source):
    """All images of a source as one tensor."""
    return torch.cat([torch.from_numpy(x) for x in evaluation.map(number, lambda *part: source(*part).numpy(), '')])


def test_streams(data):
    dataset = HeadDataset(data)
    generator = PlainGenerator()
    evaluation = metrics.Evaluation(generator, dataset, num=20, batch_size=8, seed=3)
    reals = all_images(evaluation, 12, real_source(evaluation, 12))
    assert torch.equal(reals, torch.stack([torch.from_numpy(dataset[i]['image']) for i in range(12)]))
    few = metrics.Evaluation(generator, dataset, num=5, batch_size=2)
    assert len(all_images(few, 5, real_source(few, 5)).unique(dim=0)) == 5
    fakes = all_images(evaluation, evaluation.num, fake_source(evaluation))
    labels = torch.cat(generator.seen)
    assert fakes.shape == (20, 3, SIZE, SIZE) and fakes.dtype == torch.uint8 and fakes.min() == 0 and fakes.max() == 255
    assert torch.equal(torch.cat(generator.mapped), labels) and len(labels.unique(dim=0)) > 4
    assert {tuple(c) for c in labels.tolist()} <= {tuple(c) for c in dataset.get_labels().tolist()}
    again = metrics.Evaluation(PlainGenerator(), dataset, num=20, batch_size=3, seed=3)
    assert torch.equal(all_images(again, 20, fake_source(again)), fakes)            # whatever the batch size
    other = metrics.Evaluation(PlainGenerator(), dataset, num=20, batch_size=8, seed=4)
    assert not torch.equal(all_images(other, 20, fake_source(other)), fakes)


def test_back_is_conditioned_on_the_front(data):
    generator = PlainGenerator()
    dataset = HeadDataset(data, min_yaw=90, max_yaw=180)
    evaluation = metrics.Evaluation(generator, dataset, num=10, mode='back')
    all_images(evaluation, evaluation.num, fake_source(evaluation))
    front = camera_utils.front_label((0, 0, 0.2), 2.7, 20.0)
    assert torch.equal(torch.cat(generator.mapped), front.expand(10, -1))
    assert (camera_utils.label_angles_deg(torch.cat(generator.seen))[:, 0].abs() >= 90).all()


def test_evaluation_refuses_what_does_not_fit(data):
    dataset = HeadDataset(data)
    for change, words in (({'num': 1}, '--num'), ({'mode': 'side'}, '--mode side'), ({'batch_size': 0}, '--batch')):
        with pytest.raises(UserError, match=words):
            metrics.Evaluation(PlainGenerator(), dataset, **{'num': 4, **change})
    with pytest.raises(UserError, match='labels'):
        metrics.Evaluation(PlainGenerator(), HeadDataset(data, use_labels=False), 4)
    generator = PlainGenerator()
    generator.img_resolution = 64
    with pytest.raises(UserError, match='32 pixels'):
        metrics.Evaluation(generator, dataset, 4)
    with pytest.raises(ValueError, match='twice'):
        register_metric('frechet_seeded')(print)


def run(*args):
    return CliRunner().invoke(calc_metrics.main, [str(arg) for arg in args])


def test_script(data, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.evaluate, 'load_network', lambda path, device: PlainGenerator().to(device))
    network = tmp_path / 'network-snapshot-000000.pkl'
    network.write_bytes(b'')
    for mode in ('back', 'all'):
        result = run('--network', network, '--data', data, '--num', 8, '--mode', mode, '--device', 'cpu')
        assert result.exit_code == 0, result.output
        printed = json.loads(re.search(r'\{.*\}', result.output)[0])      # bars stand around it
        assert printed['mode'] == mode and printed['network'] == network.name
    written = (tmp_path / 'metric-frechet_seeded.jsonl').read_text().splitlines()
    assert [json.loads(line)['num_real'] for line in written] == [6, 8] and json.loads(written[-1]) == printed


@pytest.mark.parametrize('change, words', [
    (['--metrics', 'fid51k'], 'frechet_seeded'), (['--num', '1'], '--num'), (['--mode', 'side'], '--mode'),
    (['--data', 'absent.zip'], 'absent.zip'), (['--batch', '0'], '--batch'), (['--network', 'absent.pkl'], 'absent.pkl'),
    (['--device', 'abacus'], 'abacus')])
def test_script_refuses(data, tmp_path, change, words):
    network = () if '--network' in change else ('--network', tmp_path / 'none.pkl')
    result = run(*network, '--data', data, '--device', 'cpu', *change)
    assert result.exit_code == 2 and words in result.output and 'Traceback' not in result.output
