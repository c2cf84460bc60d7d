"""TensorFlow Datasets that were prepared as ArrayRecord, read without TensorFlow.

Format: https://www.tensorflow.org/datasets/data_source.

    source = dict(name="tfds", dataset="imagenet2012", data_dir="/data/tfds", split="train[:90%]")

Pictures stay encoded. Other datasets are prepared anew with `file_format="array_record"`, or
converted by `tfds convert_format`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxvl import paths
from jaxvl.aliases import Foreign
from jaxvl.config import ConfigError, PathText, check, nearest
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.array_record import READ_AT_ONCE, count_records
from jaxvl.data.sources.base import Kind, Log
from jaxvl.data.sources.remembered import key_of, remembered, states_of
from jaxvl.data.sources.table import Chosen, Found, TableSource, choose_columns
from jaxvl.data.sources.values import nested

_KIND_OF_LIST: dict[Kind | None, Kind] = {
    "image": "frames",
    "text": "texts",
    "int": "array",
    "float": "array",
    "class": "array",
    "array": "array",
}


@SOURCES.register("tfds")
@dataclasses.dataclass(frozen=True)
class Tfds:
    """See the module's text.

    Attributes:
      dataset: its name (`mnist`, `coco_captions/2014:1.1.0`); None: `data_dir` is the folder of one
        version.
      data_dir: the folder of all datasets, or that of one version, with `dataset_info.json` in it.
      split: a name or an expression (`train[:50%]+test`).
      columns, kinds: as of the source `parquet`; `name.part` for a part of a dict of features.
    """

    data_dir: PathText
    split: str = "train"
    dataset: str | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    kinds: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check(
            not paths.is_remote(self.data_dir),
            "data_dir",
            f"{self.data_dir!r} is remote, but ArrayRecord files are read from local disks; "
            f"copy it",
        )

    def open(self, log: Log = print) -> TfdsSource:
        """Raises ConfigError at one of its fields; DataError where the dataset is damaged."""
        try:
            import tensorflow_datasets  # noqa: F401
        except ImportError:
            raise ConfigError(
                "name",
                "'tfds' needs tensorflow-datasets, which is not installed: pip install "
                '"jaxvl[tfds]"',
            ) from None
        builder = self._builder()
        source = _data_source(builder, self.split)
        _check_files(builder, self.split, log)
        found = _find_columns(builder.info.features)
        chosen = choose_columns(found, self.columns, self.kinds, False, builder.info.full_name, log)
        return TfdsSource(self, builder, source, chosen)

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        check(os.path.isdir(self.data_dir), "data_dir", f"no folder {self.data_dir!r}")
        if self.dataset is None:
            info = os.path.join(self.data_dir, "dataset_info.json")
            check(
                os.path.isfile(info),
                "data_dir",
                f"{self.data_dir!r} has no dataset_info.json; name the dataset, or the folder "
                f"of one version",
            )
            return _reading(lambda: tfds.builder_from_directory(self.data_dir), self.data_dir)
        folder = self._folder()
        return _reading(lambda: tfds.builder_from_directory(folder), folder)

    def _folder(self) -> str:
        """Folder of the version that `dataset` names, the newest where it names none."""
        name, _, version = self.dataset.partition(":")
        root = pathlib.Path(self.data_dir, *name.split("/"))
        here = sorted(
            entry.name for entry in pathlib.Path(self.data_dir).iterdir() if entry.is_dir()
        )
        check(
            root.is_dir(),
            "dataset",
            f"no dataset {name!r} in {self.data_dir!r}{nearest(name, here)} (there are: "
            f"{', '.join(here)})",
        )
        found = {file.parent.name: file.parent for file in root.glob("*/dataset_info.json")}
        if not found:  # the only configuration of the dataset
            configs = sorted(
                {file.parent.parent.name for file in root.glob("*/*/dataset_info.json")}
            )
            check(
                len(configs) == 1,
                "dataset",
                f"{name!r} has the configurations {', '.join(configs) or 'none'}; write "
                f"'{name}/CONFIGURATION'",
            )
            found = {file.parent.name: file.parent for file in root.glob("*/*/dataset_info.json")}
        if version:
            check(
                version in found,
                "dataset",
                f"{name!r} has no version {version!r} (there are: {', '.join(sorted(found))})",
            )
            return str(found[version])
        return str(found[max(found, key=_numbers)])


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in version.split(".")]


def _reading(read: Any, folder: str) -> Any:
    """What `read()` returns; what the library raises for damaged files as DataError."""
    try:
        return read()
    except Exception as error:  # the library raises many types
        raise DataError(
            f"{folder}: cannot be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]})"
        ) from None


def _data_source(builder: Any, split: str) -> Any:
    decoders = _decoders(builder.info.features)
    splits = list(builder.info.splits)
    try:
        source = builder.as_data_source(split=split, decoders=decoders)
        size = len(source)
    except NotImplementedError:
        found_there = (
            f"{builder.info.full_name} was written as {builder.info.file_format.value}, which has "
            f"no random access"
        )
        raise ConfigError(
            "dataset",
            f"{found_there}; prepare it with file_format='array_record', or convert it by `tfds "
            f"convert_format`",
        ) from None
    except (ValueError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            "split", f"{split!r} cannot be used (there are: {', '.join(splits)}): {reason}"
        ) from None
    except OSError as error:
        raise DataError(f"{builder.data_dir}: {error}") from None
    check(size > 0, "split", f"{split!r} of {builder.info.full_name} has no records")
    return source


def _instructions(builder: Any, split: str) -> Any:
    """Which records of which files a split is."""
    import tensorflow_datasets as tfds

    return tfds.core.data_sources.base.file_instructions(builder.info, split)


def _check_files(builder: Any, split: str, log: Log) -> None:
    """Raises DataError where a file is not there, or has fewer records than it should have. Files
    of other formats are left alone."""
    if builder.info.file_format.value != "array_record":
        return
    instructions = _instructions(builder, split)
    files = [str(instruction.filename) for instruction in instructions]
    states = states_of(files)

    def find() -> list[list[Any]]:
        with concurrent.futures.ThreadPoolExecutor(READ_AT_ONCE) as pool:
            return list(pool.map(count_records, files, states))

    counted = remembered("array_record", key_of("array_record", files, states), find, log)
    for instruction, (records, _) in zip(instructions, counted):
        wanted = instruction.examples_in_shard
        if records != wanted:
            raise DataError(
                f"{instruction.filename}: holds {records:,} records, but dataset_info.json "
                f"says {wanted:,}; prepare the dataset anew"
            )


def _decoders(features: Any) -> Any:
    """Pictures are left encoded, wherever they are."""
    import tensorflow_datasets as tfds

    class Encoded(tfds.decode.SkipDecoding):
        """For lists of pictures as well."""

        def decode_batch_example_np(self, examples: np.ndarray) -> np.ndarray:
            return examples

    decoders = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image) or _is_sequence_of_images(feature):
            decoders[name] = Encoded()
        elif isinstance(feature, tfds.features.FeaturesDict):
            inner = _decoders(feature)
            if inner:
                decoders[name] = inner
    return decoders or None


def _is_sequence_of_images(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Sequence) and isinstance(
        feature.feature, tfds.features.Image
    )


def _find_columns(features: Any, before: str = "") -> dict[str, Found]:
    import tensorflow_datasets as tfds

    found = {}
    for name, feature in features.items():
        name = f"{before}{name}"
        kind, classes = _kind(feature)
        found[name] = Found(kind, type(feature).__name__, False, classes)
        if isinstance(feature, tfds.features.FeaturesDict):
            found |= _find_columns(feature, f"{name}.")
        elif isinstance(feature, tfds.features.Sequence) and isinstance(
            feature.feature, tfds.features.FeaturesDict
        ):
            for part, inner in feature.feature.items():  # as COCO's captions: a dict of lists
                found[f"{name}.{part}"] = Found(
                    _KIND_OF_LIST.get(_kind(inner)[0]), f"list of {type(inner).__name__}", False
                )
    return found


def _kind(feature: Any) -> tuple[Kind | None, ClassSet | None]:
    import tensorflow_datasets as tfds

    of = tfds.features
    if isinstance(feature, of.Image):
        return "image", None
    if isinstance(feature, of.ClassLabel):
        return "class", ClassSet({"en": tuple(feature.names)}) if feature.num_classes else None
    if isinstance(feature, of.Text):
        return "text", None
    if isinstance(feature, of.Audio | of.Video | of.FeaturesDict | of.Dataset):
        return None, None
    if isinstance(feature, of.Sequence):
        inner, _ = _kind(feature.feature)
        return _KIND_OF_LIST.get(inner), None
    if isinstance(feature, of.Tensor | of.Scalar):
        return _kind_of_tensor(feature), None
    return None, None


def _kind_of_tensor(feature: Any) -> Kind | None:
    dtype = np.dtype(feature.np_dtype)
    if dtype.kind not in "biuf":
        return {0: "text", 1: "texts"}.get(len(feature.shape))
    if feature.shape:
        return "array"
    return "float" if dtype.kind == "f" else "int"


class TfdsSource(TableSource):
    """Examples of a split. A shard is a file.

    Args:
      config: opens the same source in another process.
      builder: of the dataset.
      source: its data source for the split.
      chosen: see `TableSource`.
    """

    def __init__(
        self, config: Tfds, builder: Foreign, source: Foreign, chosen: Mapping[str, Chosen]
    ):
        digest = hashlib.sha256(json.dumps([builder.info.full_name, config.split]).encode())
        for name in ("dataset_info.json", "features.json"):
            file = pathlib.Path(builder.data_dir, name)
            digest.update(file.read_bytes() if file.is_file() else b"")
        super().__init__(f"{builder.info.full_name} {config.split}", digest.hexdigest(), chosen)
        self._config = config
        self._source = source
        self._files = [
            str(instruction.filename) for instruction in _instructions(builder, config.split)
        ]
        self._sizes = np.array(
            [size for size in _shard_sizes(builder, config.split, len(source)) if size], np.int64
        )

    def __reduce__(self):
        return _reopen, (self._config,)

    def __len__(self) -> int:
        return len(self._source)

    def shards(self) -> np.ndarray:
        """See `base.Source`."""
        return self._sizes

    def row(self, i: int, theirs: Collection[str]) -> Mapping[str, object]:
        """See `TableSource`."""
        try:
            record = self._source[i]
        except OSError as error:
            raise DataError(f"{self.where(i)}: {error}") from None
        except Exception as error:  # the library raises many types for one damaged record
            if any(not os.path.isfile(file) for file in self._files):
                raise DataError(f"{self.where(i)}: its file is not there any more") from None
            raise BadRecord(
                "record cannot be read", f"{self.where(i)}: {type(error).__name__}: {error}"
            ) from None
        return {name: _plain(nested(record, name.split("."))) for name in theirs}


def _plain(value: Any) -> object:
    """Bytes, texts and numbers instead of numpy's scalars and arrays of objects."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value


def _shard_sizes(builder: Any, split: str, total: int) -> list[int]:
    """Records of each file of a split."""
    instructions = _instructions(builder, split)
    sizes = [
        instruction.examples_in_shard if instruction.takes_all else instruction.take
        for instruction in instructions
    ]
    return sizes if sum(sizes) == total else [total]


def _reopen(config: Tfds) -> TfdsSource:
    return config.open(log=lambda line: None)
