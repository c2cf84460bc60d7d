"""XLA's own form of a compiled program, described to protobuf here.

jaxlib gives a program as a serialised `HloModuleProto` without the classes to read it. These are
the parts that are read, by their numbers in
https://github.com/openxla/xla/blob/main/xla/service/hlo.proto and `xla/xla_data.proto`; protobuf
passes over all others.

    label    repeated where the type ends in *
"""

from __future__ import annotations

import functools

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

_PACKAGE = "jaxvl.hlo"
# Message -> field -> (number, type); `*`: repeated; a type in capitals is another message.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "TILE": {"dimensions": (1, "int64*")},
    "LAYOUT": {
        "minor_to_major": (1, "int64*"),
        "tiles": (6, "TILE*"),
        "memory_space": (8, "int64"),
    },
    "SHAPE": {
        "element_type": (2, "int32"),
        "dimensions": (3, "int64*"),
        "tuple_shapes": (4, "SHAPE*"),
        "layout": (5, "LAYOUT"),
    },
    "METADATA": {"op_type": (1, "string"), "op_name": (2, "string"), "frame": (15, "int32")},
    "LOCATION": {"file": (1, "int32"), "line": (3, "int32")},
    "FRAME": {"location": (1, "int32"), "parent": (2, "int32")},
    "FRAMES": {"files": (1, "string*"), "locations": (3, "LOCATION*"), "frames": (4, "FRAME*")},
    "LITERAL": {
        "s32s": (4, "int32*"),
        "s64s": (5, "int64*"),
        "u32s": (6, "uint32*"),
        "u64s": (7, "uint64*"),
    },
    "DOT": {"lhs_batch": (3, "int64*")},
    "GROUP": {"ids": (1, "int64*")},
    "IOTA": {
        "groups": (1, "int64"),
        "size": (2, "int64"),
        "reshape": (3, "int64*"),
        "transpose": (4, "int32*"),
    },
    "DEVICE_LIST": {"groups": (1, "GROUP*"), "iota": (2, "IOTA")},
    "MESH_AXIS": {"name": (1, "string"), "size": (2, "int64")},
    "MESH_IOTA": {"reshape": (1, "int64*"), "transpose": (2, "int64*")},
    "MESH": {
        "axes": (1, "MESH_AXIS*"),
        "ids": (2, "int64*"),
        "iota": (3, "MESH_IOTA"),
    },
    "SUB_AXIS": {"before": (1, "int64"), "size": (2, "int64")},
    "AXIS": {"index": (1, "int64"), "part": (2, "SUB_AXIS")},
    "MESH_GROUPS": {"mesh": (1, "MESH"), "axes": (2, "AXIS*")},
    "ATTRIBUTE": {"key": (1, "string"), "value": (2, "string")},
    "ATTRIBUTES": {"map": (1, "ATTRIBUTE*")},
    "PAIR": {"source": (1, "int64"), "target": (2, "int64")},
    "INSTRUCTION": {
        "name": (1, "string"),
        "opcode": (2, "string"),
        "shape": (3, "SHAPE"),
        "metadata": (7, "METADATA"),
        "literal": (8, "LITERAL"),
        "parameter_number": (9, "int64"),
        "tuple_index": (13, "int64"),
        "channel_id": (26, "int64"),
        "custom_call_target": (28, "string"),
        "dot_numbers": (30, "DOT"),
        "id": (35, "int64"),
        "operand_ids": (36, "int64*"),
        "called_computation_ids": (38, "int64*"),
        "backend_config": (43, "bytes"),
        "replica_groups": (49, "GROUP*"),
        "source_target_pairs": (52, "PAIR*"),
        "comparison_direction": (63, "string"),
        "attributes": (68, "ATTRIBUTES"),
        "device_list": (87, "DEVICE_LIST"),
        "iota_groups": (92, "IOTA"),
        "mesh_groups": (93, "MESH_GROUPS"),
    },
    "COMPUTATION": {
        "name": (1, "string"),
        "instructions": (2, "INSTRUCTION*"),
        "id": (5, "int64"),
        "root_id": (6, "int64"),
    },
    "SEQUENCE": {"instruction_ids": (1, "int64*")},
    "SEQUENCE_ENTRY": {"key": (1, "int64"), "value": (2, "SEQUENCE")},
    "SCHEDULE": {"sequences": (1, "SEQUENCE_ENTRY*")},
    "MODULE": {
        "name": (1, "string"),
        "computations": (3, "COMPUTATION*"),
        "entry_computation_id": (6, "int64"),
        "schedule": (7, "SCHEDULE"),
        "frames": (17, "FRAMES"),
    },
}


@functools.cache
def module_class() -> type[message.Message]:
    """The class of a whole program."""
    file = descriptor_pb2.FileDescriptorProto(
        name="jaxvl/hlo.proto", package=_PACKAGE, syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated = kind.endswith("*")
            kind = kind.removesuffix("*")
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label)
            if kind.isupper():
                added.type = kinds.TYPE_MESSAGE
                added.type_name = f".{_PACKAGE}.{kind}"
            else:
                added.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.MODULE"))
