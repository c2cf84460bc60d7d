"""Orbax and `s3://`. Orbax writes arrays to local folders and `gs://`; tensorstore, which does it
for Orbax, has a driver for S3 too.

Orbax asks four functions how a folder becomes a place that tensorstore can write. Here they learn
the answer for `s3://`; other folders are answered as before. To be left out when Orbax knows
`s3://` itself (https://github.com/google/orbax/pull/2739).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from orbax.checkpoint import path as orbax_path

from jaxvl import paths
from jaxvl.aliases import Foreign, Json
from jaxvl.config import check


def prepare(folder: paths.Path) -> dict[str, Foreign]:
    """What a CheckpointManager of `folder` needs beside: options of `CheckpointManagerOptions`.

    Raises:
      ConfigError: checkpoints cannot be written to the store.
      PathError: it cannot be reached.
    """
    scheme = paths.scheme_of(folder)
    if scheme is None:
        return {}
    known = " and ".join(f"{name}://" for name in paths.CHECKPOINT_SCHEMES)
    check(
        scheme in paths.CHECKPOINT_SCHEMES,
        "--workdir",
        f"{str(folder)!r}: checkpoints can be kept in a local folder, {known}",
    )
    if scheme == "s3":
        _teach_s3()
    paths.exists(folder)  # what Orbax would raise is a page long
    # An object store renames by copying every object: a checkpoint is finished by a last object of
    # its own instead.
    return {"temporary_path_class": orbax_path.atomicity.CommitFileTemporaryPath}


@functools.cache
def _teach_s3() -> None:
    """Lets Orbax's functions answer for `s3://`, once a process.

    Raises:
      ConfigError: this version of Orbax has other functions.
    """
    import orbax.checkpoint
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    answers = (
        (
            tensorstore_utils,
            "_normalize_path",
            lambda folder: f"s3://{os.path.normpath(folder.removeprefix('s3://'))}",
        ),
        (tensorstore_utils, "_use_gcs_driver", lambda folder: True),
        (gcs_utils, "get_kvstore_for_gcs", kvstore),
    )
    for module, name, answer in answers:
        version = orbax.checkpoint.__version__
        check(
            hasattr(module, name),
            "--workdir",
            f"checkpoints on s3:// do not go with Orbax {version}; 0.12.8 does",
        )
        setattr(module, name, _beside(getattr(module, name), answer))


def _beside(before: Callable[..., Any], answer: Callable[[str], Any]) -> Callable[..., Any]:
    """`before`, with another answer for `s3://`."""

    @functools.wraps(before)
    def asked(folder: Any, *args: Any, **options: Any) -> Any:
        text = str(folder)
        return answer(text) if text.startswith("s3://") else before(folder, *args, **options)

    return asked


def kvstore(folder: str) -> dict[str, Json]:
    """tensorstore's spec of a folder `s3://BUCKET/…`, with endpoint, region and keys where the
    environment gives them."""
    bucket, _, key = folder.removeprefix("s3://").partition("/")
    spec: dict[str, Json] = {"driver": "s3", "bucket": bucket, "path": key}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec["endpoint"] = endpoint
        region = (
            region or "us-east-1"
        )  # with an endpoint tensorstore does not ask the bucket for it
    if region:
        spec["aws_region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        spec["aws_credentials"] = {"type": "environment"}
    return spec
