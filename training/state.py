"""Training state on disk: everything a run needs to go on as if it had never ended, and the choice of the run to go on with.

training-state-NNNNNN.pt is an ordinary torch.save file of tensors and plain values, read with weights_only=True, so that
nothing in it is executed. It appears whole or not at all and holds a checksum of its content. The last few are kept; a
damaged one is set aside and the one before it is taken.
"""

import contextlib
import hashlib
import json
import re
import time
from pathlib import Path

import torch
from tqdm import tqdm

import dnnlib

FORMAT = 'omnihead training state'
SCHEMA = 1
PREFIX = 'training-state-'
OPTIONS = 'training_options.json'
FINISHED = 'finished.json'
LOCK = '.lock'
LOCK_SECONDS = 10.0        # a process whose run was killed may need a moment to notice
# Entries under `run` that decide what is learned; the others (device, processes, intervals, length) may change on the way.
LEARNED_RUN_KEYS = ('batch_size', 'seed', 'resume', 'resume_kimg')


# ---------------------------------------------------------------------------------------------------------------------
# One file.

def content_digest(value):
    """Hex BLAKE2b of nested dicts, lists, plain values and tensors (type, shape and bytes of each)."""
    digest = hashlib.blake2b(digest_size=32)
    _digest_into(digest, value)
    return digest.hexdigest()


