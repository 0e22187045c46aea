"""training.snapshot: what is written, and that our own reader executes nothing and says what is wrong with a file."""

import importlib
import json
import os
import pickle
import stat

import pytest
import torch
from click.testing import CliRunner

import dnnlib
from dnnlib.cli import TRUST_PICKLE
from torch_utils import persistence
from training import snapshot
from training.discriminators.multi_input import MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator

SMALL = {'z_dim': 4, 'w_dim': 4, 'img_resolution': 64, 'channel_base': 64, 'channel_max': 4, 'plane_resolution': 8,
         'neural_rendering_resolution': 8}
SIZES = {'type': 'HeadDataset', 'path': 'heads.zip', 'resolution': 64}


@pytest.fixture(scope='module')
def G():
    torch.manual_seed(0)
    return EG3DGenerator(**SMALL)


@pytest.fixture(scope='module')
def written(G, tmp_path_factory):
    path = tmp_path_factory.mktemp('run') / 'network-snapshot-000001.pkl'
    snapshot.save_snapshot(path, {'G': G, 'D': None, 'G_ema': G}, dnnlib.EasyDict(SIZES, nested=dnnlib.EasyDict(a=1)))
    return path


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def refused(path, message, key='G_ema'):
    with pytest.raises(dnnlib.UserError, match=message) as caught:
        snapshot.load_network(path, key)
    assert str(path) in str(caught.value)


def test_entries_of_a_snapshot(written, G):
    for data in (snapshot.load_snapshot(written), pickle.loads(written.read_bytes())):
        assert set(data) == {'G', 'D', 'G_ema', 'augment_pipe', 'training_set_kwargs'}
        assert data['D'] is None and data['augment_pipe'] is None
        assert data['training_set_kwargs'] == {**SIZES, 'nested': {'a': 1}}
        assert states_equal(data['G_ema'], G) and not data['G'].training
        assert not any(p.requires_grad for p in data['G_ema'].parameters())
    assert type(snapshot.load_network(written)) is EG3DGenerator
    assert type(data['G_ema']) is not EG3DGenerator


def test_living_networks_are_not_changed(written, G):
    assert G.training and all(p.requires_grad for p in G.parameters())


def test_only_the_keys_asked_for_are_built(written, monkeypatch):
    made = []
    monkeypatch.setattr(persistence, 'instantiate', lambda cls, *_: made.append(cls))
    assert set(snapshot.load_snapshot(written, keys=['G'])) == {'G'} and len(made) == 1


def test_overrides_replace_arguments_in_the_file_only(tmp_path, G):
    path = tmp_path / 'x.pkl'
    snapshot.save_snapshot(path, {'G_ema': G, 'G': G}, overrides={'G_ema': {'neural_rendering_resolution': 48}})
    data = snapshot.load_snapshot(path)
    assert data['G_ema'].neural_rendering_resolution == 48
    assert data['G'].neural_rendering_resolution == 8 == G.neural_rendering_resolution
    with pytest.raises(TypeError, match='no argument banana'):
        snapshot.save_snapshot(path, {'G_ema': G}, overrides={'G_ema': {'banana': 1}})


def test_embedded_source_is_not_executed(tmp_path, G, monkeypatch):
    meta = persistence.describe(G)
    meta['sources'] = dict.fromkeys(meta['sources'], 'raise SystemExit')
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps({'G_ema': snapshot._Portable(meta)}))
    assert states_equal(snapshot.load_network(path), G)
    with pytest.raises(SystemExit):
        pickle.loads(path.read_bytes())


def test_file_appears_whole_or_not_at_all(written, tmp_path, G, monkeypatch):
    path = tmp_path / 'x.pkl'
    path.write_bytes(b'before')
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(dnnlib.UserError, match='x.pkl: cannot be written.*No space'):
        snapshot.save_snapshot(path, {'G_ema': G})
    assert [p.name for p in tmp_path.iterdir()] == ['x.pkl'] and path.read_bytes() == b'before'


@pytest.mark.skipif(os.name != 'posix', reason='file modes are POSIX')
def test_file_has_the_ordinary_mode(written, tmp_path):
    ordinary = tmp_path / 'ordinary'
    ordinary.touch()
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_folder_absent(tmp_path, G):
    with pytest.raises(dnnlib.UserError, match='cannot be written'):
        snapshot.save_snapshot(tmp_path / 'absent' / 'x.pkl', {'G_ema': G})


