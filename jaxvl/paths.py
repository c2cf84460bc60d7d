"""Paths of work folders, configs and data: local, or in an object store such as `s3://`.

A text becomes a path by `as_path`: a local one is a `pathlib.Path`, a remote one an `epath.Path`
over fsspec. What is read and written as a whole goes through the functions here. An object store
has no folders, cannot append, and renames by copying; it does replace an object whole. What grows
while a run is on is therefore written to a local folder and copied as a whole every few seconds
(`training/growing.py`).

Credentials and endpoints are those of the store's own tools: `~/.aws`, `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_REGION`; `GOOGLE_APPLICATION_CREDENTIALS`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import glob
import importlib.util
import os
import pathlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

# Of etils' two ways to an object store, TensorFlow and fsspec, always the same one: TensorFlow may
# be installed for another reason.
os.environ.setdefault("EPATH_USE_TF", "false")

import fsspec
from etils import epath

Path = pathlib.Path | epath.Path
Result = TypeVar("Result")

# Scheme -> the fsspec library that serves it, and how it is installed.
LIBRARIES = {
    "gs": ("gcsfs", 'pip install "jaxvl[remote]"'),
    "s3": ("s3fs", 'pip install "jaxvl[remote]"'),
    "az": ("adlfs", "pip install adlfs"),
    "hf": ("huggingface_hub", "pip install huggingface_hub"),
}
# Schemes of files that are only read, in ranges of bytes.
READ_ONLY = {
    "http": ("aiohttp", 'pip install "jaxvl[remote]"'),
    "https": ("aiohttp", 'pip install "jaxvl[remote]"'),
}
# Stores that tensorstore, which writes the arrays of checkpoints, has a driver for.
CHECKPOINT_SCHEMES = ("gs", "s3")
# Names by which fsspec keeps options of these schemes.
_FSSPEC_NAMES = {"gs": ("gs", "gcs"), "s3": ("s3",), "az": ("az",), "hf": ("hf",)}


class PathError(OSError):
    """A path that cannot be used, or a store that cannot be reached; one sentence."""


class RefusedError(PathError):
    """What a server answers, and will answer again."""


def as_path(text: str | os.PathLike) -> Path:
    """A local path, or a remote one for `SCHEME://…`.

    Raises:
      PathError: the scheme is not known, or its library is not installed.
    """
    text = os.fspath(text)
    scheme = scheme_of(text)
    if scheme is None:
        return pathlib.Path(text)
    _check_scheme(text, scheme, LIBRARIES)
    return epath.Path(text)


def _check_scheme(text: str, scheme: str, libraries: Mapping[str, tuple[str, str]]) -> None:
    """Raises PathError where a scheme is not known or its library is not installed."""
    if scheme not in libraries:
        known = ", ".join(f"{name}://" for name in libraries)
        raise PathError(
            f"{text!r}: {scheme}:// is not known; must be a local path or one of {known}"
        )
    library, install = libraries[scheme]
    if importlib.util.find_spec(library) is None:
        raise PathError(f"{text!r}: {scheme}:// needs {library}, which is not installed: {install}")
    for name in _FSSPEC_NAMES.get(scheme, ()):
        # tensorstore and other hosts write as well: a listing that fsspec has kept would miss what
        # they wrote.
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)


def scheme_of(path: str | os.PathLike) -> str | None:
    """`"s3"` of `s3://…`; None of a local path."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return scheme if separator and scheme.isalnum() else None


def is_remote(path: str | os.PathLike) -> bool:
    return scheme_of(path) is not None


def absolute(path: str | os.PathLike) -> Path:
    """The path from the root; a remote one always is."""
    path = as_path(path)
    return path if is_remote(path) else path.absolute()


