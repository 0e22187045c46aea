"""Training runs from the command line to the snapshot, each of a second: what they write, what they change, what each
flag does, and how they end."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dnnlib import UserError
from small_sets import write_set
from tiny_runs import PANOHEAD_ONLY, TINY, invoke, run_train, snapshot, write_heads
from torch_utils import distributed, misc
from training import trainer as trainer_module
from training.configure import training_config
from training.losses.adversarial import AdversarialLoss
from training.presets import PRESETS
from training.snapshot import load_network
from training.build import build_networks
from training.trainer import Trainer

ROOT = Path(train.__file__).resolve().parent
NETWORKS = ('G', 'D', 'G_ema')


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp('heads'))


@pytest.fixture(scope='module')
def run(heads, tmp_path_factory):
    """Folder of a run of three steps in which every phase takes place."""
    return run_train(tmp_path_factory.mktemp('runs'), heads, '--density_reg 1 --kimg 0.012')


@pytest.fixture(scope='module')
def untrained(heads, tmp_path_factory):
    """Snapshot entries of the same run before its first step."""
    return snapshot(run_train(tmp_path_factory.mktemp('untrained'), heads, '--kimg 0'))


def stats(run_dir):
    """Lines of stats.jsonl."""
    return [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]


def changed(before, after):
    """Names of the parameters and buffers that differ."""
    before, after = before.state_dict(), after.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def size(path):
    with Image.open(path) as image:
        return image.size


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves.

def test_run_folder(run):
    assert run.name == '00000-ffhq-heads-gpus1-batch4-gamma0.2'
    # Moments of the same kimg have names of their own.
    of_moments = {f'{start}{moment}{end}' for moment in ('000000', '000000_004', '000000_008', '000000_012') for start, end in (
        ('network-snapshot-', '.pkl'), ('views', '.png'), ('fakes', '.png'), ('fakes', '_raw.png'), ('fakes', '_depth.png'),
        ('fakes', '_alpha.png'))}
    assert {path.name for path in run.iterdir()} - {next(run.glob('events.out.tfevents.*')).name, '.lock'} == {
        'training_options.json', 'stats.jsonl', 'log.txt', 'reals.png', 'segs.png', 'finished.json', *of_moments,
        'training-state-000000.pt', 'training-state-000000_008.pt', 'training-state-000000_012.pt'}


def test_run_folders_are_numbered(heads, tmp_path):
    (tmp_path / '00007-other').mkdir()
    run_dir = run_train(tmp_path, heads, '--kimg 0 --desc second --gamma 1.5')
    assert run_dir.name == '00008-ffhq-heads-gpus1-batch4-gamma1.5-second'


def test_statistics(run):
    lines = stats(run)
    assert [line['Progress/kimg']['mean'] for line in lines] == pytest.approx([0.004, 0.008, 0.012])
    for name in ('Loss/G/loss', 'Loss/D/loss', 'Loss/scores/real', 'Loss/scores/fake', 'Loss/G/trans_reg_loss'):
        assert all(math.isfinite(line[name]['mean']) and line[name]['num'] > 0 for line in lines), name
    # R1 and the density regulariser run in the first step only
    assert {'Loss/r1_penalty', 'Loss/r1_penalty_seg', 'Loss/D/reg', 'Loss/G/l1'} <= set(lines[0])
    assert lines[-1]['Progress/skipped_steps']['mean'] == 0
    log = (run / 'log.txt').read_text()
    assert log.count('sec/kimg') == 3 and 'network-snapshot' in log
    assert next(run.glob('events.*')).stat().st_size > 1000


def test_pictures(run):
    assert size(run / 'reals.png') == size(run / 'segs.png') == size(run / 'fakes000000.png') == (6 * 32, 4 * 32)
    assert {size(run / f'fakes000000_{kind}.png') for kind in ('raw', 'depth', 'alpha')} == {(6 * 8, 4 * 8)}
    assert size(run / 'views000000.png') == (8 * 32, 3 * 32)
    reals, masks = (np.asarray(Image.open(run / name)) for name in ('reals.png', 'segs.png'))
    assert reals.shape[2] == 3 and masks.ndim == 2 and masks.min() == 0 and masks.max() == 255


def test_snapshot_holds_all(run):
    data = snapshot(run)
    assert set(data) >= {*NETWORKS, 'training_set_kwargs', 'augment_pipe'}
    assert data['training_set_kwargs']['path'].endswith('heads.zip')
    assert json.loads((run / 'training_options.json').read_text())['training_set'] == data['training_set_kwargs']
    for network in (data[key] for key in NETWORKS):
        assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    G = load_network(max(run.glob('network-snapshot-*.pkl')))
    assert changed(G, data['G_ema']) == set()


def test_every_network_learns(run, untrained):
    trained = snapshot(run)
    silent = {name for name, _ in trained['G'].named_parameters() if name.endswith('noise_strength')}   # no noise in this preset
    for key in ('G', 'G_ema'):
        parameters = {name for name, _ in trained[key].named_parameters()}
        assert parameters - changed(untrained[key], trained[key]) == silent
        assert 'backbone.mapping.w_avg' in changed(untrained[key], trained[key])
    assert {name for name, _ in trained['D'].named_parameters()} == changed(untrained['D'], trained['D'])
    # the average lags behind
    weight = 'backbone.synthesis.b4.const'
    steps = [(trained[key].state_dict()[weight] - untrained['G'].state_dict()[weight]).norm() for key in ('G_ema', 'G')]
    assert 0 < steps[0] < steps[1]


def test_snapshot_loads_where_only_two_packages_are(run, tmp_path):
    """Plain pickle in a folder that holds torch_utils and dnnlib, as a user of the network would have it."""
    for package in ('torch_utils', 'dnnlib'):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(run / 'network-snapshot-000000.pkl', tmp_path / 'network.pkl')
    program = ("import pickle, sys, torch\n"
               "G = pickle.load(open('network.pkl', 'rb'))['G_ema']\n"
               "c = torch.tensor([[1., 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.3, 0, .5, 0, 4.3, .5, 0, 0, 1]])\n"
               "torch.manual_seed(0)\n"
               "out = G(torch.randn(1, G.z_dim), c)\n"
               "assert 'training' not in sys.modules\n"
               "print(out['image'].shape[-1], out['image_mask'].shape[-1], bool(out['image'].isfinite().all()))\n")
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | {'OMNIHEAD_NATIVE': '0'}
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['32', '8', 'True']


def test_same_seed_same_run(heads, run, tmp_path):
    again = snapshot(run_train(tmp_path, heads, '--density_reg 1 --kimg 0.012'))
    other = snapshot(run_train(tmp_path, heads, '--density_reg 1 --kimg 0.012 --seed 1'))
    first = snapshot(run)
    assert all(changed(first[key], again[key]) == set() for key in NETWORKS)
    assert all(changed(first[key], other[key]) for key in NETWORKS)


# ---------------------------------------------------------------------------------------------------------------------
# What flags do.

@pytest.mark.parametrize('reg_type', ['monotonic-detach', 'monotonic-fixed'])
def test_density_regularisers(heads, tmp_path, reg_type):
    lines = stats(run_train(tmp_path, heads, f'--density_reg 1 --reg_type {reg_type} --density_reg_every 1'))
    assert all(line[f'Loss/G/{reg_type}']['num'] == 1 for line in lines)


def test_images_without_masks(heads, tmp_path):
    run_dir = run_train(tmp_path, (heads[0], None), '--generator eg3d --disc_module DualDiscriminator', tiny=TINY)
    data = snapshot(run_dir)
    assert type(data['G']).__name__ == 'EG3DGenerator' and data['D'].init_kwargs['inputs'] == ['image', 'image_raw']
    assert not (run_dir / 'segs.png').exists() and 'Loss/r1_penalty_seg' not in stats(run_dir)[0]


@pytest.mark.parametrize('module, inputs, trunk', [
    ('DualDiscriminator', 2, None), ('training.dual_discriminator.MaskDualDiscriminatorV2', 3, None),
    ('MaskDualDiscriminator', 2, 16)])
def test_discriminators(heads, tmp_path, module, inputs, trunk):
    D = snapshot(run_train(tmp_path, heads, f'--disc_module {module} --seg_resolution 16'))['D']
    assert len(D.init_kwargs['inputs']) == inputs and D.init_kwargs['mask_trunk_resolution'] == trunk


def test_without_labels(heads, tmp_path):
    data = snapshot(run_train(tmp_path, heads, '--cond=False'))
    assert data['G'].c_dim == 0 and data['D'].c_dim == 0


def test_adaptive_augmentation(heads, tmp_path):
    """p rises when D recognises more reals than the target, and here every target is below what it sees."""
    lines = stats(run_train(tmp_path, heads, '--aug=ada --target 1e-9 --kimg 0.02'))
    assert lines[0]['Progress/augment']['mean'] == 0 < lines[-1]['Progress/augment']['mean'] < 1e-3 \
        or lines[-1]['Loss/signs/real']['mean'] <= 0


def test_fixed_augmentation(heads, run, tmp_path):
    run_dir = run_train(tmp_path, heads, '--density_reg 1 --kimg 0.012 --aug=fixed --p 0.5 --augpipe bgc')
    assert {line['Progress/augment']['mean'] for line in stats(run_dir)} == {0.5}
    assert changed(snapshot(run)['D'], snapshot(run_dir)['D'])


def test_frozen_layers_stay(heads, tmp_path, untrained):
    D = snapshot(run_train(tmp_path, heads, '--freezed 3'))['D']
    frozen = {f'b32.{layer}.{part}' for layer, part in itertools.product(('fromrgb', 'conv0', 'conv1'), ('weight', 'bias'))}
    names = {name for name in D.state_dict() if not name.endswith('resample_filter')}
    assert names - changed(untrained['D'], D) == frozen


@pytest.mark.parametrize('flags, differs', [
    ('--style_mixing_prob 1', True), ('--blur_fade_kimg 1', True), ('--density_noise_fade_kimg 1', True),
    ('--bcg_reg_prob 1', True), ('--gen_pose_cond False', True), ('--disc_c_noise 1', True), ('--c-noise 1', True),
    ('--mirror 1', True), ('--batch-gpu 2', True),
    ('--set loss.noise_mode=random', True), ('--tick 0.008', False)])
def test_flags_reach_the_training(heads, tmp_path, flags, differs):
    """Each changes what is learned in two steps from the same start."""
    plain = test_flags_reach_the_training.__dict__.setdefault('plain', {})
    if heads not in plain:
        plain[heads] = snapshot(run_train(tmp_path / 'plain', heads))['D']
    assert bool(changed(plain[heads], snapshot(run_train(tmp_path / 'other', heads, flags))['D'])) == differs


def test_raw_resolution_fades_into_the_snapshot(heads, tmp_path):
    flags = '--neural_rendering_resolution_final 16 --neural_rendering_resolution_fade_kimg 0.016'
    for kimg, resolution in ((0, 8), (0.008, 12), (0.02, 16)):
        run_dir = run_train(tmp_path / str(kimg), heads, f'{flags} --kimg {kimg} --snap 0')
        data = snapshot(run_dir)
        assert data['G'].init_kwargs['neural_rendering_resolution'] == data['G_ema'].neural_rendering_resolution == resolution
        moment = max(run_dir.glob('network-snapshot-*.pkl')).stem.removeprefix('network-snapshot-')
        assert size(run_dir / f'fakes{moment}_raw.png') == (6 * resolution, 4 * resolution)


def test_resuming(heads, run, tmp_path):
    """The second stage as its readers type it: --resume, a final raw resolution, and the images seen so far."""
    start = snapshot(run)
    common = f'--resume={max(run.glob("network-snapshot-*.pkl"))} --resume_kimg 7 --neural_rendering_resolution_final 16'
    still = snapshot(run_train(tmp_path / 'still', heads, f'{common} --kimg 7'))
    assert all(changed(start[key], still[key]) == set() for key in NETWORKS)
    gone_on = run_train(tmp_path / 'on', heads, f'{common} --kimg 7.008 --tick 1')
    assert sorted(path.name for path in gone_on.glob('*.pkl')) == ['network-snapshot-000007.pkl', 'network-snapshot-000007_008.pkl']
    assert all(changed(start[key], snapshot(gone_on)[key]) for key in NETWORKS)
    assert stats(gone_on)[-1]['Progress/kimg']['mean'] == pytest.approx(7.008)


def test_resuming_keeps_the_blur_off(heads):
    def schedule(**flags):
        return training_config({'preset': 'panohead-512', 'img_data': 'A', 'seg_data': 'B', **flags})['schedule']
    assert [schedule()['resumed'], schedule(resume='X.pkl')['resumed']] == [False, True]
    assert schedule(resume='X.pkl', resume_blur=True)['resume_blur']


def test_metrics(heads, tmp_path):
    run_dir = run_train(tmp_path, heads, '--metrics=frechet_seeded --metrics_num 8')
    records = [json.loads(line) for line in (run_dir / 'metric-frechet_seeded.jsonl').read_text().splitlines()]
    assert len(records) == 2 and all(record['results']['frechet_seeded'] > 0 for record in records)


# ---------------------------------------------------------------------------------------------------------------------
# How runs end.

def interrupt_at(monkeypatch, number):
    """Ctrl-C in the middle of that step."""
    steps = []
    step = Trainer.step

    def stepping(self):
        steps.append(1)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGINT)
        step(self)
    monkeypatch.setattr(Trainer, 'step', stepping)


def test_interrupted_run_keeps_what_it_learned(heads, tmp_path, monkeypatch, untrained):
    interrupt_at(monkeypatch, 3)
    measured = []
    monkeypatch.setattr(train, 'snapshot_evaluator', lambda config, device: measured.append)
    run_dir = run_train(tmp_path, heads, '--kimg 1 --tick 1 --metrics frechet_seeded')
    assert changed(untrained['G'], snapshot(run_dir)['G'])
    assert stats(run_dir)[-1]['Progress/kimg']['mean'] == pytest.approx(0.012)     # that step was finished
    assert not measured                                     # who presses Ctrl-C does not wait for figures
    assert 'Interrupted' in (run_dir / 'log.txt').read_text()


def spoil_gradients(monkeypatch, phases):
    """Gradients of these phases are NaN in one parameter."""
    accumulate = AdversarialLoss.accumulate

    def spoiled(self, phase, *args, **kwargs):
        loss = accumulate(self, phase, *args, **kwargs)
        if phase in phases:
            network = self.generator if phase.startswith('G') else self.discriminator
            next(p for p in network.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss
    monkeypatch.setattr(AdversarialLoss, 'accumulate', spoiled)


def test_step_without_finite_gradients_is_skipped_and_counted(heads, tmp_path, monkeypatch, untrained):
    spoil_gradients(monkeypatch, {'Gmain'})
    run_dir = run_train(tmp_path, heads, '--tick 0.008')
    data = snapshot(run_dir)
    learned = changed(untrained['G'], data['G'])
    assert learned == {'backbone.mapping.w_avg'} and changed(untrained['D'], data['D'])
    skipped = stats(run_dir)[-1]['Progress/skipped_steps']
    assert skipped['num'] == 5 and skipped['mean'] == pytest.approx(2 / 5)       # Gmain, Dmain, Dreg; Gmain, Dmain


@pytest.mark.parametrize('phases', [{'Gmain'}, {'Gmain', 'Dmain', 'Dreg'}])
def test_run_that_learns_nothing_gives_up(heads, tmp_path, monkeypatch, phases):
    """Also when the other network's steps go well in between."""
    spoil_gradients(monkeypatch, phases)
    monkeypatch.setattr(trainer_module, 'MAX_SKIPPED_STEPS', 3)
    result = invoke(train, f'--outdir {tmp_path} --img_data {heads[0]} --seg_data {heads[1]} {TINY} {PANOHEAD_ONLY} --kimg 0.1')
    assert result.exit_code == 2 and 'Traceback' not in result.output
    assert 'not finite' in result.output and 'Gmain' in result.output


