"""Cameras in and out: COLMAP models and NeRF's transforms.json become labels and crops, and an image set's labels become those.

    python -m preprocessing.cameras --cameras capture/sparse/0 --images capture/images --out_dir crops/img
    python -m preprocessing.cameras --labels crops/img --to crops/transforms.json
    python -m preprocessing.cameras --labels crops/img --to crops/colmap

Importing finds the head by the photographs with a face; for captures without one name the front photograph (--front), and
the silhouettes tell place and size.
"""

from pathlib import Path

import click
import numpy as np

from dnnlib import UserError
from dnnlib.cli import user_errors
from preprocessing import camera_files, crops, head_frame, report, silhouette
from preprocessing.batch import REPORT_NAME, CropSet, GivenMasks, Line, line_of_head, output_stem, sibling, summary, write_lines
from preprocessing.masks import find_matting
from preprocessing.photos import read_photo
from preprocessing.prepare import LOW_CONFIDENCE, MAX_OUTSIDE, OK, UNREADABLE, PhotoOptions, PreparedHead, examine_photo
from preprocessing.face_tools import load_tools
from training.dataset_labels import parse_labels, read_labels
from training.dataset_store import ImageStore

SILHOUETTES = 24              # at most so many are measured where there is no face


def export(labels_of, to):
    """Write the labels of the image set `labels_of` as `to`: a .json file of NeRF's form, else a folder of COLMAP's. Returns
    how many. Raises UserError."""
    store = ImageStore(labels_of)
    raw, faults = read_labels(store)
    if faults or not raw:
        raise UserError(str(faults[0]) if faults else f'{labels_of}: has no labels')
    array, names, faults = parse_labels(store, raw)
    if faults:
        raise UserError(str(faults[0]))
    size = store.read_image(names[0]).size[0]
    views = camera_files.views_of_labels(list(zip(names, array)), size)
    if str(to).endswith('.json'):
        camera_files.write_nerf(to, views)
    else:
        camera_files.write_colmap(to, views)
    return len(views)


def _photo_path(folder, name):
    """The photograph that a camera file names, also without its folders or its extension."""
    for candidate in (Path(folder) / name, Path(folder) / Path(name).name):
        if candidate.is_file():
            return candidate
        for ext in ('.png', '.jpg', '.jpeg'):
            if candidate.with_name(candidate.name + ext).is_file():
                return candidate.with_name(candidate.name + ext)
    raise UserError(f'{Path(folder) / name}: named by the cameras but not there')


def measure_views(views, folder, tools, matting, front=None, progress=None):
    """List of head_frame.Measured: by faces, or where `front` is given or none is found, by silhouettes."""
    found = []
    if tools is not None:
        for view in views:
            photo = _scaled_to(view, read_photo(_photo_path(folder, view.name)))
            for head in examine_photo(photo, PhotoOptions(route='face', matting='none'), tools).heads:
                if head.status == OK:
                    found.append(head_frame.measured_by_crop(view, head.quad, head.label))
    if len(found) >= 2 or front is None:
        return found
    matting = find_matting(matting)
    for view in views[::-(-len(views) // SILHOUETTES)]:
        photo = _scaled_to(view, read_photo(_photo_path(folder, view.name)))
        try:
            quad, _ = silhouette.quad_of_mask(photo.alpha if photo.alpha is not None else matting(photo.image))
        except ValueError:
            continue
        found.append(head_frame.measured_by_crop(view, quad))
    return found


def _scaled_to(view, photo):
    """The photo, which must have the size that its camera says. Raises UserError."""
    if photo.image.shape[:2] != (view.size[1], view.size[0]):
        raise UserError(f'{photo.name}: is {photo.image.shape[1]}x{photo.image.shape[0]}, its camera says {view.size[0]}x{view.size[1]}; '
                        'give the pictures that the cameras were computed from')
    return photo


def prepared_view(view, photo, matting, mask=None, exact=False):
    """PreparedHead of a photograph and its View in the head's world. Raises ValueError where the head is not before the camera."""
    label, to_source = head_frame.crop_camera(view, exact)
    image = crops.faded_crop(photo.image, to_source)
    mask, source = (photo.alpha, 'alpha channel') if mask is None else (mask, 'given')
    if mask is not None:
        mask = crops.warp(mask, to_source, crops.CROP_SIZE)
    elif matting.function is not None:
        mask, source = matting(image), matting.name
    corners = np.array([[crops.QUAD_LEFT, crops.QUAD_TOP, 1]]) + np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]) * crops.QUAD_SPAN
    points = corners @ to_source.T
    quad = points[:, :2] / points[:, 2:]
    outside = crops.share_outside(quad, photo.image.shape)
    doubts = (f'{outside:.0%} of the crop lies outside of the picture',) if outside > MAX_OUTSIDE else ()
    quality = {'side': crops.quad_side(quad), 'outside': outside}
    return PreparedHead(image, mask, label, LOW_CONFIDENCE if doubts else OK, photo.messages + doubts, photo.name, None, 0, quad,
                        None, None, 'given', source if mask is not None else 'none', quality)


