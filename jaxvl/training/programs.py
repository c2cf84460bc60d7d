"""Compiled programs are kept on disk, so that a run that is started again need not compile again.

It is JAX's persistent compilation cache, in `~/.cache/jaxvl/programs` unless
`JAX_COMPILATION_CACHE_DIR` names another folder (a bucket such as gs://…, which the hosts of a pod
share); `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. Programs that compile in less than a
second are not kept (`JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`).
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import platform

import jax

from jaxvl.data.folders import local_cache_folder

LIMIT = 8 * 2**30  # bytes of a folder of programs; half of it is kept when it is passed

_HITS = "/jax/compilation_cache/cache_hits"
_KEPT = "/jax/compilation_cache/cache_misses"  # one is written
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"
_counts = dict.fromkeys((_HITS, _KEPT), 0)
_saved = [0.0]  # seconds


def _listen(event: str, **_: str | int) -> None:
    if event in _counts:
        _counts[event] += 1


def _listen_for_seconds(event: str, seconds: float, **_: str | int) -> None:
    if event == _SAVED:
        _saved[0] += seconds


jax.monitoring.register_event_listener(_listen)
jax.monitoring.register_event_duration_secs_listener(_listen_for_seconds)


def keep_programs() -> None:
    """From now on programs are looked for and kept in the user's cache, unless the user has named
    a folder for them. Before anything is compiled."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = local_cache_folder() / "programs" / machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trim(folder, LIMIT)
    except OSError:  # a home that cannot be written to
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def machine() -> str:
    """A name of this kind of processor: programs for another may hold instructions that this one
    does not know."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("flags", "Features"))]
    features = hashlib.sha256("".join(told[:1]).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{features}"


def trim(folder: pathlib.Path, limit: int) -> None:
    """Removes the oldest files of a folder that holds more than `limit` bytes, down to half."""
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process trims it too
            status = path.stat()
            if path.is_file():  # XLA's own caches are folders
                found.append((status.st_mtime, status.st_size, path))
    left = sum(size for _, size, _ in found)
    if left <= limit:
        return
    for _, size, path in sorted(found):
        if left <= limit // 2:
            return
        path.unlink(missing_ok=True)
        left -= size


def figures() -> dict[str, float]:
    """Of this process so far: programs that were found, new ones that are kept now, seconds that
    those found have saved."""
    return {
        "found": _counts[_HITS],
        "kept": _counts[_KEPT],
        "saved_seconds": max(0.0, _saved[0]),
    }


def describe_programs() -> str:
    """The same as a sentence."""
    folder = jax.config.jax_compilation_cache_dir
    if folder is None or not jax.config.jax_enable_compilation_cache:
        return "programs: compiled anew, none is kept"
    now = figures()
    found = (
        f"{now['found']} found, {now['saved_seconds']:.1f} s saved"
        if now["found"]
        else "none found"
    )
    return f"programs: {found}; {now['kept']} new in {folder}"
