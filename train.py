"""Train a generator of heads on images with cameras and masks (PanoHead), or on images with cameras (EG3D)."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

if __name__ == '__main__':   # until training begins there is nothing to save: Ctrl-C ends at once and says nothing
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import click

import dnnlib
from dnnlib.cli import FiniteFloat, require_fast_option, trust_pickle_option, user_errors, writable_folder
from metrics import check_metrics, snapshot_evaluator
from torch_utils import distributed, misc
from training.configure import CHOICES, describe_run, set_values, training_config
from training.dataset_check import check_dataset, faults_error
from training.build import check_run
from training.presets import PRESETS
from training.state import abandon_later_states, check_same_run, choose_run_dir, read_options, run_of
from training.training_loop import training_loop

INTERRUPTED = 130     # what shells say of a program that Ctrl-C ended
NUMBER, WHOLE, FLAG, TEXT = FiniteFloat(), int, bool, str


class RayLimit(FiniteFloat):
    """A depth in world units, or 'auto' for where the ray meets the box."""
    name = "depth|'auto'"

    def convert(self, value, param, ctx):
        return value if value == 'auto' else super().convert(value, param, ctx)


# Flag, type, help. Values come from --cfg and --preset unless given; training/presets.py holds the defaults.
FLAGS = [
    ('extra_data', TEXT, 'More images, such as good back views'), ('extra_seg', TEXT, '... their masks'),
    ('extra_repeat', WHOLE, '... how often they come'), ('seg_data', TEXT, 'Masks: folder or zip'),
    ('cfg', TEXT, 'Base: ' + ', '.join(CHOICES['cfg'])), ('batch', WHOLE, 'Images a step'),
    ('preset', TEXT, 'Recipe: ' + ', '.join(PRESETS)), ('gpus', WHOLE, 'Processes'), ('device', TEXT, 'auto, cpu, cuda or mps'),
    ('gamma', NUMBER, 'R1 weight'), ('gamma_seg', NUMBER, 'R1 weight of masks'), ('batch-gpu', WHOLE, 'Images at once per process'),
    ('mirror', FLAG, 'Mirrored images as well'), ('cond', FLAG, 'Use labels'), ('min_yaw', NUMBER, 'Least |yaw|'),
    ('max_yaw', NUMBER, 'Largest |yaw|'), ('max_pitch', NUMBER, 'Largest |pitch|'), ('back_repeat', WHOLE, 'Repeats of backs'),
    ('max_size', WHOLE, 'Images to use'), ('gen_pose_cond', FLAG, 'G sees the camera'), ('c-scale', NUMBER, 'Scale of the label G sees'),
    ('c-noise', NUMBER, 'Noise on the label G sees'), ('gpc_reg_prob', NUMBER, 'Final probability of swapped labels'),
    ('gpc_reg_fade_kimg', NUMBER, 'Fade to gpc_reg_prob'), ('generator', TEXT, 'panohead or eg3d'), ('cbase', WHOLE, 'Channels * size'),
    ('cmax', WHOLE, 'Most channels'), ('map-depth', WHOLE, 'Mapping layers'), ('triplane_depth', WHOLE, 'Layers of the tri-grid'),
    ('triplane_size', WHOLE, 'Side of the planes'), ('decoder_activation', TEXT, ', '.join(CHOICES['decoder_activation'])),
    ('decoder_lr_mul', NUMBER, 'Learning rate of the decoder'), ('use_torgb_raw', FLAG, 'Raw image by ToRGB'),
    ('use_background', FLAG, 'Background network'), ('trans_reg', NUMBER, 'Weight of camera translation; 0: none'),
    ('bcg_reg_prob', NUMBER, 'Swapped backgrounds'), ('style_mixing_prob', NUMBER, 'Style mixing'), ('sr-module', TEXT, 'Super-resolution'),
    ('sr_noise_mode', TEXT, 'none, random or const'), ('sr_num_fp16_res', WHOLE, 'fp16 in super-resolution'),
    ('g_num_fp16_res', WHOLE, 'fp16 resolutions of G'), ('d_num_fp16_res', WHOLE, 'fp16 resolutions of D'),
    ('ray_start', RayLimit(), 'Nearest sample'), ('ray_end', RayLimit(), 'Farthest sample'),
    ('neural_rendering_resolution_initial', WHOLE, 'Raw image at first'), ('neural_rendering_resolution_final', WHOLE, '... at last'),
    ('neural_rendering_resolution_fade_kimg', NUMBER, '... kimg between'), ('disc_module', TEXT, ', '.join(CHOICES['disc_module'])),
    ('seg_resolution', WHOLE, "Mask trunk's size"), ('mbstd-group', WHOLE, 'Minibatch-std group'),
    ('disc_c_noise', NUMBER, 'Noise on D labels'),
    ('freezed', WHOLE, 'Freeze-D layers'), ('density_reg', NUMBER, 'Weight of density regulariser'),
    ('density_reg_every', WHOLE, '... every so many steps'), ('density_reg_p_dist', NUMBER, '... its step'),
    ('reg_type', TEXT, ', '.join(CHOICES['reg_type'])), ('density_noise_fade_kimg', NUMBER, 'Fade of density noise'),
    ('blur_fade_kimg', NUMBER, 'Fade of the blur'), ('resume_blur', FLAG, 'Blur when resuming'), ('glr', NUMBER, 'Learning rate of G'),
    ('dlr', NUMBER, 'Learning rate of D'), ('aug', TEXT, ', '.join(CHOICES['aug'])), ('augpipe', TEXT, ', '.join(CHOICES['augpipe'])),
    ('p', NUMBER, 'Probability for --aug=fixed'), ('target', NUMBER, 'Target for --aug=ada'),
    ('resume', TEXT, 'Snapshot to start a new stage from, or run folder to go on with'),
    ('resume_kimg', NUMBER, 'kimg it has seen'), ('kimg', NUMBER, 'Thousand images in all'), ('tick', NUMBER, 'kimg per tick'),
    ('snap', WHOLE, 'Ticks per snapshot'), ('state_minutes', NUMBER, 'Minutes per training state'),
    ('state_ticks', WHOLE, 'Ticks per training state'), ('keep_states', WHOLE, 'Training states kept'),
    ('prior_yaw', NUMBER, 'Without labels: largest |yaw| of fakes'), ('prior_pitch', NUMBER, '... largest |pitch|'),
    ('metrics', TEXT, 'Names, comma-separated'), ('metrics_num', WHOLE, 'Fakes for metrics'),
    ('metrics_features', TEXT, 'Feature network for metrics, as in calc_metrics.py'), ('seed', WHOLE, 'Random seed'),
    ('precision', TEXT, ', '.join(CHOICES['precision'])),
    ('workers', WHOLE, 'Reading processes'), ('nobench', FLAG, 'No cuDNN search'), ('desc', TEXT, "Text for the run folder's name"),
]


def with_flags(command):
    """Attach FLAGS; either of - and _ may be typed."""
    for name, kind, text in reversed(FLAGS):
        names = {f'--{name}', f'--{name.replace("-", "_")}', f'--{name.replace("_", "-")}'}
        command = click.option(*sorted(names, reverse=True), name.replace('-', '_'), type=kind, default=None, help=text)(command)
    return command


def run_process(config, run_dir):
    """One process of a run."""
    device = distributed.init(misc.resolve_device(config['run']['device']))
    with dnnlib.Logger(Path(run_dir) / 'log.txt') if distributed.rank() == 0 else contextlib.nullcontext():
        distributed.print0(f'Done: {training_loop(config, run_dir, device, snapshot_evaluator(config, device))}')


@click.command()
@click.option('--outdir', required=True, type=click.Path(path_type=Path), help='Where run folders are made')
@click.option('--img_data', '--img-data', '--data', 'img_data', required=True, help='Images with dataset.json: folder or zip')
@with_flags
@click.option('--set', 'assignments', multiple=True, metavar='PATH=VALUE', help='Any entry of the configuration, e.g. G.features=16')
@click.option('--fresh', is_flag=True, help='A new run, even if an unfinished one of this configuration could be gone on with')
@click.option('--allow-changes', is_flag=True, help='Go on with --resume RUN_FOLDER though settings differ')
@click.option('-n', '--dry-run', is_flag=True, help='Print the configuration and stop')
@require_fast_option()
@trust_pickle_option()
@user_errors
def main(outdir, assignments, fresh, allow_changes, dry_run, **flags):
    """Train a head generator; see README.md for whole commands. The same command again goes on with its unfinished run.

    Exit codes: 0 finished or Ctrl-C, 1 fault, 2 wrong input, 75 SIGTERM: all is saved, run the command again;
    130 Ctrl-C before training began, or a second one."""
    run_dir = run_of(flags['resume'])
    if run_dir is not None:     # all that counts is in the folder; what the run itself was started from stays as it was
        state, original = flags['resume'], read_options(run_dir) or {'run': {'resume': None, 'resume_kimg': 0.0}}
        flags.update({key: original['run'][key] or None for key in ('resume', 'resume_kimg')})
    flags['gpus'] = distributed.num_processes(flags['gpus'])
    config = training_config(flags)
    check_metrics(config['run']['metrics'], config['run']['metrics_num'], config['run']['metrics_features'])
    set_values(config, assignments)
    data = config['training_set']
    for part in ('', 'extra_'):
        path = data.get(f'{part}path')
        faults = path and check_dataset(path, data[f'{part}seg_path'], use_labels=data['use_labels'], need_labels=data['use_labels'])
        if faults:
            raise faults_error(faults, path)
    check_run(config)
    if run_dir is not None:
        check_same_run(run_dir, config, allow_changes)
    if not distributed.under_torchrun() or os.environ['RANK'] == '0':   # the first process reports and writes
        print(json.dumps(config, indent=2))
        if dry_run:
            return
        misc.resolve_device(config['run']['device'])
        if run_dir is None:
            run_dir, text = choose_run_dir(writable_folder(outdir), config, describe_run(config, flags), fresh)
        else:
            text = f'Run folder: {run_dir}, which is gone on with'
            abandon_later_states(state)
        print(text)
    if not dry_run:
        try:
            distributed.run_processes(run_process, config['run']['num_gpus'], config, run_dir)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


if __name__ == '__main__':
    main()