def import_cameras(cameras, folder, sets, tools, matting='built-in', masks=None, front=None, exact=False, say=lambda line: None):
    """(list of Line, list of (Line, small picture)) of the photographs in `folder`, cut by the cameras of a file or folder
    `cameras` and written to the CropSets. `tools` None or `front` as of measure_views; `masks`: folder of given masks. A
    photograph that cannot be read gets its line and the others go on. Raises UserError where the head cannot be placed."""
    views = camera_files.read_views(cameras)
    measured = measure_views(views, folder, tools, matting, front)
    similarity = head_frame.head_from_world(measured, front)
    matting, tiles = find_matting(matting), []
    given = GivenMasks(masks)
    for view in views:
        name = str(view.name)
        try:
            photo = _scaled_to(view, read_photo(_photo_path(folder, name)))
            head = prepared_view(head_frame.moved(view, similarity), photo, matting, given.find(name), exact)
        except (UserError, ValueError) as error:
            tiles.append((Line(name, UNREADABLE, messages=(str(error),)), None))
        else:
            written = [crop_set.add(head, output_stem(name)) for crop_set in sets]
            line = line_of_head(name, head, written[0] if written else None)
            tiles.append((line, report.tile_of_head(head)))
        say(tiles[-1][0])
    return [line for line, _ in tiles], tiles


@click.command()
@click.option('--cameras', metavar='PATH', help='Import: transforms.json, or folder of a COLMAP model.')
@click.option('--images', metavar='DIR', help='Import: the photographs that the cameras belong to.')
@click.option('--out_dir', default='crop_samples/img', show_default=True, metavar='DIR', help='Import: where crops and labels go.')
@click.option('--front', metavar='NAME', help='Import: the photograph taken from the front, where there is no face.')
@click.option('--masks', metavar='DIR', help='Import: masks of the photographs, 255 = head, same names.')
@click.option('--matting', default='built-in', show_default=True, metavar='HOW', help='As of recrop_images.py.')
@click.option('--exact', is_flag=True, help="Import: keep the cameras' own distances and focal lengths in the labels.")
@click.option('--ready', type=click.IntRange(0, 2048), default=512, show_default=True, help='Import: size of the second set; 0 for none.')
@click.option('--weights', metavar='DIR', help='Folder of the weights.  [default: the cache folder]')
@click.option('--labels', metavar='PATH', help='Export: folder or zip of images with dataset.json.')
@click.option('--to', metavar='PATH', help='Export: a .json file (NeRF), or a folder (COLMAP, text).')
@user_errors
def main(cameras, images, out_dir, front, masks, matting, exact, ready, weights, labels, to):
    """Exchange cameras with COLMAP and NeRF."""
    if (cameras is None) == (labels is None):
        raise UserError('give either --cameras (import) or --labels (export)')
    if labels is not None:
        if to is None:
            raise UserError('--to is missing: where the cameras go')
        click.echo(f'{export(labels, to)} cameras written to {to}')
        return
    if images is None:
        raise UserError('--images is missing: the photographs that the cameras belong to')
    tools = None if front is not None else load_tools(weights)
    sets = [CropSet(out_dir, None if matting == 'none' else sibling(out_dir, 'seg'))]
    if ready:
        sets.append(CropSet(sibling(out_dir, f'img{ready}'), None if matting == 'none' else sibling(out_dir, f'seg{ready}'), 'png', ready))
    lines, tiles = import_cameras(cameras, images, sets, tools, matting, masks, front, exact, click.echo)
    for crop_set in sets:
        crop_set.close()
    write_lines(out_dir, lines)
    report.write_report(Path(out_dir) / REPORT_NAME, tiles, f'Heads of {cameras}')
    click.echo(f'{summary(lines)}; written to {out_dir}')
    if not any(line.name for line in lines):
        raise UserError(f'{cameras}: no photograph could be used; see {Path(out_dir) / REPORT_NAME}')


if __name__ == '__main__':
    main()