@contextlib.contextmanager
def _named_errors(path: Path | str) -> Iterator[None]:
    """What a store's client raises beside OSError (no credentials, no connection) as one
    PathError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PermissionError) and is_remote(path):
            raise PermissionError(f"{path}: permission is denied ({error})") from None
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        status = getattr(error, "status", None)  # of aiohttp's errors
        if scheme_of(path) in READ_ONLY and status is not None:
            raise _web_error(str(path), status) from None
        lines = str(error).splitlines() or [""]
        raise PathError(f"{path}: {type(error).__name__}: {lines[0]}") from error


def exists(path: Path) -> bool:
    with _named_errors(path):
        return path.exists()


def is_file(path: Path) -> bool:
    with _named_errors(path):
        return path.exists() and not path.is_dir()


def is_folder(path: Path) -> bool:
    """Whether it is a folder; one of an object store is there when it holds something."""
    with _named_errors(path):
        return path.is_dir()


def list_folder(path: Path, pattern: str = "*") -> list[Path]:
    """Files and folders in `path` whose names match, sorted; none where it is not there."""
    with _named_errors(path):
        return sorted(path.glob(pattern)) if path.is_dir() else []


def files_below(path: Path) -> list[Path]:
    """All files in a folder and its folders, sorted."""
    if not is_remote(path):
        return sorted(found for found in path.rglob("*") if found.is_file())
    return [path / name for name in sizes_below(path)]


def sizes_below(path: Path) -> dict[str, int]:
    """File -> bytes of all files in a remote folder and its folders, by their names from the
    folder, sorted."""
    with _named_errors(path):
        system, root = fsspec.core.url_to_fs(str(path).rstrip("/"))
        found = system.find(root, detail=True)
    sizes = {
        name.removeprefix(root).lstrip("/"): about["size"] for name, about in sorted(found.items())
    }
    return {name: size for name, size in sizes.items() if name and not name.endswith("/")}


def read_bytes(path: Path) -> bytes:
    """Raises OSError."""
    with _named_errors(path):
        return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises OSError, UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole: a reader finds the old content or the new one, never a part. Raises
    OSError."""
    if is_remote(path):
        with _named_errors(path):
            path.write_bytes(data)
        return
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def make_folder(path: Path) -> None:
    """Makes a local folder with its parents; of a remote one, which needs no making, checks that
    its bucket can be reached.

    Raises:
      OSError: it cannot be made. PathError: there is no such bucket, or no way to it.
    """
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        return
    bucket = as_path("/".join(str(path).split("/")[:3]))
    if not exists(path) and not exists(bucket):
        raise PathError(f"{path}: there is no bucket {bucket}, or it may not be listed")


def move(path: Path, target: Path) -> None:
    """Renames a file or folder. In an object store every object is copied and then deleted, so that
    a kill may leave both. Raises OSError."""
    if not is_remote(path):
        path.rename(target)
        return
    with _named_errors(path):
        system, source = fsspec.core.url_to_fs(str(path))
        _, aim = fsspec.core.url_to_fs(str(target))
        found = system.find(source)
        if not found:
            raise FileNotFoundError(f"{path}: there is nothing")
        for name in found:
            system.cp_file(name, aim + name.removeprefix(source))
        system.rm(found)


def upload(file: pathlib.Path, path: Path) -> None:
    """Copies a local file to a remote path, in parts where it is large. Raises OSError."""
    with _named_errors(path):
        system, target = fsspec.core.url_to_fs(str(path))
        system.put_file(str(file), target)


