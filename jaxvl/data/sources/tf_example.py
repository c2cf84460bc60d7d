"""`tf.train.Example` without TensorFlow.

Its messages
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto) are
described to protobuf here:

    Example{features = 1}   Features{map<string, Feature> feature = 1}
    Feature{oneof: BytesList bytes_list = 1, FloatList float_list = 2, Int64List int64_list = 3},
      each list{repeated value = 1}
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from jaxvl.data.records import BadRecord

_PACKAGE = "jaxvl.tf_example"
_LISTS = {"BytesList": "TYPE_BYTES", "FloatList": "TYPE_FLOAT", "Int64List": "TYPE_INT64"}


@functools.cache
def example_class() -> type[message.Message]:
    """The class of the message."""
    file = descriptor_pb2.FileDescriptorProto(
        name="jaxvl/tf_example.proto", package=_PACKAGE, syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto
    for name, kind in _LISTS.items():
        values = file.message_type.add(name=name).field.add(
            name="value", number=1, label=field.LABEL_REPEATED
        )
        values.type = getattr(field, kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(zip(("bytes_list", "float_list", "int64_list"), _LISTS), 1):
        one = feature.field.add(
            name=name, number=number, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE
        )
        one.type_name = f".{_PACKAGE}.{of}"
        one.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_STRING)
    value = entry.field.add(
        name="value", number=2, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE
    )
    value.type_name = f".{_PACKAGE}.Feature"
    entries = features.field.add(
        name="feature", number=1, label=field.LABEL_REPEATED, type=field.TYPE_MESSAGE
    )
    entries.type_name = f".{_PACKAGE}.Features.FeatureEntry"
    example = file.message_type.add(name="Example")
    inner = example.field.add(
        name="features", number=1, label=field.LABEL_OPTIONAL, type=field.TYPE_MESSAGE
    )
    inner.type_name = f".{_PACKAGE}.Features"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def parse_example(content: bytes, where: str) -> dict[str, object]:
    """Feature -> bytes, int or float where it has one value, else a list of bytes or an array; an
    empty feature is left out.

    Raises:
      BadRecord: `content` is no whole message.
    """
    try:
        example = example_class().FromString(content)
    except message.DecodeError as error:
        raise BadRecord(
            "record cannot be read", f"{where}: no tf.train.Example ({error})"
        ) from None
    found: dict[str, object] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind is None:
            continue
        values = getattr(feature, kind).value
        if len(values) == 1:
            found[name] = values[0]
        elif len(values) > 1:
            found[name] = _several(values, kind)
    return found


def _several(values: Sequence[object], kind: str) -> list[bytes] | np.ndarray:
    if kind == "bytes_list":
        return list(values)
    return np.array(values, np.float32 if kind == "float_list" else np.int64)
