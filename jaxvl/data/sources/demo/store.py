"""A corpus on disk: built once into a cache folder, whole or not at all.

~/.cache/jaxvl/NAME/         ($JAXVL_CACHE instead of ~/.cache/jaxvl; it may be remote,
                             s3://BUCKET/FOLDER)
  records.array_record       all pictures with their captions
  index.npz                  `labels`, `split/…`, `having/…`: label of every record; record numbers
                             of every split; whether a record has a thing that not all have
                             (`frames`, `speech`, `speech/fr`)
  classes.json               {locale: [name of label 0, …]}
  attributes.json            {attribute: {names: [name of value 0, …], values: [value of label 0,
                             …]}}: what labels have in common
  ATTRIBUTION.md             whose work it is, and under which licence
  manifest.json              counts; size and SHA-256 of every file

ArrayRecord files can be read from local disks only. A corpus in a remote cache is copied whole,
once a machine, to ~/.cache/jaxvl/fetched/KEY/NAME ($JAXVL_LOCAL_CACHE instead of ~/.cache/jaxvl);
KEY is that of its content, so that a corpus that was replaced is copied anew. One that is not in
the remote cache is built locally and copied there, its manifest last.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import filelock
import numpy as np

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.data.classes import ClassSet
from jaxvl.data.folders import cache_folder, local_cache_folder
from jaxvl.data.records import DataError, RecordSource, StoredRecord, write_records

FORMAT = 1  # of the folder's layout; a corpus of another format is built anew


class Corpus:
    """A built corpus.

    Attributes:
      folder: where it lies.
      manifest: counts and files.
    """

    def __init__(self, folder: pathlib.Path, manifest: dict[str, Json]):
        self.folder = folder
        self.manifest = manifest
        with np.load(folder / "index.npz") as index:
            self._labels = index["labels"]
            part = lambda kind: {
                k.removeprefix(kind): index[k] for k in index.files if k.startswith(kind)
            }
            self._splits = part("split/")
            self._present = part("having/")
        self._classes: ClassSet | None = None

    @property
    def splits(self) -> list[str]:
        return list(self._splits)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: of the files' checksums, wherever the folder lies."""
        checksums = {name: about["sha256"] for name, about in self.manifest["files"].items()}
        return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()

    @property
    def optional(self) -> Mapping[str, np.ndarray]:
        """Thing that not all records have (`frames`, `speech/fr`) -> bool [n], which of all records
        have it."""
        return self._present

    def index(self, split: str | None) -> np.ndarray:
        """Numbers of the records of a split (None: of all), int [n]. Raises KeyError."""
        return np.arange(len(self._labels)) if split is None else self._splits[split]

    def split(self, name: str | None) -> RecordSource:
        """The stored records of a split (None: of all). Raises KeyError."""
        return RecordSource(self.folder / "records.array_record", self.index(name))

    def labels_of(self, index: np.ndarray) -> np.ndarray:
        """Labels int32 of records by number."""
        return self._labels[index]

    def labels(self, split: str | None) -> np.ndarray:
        """Label of every record of a split, int32 [n]."""
        return self._labels[self.index(split)]

    @functools.cached_property
    def _attributes(self) -> dict[str, dict[str, list]]:
        file = self.folder / "attributes.json"
        return json.loads(file.read_text()) if file.exists() else {}

    @property
    def attributes(self) -> list[str]:
        """Coarser classes than the labels: the emoji's group, a shape's colour."""
        return list(self._attributes)

    def attribute_of_labels(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Value of an attribute for every label, int32 [labels], and the values' names. Raises
        KeyError."""
        about = self._attributes[name]
        return np.asarray(about["values"], np.int32), about["names"]

    def class_set(self) -> ClassSet:
        """Name of every label in every language."""
        if self._classes is None:
            names = json.loads((self.folder / "classes.json").read_text())
            self._classes = ClassSet({language: tuple(of) for language, of in names.items()})
        return self._classes

    def verify(self) -> None:
        """Reads every file and compares its checksum. Raises DataError naming the first that
        differs."""
        for name, about in self.manifest["files"].items():
            if _sha256(self.folder / name) != about["sha256"]:
                raise DataError(
                    f"{self.folder / name}: content is not what was built; delete "
                    f"{self.folder} to have it built anew"
                )


def build_once(
    name: str,
    build: Callable[[pathlib.Path], Mapping[str, Json]],
    log: Callable[[str], None],
    expect: Mapping[str, int] | None = None,
) -> Corpus:
    """The corpus in the cache folder, built by `build(folder) -> counts` if it is not there or not
    whole.

    Args:
      name: folder name; says everything that decides the content.
      expect: counts that the build must reach.

    Raises:
      DataError: counts differ from `expect`.
      PathError: the cache is remote and cannot be reached.
      RuntimeError: called while a process that draws imports the script that wants the corpus (it
        would wait for its own parent).
    """
    cache = cache_folder()
    if not paths.is_remote(cache):
        return _build_here(pathlib.Path(cache) / name, build, log, expect)
    corpus = _fetch(cache / name, log)
    if corpus is None:
        corpus = _build_here(local_cache_folder() / name, build, log, expect)
        _share(corpus, cache / name, log)
    return corpus


def _build_here(
    folder: pathlib.Path,
    build: Callable[[pathlib.Path], Mapping[str, Json]],
    log: Callable[[str], None],
    expect: Mapping[str, int] | None,
) -> Corpus:
    """As `build_once`, in a local folder.

    It is built beside its place and renamed when it is whole; a lock keeps two processes from
    building it twice.
    """
    corpus = _open(folder, log)
    name = folder.name
    if corpus is not None:
        return corpus
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"{name} is built by several processes, which import your script: put its code "
            f"under if __name__ == '__main__':"
        )
    with _locked(folder, log):
        corpus = _open(folder, log)  # another process may have built it meanwhile
        if corpus is not None:
            return corpus
        with _new_folder(folder) as building:
            counts = dict(build(building))
            wrong = {k: (n, counts.get(k)) for k, n in (expect or {}).items() if counts.get(k) != n}
            if wrong:
                what = "; ".join(f"{k}: {n} expected, {got} found" for k, (n, got) in wrong.items())
                raise DataError(f"{name}: the sources are not what was expected ({what})")
            files = {
                p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)}
                for p in sorted(building.iterdir())
            }
            manifest = {"format": FORMAT, "name": name, "counts": counts, "files": files}
            (building / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return Corpus(folder, manifest)


@contextlib.contextmanager
def _locked(folder: pathlib.Path, log: Callable[[str], None]) -> Iterator[None]:
    """Keeps other processes of this machine from making the same folder meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(str(folder) + ".lock")
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        log(f"{folder.name}: waiting for another process that builds it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `folder` that takes its place at the end, or is deleted where the body
    raises."""
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fetch(shared: paths.Path, log: Callable[[str], None]) -> Corpus | None:
    """A local copy of the corpus in a remote cache; None where it is not there, or not what its
    manifest says.

    Raises:
      PathError: the store cannot be reached.
    """
    try:
        text = paths.read_text(shared / "manifest.json")
        manifest = json.loads(text)
        size = sum(about["bytes"] for about in manifest["files"].values())
        known = manifest["format"] == FORMAT
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        log(f"{shared} is damaged or has another format; the corpus is built anew")
        return None
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = local_cache_folder() / "fetched" / key / shared.name
    with _locked(folder, log):
        corpus = _open(folder, log)
        if corpus is not None:
            return corpus
        log(f"{shared} is copied to {folder} ({size / 2**20:,.0f} MiB)")
        try:
            with _new_folder(folder) as building:
                _copy_files(shared, building, manifest["files"])
                (building / "manifest.json").write_text(text)
        except (FileNotFoundError, DataError) as error:
            log(f"{shared} is damaged ({error}); the corpus is built anew")
            return None
    return Corpus(folder, manifest)


def _copy_files(
    shared: paths.Path, folder: pathlib.Path, files: Mapping[str, Mapping[str, Any]]
) -> None:
    """Copies files of a remote corpus. Raises DataError where one is not what its manifest says."""
    for name, about in files.items():
        if pathlib.PurePath(name).name != name:
            raise DataError(f"{name!r} is not the name of a file")
        paths.download(shared / name, folder / name)
        if _sha256(folder / name) != about["sha256"]:
            raise DataError(f"{shared / name} is not what was built")


def _share(corpus: Corpus, shared: paths.Path, log: Callable[[str], None]) -> None:
    """Copies a corpus to a remote cache. Where that may only be read, this is logged."""
    try:
        for name in (*corpus.manifest["files"], "manifest.json"):
            paths.upload(corpus.folder / name, shared / name)
    except OSError as error:
        log(f"{shared}: the corpus cannot be kept there ({type(error).__name__}: {error})")


def _open(folder: pathlib.Path, log: Callable[[str], None]) -> Corpus | None:
    """The corpus if it is there and its files have the sizes that they should have."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            log(f"{folder} has an older format and is built anew")
            return None
        bad = [
            n
            for n, about in manifest["files"].items()
            if not (folder / n).is_file() or (folder / n).stat().st_size != about["bytes"]
        ]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        bad = ["manifest.json"]
    if bad:
        log(f"{folder / bad[0]} is damaged; the corpus is built anew")
        return None
    return Corpus(folder, manifest)


def write_corpus(
    folder: pathlib.Path,
    records: Iterable[StoredRecord],
    labels: np.ndarray,
    splits: Mapping[str, np.ndarray],
    classes: Mapping[str, list[str | None]],
    attribution: str,
    attributes: Mapping[str, list[str]] | None = None,
    present: Mapping[str, np.ndarray] = {},
) -> dict[str, int]:
    """Writes the files of a corpus into `folder`; returns its counts.

    Args:
      attributes: name -> its value of label 0, of label 1, ….
      present: thing -> bool [n], whether each record has it. Only things that some records of some
        corpora lack.
    """
    n = write_records(folder / "records.array_record", records)
    if n != len(labels):
        raise ValueError(f"{n} records, {len(labels)} labels")
    index = {f"split/{k}": np.asarray(v, np.int32) for k, v in splits.items()}
    index |= {f"having/{k}": np.asarray(v, bool) for k, v in present.items()}
    np.savez(folder / "index.npz", labels=np.asarray(labels, np.int32), **index)
    (folder / "classes.json").write_text(json.dumps(classes, ensure_ascii=False))
    values = {name: sorted(set(of_labels)) for name, of_labels in (attributes or {}).items()}
    known = {
        name: {"names": v, "values": [v.index(x) for x in attributes[name]]}
        for name, v in values.items()
    }
    (folder / "attributes.json").write_text(json.dumps(known, ensure_ascii=False))
    (folder / "ATTRIBUTION.md").write_text(attribution)
    named = sum(name is not None for names in classes.values() for name in names)
    return {
        "images": n,
        "concepts": len(np.unique(labels)),
        "locales": len(classes),
        "names": named,
        **{k: len(v) for k, v in splits.items()},
    }


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
