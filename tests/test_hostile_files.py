"""Network files made to do harm, or broken: none is executed, each is refused in one clear sentence, none takes much memory."""

import subprocess
import sys
import tracemalloc

import pytest
import torch
from click.testing import CliRunner

import calc_metrics
import dnnlib
import gen_samples
from hostile_files import all_files, executing
from published_files import Writer
from training import snapshot
from training.discriminators.multi_input import MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator

NAMES = sorted(all_files('canary', EG3DGenerator(z_dim=4, w_dim=4, img_resolution=32, channel_base=64, channel_max=4, plane_resolution=8,
                                                 neural_rendering_resolution=8, sr_channel_scale=0.1)))
# What Python itself reports when a program is started, code is compiled or run, or a name of a pickle is looked up.
EVENTS = ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'os.spawn', 'os.remove', 'os.putenv', 'os.kill', 'subprocess.Popen', 'exec',
          'compile', 'ctypes.dlopen', 'socket.connect', 'shutil.rmtree', 'pickle.find_class', 'code.__new__', 'webbrowser.open')
# Files that ask for much.
GREEDY = ('structure-bytes8', 'structure-memo', 'structure-lists', 'structure-laughs', 'structure-itself', 'structure-long',
          'tensor-expanded', 'own-one-block', 'own-w_dim', 'own-channels', 'storage-legacy-huge')
_seen = None


def _audit(event, arguments):
    if _seen is not None and event in EVENTS:
        _seen.append((event, str(arguments)[:200]))


sys.addaudithook(_audit)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return EG3DGenerator(z_dim=4, w_dim=4, img_resolution=32, channel_base=64, channel_max=4, plane_resolution=8,
                         neural_rendering_resolution=8, sr_channel_scale=0.1)


@pytest.fixture(scope='module')
def folder(network, tmp_path_factory):
    """Folder of a good file, read once so that nothing is imported for the first time later."""
    folder = tmp_path_factory.mktemp('hostile')
    snapshot.save_snapshot(folder / 'good.pkl', {'G_ema': network})
    for data in small_files(folder).values():
        (folder / 'x.pkl').write_bytes(data)
        snapshot.load_snapshot(folder / 'x.pkl')
    return folder


def small_files(folder):
    """{name: bytes} of good files of some dozens of kilobytes."""
    torch.manual_seed(0)
    discriminator = MultiInputDiscriminator(img_resolution=16, channel_base=64, channel_max=4, mapping_layers=2)
    writers = {'published': Writer(), 'published-zip': Writer(2, 'zip')}
    return {'ours': (folder / 'good.pkl').read_bytes(),
            **{name: writer.file({'D': writer.discriminator(discriminator, 'MaskDualDiscriminatorV2')})
               for name, writer in writers.items()}}


@pytest.fixture(scope='module')
def files(folder, network):
    return all_files(folder / 'canary', network)


def load_watched(path):
    """(error, what was executed) of loading a file."""
    global _seen
    _seen = []
    try:
        snapshot.load_snapshot(path)
        error = None
    except dnnlib.UserError as refusal:
        error = str(refusal)
    finally:
        events, _seen = _seen, None
    return error, events


def test_there_are_enough_of_them():
    assert len(NAMES) >= 300


@pytest.mark.parametrize('name', NAMES)
def test_nothing_is_executed_and_the_error_is_clear(folder, files, name):
    path = folder / 'x.pkl'
    path.write_bytes(files[name])
    error, events = load_watched(path)
    assert error is not None, 'the file was read'
    assert error.startswith(f'{path}: ') and error.isprintable() and len(error) < 1000 and 'Traceback' not in error
    assert events == [] and not (folder / 'canary').exists()


@pytest.mark.parametrize('name', [name for name in NAMES if 'bomb' in name or 'deep' in name or name in GREEDY])
def test_memory_stays_small(folder, files, name):
    path = folder / 'x.pkl'
    path.write_bytes(files[name])
    size = len(files[name])
    tracemalloc.start()
    try:
        load_watched(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Lists of lists are larger in memory than in a file, but not without bound.
    assert peak < 32 * 2 ** 20 + 150 * size


def truncated(data):
    """The file cut at every kilobyte, but for the whole."""
    return range(0, len(data), 1024)


@pytest.mark.parametrize('which', ['ours', 'published', 'published-zip'])
def test_truncation_at_every_kilobyte(folder, which):
    data = small_files(folder)[which]
    path = folder / 'x.pkl'
    path.write_bytes(data)
    assert load_watched(path) == (None, []), 'the whole file must be good'
    assert len(truncated(data)) > 30
    for length in truncated(data):
        path.write_bytes(data[:length])
        error, events = load_watched(path)
        assert error is not None and events == []
        assert 'ends too early' in error or (length == 0 and 'is empty' in error), f'{length} bytes: {error}'


@pytest.mark.parametrize('which', ['ours', 'published', 'published-zip'])
def test_changed_bytes_are_refused_or_harmless(folder, which):
    data = bytearray(small_files(folder)[which])
    path = folder / 'x.pkl'
    generator = torch.Generator().manual_seed(1)
    refused = 0
    places, values = torch.randint(len(data), [60], generator=generator), torch.randint(1, 256, [60], generator=generator)
    for place, value in zip(places.tolist(), values.tolist()):
        former = data[place]
        data[place] ^= value
        path.write_bytes(data)
        data[place] = former
        error, events = load_watched(path)
        refused += error is not None
        assert events == []
    assert refused > 5


def test_the_canary_sings(tmp_path):
    """The same files, executed: so that the test above could fail."""
    canary = tmp_path / 'canary'
    data = executing(canary)['place-list']
    (tmp_path / 'x.pkl').write_bytes(data)
    subprocess.run([sys.executable, '-c', 'import pickle, sys; pickle.load(open(sys.argv[1], "rb"))', str(tmp_path / 'x.pkl')], check=True)
    assert canary.exists()


def test_the_watch_sees_executed_pickles(tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIHEAD_TRUST_PICKLE', '1')
    path = tmp_path / 'x.pkl'
    path.write_bytes(executing(tmp_path / 'canary')['place-setting'])
    error, events = load_watched(path)
    assert error is None and {'pickle.find_class', 'os.system'} <= {event for event, _ in events} and (tmp_path / 'canary').exists()


@pytest.mark.parametrize('name', ['place-getattr', 'storage-archive-bomb', 'structure-deep-tuples', 'own-layers', 'tensor-expanded',
                                  'module-cycle'])
@pytest.mark.parametrize('script', ['samples', 'metrics', 'show', 'convert'])
def test_scripts_say_it_and_end_with_2(folder, files, tmp_path, name, script):
    path = tmp_path / 'x.pkl'
    path.write_bytes(files[name])
    command, arguments = {
        'samples': (gen_samples.main, ['--network', path, '--outdir', tmp_path / 'out', '--seeds', '0', '--device', 'cpu']),
        'metrics': (calc_metrics.main, ['--network', path, '--data', tmp_path]),
        'show': (snapshot.main, ['show', path]),
        'convert': (snapshot.main, ['convert', path, tmp_path / 'x.safetensors']),
    }[script]
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and result.output.startswith('Error: ') and 'Traceback' not in result.output
    assert not (folder / 'canary').exists()
