"""Class sets by name, from a file or inline; templates of prompts as files hold them.

`classes = dict(name="imagenet")`, `dict(name="file", path="classes.json")`, `dict(name="names",
names=("cat", "dog"))`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import ConfigError, PathText, Registry, check, nearest, to_path
from jaxvl.data.classes import ClassSet
from jaxvl.data.text_files import decode, read_lines

CLASS_SETS = Registry("class set")
PLACE = "{}"  # where a template holds the name
T = TypeVar("T")
LISTS = pathlib.Path(__file__).parent / "class_lists"  # see NOTICE.txt there


def to_template(text: str) -> str:
    """A template with `{}` for the name: CLIP_benchmark's files write `{c}`. Either may occur
    several times."""
    return text.replace("{c}", PLACE)


def read_templates(path: paths.Path) -> tuple[str, ...]:
    """Templates of a text file, one a line; blank lines are left out.

    Raises:
      ValueError: no template, or one without `{c}` or `{}`.
      OSError: the file cannot be read.
    """
    lines = [line.strip() for line in _lines(path)]
    templates = tuple(to_template(line) for line in lines if line)
    if not templates:
        raise ValueError(f"{path}: holds no template")
    for template in templates:
        if PLACE not in template:
            raise ValueError(
                f"{path}: the template {template!r} must hold '{{c}}' or '{{}}', where the "
                f"class name goes"
            )
    return templates


def read_names(path: paths.Path) -> tuple[str, ...]:
    """Class names of a text file: line i names class i.

    Raises:
      ValueError: no name, or a blank line between names.
      OSError: the file cannot be read.
    """
    names = [line.strip() for line in _lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise ValueError(f"{path}: holds no class name")
    if "" in names:
        raise ValueError(
            f"{path}: line {names.index('') + 1} is blank, and no class has an empty name"
        )
    return tuple(names)


def _lines(path: paths.Path) -> list[str]:
    try:
        return read_lines(paths.read_bytes(path))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is no UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


@functools.lru_cache(maxsize=1)
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of the 1,000 classes of ImageNet, by number: the ids are sorted."""
    pairs = [line.split("\t") for line in _lines(LISTS / "imagenet.tsv")]
    return tuple((wnid, name) for wnid, name in pairs)


