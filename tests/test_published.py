"""Files in the layout that EG3D and PanoHead published: read without executing them, every tensor mapped, rendered as published."""

import io
import itertools

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dnnlib
import gen_samples
import reference
from legacy import reader
from legacy.storages import read_storage
from published_files import Writer, easy, rendering_kwargs
from reference import assert_within
from training import build, snapshot
from training.discriminators.multi_input import MultiInputDiscriminator
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator

RENDERING = dict(image_resolution=128, disparity_space_sampling=False, clamp_mode='softplus', c_gen_conditioning_zero=False, c_scale=1,
                 superresolution_module='training.superresolution.SuperresolutionHybrid2X', superresolution_noise_mode='none',
                 decoder_lr_mul=1, sr_antialias=True, depth_resolution=4, depth_resolution_importance=4, ray_start=2.25, ray_end=3.3,
                 box_warp=1, avg_camera_radius=2.7, avg_camera_pivot=[0, 0, 0.2], reg_type='l1', density_reg=0.25)
PANOHEAD = dict(RENDERING, triplane_size=8, triplane_depth=3, use_torgb_raw=True, use_background=True, trans_reg=10,
                decoder_activation='none')
SMALL = dict(z_dim=4, w_dim=4, img_resolution=128, channel_base=128, channel_max=4, plane_resolution=8, neural_rendering_resolution=8)


@pytest.fixture(scope='module')
def G():
    torch.manual_seed(0)
    return PanoHeadGenerator(**SMALL)


@pytest.fixture(scope='module')
def D():
    torch.manual_seed(1)
    return MultiInputDiscriminator(img_resolution=16, channel_base=64, channel_max=4, mapping_layers=2)


def write(path, writer, **entries):
    path.write_bytes(writer.file(entries))
    return path


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize('path', reference.files('generator_*_128.npz') + reference.files('generator_eg3d_white*.npz'))
@torch.no_grad()
def test_published_generator_renders_the_reference_image(path, tmp_path, capsys):
    v, config = reference.load(path)
    panohead = 'panohead' in path.stem
    writer = Writer(storage='legacy' if panohead else 'zip', location='cuda:0')
    network = reference.build_generator(config, panohead)
    file = write(tmp_path / 'published.pkl', writer, G_ema=writer.generator(network, rendering_kwargs(config, panohead), panohead))
    total = len(network.state_dict())
    del network
    g = snapshot.load_network(file)
    assert type(g) is (PanoHeadGenerator if panohead else EG3DGenerator)
    assert f'{total} of {total} tensors mapped' in capsys.readouterr().err
    c = v['c']
    assert_within(g.mapping(v['z'], c), v['ws'], 'ws')
    if panohead:
        offset = g.camera_offset(v['z'], c)
        assert_within(offset, v['delta_c'], 'delta_c')
        c = g.move_camera(c, offset)
    out = g.synthesis(v['ws'], c)
    stride = int(v['image_stride'])
    assert_within(out.image[:, :, ::stride, ::stride], v['image'], 'image')
    assert_within(out.image_raw, v['image_raw'], 'image_raw')
    assert_within(out.image_depth, v['image_depth'], 'image_depth')


@pytest.mark.parametrize('path', reference.files('discriminator_*.npz'))
@torch.no_grad()
def test_published_discriminator_gives_the_reference_logits(path, tmp_path):
    v, config = reference.load(path)
    writer = Writer()
    network = reference.build_discriminator(**config)
    file = write(tmp_path / 'published.pkl', writer, D=writer.discriminator(network, config['cls']))
    d = snapshot.load_network(file, 'D')
    assert_within(d({name: v[name].float() for name in d.wanted}, v['c']), v['logits'], 'logits')


@pytest.mark.parametrize('protocol, storage, location, numpy_module', [
    *itertools.product((2, 3, 4, 5), ('legacy', 'zip'), ('cpu', 'cuda:0'), ('numpy.core.multiarray',)),
    (4, 'legacy', 'cuda:3', 'numpy._core.multiarray')])