# ---------------------------------------------------------------------------------------------------------------------
# The command line.

FLAGS_OF_THE_FAMILY = '''
outdir img_data seg_data cfg batch gpus gamma gamma_seg gen_pose_cond mirror use_torgb_raw decoder_activation disc_module
bcg_reg_prob triplane_depth density_noise_fade_kimg density_reg min_yaw max_yaw back_repeat trans_reg gpc_reg_prob resume
neural_rendering_resolution_final resume_kimg aug freezed p target batch-gpu cbase cmax glr dlr map-depth mbstd-group desc metrics
kimg tick snap seed nobench workers dry-run c-scale c-noise gpc_reg_fade_kimg disc_c_noise sr_noise_mode sr_num_fp16_res
g_num_fp16_res d_num_fp16_res style_mixing_prob sr-module density_reg_every density_reg_p_dist reg_type decoder_lr_mul
use_background seg_resolution triplane_size neural_rendering_resolution_initial neural_rendering_resolution_fade_kimg
blur_fade_kimg resume_blur ray_start ray_end cond preset device'''.split()

FIRST_STAGE = (
    '--outdir training-runs --img_data A.zip --seg_data B.zip --cfg=ffhq --batch=32 --gpus 8 --gamma=1 --gamma_seg=1 '
    '--gen_pose_cond=True --mirror=1 --use_torgb_raw=1 --decoder_activation="none" --disc_module MaskDualDiscriminatorV2 '
    '--bcg_reg_prob 0.2 --triplane_depth 3 --density_noise_fade_kimg 200 --density_reg 0 --min_yaw 0 --max_yaw 180 '
    '--back_repeat 4 --trans_reg 10 --gpc_reg_prob 0.7').replace('"', '')