@functools.lru_cache(maxsize=1)
def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts of CLIP for ImageNet."""
    return read_templates(LISTS / "imagenet80.txt")


@CLASS_SETS.register("imagenet")
@dataclasses.dataclass(frozen=True)
class ImageNetClasses:
    """The classes of ImageNet (ILSVRC 2012) with CLIP's names and 80 prompts.

    Attributes:
      wnids: only these classes, in the order of ImageNet; none: all 1,000. ImageNet-A, -O and -R
        have 200 each.
    """

    wnids: tuple[str, ...] = ()

    def __post_init__(self):
        known = {wnid for wnid, _ in imagenet_classes()}
        for i, wnid in enumerate(self.wnids):
            check(
                wnid in known,
                f"wnids[{i}]",
                f"{wnid!r} is not the WordNet id of a class of ImageNet, as 'n01440764'",
            )

    def load(self) -> ClassSet:
        """The class set."""
        chosen = set(self.wnids)
        names = tuple(name for wnid, name in imagenet_classes() if not chosen or wnid in chosen)
        return ClassSet({"en": names}, imagenet_templates())


@CLASS_SETS.register("names")
@dataclasses.dataclass(frozen=True)
class NamedClasses:
    """Classes whose names stand in the config.

    Attributes:
      names: of class 0, of class 1, ….
      language: of the names.
      templates: texts with `{}` or `{c}` for the name; none: the evaluator's own.
    """

    names: tuple[str, ...]
    language: str = "en"
    templates: tuple[str, ...] = ()

    def __post_init__(self):
        check(len(self.names) > 0, "names", "must hold at least one class name")
        for i, template in enumerate(self.templates):
            held = PLACE in to_template(template)
            check(
                held,
                f"templates[{i}]",
                f"{template!r} must hold '{{}}' or '{{c}}', where the class name goes",
            )

    def load(self) -> ClassSet:
        """The class set."""
        return ClassSet({self.language: self.names}, tuple(to_template(t) for t in self.templates))


@CLASS_SETS.register("file")
@dataclasses.dataclass(frozen=True)
class ClassFile:
    """Classes whose names stand in a file.

    A text file holds one name a line. A JSON file holds a list of names, or lists by key: languages
    (`{"en": [...], "de": [...]}`), or data sets, as CLIP_benchmark's `en_classnames.json` does;
    then `key` chooses one.

    Attributes:
      path: of the file.
      key: of one of several lists in a JSON file, whose names are in `language`; None: the keys are
        languages.
      language: of the names, where the file does not say.
      templates: path of a text file with one template a line, `{c}` or `{}` for the name; or of a
        JSON file like the above.
    """

    path: PathText
    key: str | None = None
    language: str = "en"
    templates: PathText | None = None

    def load(self) -> ClassSet:
        """Raises ConfigError at its own fields where a file cannot be read or does not hold what it
        should."""
        names = self._names()
        return ClassSet(names, self._templates())

    def _names(self) -> dict[str, tuple[str | None, ...]]:
        path = to_path(self.path, "path")
        if path.suffix != ".json":
            return {self.language: _read("path", read_names, path)}
        content = _read("path", read_json, path)
        if isinstance(content, list):
            return {self.language: _texts("path", self.path, content)}
        check(
            isinstance(content, Mapping) and len(content) > 0,
            "path",
            f"{self.path!r} must hold a list of names, or lists by key",
        )
        if self.key is not None:
            return {self.language: _texts("path", self.path, _by_key(content, self.key))}
        names = {
            language: _texts("path", self.path, listed, blank=True)
            for language, listed in content.items()
        }
        lengths = {language: len(listed) for language, listed in names.items()}
        same = len(set(lengths.values())) == 1
        problem = (
            f"{self.path!r}: its lists have different lengths ({lengths}), so they are no "
            f"languages of one class set"
        )
        check(same, "path", f"{problem}; choose one by key")
        return names

    def _templates(self) -> tuple[str, ...]:
        if self.templates is None:
            return ()
        path = to_path(self.templates, "templates")
        if path.suffix != ".json":
            return _read("templates", read_templates, path)
        content = _read("templates", read_json, path)
        if isinstance(content, Mapping):
            content = _by_key(content, self.key or "")
        templates = tuple(to_template(t) for t in _texts("templates", self.templates, content))
        for template in templates:
            check(
                PLACE in template,
                "templates",
                f"{template!r} must hold '{{c}}' or '{{}}', where the class name goes",
            )
        return templates


def read_json(path: paths.Path) -> Json:
    """Content of a JSON file in UTF-8. Raises ValueError, OSError."""
    try:
        return json.loads(decode(paths.read_bytes(path)))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error})") from None


def _read(field: str, read: Callable[[paths.Path], T], path: paths.Path) -> T:
    """What `read` returns. Raises ConfigError at `field` where the file is not as it should be."""
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise ConfigError(field, str(error)) from None


def _by_key(content: Mapping[str, Any], key: str) -> Any:
    known = sorted(content)
    check(
        key in content,
        "key",
        f"{key!r} is not in the file{nearest(key, known)} (there are: {', '.join(known)})",
    )
    return content[key]


def _texts(field: str, file: str, listed: Any, blank: bool = False) -> tuple[str | None, ...]:
    """A list of texts; `blank`: null and empty ones are None, a class without a name."""
    ok = isinstance(listed, Sequence) and not isinstance(listed, str) and len(listed) > 0
    check(ok, field, f"{file!r} must hold lists of names, not {type(listed).__name__}")
    for i, text in enumerate(listed):
        fine = isinstance(text, str) and bool(text.strip()) or blank and text in (None, "")
        check(fine, field, f"{file!r}: name {i} is {text!r}; must be a text")
    return tuple(text or None for text in listed)