def test_every_way_of_writing(G, D, tmp_path, protocol, storage, location, numpy_module):
    writer = Writer(protocol, storage, location, numpy_module)
    entry = writer.generator(G, PANOHEAD, panohead=True)
    file = write(tmp_path / 'published.pkl', writer, G=entry, G_ema=entry, D=writer.discriminator(D, 'MaskDualDiscriminatorV2'),
                 augment_pipe=writer.persistent('AugmentPipe', {}))
    data = snapshot.load_snapshot(file)
    assert states_equal(data['G'], G) and states_equal(data['G_ema'], G) and states_equal(data['D'], D)
    assert data['G'].neural_rendering_resolution == 8 and data['G'].img_resolution == 128
    assert data['training_set_kwargs'] == {'path': 'heads.zip', 'resolution': 64} and data['augment_pipe'] is None
    assert not data['G'].training and not any(p.requires_grad for p in data['D'].parameters())


@pytest.mark.filterwarnings('ignore:TypedStorage is deprecated')
@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_storages_that_torch_writes(dtype, zipped):
    tensor = torch.arange(12).to(dtype)
    buffer = io.BytesIO()
    typed = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=dtype)
    torch.save(typed, buffer, _use_new_zipfile_serialization=zipped)
    storage = read_storage(buffer.getvalue())
    assert storage.dtype == dtype and bytes(storage.octets) == tensor.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize('storage', ['legacy', 'zip'])
def test_the_writers_storages_are_torchs_own(storage):
    tensor = torch.randn(3, 4)
    loaded = torch.load(io.BytesIO(Writer(storage=storage).storage_bytes(tensor)), weights_only=True)
    assert loaded.tolist() == tensor.flatten().tolist()


def test_views_of_storages_keep_their_strides(tmp_path):
    tensor = torch.randn(3, 4).t()
    octets = Writer().storage_bytes(tensor.t())
    value = Writer().tensor(tensor, storage_bytes=octets, stride=tuple(tensor.stride()))
    file = write(tmp_path / 'x.pkl', Writer(), x=value)
    with open(file, 'rb') as stream:
        read, _ = reader.read(stream)
    assert torch.equal(read['x'].to_torch(), tensor)


def test_report_names_what_is_left_out(G, tmp_path):
    writer = Writer()
    entry = writer.generator(G, dict(PANOHEAD, of_a_fork=1), panohead=True, of_nobody=(1, 2))
    lines = '\n'.join(snapshot.describe_file(write(tmp_path / 'x.pkl', writer, G_ema=entry)))
    total = len(G.state_dict())
    assert f'a published PanoHead network, {total} of {total} tensors mapped' in lines
    for name in ('rendering_kwargs.of_a_fork', 'attribute of_nobody', 'attribute decoder_scale'):
        assert f'left out: {name}' in lines
    assert 'left out: attribute _forward_hooks' not in lines


def changed_generator(G, what):
    """The generator's entry with one thing that a key map must notice."""
    writer = Writer()
    rendering = dict(PANOHEAD)
    entry = writer.generator(G, rendering, panohead=True)
    state = entry.args[0].items['state']
    if what == 'leftover':
        state['_parameters']['stray'] = writer.tensor(torch.zeros(2), True)
    elif what == 'absent':
        del state['_modules']['torgb']
    elif what == 'shape':
        state['_modules']['torgb'].args[0].items['state']['_parameters']['bias'] = writer.tensor(torch.zeros(5), True)
    elif what == 'kind':
        state['_modules']['torgb'].args[0].items['state']['_parameters']['bias'] = writer.tensor(torch.zeros(3, dtype=torch.int64), True)
    elif what == 'filter':
        state['_buffers']['resample_filter'] = writer.tensor(torch.ones(4, 4))
    elif what == 'spheres':
        rendering['triplane_depth'] = 5
    elif what == 'depth':
        rendering['triplane_depth'] = 'three'
    elif what == 'marching':
        rendering['clamp_mode'] = 'relu'
    elif what == 'module':
        rendering['superresolution_module'] = 'os.system'
    elif what == 'no options':
        del state['rendering_kwargs']
    elif what == 'axes':
        state['_modules']['renderer'] = writer.renderer(((0, 1, 2), (1, 0, 2), (2, 0, 1)))
    elif what == 'class':
        entry.args[0].items['class_name'] = 'NeuralBlender'
    elif what == 'version':
        entry.args[0].items['version'] = 7
    elif what == 'unnamed':
        state['_init_args'] = (512,)
    elif what == 'huge':
        state['_init_kwargs'] = easy(**{**state['_init_kwargs'].items, 'w_dim': 2 ** 40})
    elif what == 'no class':
        del entry.args[0].items['class_name']
    elif what == 'no tensor':
        state['_parameters']['stray'] = 1
    return writer, entry