def _digest_into(digest, value):
    if isinstance(value, dict):
        digest.update(f'dict {len(value)};'.encode())
        for key, item in value.items():
            digest.update(f'{key!r}:'.encode())
            _digest_into(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(f'list {len(value)};'.encode())
        for item in value:
            _digest_into(digest, item)
    elif isinstance(value, torch.Tensor):
        digest.update(f'{value.dtype} {tuple(value.shape)};'.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(f'{value!r};'.encode())
    else:
        raise TypeError(f'a training state holds tensors and plain values, not {type(value).__name__}')


def write_state(path, state):
    """Write a dict of tensors and plain values to `path`; it appears whole or not at all. OSError if it cannot be written."""
    content = {'format': FORMAT, 'schema': SCHEMA, **state}
    with dnnlib.util.written_whole(path) as temporary, open(temporary, 'wb') as file:
        try:
            torch.save({**content, 'checksum': content_digest(content)}, file)
        except RuntimeError as error:   # torch.save's own words for a write that failed
            raise OSError(f'{error.__context__ or error}'.splitlines()[0]) from error


def read_state(path):
    """The dict that `write_state` wrote, on the CPU. Nothing in the file is executed. Raises UserError if it is damaged, or
    of another kind or version."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:   # a damaged file can make the reader raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise dnnlib.UserError(f'{path}: cannot be read as a training state ({reason}); it is damaged or another kind of file') from error
    if not isinstance(state, dict) or state.get('format') != FORMAT:
        raise dnnlib.UserError(f'{path}: is not a training state; give a {PREFIX}NNNNNN.pt that train.py wrote')
    if state.get('schema') != SCHEMA:
        raise dnnlib.UserError(f'{path}: has schema {state.get("schema")}, this version reads {SCHEMA}; use the version that wrote it')
    checksum = state.pop('checksum', None)
    if checksum != content_digest(state):
        raise dnnlib.UserError(f'{path}: damaged, its content does not give its checksum')
    return state


# ---------------------------------------------------------------------------------------------------------------------
# The states of a run folder.

def label(nimg, taken):
    """What the files of this moment are called after: kimg in six digits, with the images beyond (_NNN) where another
    moment of that kimg has the plain name. `taken`: {kimg: nimg that has the plain name}, added to."""
    first = taken.setdefault(str(nimg // 1000), nimg)
    return f'{nimg // 1000:06d}' + ('' if first == nimg else f'_{nimg % 1000:03d}')


def state_files(run_dir):
    """Paths of a run's states, oldest first."""
    return sorted(Path(run_dir).glob(f'{PREFIX}*.pt'))


def prune_states(run_dir, keep):
    """Delete all but the newest `keep` states."""
    for path in state_files(run_dir)[:-keep]:
        path.unlink(missing_ok=True)


def newest_state(run_dir, passed_over=0):
    """(state, path) of the newest state that is whole, or (None, None). Damaged ones are set aside and named. `passed_over`:
    do without so many of the newest, as long as one is left."""
    files = state_files(run_dir)
    for path in reversed(files[:max(len(files) - passed_over, 1)]):
        try:
            return read_state(path), path
        except dnnlib.UserError as error:
            path.rename(path.with_name(f'{path.name}.damaged'))
            tqdm.write(f'{error}; set aside, the one before it is taken')
    return None, None


def abandon_later_states(path):
    """Set the states of a run that are newer than the one at `path` aside; nothing where `path` is the run folder."""
    for later in [] if Path(path).is_dir() else state_files(Path(path).parent):
        if later.name > Path(path).name:
            later.rename(later.with_name(f'{later.name}.abandoned'))


# ---------------------------------------------------------------------------------------------------------------------
# Run folders.

def next_run_dir(outdir, description):
    """OUTDIR/NNNNN-description with the next free number, created."""
    while True:
        taken = [number for number, _ in _numbered(outdir)]
        path = Path(outdir) / f'{max(taken, default=-1) + 1:05d}-{description}'
        with contextlib.suppress(FileExistsError):   # another run took the number
            path.mkdir()
            return path


def _numbered(outdir):
    """(number, path) of the run folders, oldest first."""
    found = [(re.match(r'(\d+)-', path.name), path) for path in Path(outdir).iterdir() if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def read_options(run_dir):
    """The configuration of a run folder, or None where there is none."""
    try:
        return json.loads((Path(run_dir) / OPTIONS).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def differences(old, new):
    """(dotted key, old value, new value) of the entries of two configurations that decide what is learned and differ."""
    old, new = (_flat(json.loads(json.dumps(config))) for config in (old, new))
    return [(key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())
            if (key not in old or key not in new or old[key] != new[key])
            and not (key.startswith('run.') and key.removeprefix('run.') not in LEARNED_RUN_KEYS)]


def _flat(config, prefix=''):
    flat = {}
    for key, value in config.items():
        flat.update(_flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value})
    return flat


def describe_differences(found):
    """Text of what `differences` found, one entry a line."""
    return '\n'.join(f'  {key}: {old!r} -> {new!r}' for key, old, new in found)


def is_finished(run_dir, total_kimg):
    """Whether a run has reached `total_kimg`."""
    try:
        return json.loads((Path(run_dir) / FINISHED).read_text(encoding='utf-8'))['kimg'] >= total_kimg
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_run(outdir, config):
    """The newest run folder of `outdir` of this configuration that has not reached its length, or None."""
    for _, path in reversed(_numbered(outdir) if Path(outdir).is_dir() else []):
        options = read_options(path)
        if options is not None and 'run' in options and not differences(options, config):
            return None if is_finished(path, config['run']['total_kimg']) else path
    return None


def almost_this_run(outdir, config, limit=5):
    """(folder, differences) of the newest unfinished run with states that differs in at most `limit` entries, or None."""
    for _, path in reversed(_numbered(outdir) if Path(outdir).is_dir() else []):
        options = read_options(path)
        if options is not None and state_files(path) and not is_finished(path, config['run']['total_kimg']):
            found = differences(options, config)
            return (path, found) if len(found) <= limit else None
    return None


def check_same_run(run_dir, config, allow_changes):
    """UserError listing what a run to be continued was started with and now differs, unless `allow_changes`."""
    options = read_options(run_dir)
    if options is None:
        raise dnnlib.UserError(f'--resume {run_dir}: has no {OPTIONS}; give the folder of a run of train.py')
    found = differences(options, config)
    if found and not allow_changes:
        raise dnnlib.UserError(f'--resume {run_dir}: was started with other settings:\n{describe_differences(found)}\n'
                               'Give the same settings, or --allow-changes to go on with the new ones')
    return found


def run_of(resume):
    """The run folder that --resume names, itself or by one of its states, to be gone on with; None where it names a snapshot.
    States later than the one named are set aside by the caller with `abandon_later_states`. UserError if it has no state."""
    if resume is None or dnnlib.util.is_url(resume):
        return None
    path = Path(resume)
    if path.is_dir():
        if not state_files(path):
            raise dnnlib.UserError(f'--resume {path}: no {PREFIX}NNNNNN.pt in this folder; give a run folder or a network snapshot')
        return path
    return path.parent if path.name.startswith(PREFIX) and path.is_file() else None


def choose_run_dir(outdir, config, description, fresh=False):
    """(folder, text for the user): the newest unfinished run of this configuration in `outdir`, or a new one."""
    path = None if fresh else find_run(outdir, config)
    if path is not None:
        return path, f'Run folder: {path}, which is gone on with (--fresh starts a new one)'
    similar = None if fresh else almost_this_run(outdir, config)
    path = next_run_dir(outdir, description)
    text = f'Run folder: {path}'
    if similar is not None:
        text += (f'\nNot gone on with: {similar[0]}, an unfinished run with other settings:\n{describe_differences(similar[1])}\n'
                 f'To go on with it all the same: --resume {similar[0]} --allow-changes')
    return path, text


@contextlib.contextmanager
def only_writer(run_dir):
    """Context in which no other process of this kind may write into a run folder. UserError if one does."""
    try:
        import fcntl
    except ImportError:   # a system without such locks
        yield
        return
    with open(Path(run_dir) / LOCK, 'w', encoding='utf-8') as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise dnnlib.UserError(f'{run_dir}: another process trains this run; stop it first, or start one beside it with '
                                           '--fresh') from error
                time.sleep(0.2)
            except OSError:   # file systems without locks
                break
        for left in Path(run_dir).glob('.partial-*'):   # of a process that was killed while writing
            left.unlink(missing_ok=True)
        yield
