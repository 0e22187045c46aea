"""Photographs become crops with masks and camera labels, as PanoHead's tool of this name makes them.

    python 3DDFA_V2_cropping/recrop_images.py -i photos                      # a photograph, folder or zip
    python 3DDFA_V2_cropping/recrop_images.py -i back.jpg --yaw 175          # no face: by the silhouette
    python 3DDFA_V2_cropping/recrop_images.py -i data.pkl -j dataset.json    # with landmarks of dlib_kps.py, as published

See cropping_guide.md.
"""

import dataclasses
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dnnlib import UserError  # noqa: E402
from dnnlib.cli import FiniteFloat, user_errors  # noqa: E402
from preprocessing import PhotoOptions, load_tools, report, sequences  # noqa: E402
from preprocessing.batch import REPORT_NAME, Batch, CropSet, Photos, sibling, summary, write_lines, write_pickle  # noqa: E402
from preprocessing.landmark_files import read_landmarks  # noqa: E402
from preprocessing.prepare import ROUTES  # noqa: E402
from torch_utils.misc import resolve_device  # noqa: E402

DEVICES = {'gpu': 'auto', 'cpu': 'cpu'}


def face_choice(ctx, param, value):
    """'largest', 'all' or a number."""
    return int(value) if value.isdigit() else value


@click.command(epilog='Written to OUT_DIR: crops of 563 pixels, dataset.json, data_rotate.json (half-turned labels for a back folder), '
                      'prepare.json and report.html; masks to its sibling ("crops/img" -> "crops/seg"), both at READY pixels as PNG to '
                      'further siblings. Exit code 0 if any photograph could be used.')
@click.option('-i', '--input_path', 'source', default='data.pkl', show_default=True, metavar='PATH',
              help='Photograph, folder, zip, or landmarks of dlib_kps.py.')
@click.option('-o', '--output', 'quads', metavar='PKL', help='Also write the quads here, name -> 4x2 pixels.')
@click.option('-j', '--output_json', default='dataset.json', show_default=True, help='Name of the labels within --out_dir.')
@click.option('-p', '--prefix', default='', help='Text before every path of data.pkl.')
@click.option('--out_dir', default='crop_samples/img', show_default=True, metavar='DIR', help='Where the crops go.')
@click.option('--mode', type=click.Choice(list(DEVICES)), default='gpu', show_default=True, help='gpu: where there is one.')
@click.option('--config', metavar='YML', help='Regressor, by name: mb1 or mb05 in it.  [default: mb1 where its file is]')
@click.option('--size', type=int, hidden=True)
@click.option('--individual', is_flag=True, hidden=True)
@click.option('--onnx', is_flag=True, hidden=True)
@click.option('--weights', metavar='DIR', help='Folder of the weights.  [default: the cache folder]')
@click.option('--face', default='largest', show_default=True, callback=face_choice, help='largest, all, or a number from the left, from 0.')
@click.option('--route', type=click.Choice(ROUTES), default='auto', show_default=True, help='Crop by the face or by the silhouette.')
@click.option('--yaw', type=FiniteFloat(-180, 180), help='Degrees; 0 front, 90 the left profile, 180 back; wins over what is measured.')
@click.option('--pitch', type=FiniteFloat(-90, 90), help='Degrees; positive where the camera stands above.')
@click.option('--roll', type=FiniteFloat(-180, 180), help='Degrees; how far the head leans clockwise in the picture.')
@click.option('--angles', metavar='FILE', help='Angles of single photographs: CSV name,yaw,pitch,roll, or JSON, or a dataset.json.')
@click.option('--turntable', type=FiniteFloat(-720, 720), nargs=2, help='Yaws of the first and last photograph, the rest evenly between.')
@click.option('--same_person', is_flag=True, help='All show one person: views with a face say how the others are cropped.')
@click.option('--in_order', is_flag=True, help='Taken going round evenly: yaws without a face follow from those with one.')
@click.option('--masks', metavar='PATH', help='Folder or zip of masks of the photographs, 255 = head, same names.')
@click.option('--matting', default='built-in', show_default=True, metavar='HOW', help='built-in, rembg, none, or a TorchScript file.')
@click.option('--mask_dir', metavar='DIR', help='Where the masks go.  [default: the sibling of --out_dir]')
@click.option('--format', 'ext', type=click.Choice(['jpg', 'png']), default='jpg', show_default=True, help='Of the 563-pixel crops.')
@click.option('--ready', type=click.IntRange(0, 2048), default=512, show_default=True, help='Size of the second set; 0 for none.')
@click.option('--keep_rejected', is_flag=True, help='Write heads that are out of range or too small, too.')
@user_errors
def main(source, quads, output_json, prefix, out_dir, mode, config, size, individual, onnx, weights, ext, ready, mask_dir, **opts):
    """Crop photographs of heads, mask them and measure their cameras."""
    for flag, given in (('--size', size is not None), ('--individual', individual), ('--onnx', onnx)):
        if given:
            click.echo(f'{flag}: taken for the sake of published commands, changes nothing')
    if Path(output_json).name != output_json:
        raise UserError(f'--output_json {output_json}: a name within --out_dir, without folders')
    options = PhotoOptions(**{field.name: opts[field.name] for field in dataclasses.fields(PhotoOptions) if field.name in opts})
    tools = None if options.route == 'silhouette' else load_tools(weights, resolve_device(DEVICES[mode]), architecture(config))
    landmarks = read_landmarks(source, prefix) if str(source).endswith('.pkl') else {}
    photos = Photos(list(landmarks) or source)
    job = Batch(tools, options, known_angles(opts, photos.names), landmarks, opts['masks'], opts['same_person'], opts['in_order'])
    sets = [CropSet(out_dir, mask_folder(out_dir, mask_dir, options.matting), ext)]
    if ready:
        sets.append(CropSet(sibling(out_dir, f'img{ready}'), mask_folder(out_dir, None, options.matting, ready), 'png', ready))
    try:
        job.run(photos, sets, click.echo, progress=sys.stderr.isatty())
    finally:      # after an interrupt the set is what was done until then
        for crop_set in sets:
            crop_set.close(output_json)
        write_lines(out_dir, job.lines)
        report.write_report(Path(out_dir) / REPORT_NAME, job.tiles, f'Heads of {source}')
    if quads:
        write_pickle(quads, sets[0].quads)
    click.echo(f'{summary(job.lines)}; written to {out_dir}')
    if not any(line.name for line in job.lines):
        raise UserError(f'{source}: no photograph could be used; {Path(out_dir) / REPORT_NAME} shows why')


def architecture(config):
    """'mb1', 'mb05' or None of --config."""
    if config is None:
        return None
    name = Path(config).stem.split('_')[0]
    if name not in ('mb1', 'mb05'):
        raise UserError(f'--config {config}: must name mb1 or mb05, such as configs/mb05_120x120.yml; it is not read')
    return name


def mask_folder(out_dir, mask_dir, matting, size=''):
    """Where masks go, or None."""
    return None if matting == 'none' else mask_dir or sibling(out_dir, f'seg{size}')


def known_angles(opts, names):
    """Angles by name of --angles or --turntable."""
    if opts['turntable'] and opts['angles']:
        raise UserError('--angles and --turntable: give one of them')
    if opts['turntable']:
        return sequences.spread_yaws(names, *opts['turntable'])
    return sequences.angles_of(opts['angles'], names) if opts['angles'] else {}


if __name__ == '__main__':
    main()