class Foreign:
    """Pickles as a call of something that a snapshot never needs."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_plain_values_of_the_kind_that_scripts_use(tmp_path, G):
    path = tmp_path / 'x.pkl'
    kwargs = dnnlib.EasyDict(SIZES, nested=dnnlib.EasyDict(a=1))
    path.write_bytes(pickle.dumps({'G_ema': snapshot._Portable(persistence.describe(G)), 'training_set_kwargs': kwargs}))
    read = snapshot.load_snapshot(path, keys=['training_set_kwargs'])['training_set_kwargs']
    assert read == kwargs and type(read) is dict and type(read['nested']) is dict


def test_other_kinds_of_files_are_told_in_one_sentence(tmp_path):
    path = tmp_path / 'x.pkl'
    torch.save({'a': torch.zeros(1)}, tmp_path / 'x.pt')
    archive = (tmp_path / 'x.pt').read_bytes()
    for content in (b'\x89PNG\r\n\x1a\n' + bytes(9), b'PK\x03\x04' + bytes(9), archive, b'hello'):
        path.write_bytes(content)
        with pytest.raises(dnnlib.UserError, match='not a network snapshot') as caught:
            snapshot.load_network(path)
        assert '\n' not in str(caught.value) and 'persistent' not in str(caught.value)


def network_file(G, **changes):
    return pickle.dumps({'G_ema': snapshot._Portable({**persistence.describe(G), **changes})})


@pytest.mark.parametrize('data, message', [
    (None, 'no such file'),
    (b'', 'empty'),
    (b'hello world, this is no pickle\n' * 10, 'not a network snapshot'),
    (b'\x89PNG\r\n\x1a\n' + bytes(100), 'not a network snapshot'),
    (b'PK\x03\x04' + bytes(100), 'not a network snapshot'),
    (bytes(range(256)), 'not a network snapshot'),
    (pickle.dumps([1, 2]), 'holds no networks'),
    (pickle.dumps({'G_ema': {'format': 'omnihead'}}), 'holds no networks'),
    (pickle.dumps({'G_ema': Foreign(os.getcwd)}), r'asks for \w+.getcwd'),
    (pickle.dumps({'G_ema': Foreign(eval, '1')}), 'asks for builtins.eval'),
    (pickle.dumps({'G_ema': torch.nn.Linear(1, 1)}), r'asks for torch.nn.modules.linear.Linear'),
    (pickle.dumps({'x': pickle.PicklingError('x')}), 'asks for'),
], ids=lambda value: value[:24] if isinstance(value, str) else '')
def test_files_that_are_no_snapshots(tmp_path, data, message):
    path = tmp_path / 'x.pkl'
    if data is not None:
        path.write_bytes(data)
    refused(path, message)


def test_one_file_cannot_change_how_the_next_is_read(written, tmp_path, G):
    # The name `rebuild`, then BUILD with a state that sets the attribute `meta` of whatever stands for it.
    stream = b'\x80\x04ctorch_utils.persistence\nrebuild\n(N}\x8c\x04metaK\x01stb.'
    path = tmp_path / 'x.pkl'
    path.write_bytes(stream)
    refused(path, 'a state for something that has none')
    assert states_equal(snapshot.load_network(written), G)


@pytest.mark.parametrize('part', [0.2, 0.9, 0.999])
def test_truncated_file(written, tmp_path, part):
    data = written.read_bytes()
    path = tmp_path / 'x.pkl'
    path.write_bytes(data[:int(len(data) * part)])
    refused(path, 'ends too early')


def test_folder_instead_of_a_file(tmp_path):
    refused(tmp_path, 'is a folder')


@pytest.mark.parametrize('key, message', [('banana', 'has no banana; it has G, D, G_ema'), ('D', 'D is empty')])
def test_key_that_is_not_there(written, key, message):
    refused(written, message, key)


@pytest.mark.parametrize('changes, message', [
    ({'class_name': 'os.system'}, 'os.system is not a network of this project'),
    ({'class_name': 'training.snapshot.load_network'}, 'is not a network of this project'),
    ({'class_name': 'training.generators.eg3d.PlaneField'}, 'is not a network of this project'),
    ({'class_name': 'training.generators.eg3d.Generator'}, 'is not a network of this project'),
    ({'class_name': 'training.generators.absent.X'}, 'is not a network of this project'),
    ({'class_name': 'training.generators..eg3d.X'}, 'is not a network of this project'),
    ({'init_kwargs': {**SMALL, 'rendering': [{'class_name': 'os.system'}]}}, "name 'os.system'"),
    ({'init_kwargs': {**SMALL, 'banana': 1}}, 'banana'),
    ({'init_kwargs': {**SMALL, 'w_dim': 8}}, r'of another shape'),
    ({'state': []}, 'missing'),
    ({'state': [('a', 'float32', [2], b'abc')]}, 'a: 3 bytes for shape'),
    ({'state': [('a', 'nn', [2], b'abc')]}, "'nn'"),
    ({'state': [('a', 'float32', [-2], b'')]}, 'is not the type and shape'),
    ({'state': [1]}, 'cannot be made'),
    ({'version': 99}, 'format version 99'),
    ({'format': 'other'}, 'no Omnihead network'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_networks_that_are_refused(tmp_path, G, changes, message):
    path = tmp_path / 'x.pkl'
    path.write_bytes(network_file(G, **changes))
    refused(path, message)


def test_demo_is_found_beside_the_scripts(written, tmp_path, monkeypatch, G):
    assert snapshot.DEMO_PATH.parts[-2:] == ('pretrained', 'demo.pkl')
    assert (snapshot.DEMO_PATH.parents[1] / 'training' / 'snapshot.py').is_file()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snapshot, 'DEMO_PATH', tmp_path / 'absent.pkl')
    with pytest.raises(dnnlib.UserError, match='--network demo: .*absent.pkl is absent'):
        snapshot.load_network('demo')
    monkeypatch.setattr(snapshot, 'DEMO_PATH', written)
    assert states_equal(snapshot.load_network('demo'), G)


def test_address(written, G, monkeypatch):
    asked = []
    monkeypatch.setattr(dnnlib, 'open_url', lambda path: asked.append(path) or open(written, 'rb'))
    assert states_equal(snapshot.load_network('https://example.org/x.pkl'), G)
    assert asked == ['https://example.org/x.pkl']


def test_safetensors_are_bit_equal(tmp_path, G):
    pytest.importorskip('safetensors')
    path = tmp_path / 'x.safetensors'
    snapshot.save_snapshot(path, {'G_ema': G}, overrides={'G_ema': {'neural_rendering_resolution': 48}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x.json', 'x.safetensors']
    network = snapshot.load_network(path)
    assert type(network) is EG3DGenerator and network.neural_rendering_resolution == 48
    assert states_equal(network, G) and not network.training
    assert not any(p.requires_grad for p in network.parameters())


def broken_safetensors(path, what):
    description = path.with_suffix('.json')
    if what == 'no description':
        description.unlink()
    elif what == 'no JSON':
        description.write_text('{')
    elif what == 'a list':
        description.write_text('[1]')
    elif what == 'deep':
        description.write_text('[' * 100000)
    elif what == 'other class':
        content = json.loads(description.read_text())
        content['networks']['G_ema']['class_name'] = 'os.system'
        description.write_text(json.dumps(content))
    elif what == 'truncated':
        path.write_bytes(path.read_bytes()[:-100])
    elif what == 'absent':
        path.unlink()


@pytest.mark.parametrize('what, message', [
    ('no description', 'x.json: no such file'), ('no JSON', 'x.json: does not describe'), ('a list', 'does not describe'),
    ('deep', 'does not describe'),
    ('other class', 'not a network of this project'), ('truncated', 'not a whole .safetensors'), ('absent', 'no such file')])
def test_broken_safetensors(tmp_path, G, what, message):
    pytest.importorskip('safetensors')
    path = tmp_path / 'x.safetensors'
    snapshot.save_safetensors(path, {'G_ema': G})
    broken_safetensors(path, what)
    with pytest.raises(dnnlib.UserError, match=message):
        snapshot.load_network(path)


def test_conversion_there_and_back_is_bit_equal(tmp_path, G):
    pytest.importorskip('safetensors')
    half = EG3DGenerator(**SMALL).to(torch.bfloat16)
    half.backbone.mapping.fc0.weight.data[0, :3] = torch.tensor([float('nan'), float('-inf'), -0.0])
    D = MultiInputDiscriminator(img_resolution=16, channel_base=64, channel_max=4)
    snapshot.save_snapshot(tmp_path / 'a.pkl', {'G': G, 'D': D, 'G_ema': half}, SIZES)
    for source, destination in (('a.pkl', 'b.safetensors'), ('b.safetensors', 'c.pkl')):
        result = CliRunner().invoke(snapshot.main, ['convert', str(tmp_path / source), str(tmp_path / destination)])
        assert result.exit_code == 0, result.output
    before, after = snapshot.load_snapshot(tmp_path / 'a.pkl'), snapshot.load_snapshot(tmp_path / 'c.pkl')
    assert after['training_set_kwargs'] == SIZES and list(after) == list(before)
    for key in ('G', 'D', 'G_ema'):
        old, new = before[key].state_dict(), after[key].state_dict()
        assert list(old) == list(new) and type(before[key]) is type(after[key])
        for name, tensor in old.items():
            assert tensor.dtype == new[name].dtype and tensor.shape == new[name].shape
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), new[name].reshape(-1).view(torch.uint8)), name
    assert after['G_ema'].backbone.mapping.fc0.weight.dtype == torch.bfloat16
    as_json = [json.loads(json.dumps(data['G_ema'].init_kwargs)) for data in (before, after)]
    assert as_json[0] == as_json[1]


@pytest.mark.parametrize('arguments, message', [
    (['a.txt', 'b.pkl'], 'a.txt: ends in neither'), (['a.pkl', 'b'], 'b: ends in neither'), (['absent.pkl', 'b.pkl'], 'no such file'),
    (['a.pkl', 'b.pkl', '--keys', 'X'], '--keys X'), (['a.pkl', 'b.pkl', '--keys', 'D'], 'has none of D')])
def test_conversions_that_cannot_be(tmp_path, G, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    snapshot.save_snapshot('a.pkl', {'G_ema': G})
    result = CliRunner().invoke(snapshot.main, ['convert', *arguments])
    assert result.exit_code == 2 and message in result.output and sorted(p.name for p in tmp_path.iterdir()) == ['a.pkl']


def test_part_of_a_file_can_be_converted(tmp_path, G):
    snapshot.save_snapshot(tmp_path / 'a.pkl', {'G': G, 'G_ema': G})
    snapshot.convert(tmp_path / 'a.pkl', tmp_path / 'b.safetensors', ['G_ema'])
    data = snapshot.load_snapshot(tmp_path / 'b.safetensors')
    assert data['G'] is None and states_equal(data['G_ema'], G)


def test_strange_tensors_in_safetensors(tmp_path, G):
    from safetensors.torch import load_file, save_file
    path = tmp_path / 'x.safetensors'
    snapshot.save_safetensors(path, {'G_ema': G})
    tensors = load_file(path)
    save_file({**tensors, 'stray': torch.zeros(1)}, path)
    with pytest.raises(dnnlib.UserError, match='1 tensors belong to no network, such as stray'):
        snapshot.load_network(path)
    tensors['G_ema.stray'] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(dnnlib.UserError, match='1 unexpected: stray'):
        snapshot.load_network(path)


def test_oversized_header_of_safetensors(tmp_path, G):
    path = tmp_path / 'x.safetensors'
    snapshot.save_safetensors(path, {'G_ema': G})
    data = path.read_bytes()
    for size in (2 ** 62, 2 ** 31, len(data)):
        path.write_bytes(size.to_bytes(8, 'little') + data[8:])
        with pytest.raises(dnnlib.UserError, match='not a whole .safetensors'):
            snapshot.load_network(path)
    path.with_suffix('.json').write_text('{"networks": {"G_ema": {' + ' ' * 2 ** 24 + '}}}')
    path.write_bytes(data)
    with pytest.raises(dnnlib.UserError, match='does not describe networks'):
        snapshot.load_network(path)


def test_trusted_files_are_executed(written, tmp_path):
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps({'G_ema': Foreign(os.getcwd)}))
    refused(path, 'asks for')
    arguments = ['convert', '--trust-pickle', str(written), str(tmp_path / 'y.safetensors')]
    result = CliRunner().invoke(snapshot.main, arguments)
    assert result.exit_code == 0 and 'executed as a program' in result.output
    assert TRUST_PICKLE not in os.environ
    refused(path, 'asks for')


def test_trust_reaches_what_a_command_loads(written, tmp_path, monkeypatch, G):
    monkeypatch.setenv(TRUST_PICKLE, '1')
    trusted = snapshot.load_network(written)
    assert type(trusted) is not EG3DGenerator and states_equal(trusted, G) and not trusted.training
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps({'G_ema': Foreign(int, 'x')}))
    with pytest.raises(dnnlib.UserError, match='executing it failed .ValueError'):
        snapshot.load_network(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(dnnlib.UserError, match='holds a list and no dict'):
        snapshot.load_network(path)


@pytest.mark.parametrize('script', ['train', 'gen_samples', 'gen_videos', 'gen_interpolation', 'projector', 'calc_metrics'])
def test_every_script_that_reads_networks_offers_trust(script):
    command = importlib.import_module(script).main
    assert any('--trust-pickle' in option.opts for option in command.params)
