"""Everything that can be wrong with a set of images, masks and labels, found at once."""

from collections import Counter

from tqdm import tqdm

from dnnlib import UserError
from training.dataset_labels import Fault, match_labels, parse_labels, read_labels, within_angles, yaw_histogram
from training.dataset_store import META_NAME, ImageStore, name_stem

MIN_RESOLUTION = 4
FAULTS_SHOWN = 20
QUICK_SAMPLE = 64


def is_power_of_two(side):
    """Whether images of that many pixels a side can be trained on."""
    return side >= MIN_RESOLUTION and side & (side - 1) == 0


def check_dataset(path, seg_path=None, deep=False, use_labels=True, need_labels=False, angles=None, progress=False):
    """All faults, a list of Fault, of the images in `path` and their masks in `seg_path` (folders or zips).

    `deep` reads every image and mask (else QUICK_SAMPLE of them, evenly spread, so all of a small set); `use_labels`
    judges dataset.json, which may be absent unless `need_labels`; `angles`, a dict of min_yaw, max_yaw, max_pitch in
    degrees, must leave at least one image; `progress` shows a bar.
    """
    faults = []
    store, masks = (_open_store(p, faults) if p is not None else None for p in (path, seg_path))
    if store is not None:
        faults += name_faults(store)
        faults += label_faults(store, angles, need_labels) if use_labels else []
        sizes, found = image_faults(store, store.names if deep else _sample(store.names), progress)
        faults += found
    if store is not None and masks is not None:
        faults += pair_faults(store, masks)
        faults += mask_faults(masks, sizes, progress)
    for opened in (store, masks):
        if opened is not None:
            opened.close()
    return faults


def _open_store(path, faults):
    try:
        return ImageStore(path)
    except UserError as error:
        faults.append(Fault('store', None, str(error)))
        return None


