"""Pictures and sounds that a record names by a path inside the given folder.

A path may not lead out of the folder that was given.
"""

from __future__ import annotations

import os
import stat

from jaxvl import paths
from jaxvl.data.records import BadRecord
from jaxvl.data.sources.values import embedded

LARGEST = 2**32  # bytes of a remote file


class MediaFolder:
    """Files below one folder, local or remote.

    Args:
      root: the folder; `/` admits every absolute path.
    """

    def __init__(self, root: str):
        self.root = root
        self._real = None if paths.is_remote(root) else os.path.realpath(root)

    def read(self, path: str, kind: str, where: str) -> bytes:
        """The content of a file, of a data URI, or of a picture in base64.

        Raises:
          BadRecord: the path leads out of the folder, the file is not there or cannot be read.
        """
        try:
            content = embedded(path)
        except ValueError as error:
            raise BadRecord(f"{kind} cannot be decoded", f"{where}: {error}") from None
        if content is not None:
            return content
        file = self.inside(path)
        if file is None:
            hint = (
                "; images='/' admits every path from the root"
                if self._real is not None and os.path.isabs(path)
                else ""
            )
            raise BadRecord(
                "path leaves its folder", f"{where}: {path[:200]!r} is not below {self.root}{hint}"
            )
        try:
            return self._content(file)
        except (FileNotFoundError, NotADirectoryError):
            raise BadRecord(f"{kind} is missing", f"{where}: there is no {file[:500]}") from None
        except (OSError, ValueError) as error:
            raise BadRecord(
                f"{kind} cannot be read", f"{where}: {file[:500]}: {type(error).__name__}: {error}"
            ) from None

    def inside(self, path: str) -> str | None:
        """The file that a path means; None where it lies, or a link leads, outside of the
        folder."""
        if "\0" in path:
            return None
        if self._real is None:
            return self._inside_remote(path)
        file = os.path.join(self._real, path)
        real = os.path.realpath(file)
        return real if is_below(real, self._real) else None

    def _inside_remote(self, path: str) -> str | None:
        root = self.root.rstrip("/")
        path = path.removeprefix(f"{root}/")
        if path.startswith("/") or "://" in path or ".." in path.split("/"):
            return None
        return f"{root}/{path}"

    def _content(self, file: str) -> bytes:
        if self._real is None:
            return paths.read_range(file, 0, LARGEST)
        return read_regular(file)


def is_below(file: str, folder: str) -> bool:
    """Whether a path lies below a folder; both are absolute and without links."""
    return file == folder or file.startswith(folder.rstrip(os.sep) + os.sep)


def read_regular(file: str) -> bytes:
    """The content of a local file. Raises OSError; for a pipe or device as well, which might never
    end."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("is no regular file")
        return opened.read()
