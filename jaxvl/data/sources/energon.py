"""Datasets of NVIDIA's Megatron-Energon: tar shards with a folder `.nv-meta`.

Format: its docs, "Dataset Format on Disk".

  .nv-meta/split.yaml     split_parts: {train: [shards/shard_{000..010}.tar], …}, exclude: [a shard,
                          or SHARD/KEY]
  .nv-meta/dataset.yaml   field_map: {image: jpg, caption: "json[alt],txt"}; crude samples have none
  .nv-meta/.info.json     shard_counts: {shards/shard_000.tar: 1000, …}

The shards are read as those of `webdataset`, with indexes of ours: `index.sqlite` and `SHARD.idx`
are left alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Collection, Mapping

import numpy as np
import yaml

from jaxvl import paths
from jaxvl.config import ConfigError, PathText, check, nearest, to_path
from jaxvl.config.errors import one_line
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Log, Source
from jaxvl.data.sources.file_patterns import expand_braces
from jaxvl.data.sources.selected import Selected
from jaxvl.data.sources.webdataset import TarSource, WebDataset

FOLDER = ".nv-meta"


@SOURCES.register("energon")
@dataclasses.dataclass(frozen=True)
class Energon:
    """Config of a source of a dataset that `energon prepare` has prepared.

    Attributes:
      path: folder that holds `.nv-meta`.
      split: part of `split.yaml`.
      columns: see `webdataset`; None: the field map of `dataset.yaml`.
      optional, kinds, index: see `webdataset`.
      dataset_yaml, split_yaml: names of the files in `.nv-meta`.
    """

    path: PathText
    split: str = "train"
    columns: Mapping[str, str] | None = None
    optional: tuple[str, ...] = ()
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    index: PathText | None = None
    dataset_yaml: str = "dataset.yaml"
    split_yaml: str = "split.yaml"

    def open(self, log: Log = print) -> Source:
        """Raises ConfigError at one of its fields; DataError where a file of `.nv-meta` or a shard
        cannot be read."""
        folder = to_path(self.path, "path")
        parts = _load(folder / FOLDER / self.split_yaml)
        names, left_out = self._shards(parts)
        columns = dict(self.columns) if self.columns is not None else self._field_map(folder)
        config = WebDataset(
            tuple(str(folder / name) for name in names),
            columns,
            self.optional,
            self.kinds,
            self.index,
        )
        source = config.open(log)
        _compare(names, source.samples(), folder, log)
        return _without(source, names, left_out)

    def _shards(self, parts: Mapping[str, object]) -> tuple[list[str], set[str]]:
        """Names of the split's shards, and the samples (`SHARD/KEY`) that are left out."""
        splits = parts.get("split_parts")
        known = list(splits) if isinstance(splits, dict) else []
        check(
            self.split in known,
            "split",
            f"{self.split!r} is not in {self.split_yaml}{nearest(self.split, known)} (there: "
            f"{', '.join(known)})",
        )
        left_out = {
            name
            for pattern in parts.get("exclude") or ()
            for name in expand_braces(str(pattern), "split")
        }
        names = [
            name for pattern in splits[self.split] for name in expand_braces(str(pattern), "split")
        ]
        names = [name for name in names if name not in left_out]
        check(len(names) > 0, "split", f"{self.split!r} has no shards in {self.split_yaml}")
        return names, left_out

    def _field_map(self, folder: paths.Path) -> dict[str, str]:
        """Columns as `webdataset` has them; Energon puts commas between members that a field may
        come from."""
        about = _load(folder / FOLDER / self.dataset_yaml)
        fields = about.get("field_map")
        if not isinstance(fields, dict):
            problem = (
                f"must be given: {self.dataset_yaml} has no field_map, so that its samples are "
                f"crude; write columns=dict(image='jpg', …)"
            )
            raise ConfigError("columns", problem)
        return {str(name): str(members).replace(",", ";") for name, members in fields.items()}


def _load(file: paths.Path) -> Mapping[str, object]:
    """A group of keys in a YAML file. Raises DataError."""
    try:
        found = yaml.safe_load(paths.read_text(file))
    except FileNotFoundError:
        raise DataError(f"{file}: is not there; `energon prepare` writes it") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{file}: cannot be read ({type(error).__name__}: {one_line(error)})"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: must be a group of keys, but is {one_line(found)}")
    return found


def _compare(
    names: Collection[str], samples: Collection[int], folder: paths.Path, log: Log
) -> None:
    """Says where a shard holds another number of samples than `.info.json` has."""
    file = folder / FOLDER / ".info.json"
    try:
        counts = json.loads(paths.read_text(file))["shard_counts"]
        different = [
            (name, n, counts[name]) for name, n in zip(names, samples) if counts.get(name, n) != n
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if different:
        name, found, expected = different[0]
        log(
            f"{name}: holds {found:,} samples, but {file} says {expected} ({len(different):,} "
            f"shards differ)"
        )


def _without(source: TarSource, names: Collection[str], left_out: Collection[str]) -> Source:
    """The source without samples that the split leaves out."""
    keys = {
        name: {entry.removeprefix(f"{name}/") for entry in left_out if entry.startswith(f"{name}/")}
        for name in names
    }
    if not any(keys.values()):
        return source
    kept = []
    starts = [0, *itertools.accumulate(source.samples())]
    for name, start, stop in zip(names, starts, starts[1:]):
        numbers = range(start, stop)
        kept += [i for i in numbers if source.key(i) not in keys[name]] if keys[name] else numbers
    index = np.array(kept, np.int64)
    return Selected(source, index, f"split {hashlib.sha256(index.tobytes()).hexdigest()[:16]}")
