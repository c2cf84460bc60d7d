"""Where data that was built, indexed or fetched is kept."""

from __future__ import annotations

import os
import pathlib

from jaxvl import paths


def cache_folder() -> paths.Path:
    """`$JAXVL_CACHE`, which may be remote, else `local_cache_folder()`. Raises PathError."""
    return paths.as_path(os.environ.get("JAXVL_CACHE") or local_cache_folder())


def local_cache_folder() -> pathlib.Path:
    """What is built here, and copies of what lies in a remote cache: `$JAXVL_LOCAL_CACHE`, else
    `~/.cache/jaxvl`."""
    return pathlib.Path(
        os.environ.get("JAXVL_LOCAL_CACHE") or pathlib.Path.home() / ".cache" / "jaxvl"
    )
