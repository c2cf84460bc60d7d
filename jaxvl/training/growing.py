"""Files that grow while a run is on: `metrics.jsonl` and TensorBoard's.

An object store cannot append. In a remote work folder these files are written to a local folder,
and each that has grown is copied whole every few seconds and at the end: a run that is killed loses
the last seconds at most. In a local work folder they are written where they belong.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import threading
import time

from absl import logging

from jaxvl import paths

EVERY = 2.0  # seconds between two copies of a file
SHARE = 10  # and as many times what its last copy took: a large file does not keep the network busy
TRIES = 3  # of the last copy


class GrowingFiles:
    """The growing files of a work folder. Only one process at a time may write them.

    Attributes:
      folder: local folder to write them in; the work folder itself where that is local.
    """

    def __init__(self, workdir: paths.Path, every: float = EVERY):
        self._workdir = workdir
        self._every = every
        self._copied: dict[str, int] = {}  # name -> bytes of its last copy
        self._due: dict[str, float] = {}  # name -> when it may be copied again
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False
        if not paths.is_remote(workdir):
            self.folder = pathlib.Path(workdir)
            return
        self._own = pathlib.Path(tempfile.mkdtemp(prefix="jaxvl-growing-"))
        self.folder = self._own / "files"
        self.folder.mkdir()
        self._thread = threading.Thread(
            target=self._copy_until_stopped, name="jaxvl-growing", daemon=True
        )
        self._thread.start()

    def resume(self, name: str) -> pathlib.Path:
        """Where to append to the file `name`; what an earlier process wrote is there. Raises
        OSError."""
        file = self.folder / name
        if self._thread is not None and paths.exists(self._workdir / name):
            with self._lock:
                paths.download(self._workdir / name, file)
                self._copied[name] = file.stat().st_size
        return file

    def flush(self, *, wait: bool = True) -> None:
        """Copies what has grown, now; without `wait`, in the background. A store that fails is
        logged, not raised."""
        if self._thread is None:
            return
        if wait:
            self._copy(now=True)
        else:
            self._wake.set()

    def close(self) -> None:
        """The last copy. Where that fails the local files are kept, and named in the log."""
        if self._thread is None:
            return
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._thread = None
        for attempt in range(TRIES):
            if self._copy(now=True):
                shutil.rmtree(self._own, ignore_errors=True)
                return
            time.sleep(attempt)
        logging.error(
            "%s lacks the last lines of this run, which are kept in %s", self._workdir, self.folder
        )

    def _copy_until_stopped(self) -> None:
        while not self._stop.is_set():
            asked = self._wake.wait(self._every / 4)
            self._wake.clear()
            self._copy(now=asked)

    def _copy(self, *, now: bool = False) -> bool:
        """Copies every file that has grown and is due, or all that have grown; returns whether that
        worked."""
        with self._lock:
            try:
                for file in paths.files_below(self.folder):
                    name = file.relative_to(self.folder).as_posix()
                    if now or time.monotonic() >= self._due.get(name, 0.0):
                        self._copy_file(file, name)
            except Exception as error:  # whatever a store raises, it must not end the run
                if not self._failed:
                    logging.warning(
                        "%s: cannot be written at present: %s: %s",
                        self._workdir,
                        type(error).__name__,
                        error,
                    )
                self._failed = True
                return False
            self._failed = False
            return True

    def _copy_file(self, file: pathlib.Path, name: str) -> None:
        if file.stat().st_size == self._copied.get(name):
            return
        began = time.monotonic()
        still = (
            self._own / "still"
        )  # a file that grows while it is sent would confuse the store's client
        shutil.copyfile(file, still)
        paths.upload(still, self._workdir / name)
        self._copied[name] = still.stat().st_size
        ended = time.monotonic()
        self._due[name] = ended + max(self._every, SHARE * (ended - began))
