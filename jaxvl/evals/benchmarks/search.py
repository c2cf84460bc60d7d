"""Which benchmarks lie below a folder, and why the rest is none."""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib
from collections.abc import Callable, Sequence

from jaxvl.data.records import DataError
from jaxvl.evals.benchmarks import (
    hugging_face,
    image_folder,
    imagenet,
    karpathy,
    mmeb,
    mmvp,
    multilingual,
    objectnet,
    sugar_crepe,
    wds,
)
from jaxvl.evals.benchmarks.base import Found
from jaxvl.evals.benchmarks.files import file_names, is_picture, subfolders

Find = Callable[[pathlib.Path], list[Found]]
# Layouts whose folder is one benchmark as a whole; what lies in it is not looked at again.
_WHOLE: tuple[Find, ...] = (wds.find, objectnet.find, mmvp.find, mmeb.find, hugging_face.find)
# Layouts of annotations, of which a folder may have several, beside folders of pictures and other
# benchmarks.
_ANNOTATIONS: tuple[Find, ...] = (karpathy.find, multilingual.find, sugar_crepe.find)
# Layouts of folders of classes, known by their folders alone.
_FOLDERS: tuple[Find, ...] = (imagenet.find, image_folder.find)
DEPTH = 6  # folders below the root
MOST_FOLDERS = 2000  # a folder with more folders holds no benchmarks


@dataclasses.dataclass(frozen=True)
class Survey:
    """What lies below a folder.

    Attributes:
      found: benchmarks, each name and language once.
      unknown: (folder, why it is no benchmark, in a sentence).
    """

    found: tuple[Found, ...]
    unknown: tuple[tuple[pathlib.Path, str], ...]

    def chosen(self, names: Sequence[str] | None, languages: Sequence[str] | None) -> list[Found]:
        """Those whose name fits one of the patterns (`wds/vtab/*`), in one of the languages; None:
        all."""
        return [
            found
            for found in self.found
            if (names is None or any(fnmatch.fnmatchcase(found.name, pattern) for pattern in names))
            and (languages is None or found.language in languages)
        ]


def survey(root: pathlib.Path) -> Survey:
    """Looks through a folder and its folders. Raises DataError where it is none."""
    if not root.is_dir():
        raise DataError(f"{root}: is no folder")
    met = _Met()
    if not _look(root, DEPTH, met):
        met.unknown.append((root, _describe(root)))
    kept: dict[tuple[str, str], Found] = {}
    for one in met.found:
        first = kept.setdefault((one.name, one.language), one)
        if first is not one:
            met.unknown.append(
                (
                    one.folder,
                    (
                        f"{one.layout}: {_named(one)} was already found in {first.folder} "
                        f"({first.layout})"
                    ),
                )
            )
    return Survey(tuple(kept.values()), tuple(met.unknown))


@dataclasses.dataclass(frozen=True)
class _Met:
    """What a survey has met so far.

    Attributes:
      found, unknown: see `Survey`.
      folders: without links, so that none is looked at twice.
    """

    found: list[Found] = dataclasses.field(default_factory=list)
    unknown: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    folders: set[pathlib.Path] = dataclasses.field(default_factory=set)

    def add_unknown(self, folder: pathlib.Path, why: str) -> None:
        """Two layouts may meet the same damaged file."""
        if (folder, why) not in self.unknown:
            self.unknown.append((folder, why))


def _named(found: Found) -> str:
    return found.name if found.language == "en" else f"{found.name} ({found.language})"


def _look(folder: pathlib.Path, depth: int, met: _Met) -> bool:
    """Whether a folder, or one in it, is a benchmark or nearly one; all such are added to `met`."""
    met.folders.add(folder.resolve())
    if mmeb.holds_pictures(folder) or _tried(_WHOLE, folder, met):
        return True
    annotated = _tried(_ANNOTATIONS, folder, met)
    if not annotated and any(_tried((find,), folder, met) for find in _FOLDERS):
        return True
    if depth == 0:
        return annotated
    return _look_below(folder, depth, met, annotated)


def _look_below(folder: pathlib.Path, depth: int, met: _Met, known: bool) -> bool:
    """`known`: the folder itself is something, so that its folders may be nothing."""
    try:
        paths = [folder / name for name in subfolders(folder)]
    except DataError:
        paths = []
    if len(paths) > MOST_FOLDERS:
        return known
    empty = []
    any_found = False
    for path in sorted(
        paths, key=pathlib.Path.is_symlink
    ):  # a set has the name of its own folder, not of a link to it
        if path.resolve() in met.folders:
            continue
        if _look(path, depth - 1, met):
            any_found = True
        else:
            empty.append(path)
    top = depth == DEPTH
    if not known and (any_found or top):
        met.unknown.extend((path, _describe(path)) for path in empty)
    return known or any_found or (top and bool(empty))


def _tried(layouts: Sequence[Find], folder: pathlib.Path, met: _Met) -> bool:
    """Whether a folder has one of the layouts, or nearly; what is found, or the reason why it is
    not, is added to `met`."""
    before = len(met.found) + len(met.unknown)
    for find in layouts:
        try:
            met.found.extend(find(folder))
        except DataError as error:
            met.add_unknown(folder, str(error))
        except Exception as error:  # noqa: BLE001 (a folder that breaks a layout's code is one that is not recognised)
            met.add_unknown(
                folder, f"{folder}: cannot be looked at ({type(error).__name__}: {error})"
            )
    return len(met.found) + len(met.unknown) > before


def _describe(folder: pathlib.Path) -> str:
    """What is there instead of a benchmark."""
    try:
        files = file_names(folder)
        folders = subfolders(folder)
    except DataError as error:
        return str(error)
    pictures = sum(is_picture(name) for name in files)
    tars = sum(name.endswith(".tar") for name in files)
    if tars:
        return f"{tars} tar files without test/nshards.txt: no benchmark of CLIP_benchmark's layout"
    if pictures:
        return f"{pictures} pictures without annotations or folders of classes"
    if not files and not folders:
        return "empty"
    examples = ", ".join([*folders, *files][:3])
    return f"no known layout in {len(folders)} folders and {len(files)} files ({examples})"
