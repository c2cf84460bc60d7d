"""How many samples tar shards should hold, as the tools that write them note it.

00000_stats.json  img2dataset, beside 00000.tar: `successes` are the rows that are in the tar
sizes.json        {"00000.tar": 10000, …}: open_clip, DataComp's resharder
__len__           one number for all shards of the folder: open_clip
"""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Mapping, Sequence

from jaxvl import paths

READ_AT_ONCE = 16


def count_notes(samples: Mapping[str, int]) -> list[str]:
    """Sentences about shards that hold another number of samples than is noted beside them.

    Args:
      samples: file -> samples that were found in it.
    """
    files = [
        file for file in samples if paths.scheme_of(file) not in paths.READ_ONLY
    ]  # a web server lists nothing
    stats = {file: file.removesuffix(".tar") + "_stats.json" for file in files}
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(_folder(file), []).append(file)
    wanted = [
        *stats.values(),
        *(f"{folder}{name}" for folder in folders for name in ("sizes.json", "__len__")),
    ]
    found = _read_json(wanted)
    notes = _of_stats(samples, {file: found[note] for file, note in stats.items() if note in found})
    for folder, inside in folders.items():
        notes += _of_sizes(samples, inside, f"{folder}sizes.json", found)
        notes += _of_total(samples, inside, f"{folder}__len__", found)
    return notes


def _folder(file: str) -> str:
    folder, slash, _ = file.rpartition("/")
    return folder + slash


def _read_json(names: Sequence[str]) -> dict[str, object]:
    """Content of those of the files that are there and hold JSON."""
    try:
        states = paths.file_states(names)
    except OSError:
        return {}
    there = [name for name, state in zip(names, states) if state is not None]

    def read(name: str) -> object:
        try:
            return json.loads(paths.read_text(paths.as_path(name)))
        except (OSError, ValueError, RecursionError):
            return None

    with concurrent.futures.ThreadPoolExecutor(READ_AT_ONCE) as pool:
        return dict(zip(there, pool.map(read, there)))


def _of_stats(samples: Mapping[str, int], stats: Mapping[str, object]) -> list[str]:
    different = []
    unfinished = [file for file in samples if file not in stats]
    for file, about in stats.items():
        expected = about.get("successes") if isinstance(about, dict) else None
        if isinstance(expected, int) and expected != samples[file]:
            different.append(
                f"{file}: holds {samples[file]:,} samples, but its _stats.json says {expected:,}"
            )
    notes = _first(different)
    if stats and unfinished:
        what = "has no _stats.json beside it, as others have: its download may not be complete"
        notes += _first([f"{file}: {what}" for file in unfinished])
    return notes


def _of_sizes(
    samples: Mapping[str, int], files: Sequence[str], name: str, found: Mapping[str, object]
) -> list[str]:
    sizes = found.get(name)
    if not isinstance(sizes, dict):
        return []
    different = []
    for file in files:
        expected = sizes.get(file.rpartition("/")[2])
        if isinstance(expected, int) and expected != samples[file]:
            different.append(
                f"{file}: holds {samples[file]:,} samples, but {name} says {expected:,}"
            )
    return _first(different)


def _of_total(
    samples: Mapping[str, int], files: Sequence[str], name: str, found: Mapping[str, object]
) -> list[str]:
    expected = found.get(name)
    total = sum(samples[file] for file in files)
    if not isinstance(expected, int) or expected == total:
        return []
    return [
        (
            f"{name}: says {expected:,} samples, but the {len(files):,} shards that are read of "
            f"its folder hold {total:,}"
        )
    ]


def _first(sentences: Sequence[str]) -> list[str]:
    if len(sentences) < 2:
        return list(sentences)
    return [f"{sentences[0]} (so are {len(sentences) - 1:,} more shards)"]