@pytest.mark.parametrize('flag', FLAGS_OF_THE_FAMILY)
def test_flag_exists(flag):
    spellings = {f'--{flag}', f'--{flag.replace("_", "-")}', f'--{flag.replace("-", "_")}'}
    known = {name for option in train.main.params for name in option.opts}
    assert spellings <= known or flag == 'dry-run' and {'-n', '--dry-run'} <= known


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """Folder with A.zip and B.zip of 512 pixels."""
    folder = tmp_path_factory.mktemp('large')
    write_set(folder / 'A.zip', folder / 'B.zip', size=512)
    return folder


def dry_run(folder, monkeypatch, flags):
    """Configuration that a dry run prints; it must leave the folder as it was."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob('*'))
    result = invoke(train, f'{flags} -n')
    assert result.exit_code == 0, result.output
    assert sorted(folder.rglob('*')) == before
    return json.loads(result.stdout)


def test_command_of_the_readme(large, monkeypatch):
    config = dry_run(large, monkeypatch, FIRST_STAGE)
    G, D = config['G'], config['D']
    assert config['run'] | {'num_gpus': 8, 'batch_size': 32, 'batch_gpu': 4} == config['run']
    assert (G['plane_depth'], G['use_torgb_raw'], G['decoder_activation'], G['adaptive_camera']) == (3, True, 'none', True)
    assert D['inputs'] == ['image', 'image_raw', 'image_mask']
    assert config['loss'] | {'r1_gamma': 1, 'r1_gamma_seg': 1, 'trans_reg': 10, 'bcg_reg_prob': 0.2} == config['loss']
    assert config['training_set'] | {'xflip': True, 'back_repeat': 4, 'min_yaw': 0, 'max_yaw': 180} == config['training_set']
    assert config['schedule'] | {'gpc_reg_prob': 0.7, 'density_noise_fade_kimg': 200} == config['schedule']


def test_preset_is_the_command_of_the_readme(large, monkeypatch):
    by_flags = dry_run(large, monkeypatch, FIRST_STAGE)
    by_preset = dry_run(large, monkeypatch, '--outdir x --preset panohead-512 --img_data A.zip --seg_data B.zip --gpus 8')
    assert by_preset == by_flags


def test_flags_win_over_the_preset(large, monkeypatch):
    config = dry_run(large, monkeypatch, '--outdir x --preset panohead-512 --img-data A.zip --seg-data B.zip --gamma 5 '
                                         '--mirror 0 --set G.features=16 --set G.rendering.ray_end=3.5 '
                                         '--set ema.halfkimg=3.0')
    assert config['loss']['r1_gamma'] == 5 and config['training_set']['xflip'] is False
    assert config['G']['features'] == 16 and config['G']['rendering']['ray_end'] == 3.5
    assert config['ema']['halfkimg'] == 3


@pytest.mark.parametrize('masks', [True, False])
@pytest.mark.parametrize('preset', PRESETS)
def test_preset_makes_networks(preset, masks):
    flags = {'preset': preset, 'img_data': 'A', 'seg_data': 'B' if masks else None,
             'disc_module': None if masks else 'DualDiscriminator', 'resume': 'X.pkl' if preset.endswith(('stage2', 'backs')) else None,
             'extra_data': 'C' if preset.endswith('backs') else None, 'extra_seg': 'D' if masks and preset.endswith('backs') else None}
    resolution = next(int(part) for part in preset.split('-') if part.isdigit())
    config = json.loads(json.dumps(training_config(flags)))
    with torch.device('meta'):
        G, D = build_networks(config, SimpleNamespace(label_dim=25, resolution=resolution))
    assert G.img_resolution == D.img_resolution == resolution
    assert ('image_mask' in D.wanted) == (masks and not preset.startswith('eg3d'))


def test_other_processes_of_torchrun_write_nothing(heads, tmp_path, monkeypatch):
    """torchrun starts train.py itself in every process; only the first makes a folder."""
    started = []
    monkeypatch.setattr(train, 'run_process', lambda config, run_dir: started.append(config['run']['num_gpus']))
    for name, value in (('LOCAL_RANK', '1'), ('RANK', '1'), ('WORLD_SIZE', '2')):
        monkeypatch.setenv(name, value)
    result = invoke(train, f'--outdir {tmp_path / "runs"} --img_data {heads[0]} --seg_data {heads[1]} {TINY} {PANOHEAD_ONLY}')
    assert result.exit_code == 0 and started == [2]
    assert not (tmp_path / 'runs').exists() and result.stdout == ''


# ---------------------------------------------------------------------------------------------------------------------
# Several processes.

@pytest.mark.slow
def test_two_processes_judge_the_same_reals_as_one(heads, tmp_path):
    """Nothing random but the weights and the order of images enters D's first scores of reals; both are the seed's."""
    flags = '--gamma 0 --gamma_seg 0 --mbstd-group 1 --kimg 0.004'
    scores = [stats(run_train(tmp_path / str(gpus), heads, f'{flags} --gpus {gpus}'))[0]['Loss/scores/real'] for gpus in (1, 2)]
    assert scores[0]['num'] == scores[1]['num'] == 4
    for figure in ('mean', 'std'):
        assert scores[1][figure] == pytest.approx(scores[0][figure], abs=1e-5)


def two_process_config(heads):
    """Configuration of a run of two processes."""
    flags = f'{TINY} {PANOHEAD_ONLY} --gpus 2 --density_reg 1'
    return json.loads(invoke(train, f'--outdir x --img_data {heads[0]} --seg_data {heads[1]} {flags} -n').stdout)


def train_and_compare(config, out):
    """In each of several processes: some steps, then the parameters of all."""
    trainer = Trainer(config, out, distributed.init(misc.resolve_device('cpu')))
    for _ in range(3):
        trainer.step()
    sums = [[float(p.double().sum()) for p in network.parameters()] for network in (trainer.G, trainer.D, trainer.ema.average)]
    everywhere = distributed.gather_objects(sums)
    if distributed.rank() == 0:
        (Path(out) / 'sums.json').write_text(json.dumps(everywhere))


@pytest.mark.slow
def test_processes_stay_together(heads, tmp_path):
    distributed.spawn(train_and_compare, 2, two_process_config(heads), str(tmp_path))
    first, second = json.loads((tmp_path / 'sums.json').read_text())
    assert first == second and all(math.isfinite(x) for network in first for x in network)


@pytest.mark.slow
def test_interrupted_processes_end_together(heads, tmp_path):
    """Ctrl-C in a terminal reaches all of them."""
    command = [sys.executable, ROOT / 'train.py', '--outdir', tmp_path, '--img_data', heads[0], '--seg_data', heads[1],
               *f'{TINY} {PANOHEAD_ONLY} --gpus 2 --kimg 1000'.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        try:
            while process.poll() is None and not [path for path in tmp_path.glob('*/stats.jsonl') if path.stat().st_size]:
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0 and 'Traceback' not in errors, errors
    run_dir = max(tmp_path.iterdir())
    assert 'Interrupted' in (run_dir / 'log.txt').read_text() and snapshot(run_dir)['G_ema'] is not None


@pytest.mark.slow
def test_error_in_a_process_is_the_users(heads, tmp_path):
    """A UserError of any process ends the command as it would in one."""
    config = two_process_config(heads)
    config['training_set']['path'] = 'absent.zip'
    with pytest.raises(UserError, match='absent.zip'):
        distributed.spawn(train_and_compare, 2, config, str(tmp_path))
