"""The weight files of face detector and pose regressor: where they lie, their checksums, and a command that fetches them.

    python -m preprocessing.weights                       # download into the cache folder
    python -m preprocessing.weights --to FOLDER           # or anywhere else, and give --weights FOLDER later
    python -m preprocessing.weights --check FOLDER        # say what is there

They are the files of 3DDFA_V2 (MIT licence); their training data, 300W-LP and WIDER FACE, are research sets.
"""

import contextlib
import hashlib
import http.client
import urllib.request

import click

from dnnlib import UserError
from dnnlib.cli import user_errors, writable_folder
from dnnlib.util import written_whole
from preprocessing.face_tools import FILES, check_file, default_folder, load_tools

SOURCE = 'https://raw.githubusercontent.com/cleardusk/3DDFA_V2/master'


def download(folder, source=SOURCE, timeout=60):
    """Fetch the files into `folder`; what is there with the right checksum is kept. Returns lines saying what was done.
    `source`: http(s) or file address of the folder above. Raises UserError; no damaged file is left behind."""
    folder = writable_folder(folder, '--to')
    lines = []
    for name, known in FILES.items():
        path = folder / name
        with contextlib.suppress(UserError):
            check_file(path)
            lines.append(f'{path}: is there')
            continue
        address = f'{source.rstrip("/")}/{known.place}'
        try:
            with urllib.request.urlopen(address, timeout=timeout) as response:
                data = response.read(known.size + 1)      # one more shows that it is another file
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(f'cannot download {address}: {error}; download it by hand into {folder}') from error
        if hashlib.sha256(data).hexdigest() != known.sha256:
            raise UserError(f'{address}: {len(data)} bytes with SHA-256 {hashlib.sha256(data).hexdigest()[:12]}..., wanted {known.size} '
                            f'bytes with {known.sha256[:12]}...; nothing was written, try another --source')
        try:
            with written_whole(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise UserError(f'{path}: cannot be written ({error.strerror}); choose another --to') from error
        lines.append(f'{path}: {known.size} bytes, checksum good')
    return lines


@click.command()
@click.option('--to', 'folder', metavar='FOLDER', help='Where the files go.  [default: 3ddfa_v2 in the cache folder]')
@click.option('--source', metavar='URL', default=SOURCE, show_default=True, help='Where they come from: http(s) or file address.')
@click.option('--check', 'checked', metavar='FOLDER', help='Download nothing; load the files of this folder.')
@user_errors
def main(folder, source, checked):
    """Fetch the weights of face detector and pose regressor (3DDFA_V2, MIT licence; 8 MB), or check those of a folder."""
    if checked is not None:
        click.echo(load_tools(checked).description + ': good')
        return
    for line in download(default_folder() if folder is None else folder, source):
        click.echo(line)


if __name__ == '__main__':
    main()
