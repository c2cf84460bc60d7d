"""Checksums by which a damaged checkpoint is noticed when it is read.

Every chunk of an array ends with the CRC-32C of its bytes: Zarr 3's codec `crc32c`, which
tensorstore writes and checks (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/crc32c/). Each
process makes those of what it writes, and checks those of what it reads. What says where the chunks
lie, OCDBT's manifest and nodes, has such sums of its own. The frame holds a digest of itself.

Orbax has no option for the codec: here it learns to name it. The codecs stand in each array's own
description, so that every Orbax reads it. Checkpoints of before have none of these, and are read as
they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint._src.serialization import tensorstore_utils

from jaxvl.aliases import Foreign, Json

# As Orbax writes arrays in Zarr 2, and a sum of what is written.
_CODECS = (
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": 1}},
    {"name": "crc32c"},
)
_DIGEST = "digest"  # key of a frame


class Damaged(ValueError):
    """What was read does not agree with its digest."""


@functools.cache
def teach_orbax() -> None:
    """Lets Orbax write a checksum after every chunk of an array in Zarr 3, once a process; warns
    where this version of Orbax has other functions."""
    name = "build_array_write_spec"
    before = getattr(tensorstore_utils, name, None)
    if before is None:
        logging.warning(
            "checkpoints have no checksums with Orbax %s; with 0.12.8 they have", ocp.__version__
        )
        return

    @functools.wraps(before)
    def with_checksum(*args: Any, **options: Any) -> Foreign:
        spec = before(*args, **options)
        array = spec.json.get("base", spec.json)  # where it is cast
        if array["driver"] == "zarr3":
            array["metadata"]["codecs"] = [dict(codec) for codec in _CODECS]
        return spec

    setattr(tensorstore_utils, name, with_checksum)


def signed(frame: Mapping[str, Json]) -> dict[str, Json]:
    """A frame with its digest."""
    plain = json.loads(json.dumps(frame))
    return {**plain, _DIGEST: _digest(plain)}


def verified(frame: dict[str, Json]) -> dict[str, Json]:
    """A frame without its digest; one of before, which has none, as it is.

    Raises:
      Damaged: it is another than was written.
    """
    plain = dict(frame)
    written = plain.pop(_DIGEST, None)
    if written is not None and written != _digest(plain):
        raise Damaged("frame/metadata: its content is not what was written")
    return plain


def _digest(plain: Json) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
