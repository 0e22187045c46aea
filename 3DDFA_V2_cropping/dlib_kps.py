"""68 landmarks of every photograph, for recrop_images.py; named after the tool of the family, whose dlib it does without.

    python 3DDFA_V2_cropping/dlib_kps.py -i photos -o data.pkl

recrop_images.py finds landmarks by itself: this is for those who want to see or change them in between.
"""

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dnnlib import UserError  # noqa: E402
from dnnlib.cli import user_errors  # noqa: E402
from preprocessing import load_tools  # noqa: E402
from preprocessing.batch import Photos, write_pickle  # noqa: E402
from preprocessing.landmark_files import find_landmarks, landmark_list  # noqa: E402
from torch_utils.misc import resolve_device  # noqa: E402


@click.command()
@click.option('-i', '--input_path', 'source', default='test/original', show_default=True, metavar='DIR', help='Photograph or folder.')
@click.option('-o', '--output', default='data.pkl', show_default=True, metavar='PKL', help='Path -> list of 68 (x, y).')
@click.option('--face', default='largest', show_default=True, help='largest, or a number from the left, from 0.')
@click.option('--weights', metavar='DIR', help='Folder of the weights.  [default: the cache folder]')
@click.option('--device', default='auto', show_default=True, help='auto, cpu, cuda or mps.')
@user_errors
def main(source, output, face, weights, device):
    """Find the landmarks of the face in every photograph."""
    tools = load_tools(weights, resolve_device(device))
    photos, found = Photos(source), {}
    if Path(source).suffix.lower() == '.zip':
        raise UserError(f'-i {source}: landmarks are filed by path; unpack it, or give it to recrop_images.py')
    for name in photos.names:
        try:
            landmarks, message = find_landmarks(photos.read(name), tools, int(face) if face.isdigit() else face)
        except UserError as error:
            click.echo(str(error))
            continue
        click.echo(f'{name}: {message}')
        found[str(photos.path_of(name))] = landmark_list(landmarks)
    if not found:
        raise UserError(f'{source}: no face found in {len(photos.names)} photographs')
    write_pickle(output, found)
    click.echo(f'{len(found)} of {len(photos.names)} photographs written to {output}')


if __name__ == '__main__':
    main()
