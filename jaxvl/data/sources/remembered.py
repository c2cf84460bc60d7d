"""Counts, offsets and checksums of many files, kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Sequence

import msgpack
import numpy as np

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.data.folders import local_cache_folder
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Log
from jaxvl.paths import FileState

VERSION = 2  # of what is kept


def states_of(files: Sequence[str]) -> list[FileState]:
    """States of files that must be there. Raises DataError naming the first that is not, and where
    one cannot be read in ranges."""
    try:
        states = paths.file_states(files)
    except OSError as error:
        raise DataError(why(error, files[0])) from None
    missing = [file for file, state in zip(files, states) if state is None]
    if missing:
        instead = (
            "; a glob such as *.tar names those that are there" if len(missing) < len(files) else ""
        )
        raise DataError(
            f"{missing[0]}: is not there ({len(missing):,} of {len(files):,} files are "
            f"missing){instead}"
        )
    return [state for state in states if state is not None]


def why(error: OSError, file: str) -> str:
    """A sentence that says why a file cannot be read."""
    if isinstance(error, (paths.PathError, PermissionError)):
        return str(error)  # which names the file
    return f"{file}: cannot be read ({type(error).__name__}: {error})"


def key_of(
    what: str, files: Sequence[str], states: Sequence[FileState], more: Sequence[object] = ()
) -> str:
    """Says which files in which state something was found out of."""
    digest = hashlib.sha256(json.dumps([VERSION, what, list(more)]).encode())
    for file, state in zip(files, states):
        name = file if paths.is_remote(file) else os.path.abspath(file)
        digest.update(f"{name}\0{state.size}\0{state.version}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def remembered(what: str, key: str, find: Callable[[], Json], log: Log) -> Json:
    """What `find` returns (msgpack's types), from the cache where it was found out before."""
    file = _folder(what) / f"{key}.msgpack"
    with contextlib.suppress(OSError, ValueError, msgpack.exceptions.UnpackException):
        return msgpack.unpackb(file.read_bytes(), strict_map_key=False)
    found = find()
    _keep(file, msgpack.packb(found), log)
    return found


def remembered_arrays(
    what: str, key: str, find: Callable[[], tuple[np.ndarray, dict[str, Json]]], log: Log
) -> tuple[np.ndarray, dict[str, Json]]:
    """An array, memory-mapped, with what else was found out."""
    file = _folder(what) / f"{key}.npy"
    beside = file.with_suffix(".json")
    with contextlib.suppress(OSError, ValueError):
        return np.load(file, mmap_mode="r", allow_pickle=False), json.loads(beside.read_text())
    array, more = find()
    if not _keep(beside, json.dumps(more).encode(), log):
        return array, more
    part = file.with_name(f"{file.stem}.{own_name()}.part.npy")
    try:
        np.save(part, array, allow_pickle=False)
        os.replace(part, file)
        return np.load(file, mmap_mode="r", allow_pickle=False), more
    except (OSError, ValueError):  # a full disk; an array without rows cannot be mapped
        return array, more
    finally:
        part.unlink(missing_ok=True)


def own_name() -> str:
    """Differs between all that write at the same time."""
    return f"{os.getpid()}-{threading.get_ident()}"


def kept_folder(what: str) -> pathlib.Path:
    """A folder of the local cache."""
    return local_cache_folder() / what


def _folder(what: str) -> pathlib.Path:
    return kept_folder("index") / what


def _keep(file: pathlib.Path, content: bytes, log: Log) -> bool:
    """Whether it could be written: a cache that may only be read is no reason to stop."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        paths.write_bytes(file, content)
        return True
    except OSError as error:
        log(
            f"{file}: cannot be kept, and is found out again next time "
            f"({type(error).__name__}: {error})"
        )
        return False


def edges_digest(file: str, size: int, edge: int = 2**16) -> str:
    """SHA-256 of a file's size, start and end. Raises OSError."""
    digest = hashlib.sha256(str(size).encode())
    for start in (0, max(size - edge, edge)):
        length = min(edge, size - start)
        if length > 0:
            digest.update(read_part(file, start, length))
    return digest.hexdigest()


def read_part(file: str, start: int, size: int) -> bytes:
    """Bytes of a local or remote file. Raises OSError."""
    if paths.is_remote(file):
        return paths.read_range(file, start, size)
    with open(file, "rb") as opened:
        opened.seek(start)
        return opened.read(size)
