"""What was collected of real images, kept by content: the same images, features and protocol are not read twice."""

import hashlib
import json
import os
import zipfile

import dnnlib

VERSION = 1           # changed when what collectors hold changes
FOLDER = 'statistics'  # of the cache


def entry_path(**key):
    """The cache's file for a JSON-ready key."""
    digest = hashlib.sha256(json.dumps([VERSION, key], sort_keys=True).encode()).hexdigest()
    return dnnlib.util.cache_folder() / FOLDER / digest[:40]


def load(kind, path, total):
    """The collector of class `kind` kept at `path`, None where there is no sound one."""
    try:
        return kind.load(path, total)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save(collector, path):
    """Keep a collector at `path`; a cache that cannot be written costs the next run some time, no more."""
    try:
        os.makedirs(path.parent, exist_ok=True)
        with dnnlib.util.written_whole(path) as temporary:
            collector.save(temporary)
    except OSError:
        return
