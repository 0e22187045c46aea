"""The generation scripts as their readers type them, on a fake network and on small real ones."""

import json
import math
import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import mrcfile
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from PIL import Image

import camera_utils
import gen_interpolation
import gen_samples
import gen_videos
import inference.session
from fake_generator import FakeGenerator
from inference import trajectories
from training.generators.eg3d import EG3DGenerator
from training.generators.panohead import PanoHeadGenerator
from training.snapshot import save_snapshot


def run(script, arguments, expect=0):
    result = CliRunner().invoke(script.main, arguments.split() if isinstance(arguments, str) else arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, result.output
    return result


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A FakeGenerator that every network file gives; the working folder is empty."""
    generator = FakeGenerator()
    monkeypatch.setattr(inference.session, 'load_network', lambda path, key='G_ema', device='cpu': generator)
    monkeypatch.chdir(tmp_path)
    return generator


def picture(path):
    return np.asarray(Image.open(path))


def video_frames(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)['size']
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def red_share(picture):
    """Mean of red minus blue: the fake head is red on the world's +x side."""
    return float((picture[..., 0].astype(float) - picture[..., 2]).mean())


# ---------------------------------------------------------------------------------------------------------------------
# gen_samples.

def test_samples_as_in_the_readme(fake, tmp_path):
    run(gen_samples, '--outdir=out --trunc=0.7 --shapes=true --seeds=0-3 --network X.pkl --shape-res 32')
    seeds = [f'seed{i:04d}' for i in range(4)]
    assert names(tmp_path / 'out') == sorted([f'{s}.png' for s in seeds] + [f'{s}.mrc' for s in seeds])
    assert fake.counts == {'mapping': 4, 'build_field': 4, 'render': 20}
    strip = picture(tmp_path / 'out' / 'seed0000.png')
    assert strip.shape == (32, 5 * 32, 3)
    # Yaw -90 sees the blue side alone; the back is the front with sides exchanged.
    front, side, back = strip[:, :32], strip[:, 64:96], strip[:, 128:]
    assert red_share(side) < -30
    assert red_share(front[:, 18:]) > 20 > -20 > red_share(back[:, 18:])
    with mrcfile.open(tmp_path / 'out' / 'seed0000.mrc') as mrc:
        assert mrc.data.shape == (32, 32, 32) and mrc.data.max() > 50


def test_cameras_of_the_strip(fake):
    run(gen_samples, '--seeds 0 --network X.pkl')
    yaws = torch.deg2rad(torch.tensor([0.0, -45, -90, -135, -180]))
    expected = camera_utils.look_at_pose(math.pi / 2 + yaws, math.pi / 2 - 0.2, (0, 0, 0), 2.7)
    torch.testing.assert_close(torch.cat(fake.labels_seen)[:, :16].reshape(-1, 4, 4), expected)


def test_sheet_grid_and_views(fake, tmp_path):
    run(gen_samples, '--seeds 0-3 --network X.pkl --sheet --grid 2x2 --outdir a')
    assert picture(tmp_path / 'a' / 'sheet.png').shape == (4 * 32, 8 * 32, 3)
    assert picture(tmp_path / 'a' / 'grid.png').shape == (64, 64, 3)
    assert not (picture(tmp_path / 'a' / 'grid.png')[:32, :32] == picture(tmp_path / 'a' / 'grid.png')[32:, 32:]).all()
    run(gen_samples, '--seeds 0 --network X.pkl --views 3 --outdir b')
    assert picture(tmp_path / 'b' / 'seed0000.png').shape == (32, 3 * 32, 3)


def test_rgba_samples(fake, tmp_path):
    run(gen_samples, '--seeds 0 --network X.pkl --rgba --views 1')
    rgba = picture(tmp_path / 'out' / 'seed0000.png')
    assert rgba.shape == (32, 32, 4)
    assert rgba[0, 0, 3] == 0 and rgba[16, 16, 3] > 250


@pytest.mark.parametrize('mode, size', [('image_raw', 16), ('image_depth', 16)])
def test_image_modes(fake, tmp_path, mode, size):
    run(gen_samples, f'--seeds 0 --network X.pkl --image_mode {mode} --views 1')
    assert picture(tmp_path / 'out' / 'seed0000.png').shape == (size, size, 3)


def test_resolution_and_sampling_flags(fake, tmp_path):
    run(gen_samples, '--seeds 0 --network X.pkl --image_mode image_raw --views 1 --nrr 20 --sample_mult 2')
    assert picture(tmp_path / 'out' / 'seed0000.png').shape == (20, 20, 3)
    assert fake.options_seen[0].depth_resolution == 32


def test_angle_of_view(fake, tmp_path):
    run(gen_samples, '--seeds 0 --network X.pkl --views 1 --rgba')
    run(gen_samples, '--seeds 0 --network X.pkl --views 1 --rgba --fov-deg 40 --outdir wide')
    near, far = (picture(tmp_path / folder / 'seed0000.png')[..., 3] > 128 for folder in ('out', 'wide'))
    assert far.sum() < near.sum() / 2


def test_shape_formats(fake, tmp_path):
    run(gen_samples, '--seeds 0 --network X.pkl --views 1 --shapes 1 --shape-format .ply,glb,obj --shape-res 32 --level 10')
    assert names(tmp_path / 'out') == ['seed0000.glb', 'seed0000.obj', 'seed0000.ply', 'seed0000.png']
    assert trimesh.load(tmp_path / 'out' / 'seed0000.ply').is_watertight


# ---------------------------------------------------------------------------------------------------------------------
# gen_videos.

def test_video_as_in_the_readme(fake, tmp_path):
    run(gen_videos, '--network X.pkl --seeds 0-3 --grid 2x2 --outdir=out --cfg Head --trunc 0.7 --w-frames 48')
    frames = video_frames(tmp_path / 'out' / 'seed0000-0003.mp4')
    assert len(frames) == 48 and frames[0].shape == (64, 64, 3)
    assert fake.counts == {'mapping': 4, 'build_field': 4, 'render': 4 * 48}
    sides = [red_share(frames[i][:32, :32]) for i in (12, 36)]
    assert sides[0] > 30 and sides[1] < -30


def test_one_backbone_run_for_one_identity(fake):
    run(gen_videos, '--network X.pkl --seeds 7 --w-frames 48')
    assert fake.counts == {'mapping': 1, 'build_field': 1, 'render': 48}


def test_keyframes_glide_in_one_video(fake, tmp_path):
    run(gen_videos, '--network X.pkl --seeds 0-2 --w-frames 4')
    assert names(tmp_path / 'out') == ['seed0000-0002.mp4']
    assert len(video_frames(tmp_path / 'out' / 'seed0000-0002.mp4')) == 12
    assert fake.counts['build_field'] == 12


def test_without_interpolation_there_is_a_video_for_each_keyframe(fake, tmp_path):
    run(gen_videos, '--network X.pkl --seeds 0-3 --grid 2x1 --w-frames 4 --interpolate false')
    assert names(tmp_path / 'out') == ['seed0000-0001.mp4', 'seed0002-0003.mp4']
    assert fake.counts['build_field'] == 4


def test_num_keyframes_takes_seeds_again():
    assert gen_videos.arrange_seeds([5, 6, 7], 2, 3) == [[5, 6], [7, 5], [6, 7]]
    assert gen_videos.arrange_seeds([0, 1, 2, 3], 2, None) == [[0, 1], [2, 3]]


def test_own_camera_path(fake, tmp_path):
    (tmp_path / 'path.json').write_text(json.dumps({'yaw': [-90, 90], 'pitch': 0}))
    run(gen_videos, '--network X.pkl --seeds 0 --trajectory path.json --fps 10')
    frames = video_frames(tmp_path / 'out' / 'seed0000.mp4')
    assert len(frames) == 2
    assert red_share(frames[0]) < -30 and red_share(frames[1]) > 30


def test_depth_video_and_shapes(fake, tmp_path):
    run(gen_videos, '--network X.pkl --seeds 1 --w-frames 2 --image_mode image_depth '
                    '--shapes true --shape-res 32 --shape-format glb')
    assert names(tmp_path / 'out') == ['seed0001.glb', 'seed0001_depth.mp4']


def test_depth_film_does_not_flicker(fake, tmp_path, monkeypatch):
    """The fake's depths are of one range in all frames, which then have one grey for one depth."""
    ranges = []
    frames = gen_videos.images.frames
    monkeypatch.setattr(gen_videos.images, 'frames', lambda *args, depth_range:
                        ranges.append(depth_range) or frames(*args, depth_range=depth_range))
    run(gen_videos, '--network X.pkl --seeds 1 --w-frames 3 --image_mode image_depth')
    assert len(ranges) == 3 and set(ranges) == {ranges[0]}
    assert ranges[0] == pytest.approx((2.7 - fake.rendering.box_warp / 2, 2.7 + fake.rendering.box_warp / 2))


def test_videos_are_deterministic(fake, tmp_path):
    for folder in ('a', 'b'):
        run(gen_videos, f'--network X.pkl --seeds 0-1 --w-frames 4 --outdir {folder}')
    assert (tmp_path / 'a' / 'seed0000-0001.mp4').read_bytes() == (tmp_path / 'b' / 'seed0000-0001.mp4').read_bytes()


def test_help_tells_the_trajectory_forms():
    text = run(gen_videos, '--help').output
    for word in ('keyframes', 'transform_matrix', 'camera_angle_x', '"yaw"', 'dataset.json', '25-number'):
        assert word in text


# ---------------------------------------------------------------------------------------------------------------------
# gen_interpolation.

def test_interpolation_as_in_the_readme(fake, tmp_path):
    run(gen_interpolation, '--network X.pkl --trunc 0.7 --outdir interpolation_out')
    first, second = fake.mapped
    mixed = torch.stack([first.clone() for _ in range(6)])
    for column, layer in zip(mixed, (0, 2, 3, 4, 6, 8), strict=True):
        column[:, layer:] = second[:, layer:]
    torch.testing.assert_close(torch.stack(fake.built), mixed)
    cells = picture(tmp_path / 'interpolation_out' / 'interpolation0000-0001.png')
    cells = cells.reshape(3, 32, 6, 32, 3).transpose(0, 2, 1, 3, 4)
    assert fake.counts == {'mapping': 2, 'build_field': 6, 'render': 18}
    # The fake head takes its place from latent 0 and its tint from the last: only the first column is all second head.
    assert not (cells[0, 0] == cells[0, 1]).all()
    assert (cells[:, 1] == cells[:, 5]).all()
    assert red_share(cells[1, 0]) > red_share(cells[0, 0]) + 10        # turned to the red side
    assert red_share(cells[0, 0][:, 18:]) > 0 > red_share(cells[2, 0][:, 18:])


# ---------------------------------------------------------------------------------------------------------------------
# What the user may get wrong.

BAD_ARGUMENTS = [
    (gen_samples, '--seeds 3-1', '--seeds'),
    (gen_samples, '--seeds x', '--seeds'),
    (gen_samples, '--seeds 0-4294967296', '--seeds'),
    (gen_samples, '--trunc nan', '--trunc'),
    (gen_samples, '--trunc inf', '--trunc'),
    (gen_samples, '--trunc-cutoff -1', '--trunc-cutoff'),
    (gen_samples, '--seeds 0-2 --grid 2x2', '--grid 2x2 holds 4'),
    (gen_samples, '--grid 0x2', '--grid'),
    (gen_samples, '--views 0', '--views'),
    (gen_samples, '--image_mode color', '--image_mode'),
    (gen_samples, '--shape-format stl', 'stl'),
    (gen_samples, '--shape-res 4', '--shape-res'),
    (gen_samples, '--max-mem lots', '--max-mem'),
    (gen_samples, '--max-mem 0', '--max-mem'),
    (gen_samples, '--shapes true --shape-res 32 --max-mem 100KB', '--max-mem'),
    (gen_samples, '--shapes true --shape-res 32 --level 1e9 --shape-format ply', '--level'),
    (gen_samples, '--fov-deg 180', '--fov-deg'),
    (gen_samples, '--pose_cond nan', '--pose_cond'),
    (gen_samples, '--device abacus', '--device abacus'),
    (gen_samples, '--sample_mult 0', '--sample_mult'),
    (gen_samples, '--nrr 0', '--nrr'),
    (gen_videos, '--seeds 0-2 --grid 2x2', 'grids of 4'),
    (gen_videos, '--grid 2', '--grid'),
    (gen_videos, '--cfg Teapot', '--cfg'),
    (gen_videos, '--w-frames 0', '--w-frames'),
    (gen_videos, '--fps nan', '--fps'),
    (gen_videos, '--num-keyframes 0', '--num-keyframes'),
    (gen_videos, '--trajectory absent.json', 'absent.json'),
    (gen_samples, '--outdir=', '--outdir is empty'),
    (gen_samples, '--seeds 0 --grid 2x2', '1 head;'),
    (gen_videos, '--seeds 0 --grid 2x2', '1 head '),
    (gen_interpolation, '--seeds 0', '1 head;'),
    (gen_interpolation, '--seeds 0-2', 'even number'),
    (gen_interpolation, '--trunc x', '--trunc'),
]


@pytest.mark.parametrize('script, arguments, message', BAD_ARGUMENTS, ids=[f'{s.__name__} {a}' for s, a, _ in BAD_ARGUMENTS])
def test_bad_arguments(fake, script, arguments, message):
    result = run(script, f'--network X.pkl {arguments}', expect=2)
    assert message in result.output and 'Traceback' not in result.output


@pytest.mark.parametrize('script', [gen_samples, gen_videos, gen_interpolation])
@pytest.mark.parametrize('name, content', [('absent.pkl', None), ('empty.pkl', b''), ('text.pkl', b'not a network')])
def test_bad_network_files(script, name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run(script, ['--network', str(tmp_path / name), '--outdir', str(tmp_path / 'out')], expect=2)
    assert name in result.output and 'Traceback' not in result.output


@pytest.mark.parametrize('script', [gen_samples, gen_videos, gen_interpolation])
def test_unwritable_outdir(fake, script, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    assert '--outdir' in run(script, '--network X.pkl --outdir file/out', expect=2).output
    assert fake.counts['mapping'] == 0


@pytest.mark.parametrize('script', [gen_samples, gen_videos])
def test_memory_is_refused_before_rendering(fake, script):
    output = run(script, '--network X.pkl --seeds 0 --shapes true --shape-res 2048', expect=2).output
    assert '--shape-res' in output and '--max-mem' in output and 'Traceback' not in output
    assert fake.counts['mapping'] == 0
    assert '1 head written' in run(gen_samples, '--network X.pkl --seeds 0 --shape-res 2048').output


def test_outdir_that_is_a_file(fake, tmp_path):
    (tmp_path / 'file').touch()
    assert 'is a file' in run(gen_samples, '--network X.pkl --outdir file', expect=2).output


def test_pti_script_names_the_films_as_they_are(tmp_path):
    """With a stand-in for Python that makes the film's file and says its name, as gen_videos.py does."""
    stub = tmp_path / 'stub.sh'
    stub.write_text('#!/usr/bin/env bash\nfor last; do [ "$prev" = --outdir ] && out=$last; prev=$last; done\n'
                    'mkdir -p "$out"\necho film > "$out/projected_w0000.mp4"\necho "$out/projected_w0000.mp4: 8 frames"\n')
    stub.chmod(0o755)
    script = Path(gen_videos.__file__).with_name('gen_pti_script.sh')
    environment = {**os.environ, 'PYTHON': str(stub), 'TARGET_IMG': 'x', 'INDICES': '0', 'OUTDIR': str(tmp_path / 'out'),
                   'FRAMES': '8', 'NETWORK': 'demo'}
    done = subprocess.run(['bash', script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    folder = tmp_path / 'out' / 'demo' / '0' / 'PTI_render'
    assert names(folder) == ['post.mp4', 'pre.mp4']
    assert f'{folder / "pre.mp4"}: 8 frames' in done.stdout and f'{folder / "post.mp4"}: 8 frames' in done.stdout
    assert not [line for line in done.stdout.splitlines() if 'PTI_render/projected_w' in line]


def test_bad_camera_path_is_refused_before_rendering(fake):
    run(gen_videos, '--network X.pkl --seeds 0 --trajectory absent.json', expect=2)
    assert fake.counts['render'] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Real networks, small.

SMALL = dict(z_dim=16, w_dim=32, channel_base=512, channel_max=16, plane_resolution=16,
             neural_rendering_resolution=16, rendering={'depth_resolution': 8, 'depth_resolution_importance': 8})


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """Snapshot files of small untrained networks by name."""
    folder = tmp_path_factory.mktemp('networks')
    torch.manual_seed(0)
    made = {'panohead32': PanoHeadGenerator(img_resolution=32, **SMALL),
            'panohead64': PanoHeadGenerator(img_resolution=64, **SMALL),
            'eg3d64': EG3DGenerator(img_resolution=64, **SMALL), 'unlabelled': EG3DGenerator(img_resolution=32, c_dim=0, **SMALL)}
    for name, network in made.items():
        save_snapshot(folder / f'{name}.pkl', {'G_ema': network}, {})
    return {name: (folder / f'{name}.pkl', network.img_resolution) for name, network in made.items()}


@pytest.mark.parametrize('name', ['panohead32', 'panohead64', 'eg3d64', 'unlabelled'])
def test_samples_of_real_networks(networks, name, tmp_path):
    path, size = networks[name]
    run(gen_samples, f'--network {path} --seeds 0,5 --trunc 0.7 --rgba --outdir {tmp_path} --device cpu '
                     '--shapes true --shape-res 24 --shape-format mrc,glb')
    assert picture(tmp_path / 'seed0005.png').shape == (size, 5 * size, 4)
    assert not (picture(tmp_path / 'seed0000.png') == picture(tmp_path / 'seed0005.png')).all()
    assert len(trimesh.load(tmp_path / 'seed0000.glb', force='mesh').faces) > 0


def test_video_of_a_real_network_builds_its_field_once(networks, monkeypatch, tmp_path):
    calls = []
    build_field = PanoHeadGenerator.build_field
    monkeypatch.setattr(PanoHeadGenerator, 'build_field', lambda self, ws, *args: calls.append(1) or build_field(self, ws, *args))
    for folder in ('a', 'b'):
        calls.clear()
        run(gen_videos, f'--network {networks["panohead32"][0]} --seeds 3 --w-frames 48 --device cpu '
                        f'--outdir {tmp_path / folder}')
        assert len(calls) == 1
    assert len(video_frames(tmp_path / 'a' / 'seed0003.mp4')) == 48
    assert (tmp_path / 'a' / 'seed0003.mp4').read_bytes() == (tmp_path / 'b' / 'seed0003.mp4').read_bytes()


def test_views_of_a_real_network_are_those_of_synthesis(networks):
    """The scripts' pictures are G.mapping with the frontal camera, then G.synthesis from the view's."""
    session = inference.session.Session.open(networks['panohead32'][0], 'cpu')
    network = session.generator
    front, side = (trajectories.turned(network.camera, yaw) for yaw in (0, 70))
    with torch.inference_mode():
        z = torch.from_numpy(np.random.RandomState(2).randn(1, network.z_dim).astype(np.float32))
        expected = network.synthesis(network.mapping(z, front, truncation_psi=0.7), side)
    output = session.view(session.identity(session.seeds_to_ws([2], 0.7)), side)
    for name in ('image', 'image_raw', 'image_depth', 'image_mask'):
        assert torch.equal(output[name], expected[name])


def test_interpolation_of_a_real_network(networks, tmp_path):
    run(gen_interpolation, f'--network {networks["panohead32"][0]} --outdir {tmp_path} --device cpu')
    assert picture(tmp_path / 'interpolation0000-0001.png').shape == (3 * 32, 6 * 32, 3)
