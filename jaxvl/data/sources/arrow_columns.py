"""Columns of Arrow tables: what their types hold, and single values.

Hugging Face's features are in the schema's metadata
(https://huggingface.co/docs/datasets/about_arrow): class names, which structs are pictures and
which are sounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxvl.config import ConfigError
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.base import Kind
from jaxvl.data.sources.table import NAMES, Found
from jaxvl.data.sources.values import NOT_UTF8, as_value, is_missing, media_kind, nested

if TYPE_CHECKING:
    import pyarrow

_MEDIA_STRUCT = {"bytes", "path"}


def import_pyarrow(name: str):
    """The library, with what to do where it is missing. Raises ConfigError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "name", f'{name!r} needs pyarrow, which is not installed: pip install "jaxvl[{name}]"'
        ) from None
    return pyarrow


def find_columns(
    schema: pyarrow.Schema, first_bytes: Callable[[str], bytes | None]
) -> dict[str, Found]:
    """Their name -> what it holds; parts of a struct that is no picture or sound are `name.part`.

    Args:
      first_bytes: of a column of bytes, the content of the first record that has one.
    """
    features = _features(schema)
    found: dict[str, Found] = {}
    for field in schema:
        for name, column in _columns_of(field, field.name, features.get(field.name), first_bytes):
            if (
                name == field.name or name not in schema.names
            ):  # a column's own name comes before a part of a struct
                found[name] = column
    return found


def _features(schema: pyarrow.Schema) -> Mapping[str, object]:
    """Hugging Face's features by column; empty where the schema has none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        features = about["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _columns_of(
    field: pyarrow.Field, name: str, feature: object, first_bytes: Callable[[str], bytes | None]
) -> Iterator[tuple[str, Found]]:
    import pyarrow as pa

    of = _storage(field.type)
    type_name = str(field.type)
    if pa.types.is_struct(of) and not is_media(of):
        yield name, Found(None, "struct")
        for i in range(of.num_fields):
            part = of.field(i)
            inner = feature.get(part.name) if isinstance(feature, dict) else None
            yield from _columns_of(part, f"{name}.{part.name}", inner, first_bytes)
        return
    kind = _kind(of, name, feature, first_bytes)
    classes = None
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and pa.types.is_integer(of):
        kind = "class"
        classes = ClassSet({"en": tuple(map(str, names))})
    yield (
        name,
        Found(kind, type_name if len(type_name) < 60 else type_name[:57] + "…", True, classes),
    )


def _storage(of: pyarrow.DataType) -> pyarrow.DataType:
    """The type that an extension type is kept in, and that of a dictionary's values."""
    import pyarrow as pa

    while isinstance(of, pa.BaseExtensionType):
        of = of.storage_type
    return of.value_type if pa.types.is_dictionary(of) else of


def is_media(of: pyarrow.DataType) -> bool:
    """Whether it is Hugging Face's struct of `bytes` and `path`."""
    import pyarrow as pa

    return (
        pa.types.is_struct(of) and {of.field(i).name for i in range(of.num_fields)} == _MEDIA_STRUCT
    )


def _kind(
    of: pyarrow.DataType, name: str, feature: object, first_bytes: Callable[[str], bytes | None]
) -> Kind | None:
    import pyarrow as pa

    kinds = pa.types
    if is_media(of):
        sound = isinstance(feature, dict) and feature.get("_type") == "Audio"
        return "audio" if sound or (feature is None and name.lower() in NAMES["audio"]) else "image"
    if kinds.is_string(of) or kinds.is_large_string(of) or kinds.is_string_view(of):
        return "text"
    if (
        kinds.is_binary(of)
        or kinds.is_large_binary(of)
        or kinds.is_binary_view(of)
        or kinds.is_fixed_size_binary(of)
    ):
        content = first_bytes(name)
        return None if content is None else media_kind(content)
    if kinds.is_integer(of) or kinds.is_boolean(of):
        return "int"
    if kinds.is_floating(of):
        return "float"
    if _is_list(of):
        return _kind_of_list(of, name, feature, first_bytes)
    return None


def _is_list(of: pyarrow.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of)


def _kind_of_list(
    of: pyarrow.DataType, name: str, feature: object, first_bytes: Callable[[str], bytes | None]
) -> Kind | None:
    inner = _storage(of.value_type)
    feature = feature.get("feature") if isinstance(feature, dict) else None
    kind = _kind(inner, name, feature, first_bytes)
    return {
        "text": "texts",
        "int": "array",
        "float": "array",
        "array": "array",
        "image": "frames",
    }.get(kind)


def value_at(column: pyarrow.ChunkedArray, i: int, where: str) -> object | None:
    """One value of a column as Python has it; a list of numbers is an array.

    Raises:
      BadRecord: a text is no UTF-8.
    """
    try:
        return _plain(column[i])
    except UnicodeDecodeError as error:
        raise BadRecord(NOT_UTF8, f"{where}: {error}") from None


def plain_values(
    column: pyarrow.ChunkedArray, path: Sequence[str], kind: Kind
) -> list[object | None]:
    """All values of a column, or of a part of it; None where one is missing or of another kind.

    Args:
      path: of the part, from the column itself.
      kind: of the values.
    """
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # one of them is no UTF-8
        values = [_plain_or_none(column, i) for i in range(len(column))]
    found: list[object | None] = []
    for value in values:
        value = nested(value, path[1:])
        try:
            found.append(None if is_missing(value, kind) else as_value(value, kind, path[0]))
        except BadRecord:  # `read` says why
            found.append(None)
    return found


def _plain_or_none(column: pyarrow.ChunkedArray, i: int) -> object | None:
    try:
        return _plain(column[i])
    except UnicodeDecodeError:
        return None


def _plain(scalar: pyarrow.Scalar) -> object | None:
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ExtensionScalar):
        return _plain(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        of = scalar.type
        if is_media(of):
            return _content_or_path(scalar["bytes"].as_py(), scalar["path"].as_py())
        return {of.field(i).name: _plain(scalar[i]) for i in range(of.num_fields)}
    if isinstance(scalar, pa.ListScalar):
        return _list(scalar.values)
    if isinstance(scalar, pa.BooleanScalar):
        return int(scalar.as_py())
    return scalar.as_py()


def _content_or_path(content: bytes | None, path: str | None) -> object | None:
    return path if content is None else content


def _list(values: pyarrow.Array) -> object:
    import pyarrow as pa

    of = values.type
    number = pa.types.is_integer(of) or pa.types.is_floating(of)
    if number and values.null_count == 0:
        return values.to_numpy(zero_copy_only=False).copy()
    parts = [_plain(value) for value in values]
    if (
        parts
        and all(isinstance(part, np.ndarray) for part in parts)
        and len({part.shape for part in parts}) == 1
    ):
        return np.stack(parts)
    return parts


def path_of(name: str, tops: Collection[str]) -> list[str]:
    """The column and the parts of structs that a dotted name means; a column's own name may hold
    dots."""
    return [name] if name in tops else name.split(".")


def first_content(value: object) -> object:
    """The bytes of a value: of the first of a list, and of a struct of `bytes` and `path`; None
    where it has none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value.get("bytes") if isinstance(value, Mapping) else value
