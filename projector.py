"""A photograph becomes a head: cropped, looked for in the network, and the network tuned until it shows it.

    python projector.py photo.jpg --network demo --outdir out
    python projector.py --network demo --target_img crops --idx 0 --outdir out       # pictures that are cropped already
    python gen_videos.py --network demo --latent out/demo/photo/head.safetensors
"""

import urllib.parse
from pathlib import Path

import click

from dnnlib import UserError
from dnnlib.cli import user_errors, writable_folder
from dnnlib.util import counted
from inference import cli, inversion_cli, shapes
from inference.inversion_job import Outputs, invert_to_folder
from inference.inversion_options import recipe_options
from inference.perceptual import load_features
from inference.targets import load_back, load_target, target_of_arrays
from preprocessing import PhotoOptions, load_tools, sequences
from preprocessing.batch import Batch, Photos, free_name
from torch_utils import misc
from training.snapshot import load_network


def network_name(network):
    """File name without extension of a network file, address or 'demo'."""
    return Path(urllib.parse.urlparse(network).path).stem


def photo_targets(opts, resolution):
    """(Targets, errors) of the heads in the photographs of the options, in their order; an error for each photograph that
    gave none."""
    if opts['together'] and len(opts['photos']) > 1 and opts['yaw'] is not None:
        raise UserError(f'--yaw {opts["yaw"]:g}: is for all photographs, which --together says differ; give --angles FILE instead')
    face = int(opts['face']) if opts['face'].isdecimal() else opts['face']
    how = PhotoOptions(face, **{name: opts[name] for name in ('route', 'yaw', 'pitch', 'roll')})
    photos = Photos(list(dict.fromkeys(opts['photos'])))
    angles = sequences.angles_of(opts['angles'], photos.names) if opts['angles'] else {}
    job = Batch(None, how, angles, masks=opts['target_seg'], same_person=opts['together'])
    job.tools = None if how.route == 'silhouette' else load_tools(opts['weights'])
    # The photographs themselves, which may be large, are not kept.
    found = {name: (done.heads, done.failures) for name, done in job.examined(photos)}
    targets, errors, taken = [], [], set()
    for path in photos.names:
        heads, failures = found[path]
        for failure in failures if heads else ():
            click.echo(failure)
        errors += [] if heads else failures[:1]
        for head in heads:
            name = free_name(Path(path).stem if len(heads) == 1 else f'{Path(path).stem}_{head.face}', taken)
            yaw, pitch, roll = map(round, head.angles_deg)
            click.echo(f'{path}: {head.status}, yaw {yaw}, pitch {pitch}, roll {roll} degrees ({head.label_source}), '
                       f'mask: {head.mask_source}; {"; ".join(head.messages)}'.rstrip('; '))
            image, mask = head.resized(resolution)
            targets.append(target_of_arrays(image, head.label, name, path, mask))
    return targets, errors


def cropped_targets(opts, resolution, options):
    """The same of the pictures --idx of --target_img."""
    masks = opts['target_seg'] if options.weight_mask > 0 else None
    if opts['target_seg'] is not None and masks is None:
        click.echo(f'--target_seg {opts["target_seg"]}: masks are not used by --recipe {opts["recipe"]}')
    targets, errors = [], []
    for i in opts['idx']:
        try:
            targets.append(load_target(opts['target_img'], resolution, i, opts['label_file'], masks))
        except UserError as error:
            errors.append(error)
    return targets, errors


def read_pictures(opts, resolution, options):
    """(heads, errors): lists of Targets, one list a head, and a UserError for each picture that gave none."""
    if bool(opts['photos']) == (opts['target_img'] is not None):
        raise UserError('give photographs, or --target_img with cropped pictures, one of the two')
    inversion_cli.check_kind(bool(opts['photos']))
    targets, errors = photo_targets(opts, resolution) if opts['photos'] else cropped_targets(opts, resolution, options)
    heads = [targets] if opts['together'] and targets else [[target] for target in targets]
    if opts['target_img_back'] is not None:
        if len(heads) != 1 or opts['recipe'] != 'pso':
            raise UserError('--target_img_back: goes with --recipe pso and one head at a time')
        heads[0].append(load_back(opts['target_img_back'], resolution, opts['idx'][0], heads[0][0].label, options.weight_back))
    return heads, errors


@click.command(epilog='Results go to OUTDIR/NETWORK/PHOTO or OUTDIR/NETWORK/IDX: head.safetensors (latents, cameras, changes of the '
                      'network: give it to --latent), and under the published names projected_w.npz and '
                      'fintuned_generator.pkl; target.png, pre.png (before the generator was tuned), proj.png (after), proj.mp4, '
                      'orbit.mp4, settings.json and, with --shapes, geometry.mrc. An interrupted run is taken up by the same '
                      'command.')
@cli.network_options(outdir='out')
@cli.precision_option()
@inversion_cli.picture_options()
@inversion_cli.photo_options()
@inversion_cli.recipe_options()
@inversion_cli.output_options()
@cli.shape_options()
@user_errors
def main(network, outdir, device, **opts):
    """Find the heads in photographs, and tune the network until it shows them."""
    outdir = writable_folder(outdir)
    device = misc.resolve_device(device)
    options = recipe_options(opts['recipe'], **{name: opts[name] for name in ('steps_w', 'steps_g', 'refine_camera', 'optimize_noise',
                                                                              'keep', 'seed')})
    resolution = load_network(network).img_resolution
    features = load_features(opts['perceptual'], device)
    heads, errors = read_pictures(opts, resolution, options)
    shape = shapes.ShapeOptions(opts['shape_formats'], opts['shape_res'], opts['level'], opts['max_mem'])
    outputs = Outputs(opts['fps'] if opts['save_video'] else None, opts['orbit_frames'], shape if opts['with_shapes'] else None,
                      cli.shape_progress, opts['restart'], echo=click.echo)
    for targets in heads:
        folder = writable_folder(outdir / network_name(network) / targets[0].name)
        views = '' if len(targets) == 1 else f' and {counted(len(targets) - 1, "view")} more'
        click.echo(f'{targets[0].source}{views} -> {folder} on {device}; recipe {opts["recipe"]}; '
                   f'perceptual loss: {features.description}')
        try:
            record = invert_to_folder(network, device, [target.to(device) for target in targets], features, options, folder, outputs,
                                      {'recipe': opts['recipe']}, opts['precision'])
        except UserError as error:
            errors.append(error)
            continue
        click.echo(f'PSNR {record["psnr_pre"][0]:.2f} dB from the latents alone, {record["psnr_post"][0]:.2f} dB with the '
                   f'generator tuned; written to {folder}')
    if len(errors) == 1 and not heads:
        raise errors[0]
    if errors:
        raise UserError('\n'.join([f'{counted(len(errors), "picture")} gave no head:', *map(str, errors)]))


if __name__ == '__main__':
    main()