@pytest.mark.parametrize('what, message', [
    ('leftover', '1 unexpected: stray'), ('absent', '4 missing: torgb'), ('shape', r'torgb.bias \(5,\) instead of \(3,\)'),
    ('kind', 'torgb.bias is of type torch.int64'), ('filter', 'another filter than'), ('spheres', 'SphereHead'), ('depth', 'SphereHead'),
    ('marching', "clamp_mode is 'relu'"), ('module', "superresolution module must be one of .* got 'system'"),
    ('no options', 'has no rendering_kwargs'), ('axes', 'its planes lie along'), ('class', "a 'NeuralBlender', which is no class"),
    ('version', 'persistence version 7'), ('unnamed', 'unnamed arguments'), ('huge', 'w_dim is 1099511627776'),
    ('no class', 'persistent object without class'), ('no tensor', 'stray is a int and no tensor')])
def test_what_a_key_map_refuses(G, tmp_path, what, message):
    writer, entry = changed_generator(G, what)
    file = write(tmp_path / 'x.pkl', writer, G_ema=entry)
    with pytest.raises(dnnlib.UserError, match=message) as caught:
        snapshot.load_network(file)
    assert str(caught.value).startswith(f'{file}: ')


def test_filters_may_be_missing_or_doubled(G, tmp_path):
    writer = Writer()
    entry = writer.generator(G, PANOHEAD, panohead=True)
    modules = entry.args[0].items['state']['_modules']['superresolution'].args[0].items['state']['_modules']
    filter_ = modules['block1'].args[0].items['state']['_buffers'].pop('resample_filter')
    entry.args[0].items['state']['_buffers']['resample_filter'] = filter_
    assert states_equal(snapshot.load_network(write(tmp_path / 'x.pkl', writer, G_ema=entry)), G)


@pytest.mark.parametrize('class_name', ['Generator', 'AugmentPipe', 'OSGDecoder'])
def test_parts_are_no_networks(tmp_path, class_name):
    writer = Writer()
    file = write(tmp_path / 'x.pkl', writer, G_ema=writer.persistent(class_name, {}))
    with pytest.raises(dnnlib.UserError, match=f'{class_name} is no generator or discriminator'):
        snapshot.load_network(file)


@pytest.mark.parametrize('name', ['published.pkl', 'ours.safetensors'])
def test_training_goes_on_from_them(G, D, tmp_path, name):
    writer = Writer()
    entry = writer.generator(G, PANOHEAD, panohead=True)
    file = write(tmp_path / 'published.pkl', writer, G=entry, G_ema=entry, D=writer.discriminator(D, 'MaskDualDiscriminatorV2'))
    snapshot.convert(file, tmp_path / 'ours.safetensors')
    torch.manual_seed(7)
    networks = {'G': PanoHeadGenerator(**SMALL), 'D': MultiInputDiscriminator(**D.init_kwargs), 'G_ema': PanoHeadGenerator(**SMALL)}
    assert not states_equal(networks['G'], G)
    build.load_resumed(tmp_path / name, networks)
    assert states_equal(networks['G'], G) and states_equal(networks['D'], D) and states_equal(networks['G_ema'], G)


def test_scripts_take_published_files(G, tmp_path):
    writer = Writer()
    file = write(tmp_path / 'published.pkl', writer, G_ema=writer.generator(G, PANOHEAD, panohead=True))
    command = ['--network', str(file), '--outdir', str(tmp_path / 'out'), '--seeds', '0', '--device', 'cpu']
    result = CliRunner().invoke(gen_samples.main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert list((tmp_path / 'out').glob('*.png'))


def test_published_files_become_ours(G, D, tmp_path):
    pytest.importorskip('safetensors')
    writer = Writer()
    file = write(tmp_path / 'published.pkl', writer, G_ema=writer.generator(G, PANOHEAD, panohead=True),
                 D=writer.discriminator(D, 'MaskDualDiscriminatorV2'))
    for name in ('ours.pkl', 'ours.safetensors'):
        result = CliRunner().invoke(snapshot.main, ['convert', str(file), str(tmp_path / name)], catch_exceptions=False)
        assert result.exit_code == 0
        data = snapshot.load_snapshot(tmp_path / name)
        assert states_equal(data['G_ema'], G) and states_equal(data['D'], D) and data['G'] is None
    assert np.array_equal(data['G_ema'].rendering.box_warp, 1)