def _sample(names):
    return names[::-(-len(names) // QUICK_SAMPLE) or 1]


def name_faults(store):
    """Faults of the list of names: no image at all, or two images that differ in nothing but the extension."""
    if not store.names:
        return [Fault('empty', None, f'{store.path}: holds no images; check the path')]
    count = Counter(name_stem(name) for name in store.names)
    return [Fault('name-duplicate', name, f'{store.locate(name)}: another file has the same name up to the extension; keep one')
            for name in store.names if count[name_stem(name)] > 1]


def label_faults(store, angles=None, need_labels=False):
    """Faults of dataset.json; with `angles` also whether that range of angles leaves any image, with `need_labels` also
    that there are none."""
    labels, faults = read_labels(store)
    if labels is None:
        if need_labels and not faults:
            faults.append(Fault('label-none', None, f'{store.locate(META_NAME)}: absent or without "labels"; add the labels, or '
                                                    'train without them by --cond=False'))
        if angles is not None and not faults:
            faults.append(Fault('angles', None, f'{store.path}: has no labels, so images cannot be chosen by yaw or pitch'))
        return faults
    faults += match_labels(store, labels)
    array, _, bad = parse_labels(store, labels)
    faults += bad
    if angles is not None and len(array) and not within_angles(array, **angles).any():
        wanted = ', '.join(f'{key} {value:g}' for key, value in angles.items())
        faults.append(Fault('angles', None, f'{store.path}: no image is left by {wanted}; widen the range'))
    return faults


def image_faults(store, names, progress=False):
    """(sizes, faults) of the named images: (width, height) by name, and a fault for each that is unreadable, not RGB, not
    square, not a power of two, or not of the common size."""
    faults = []
    sizes = {}
    for name in tqdm(names, desc='images', disable=not progress):
        try:
            image = store.read_image(name)
        except UserError as error:
            faults.append(Fault('image-damaged', name, str(error)))
            continue
        sizes[name] = image.size
        if image.mode != 'RGB':
            faults.append(Fault('image-channels', name, f'{store.locate(name)}: mode {image.mode} with {len(image.getbands())} '
                                                        'channel(s), wanted RGB; convert with dataset_tool_seg.py'))
    common = Counter(sizes.values()).most_common(1)
    for name, size in sizes.items():
        faults += _size_faults(store, name, size, common[0][0])
    return sizes, faults


def _size_faults(store, name, size, common):
    width, height = size
    where = f'{store.locate(name)}: {width}x{height}'
    if size != common:
        yield Fault('image-mixed', name, f'{where}, most others are {common[0]}x{common[1]}; bring all to one --resolution')
    if width != height:
        yield Fault('image-square', name, f'{where} is not square; crop with dataset_tool_seg.py --transform center-crop')
    elif not is_power_of_two(width):
        yield Fault('image-power', name, f'{where} is not a power of two (at least {MIN_RESOLUTION}); '
                                         'resize with dataset_tool_seg.py --resolution')


def pair_faults(store, masks):
    """Faults of the mask names: missing, or two masks for one image."""
    count = Counter(name_stem(name) for name in masks.names)
    faults = [Fault('mask-duplicate', name, f'{masks.locate(name)}: another mask has the same name up to the extension; keep one')
              for name in masks.names if count[name_stem(name)] > 1]
    return faults + [Fault('mask-missing', name, f'{store.locate(name)}: has no mask in {masks.path}; add one or drop the image')
                     for name in store.names if name_stem(name) not in count]


def mask_faults(masks, sizes, progress=False):
    """Faults of the masks of the images in `sizes` ((width, height) by image name): unreadable, other size than the image,
    not one 8-bit channel, empty, or too dark to be in 0..255."""
    by_stem = {name_stem(name): name for name in masks.names}
    faults = []
    for name, size in tqdm(sizes.items(), desc='masks', disable=not progress):
        mask_name = by_stem.get(name_stem(name))
        if mask_name is None:
            continue
        try:
            mask = masks.read_image(mask_name)
        except UserError as error:
            faults.append(Fault('mask-damaged', name, str(error)))
            continue
        faults += _mask_problems(name, masks.locate(mask_name), mask, size)
    return faults


def _mask_problems(name, where, mask, image_size):
    if mask.size != image_size:
        yield Fault('mask-size', name, f'{where}: mask is {mask.size[0]}x{mask.size[1]}, its image '
                                       f'{image_size[0]}x{image_size[1]}; resize the mask')
    if mask.mode != 'L':
        yield Fault('mask-channels', name, f'{where}: mask has mode {mask.mode} with {len(mask.getbands())} channel(s), wanted '
                                           'one 8-bit channel (255 = head); convert with dataset_tool_seg.py')
        return
    brightest = mask.getextrema()[1]
    if brightest == 0:
        yield Fault('mask-empty', name, f'{where}: mask is empty (all 0); draw the head in 255 or drop the image')
    elif brightest < 128:
        yield Fault('mask-range', name, f'{where}: mask reaches only {brightest}, wanted 255 where the head is; scale it')


def faults_error(faults, title):
    """A UserError whose message lists the faults by kind, up to FAULTS_SHOWN of each kind, with their numbers."""
    lines = [f'{title}: {len(faults)} fault{"s" if len(faults) != 1 else ""} found']
    for kind, count in Counter(fault.kind for fault in faults).items():
        lines += [f'  {fault}' for fault in faults if fault.kind == kind][:FAULTS_SHOWN]
        if count > FAULTS_SHOWN:
            lines.append(f'  [{kind}] ... and {count - FAULTS_SHOWN} more of this kind')
    return UserError('\n'.join(lines))


def summarize_dataset(path, seg_path=None):
    """Lines of text about a set: counts of images, masks and labels, the first image's size, and the yaw histogram of
    the labels that are sound. Raises UserError when the set cannot be opened."""
    store = ImageStore(path)
    labels, _ = read_labels(store)
    lines = [f'images  {len(store.names)}']
    if seg_path is not None:
        lines.append(f'masks   {len(ImageStore(seg_path).names)}')
    if labels is None:
        return lines + [f'labels  none ({META_NAME} is absent or has no "labels"); train.py takes such a set with --cond=False']
    array, _, _ = parse_labels(store, labels)
    lines.append(f'labels  {len(labels)}, of which sound {len(array)}')
    return lines + ['yaw in degrees (0 front, beyond 90 back), number of images', *yaw_histogram(array)]