def download(path: Path, file: pathlib.Path) -> None:
    """Copies a remote file to a local path, whole or not at all. Raises OSError."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with _named_errors(path):
            system, source = fsspec.core.url_to_fs(str(path))
            system.get_file(source, str(part))
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------
# Files that are read in ranges of bytes: local, in an object store, or of a web server

ATTEMPTS = 4  # at reading a range of a remote file
ASKED_AT_ONCE = 32  # requests about files


@dataclasses.dataclass(frozen=True)
class FileState:
    """What a file is at a moment: while its state is the same, so is its content.

    Attributes:
      size: bytes.
      version: time of the last change in ns of a local file; of a remote one what its server says:
        ETag, generation or date.
    """

    size: int
    version: str


def file_state(file: str) -> FileState:
    """The state of a local or remote file. Raises OSError: FileNotFoundError where it is not
    there."""
    if not is_remote(file):
        about = os.stat(file)
        return FileState(about.st_size, str(about.st_mtime_ns))
    system, name = _file_system(file)
    if scheme_of(file) in READ_ONLY:
        return _try_again(lambda: _web_state(file), file)
    with _named_errors(file):
        return _remote_state(file, system.info(name))


def file_states(files: Sequence[str]) -> list[FileState | None]:
    """The states of many files; None of one that is not there. Of a remote folder that many are in,
    the files are listed.

    Raises:
      OSError: a store cannot be reached.
    """
    remote = collections.Counter(
        file.rpartition("/")[0]
        for file in files
        if is_remote(file) and scheme_of(file) not in READ_ONLY
    )
    listed = {folder: _listed_states(folder) for folder, n in remote.items() if n > ASKED_AT_ONCE}

    def state(file: str) -> FileState | None:
        folder, _, name = file.rpartition("/")
        if folder in listed:
            return listed[folder].get(name)
        try:
            return file_state(file)
        except FileNotFoundError:
            return None

    if not any(is_remote(file) for file in files):
        return [state(file) for file in files]
    with concurrent.futures.ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(state, files))


def _listed_states(folder: str) -> dict[str, FileState]:
    """Name -> state of the files of a remote folder."""
    system, name = _file_system(folder)
    with _named_errors(folder):
        try:
            entries = system.ls(name, detail=True)
        except FileNotFoundError:
            return {}
        return {
            about["name"].rpartition("/")[2]: _remote_state(folder, about)
            for about in entries
            if about["type"] == "file"
        }


def _remote_state(file: str, about: Mapping[str, object]) -> FileState:
    """State by what fsspec says of a file; each library has keys of its own."""
    size = about.get("size")
    if not isinstance(size, int):
        raise PathError(
            f"{file}: its server does not say how long it is, so that it cannot be read in "
            f"parts; copy it to a folder"
        )
    for key in (
        "ETag",
        "etag",
        "generation",
        "md5Hash",
        "LastModified",
        "updated",
        "last_modified",
    ):
        if about.get(key):
            return FileState(size, str(about[key]))
    return FileState(size, "")


def find_files(pattern: str) -> list[str]:
    """Files whose names match a glob pattern, sorted. Raises OSError; PathError for a web server,
    which lists nothing."""
    if not is_remote(pattern):
        return sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if scheme_of(pattern) in READ_ONLY:
        raise PathError(
            f"{pattern!r}: a web server lists no files; write their names with braces, as in "
            f"{{00000..00099}}.tar"
        )
    system, name = _file_system(pattern)
    with _named_errors(pattern):
        found = system.glob(name)
    return sorted(f"{scheme_of(pattern)}://{file.lstrip('/')}" for file in found)


def read_range(file: str, start: int, size: int) -> bytes:
    """Bytes `start` … `start + size` of a remote file; fewer where it ends before. Tries again
    where the network fails.

    Raises:
      OSError: it is not there, or cannot be read.
    """
    if size <= 0:
        return b""
    system, name = _file_system(file)
    data = _try_again(lambda: system.cat_file(name, start=start, end=start + size), file)
    if len(data) > size:
        raise PathError(
            f"{file}: its server does not read ranges of bytes, which records need; copy it "
            f"to a folder"
        )
    return data


def _try_again(read: Callable[[], Result], file: str) -> Result:
    for attempt in range(ATTEMPTS):
        try:
            with _named_errors(file):
                return read()
        except (FileNotFoundError, PermissionError, RefusedError):
            raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 4**attempt)
    raise AssertionError("unreachable")


def _web_state(url: str) -> FileState:
    """State of a file of a web server, which is asked for one byte of it.

    Raises:
      FileNotFoundError: it is not there.
      PathError: it cannot be had, or the server sends the whole file.
    """
    request = urllib.request.Request(
        url, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status = answer.status
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no byte of it: it is empty
            return FileState(0, "")
        raise _web_error(url, error.code) from None
    except OSError as error:
        raise PathError(f"{url}: cannot be reached ({error})") from None
    size = headers.get("Content-Range", "").rpartition("/")[2]
    if status != 206 or not size.isdigit():
        raise RefusedError(
            f"{url}: its server does not read ranges of bytes, which records need; copy it to "
            f"a folder"
        )
    return FileState(int(size), headers.get("ETag") or headers.get("Last-Modified") or "")


def _web_error(url: str, status: int) -> OSError:
    """What an answer of a web server means."""
    if status in (404, 410):
        return FileNotFoundError(f"{url}: is not there (HTTP {status})")
    if status in (401, 403):
        return RefusedError(f"{url}: permission is denied (HTTP {status})")
    kind = PathError if status >= 500 or status == 429 else RefusedError
    return kind(f"{url}: cannot be read (HTTP {status})")


def _file_system(file: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a remote file, and the file's name in it. Raises PathError."""
    _check_scheme(file, scheme_of(file), {**LIBRARIES, **READ_ONLY})
    with _named_errors(file):
        return fsspec.core.url_to_fs(file)
