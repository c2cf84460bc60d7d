"""Fetches one pinned Debian package and unpacks it, without root and without dpkg.

A `.deb` is an `ar` archive (https://manpages.debian.org/deb.5) whose member `data.tar.xz` holds the
files; Python reads both, so this works on any system that can get at the file.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
import shutil
import subprocess
import tarfile
import urllib.request

from jaxvl.data.records import DataError

MIRROR = "https://deb.debian.org/debian"
TIMEOUT = 600  # seconds, of apt-get; 60 without a byte, of a download


def fetch(
    package: str, version: str, path: str, sha256: str, folder: pathlib.Path, source: str = ""
) -> pathlib.Path:
    """The `.deb` file of a package, checked.

    Args:
      path: of the file below a Debian mirror (`pool/main/…_all.deb`).
      sha256: that it must have.
      folder: where a download goes.
      source: a `.deb` file or its URL, or a mirror's URL (…/debian); empty: `apt-get download`
        where there is an apt that knows the version, else `MIRROR`.

    Raises:
      DataError: none of the ways works, with what each said; another content than `sha256` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = path.rsplit("/", 1)[-1]
    problems = []
    if source and "://" not in source:
        file = pathlib.Path(source).expanduser()
        if not file.is_file():
            raise DataError(f"no file {source!r}, which was to be {name}")
    else:
        file = None if source else _apt(package, version, folder, problems)
        url = source if source.endswith(".deb") else f"{(source or MIRROR).rstrip('/')}/{path}"
        file = file or _download(url, folder / name, problems)
    if file is None:
        raise DataError(
            f"{name} could not be fetched ({'; '.join(problems)}). This needs the network once: "
            f"give the file's path or a mirror as the corpus's "
            "`package`, or copy a built corpus from another machine into $JAXVL_CACHE "
            "(default ~/.cache/jaxvl)"
        )
    with open(file, "rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{file} is not {package} {version}: its SHA-256 is {found}, not {sha256}")
    return file


def _apt(
    package: str, version: str, folder: pathlib.Path, problems: list[str]
) -> pathlib.Path | None:
    command = shutil.which("apt-get")
    if command is None:
        problems.append("there is no apt-get")
        return None
    try:
        done = subprocess.run(
            [command, "download", f"{package}={version}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        problems.append(f"apt-get did not finish within {TIMEOUT} s")
        return None
    files = sorted(folder.glob("*.deb"))
    if done.returncode or not files:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        problems.append(f"apt-get: {words[0] if words else 'no message'}")
        return None
    return files[0]


def _download(url: str, file: pathlib.Path, problems: list[str]) -> pathlib.Path | None:
    try:
        with urllib.request.urlopen(url, timeout=60) as response, open(file, "wb") as out:
            shutil.copyfileobj(response, out)
    except (OSError, ValueError) as error:  # URLError is an OSError; ValueError: no URL at all
        problems.append(f"{url}: {error}")
        return None
    return file


def unpack(deb: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks the files of a `.deb` below `folder`. Raises DataError where it is none."""
    data = deb.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise DataError(f"{deb} is no Debian package")
    position = 8
    while position + 60 <= len(data):
        name = data[position : position + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(data[position + 48 : position + 58])
        if name.startswith("data.tar"):
            member = io.BytesIO(data[position + 60 : position + 60 + size])
            try:
                with tarfile.open(
                    fileobj=member
                ) as files:  # by its content: xz, gzip, bzip2, or none
                    files.extractall(folder, filter="data")
            except Exception as error:  # the compressors have errors of their own
                raise DataError(
                    f"{deb}: {name} cannot be unpacked ({type(error).__name__}: {error})"
                ) from None
            return
        position += 60 + size + size % 2
    raise DataError(f"{deb} holds no data.tar")
