"""Hugging Face datasets on disk: `save_to_disk` folders, and files of the Arrow cache.

    source = dict(name="huggingface", path="/data/flickr30k", split="test")

Pictures stay encoded. A folder of Parquet files from the hub is the source `parquet`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxvl import paths
from jaxvl.config import ConfigError, PathText, check, nearest
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.arrow_columns import (
    find_columns,
    first_content,
    path_of,
    plain_values,
    value_at,
)
from jaxvl.data.sources.base import Log
from jaxvl.data.sources.media import MediaFolder
from jaxvl.data.sources.remembered import edges_digest
from jaxvl.data.sources.table import TableSource, choose_columns, column_array
from jaxvl.data.sources.values import nested

if TYPE_CHECKING:
    import datasets
    import pyarrow

LARGE_COLUMN = 2**28  # bytes of a text column up to which `column` reads it whole


@SOURCES.register("huggingface")
@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """See the module's text.

    Attributes:
      path: a folder that `save_to_disk` wrote, a `.arrow` file, or a folder of those (as in
        `~/.cache/huggingface/datasets`).
      split: which one, where the folder has several.
      columns, kinds, images: as of the source `parquet`.
    """

    path: PathText
    split: str | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)
    images: PathText | None = None

    def __post_init__(self):
        check(
            not paths.is_remote(self.path),
            "path",
            f"{self.path!r} is remote, but Arrow files are memory-mapped; copy it to a local disk",
        )

    def open(self, log: Log = print) -> HuggingFaceSource:
        """Raises ConfigError at one of its fields; DataError where the files are damaged."""
        try:
            import datasets  # noqa: F401
        except ImportError:
            raise ConfigError(
                "name",
                "'huggingface' needs datasets, which is not installed: pip install "
                '"jaxvl[huggingface]"',
            ) from None
        files = _find_files(self.path, self.split)
        dataset = _load(self.path, files)
        check(len(dataset) > 0, "path", f"{self.path!r} has no rows")
        found = find_columns(
            dataset.features.arrow_schema, lambda name: _first_bytes(dataset.data, name)
        )
        found = {
            name: dataclasses.replace(each, optional=_may_lack(dataset.data, name))
            for name, each in found.items()
        }
        chosen = choose_columns(
            found, self.columns, self.kinds, self.images is not None, self.path, log
        )
        media = MediaFolder(self.images) if self.images is not None else None
        return HuggingFaceSource(self, files, dataset, chosen, media)


def _find_files(path: str, split: str | None) -> list[str]:
    """The Arrow files, or the folder that `save_to_disk` wrote. Raises ConfigError."""
    check(os.path.exists(path), "path", f"no file or folder {path!r}")
    if os.path.isfile(path):
        check(split is None, "split", f"{split!r}: {path!r} is one file; leave it out")
        return [path]
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        names = sorted(
            name
            for name in os.listdir(path)
            if os.path.isfile(os.path.join(path, name, "state.json"))
        )
        return [os.path.join(path, _choose_split(split, names, path))]
    if os.path.isfile(os.path.join(path, "state.json")):
        check(split is None, "split", f"{split!r}: {path!r} holds one split; leave it out")
        return [path]
    files = sorted(
        name
        for name in os.listdir(path)
        if name.endswith(".arrow") and not name.startswith("cache-")
    )
    check(
        bool(files),
        "path",
        f"{path!r} holds no state.json, dataset_dict.json or .arrow files, so save_to_disk "
        f"did not write it",
    )
    of_split: dict[str, list[str]] = {}
    for name in files:
        of_split.setdefault(_split_of(name), []).append(os.path.join(path, name))
    return of_split[_choose_split(split, sorted(of_split), path)]


def _split_of(name: str) -> str:
    """`train` of `mnist-train-00000-of-00002.arrow` and `mnist-train.arrow`."""
    words = name.removesuffix(".arrow").split("-")
    if len(words) > 3 and words[-2] == "of" and words[-1].isdigit():
        words = words[:-3]
    return words[-1]


def _choose_split(split: str | None, names: Sequence[str], path: str) -> str:
    if split is None and len(names) == 1:
        return names[0]
    check(split is not None, "split", f"is required: {path!r} holds {', '.join(names)}")
    check(
        split in names,
        "split",
        f"{split!r} is not in {path!r}{nearest(split, names)} (there are: {', '.join(names)})",
    )
    return split


def _load(path: str, files: Sequence[str]) -> datasets.Dataset:
    """The dataset, memory-mapped. Raises DataError."""
    import datasets

    try:
        if os.path.isdir(files[0]):
            return datasets.load_from_disk(files[0], keep_in_memory=False)
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    except Exception as error:  # a cut or missing file raises many types
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(
            f"{path}: cannot be read ({reason}); a file was cut short or is missing"
        ) from None


def _first_bytes(table: pyarrow.Table, name: str) -> bytes | None:
    path = path_of(name, table.column_names)
    column = table.column(path[0])
    for i in range(min(len(column), 1000)):
        value = first_content(nested(column[i].as_py(), path[1:]))
        if value:
            return value
    return None


def _may_lack(table: pyarrow.Table, name: str) -> bool:
    top, *parts = path_of(name, table.column_names)
    return bool(parts) or table.column(top).null_count > 0


class HuggingFaceSource(TableSource):
    """Rows of a dataset.

    Args:
      config: opens the same source in another process.
      files: of the dataset, or its folder.
      dataset: memory-mapped.
      chosen, media: see `TableSource`.
    """

    def __init__(
        self,
        config: HuggingFace,
        files: Sequence[str],
        dataset: datasets.Dataset,
        chosen,
        media: MediaFolder | None,
    ):
        self._config = config
        self._table = dataset.data
        self._tops = set(dataset.column_names)
        self._indices = dataset._indices  # of a dataset that was saved with a selection of its rows
        self._length = len(dataset)
        arrow = [about["filename"] for about in dataset.cache_files]
        digest = hashlib.sha256(str(dataset.features.arrow_schema).encode())
        digest.update(str(len(dataset)).encode())
        for file in arrow:
            digest.update(edges_digest(file, os.path.getsize(file)).encode())
        split = f" {config.split}" if config.split else ""
        super().__init__(f"{config.path}{split}", digest.hexdigest(), chosen, media)
        self._sizes = self._count_batches()

    def __reduce__(self):
        return _reopen, (self._config,)

    def __len__(self) -> int:
        return self._length

    def _count_batches(self) -> np.ndarray:
        """Rows of each record batch: what lies together in a file."""
        if self._indices is not None or not self._table.num_columns:
            return np.array([self._length], np.int64)
        sizes = [len(chunk) for chunk in self._table.column(0).chunks]
        return np.array([size for size in sizes if size], np.int64)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self._sizes

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        if self._indices is not None:
            i = self._indices.column(0)[i].as_py()
        found = {}
        for name in theirs:
            path = path_of(name, self._tops)
            value = value_at(self._table.column(path[0]), i, self.where(i))
            found[name] = nested(value, path[1:])
        return found

    def column(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        values = self._all_values(name, ("class", "int", "float", "text"))
        return None if values is None else column_array(values, self.columns[name].kind)

    def present(self, name: str) -> np.ndarray | None:
        """See `base.Source`."""
        known = super().present(name)
        if known is not None or name not in self.columns:
            return known
        top, *parts = path_of(self.chosen[name].theirs, self._tops)
        if parts or self._indices is not None:
            return None
        return self._table.column(top).is_valid().to_numpy(zero_copy_only=False).astype(bool)

    def _all_values(self, name: str, kinds: Collection[str]) -> list[object | None] | None:
        """None where it is not of one of the kinds, or too long."""
        if name not in self.columns or self.columns[name].kind not in kinds:
            return None
        path = path_of(self.chosen[name].theirs, self._tops)
        column = self._table.column(path[0])
        if column.nbytes > LARGE_COLUMN:
            return None
        if self._indices is not None:
            column = column.take(self._indices.column(0))
        return plain_values(column, path, self.columns[name].kind)


def _reopen(config: HuggingFace) -> HuggingFaceSource:
    return config.open(log=lambda line: None)
