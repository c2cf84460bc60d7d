"""The emoji corpus: 1,914 things in up to nine drawing styles, named in 122 languages.

Pictures come from eight SVG icon sets and one WebP set, names and keywords from Unicode's CLDR
annotations. A picture's label is its emoji (code points without the presentation selector); its
captions are the emoji's short name and keywords in every locale that has at least 1,000 of the
names.

Splits. A asks for an unseen STYLE: `train_a` is all but OpenMoji, `test_a` the OpenMoji pictures of
the 1,594 emoji that noto, twemoji, fluent-flat and openmoji all have. B asks for unseen CONCEPTS as
well: a share of the concept groups is held out (a group is all emoji whose English names agree but
for man, woman, person, people and ": facing right", so that no "woman farmer" is left in training
for "man farmer"; flags are never held out): `train_b` is `train_a` without them; of `test_a`,
`test_b_new` has the held-out and `test_b_seen` the other concepts; `test_b_train_styles` has the
held-out concepts in the training styles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from rich.progress import track

from jaxvl.config import check
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo import drawing, npm
from jaxvl.data.sources.demo.recipe import Recipe
from jaxvl.data.sources.demo.store import Corpus, build_once, write_corpus

VERSION = 3  # of the content: raise it when pictures, captions, splits or attributes change

PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/emojione-v1": "1.2.3",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "cldr-annotations-full": "48.2.0",
    "cldr-annotations-derived-full": "48.2.0",
    "unicode-emoji-json": "0.9.0",
}

# Style -> (package, artist, licence as the package states it).
STYLES = {
    "noto": ("@iconify-json/noto", "Google", "Apache-2.0"),
    "noto-v1": ("@iconify-json/noto-v1", "Google", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji", "Twitter", "CC-BY-4.0"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "Microsoft", "MIT"),
    "fluent": ("@iconify-json/fluent-emoji", "Microsoft", "MIT"),
    "fluent-3d": ("@lobehub/fluent-emoji-3d", "Microsoft, packaged by LobeHub", "MIT"),
    "emojione": ("@iconify-json/emojione", "EmojiOne", "CC-BY-4.0"),
    "emojione-v1": ("@iconify-json/emojione-v1", "EmojiOne", "CC-BY-SA-4.0"),
    "openmoji": ("@iconify-json/openmoji", "OpenMoji", "CC-BY-SA-4.0"),
}
UNSEEN = "openmoji"
CODED = (
    "noto",
    "twemoji",
    "fluent-flat",
    "openmoji",
)  # sets that list the code points of their icons
# Icons whose name is no emoji's name in any set's list of code points.
ODD_NAMES = {f"keycap-{i}": f"3{i}-20e3" for i in range(10)} | {
    "keycap-asterisk": "2a-20e3",
    "keycap-pound": "23-20e3",
    "keycap-hashtag": "23-20e3",
    "keycap-hash": "23-20e3",
    "copyright": "a9",
    "registered": "ae",
}
MIN_NAMES = 1000  # a locale with fewer short names is left out
HELD_OUT = 15  # percent of the concept groups

# What the pinned packages give; a build that differs is refused.
EXPECT = {
    "images": 13738,
    "concepts": 1914,
    "locales": 122,
    "train_a": 11824,
    "test_a": 1594,
    "train_b": 10068,
    "test_b_new": 248,
    "test_b_seen": 1346,
    "test_b_train_styles": 1756,
}

Pictures = dict[tuple[str, str], str]  # (style, emoji) -> SVG text, or path of a WebP file


@SOURCES.register("emoji")
@dataclasses.dataclass(frozen=True)
class Emoji(Recipe):
    """See the module's text.

    Attributes:
      size: side in pixels at which the pictures are stored; loaders scale them to what a task asks
        for.
    """

    size: int = 96

    def __post_init__(self):
        check(16 <= self.size <= 512, "size", f"{self.size!r} must be in 16 … 512 pixels")

    def prepare(self, log: Callable[[str], None] = print) -> Corpus:
        """The corpus, built if it is not in the cache (about two minutes, 60 MB to fetch).

        Raises:
          DataError: no network or no npm, with what to do; packages that do not hold what they
            should.
        """
        return build_once(
            f"emoji-v{VERSION}-{self.size}",
            functools.partial(build, size=self.size, log=log),
            log,
            EXPECT,
        )


def build(
    folder: pathlib.Path,
    *,
    size: int,
    log: Callable[[str], None],
    modules: pathlib.Path | None = None,
) -> dict[str, int]:
    """Writes the corpus into `folder` from the packages in `modules` (fetched if None); returns its
    counts."""
    with contextlib.ExitStack() as stack:
        if modules is None:
            log(f"emoji corpus: fetching {len(PACKAGES)} packages through npm")
            scratch = pathlib.Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxvl-npm-"))
            )
            modules = npm.fetch(PACKAGES, scratch)
        groups = emoji_groups(modules)
        pictures = find_pictures(modules, set(groups))
        captions = find_captions(modules, set(groups))
        order = sorted(pictures)
        emoji = sorted(groups)
        label = {key: i for i, key in enumerate(emoji)}
        log(f"emoji corpus: drawing {len(order)} pictures at {size} x {size}")
        pool = stack.enter_context(drawing.workers())
        drawn = pool.map(
            functools.partial(drawing.draw, size=size), [pictures[k] for k in order], chunksize=64
        )

        def records() -> Iterator[dict[str, Any]]:
            for (style, key), image in track(
                zip(order, drawn), "drawing", total=len(order), transient=True
            ):
                yield {
                    "key": f"{style}/{key}",
                    "image": image,
                    "label": label[key],
                    "style": style,
                    "captions": captions[key],
                }

        labels = np.array([label[key] for _, key in order], np.int32)
        splits = make_splits(order, {key: captions[key]["en"][0] for key in emoji}, groups)
        locales = sorted({locale for texts in captions.values() for locale in texts})
        classes = {
            locale: [captions[key].get(locale, [None])[0] for key in emoji] for locale in locales
        }
        return write_corpus(
            folder,
            records(),
            labels,
            splits,
            classes,
            attribution(order),
            {"group": [groups[key] for key in emoji]},
        )


def code(text: str) -> str:
    """Code points as `1f469-200d-1f33e`, from the characters or from such a name; without the
    presentation selector."""
    points = (
        text.lower().split("-")
        if re.fullmatch(r"[0-9a-fA-F]+(-[0-9a-fA-F]+)*", text) and len(text) > 1
        else [f"{ord(c):x}" for c in text]
    )
    return "-".join(p for p in points if p != "fe0f")


def emoji_groups(modules: pathlib.Path) -> dict[str, str]:
    """Emoji -> Unicode's group ("Flags", "Animals & Nature", …) of all base emoji."""
    data = _json(modules / "unicode-emoji-json" / "data-by-emoji.json")
    return {code(characters): about["group"] for characters, about in data.items()}


def find_pictures(modules: pathlib.Path, known: set[str]) -> Pictures:
    """Every known emoji in every style that has it.

    Sets without code points are matched by name. Their aliases are too loose for that in one way:
    some point at the picture of another emoji (the insect "cricket" at the bat and ball, a right
    hand at the mirrored left one). Such an alias is left out.
    """
    sets = {
        style: _json(modules / package / "icons.json")
        for style, (package, *_) in STYLES.items()
        if package.startswith("@iconify")
    }
    coded = {
        s: {code(k): name for k, name in _json(modules / STYLES[s][0] / "chars.json").items()}
        for s in CODED
    }
    by_name = {
        name: key for chars in coded.values() for key, name in chars.items() if key in known
    } | ODD_NAMES
    pictures: Pictures = {}
    for style, icons in sets.items():
        names = {key: name for key, name in coded.get(style, {}).items() if key in known}
        aliases = icons.get("aliases", {})
        mapping = ODD_NAMES if style in CODED else by_name
        for name in [*icons["icons"], *aliases]:
            drawn = aliases.get(name, {}).get("parent", name)
            if name in mapping and by_name.get(drawn, mapping[name]) == mapping[name]:
                names.setdefault(mapping[name], name)
        for key, name in names.items():
            icon = icons["icons"].get(name) or icons["icons"].get(
                aliases.get(name, {}).get("parent", "")
            )
            if icon is not None and key in known:
                pictures[style, key] = _svg(icon, icons)
    for file in sorted((modules / STYLES["fluent-3d"][0] / "assets").glob("*.webp")):
        if code(file.stem) in known:
            pictures["fluent-3d", code(file.stem)] = str(file)
    return pictures


def _svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> str:
    left, top, width, height = (
        icon.get(k, icons.get(k, d))
        for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" '
        f'height="{height}">{icon["body"]}</svg>'
    )


def find_captions(modules: pathlib.Path, known: set[str]) -> dict[str, dict[str, list]]:
    """Emoji -> locale -> [short name, [keywords]], in the locales with at least `MIN_NAMES` names.

    Raises DataError where an emoji has no English name.
    """
    parts = (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    )
    found: dict[str, dict[str, list]] = {}
    for package, part in parts:
        for file in sorted((modules / package / part).glob("*/annotations.json")):
            for characters, about in _json(file)[part].get("annotations", {}).items():
                key = code(characters)
                if key in known and about.get("tts"):
                    found.setdefault(file.parent.name, {})[key] = [
                        about["tts"][0],
                        [w for w in about.get("default", []) if w != about["tts"][0]],
                    ]
    missing = sorted(known - found.get("en", {}).keys())
    if missing:
        raise DataError(f"{len(missing)} emoji have no English name in CLDR, such as {missing[0]}")
    kept = sorted(locale for locale, names in found.items() if len(names) >= MIN_NAMES)
    return {
        key: {locale: found[locale][key] for locale in kept if key in found[locale]}
        for key in known
    }


def make_splits(
    order: list[tuple[str, str]], english: Mapping[str, str], groups: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Split -> numbers of its records; `order` is (style, emoji) of every record."""
    of_style = {style: {key for s, key in order if s == style} for style in STYLES}
    common = set.intersection(*(of_style[s] for s in CODED))
    held = {key for key, name in english.items() if groups[key] != "Flags" and held_out(name)}
    masks = {
        "train_a": [s != UNSEEN for s, _ in order],
        "test_a": [s == UNSEEN and k in common for s, k in order],
        "train_b": [s != UNSEEN and k not in held for s, k in order],
        "test_b_new": [s == UNSEEN and k in common and k in held for s, k in order],
        "test_b_seen": [s == UNSEEN and k in common and k not in held for s, k in order],
        "test_b_train_styles": [s != UNSEEN and k in held for s, k in order],
    }
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def concept_group(name: str) -> str:
    """The part of an English name that emoji of one group share."""
    words = name.replace(": facing right", "").split()
    return " ".join(w for w in words if w not in ("man", "woman", "person", "people"))


def held_out(name: str) -> bool:
    """Whether split B holds out the concept group of an English name: by its SHA-1, so that nobody
    chose."""
    return int(hashlib.sha1(concept_group(name).encode()).hexdigest(), 16) % 100 < HELD_OUT


def attribution(order: list[tuple[str, str]]) -> str:
    """Whose pictures and words they are, for the file beside the data."""
    lines = [
        "# Attribution",
        "",
        (
            "Fetched from the npm registry and rasterised; not part of jaxvl and not "
            "redistributed with it."
        ),
        "",
    ]
    lines += [
        "| style | pictures | artist | package | version | licence |",
        "|---|---|---|---|---|---|",
    ]
    for style, (package, artist, licence) in STYLES.items():
        lines.append(
            f"| {style} | {sum(s == style for s, _ in order)} | {artist} | {package} | "
            f"{PACKAGES[package]} | {licence} |"
        )
    lines += [
        "",
        (
            f"Names and keywords: Unicode CLDR annotations {PACKAGES['cldr-annotations-full']}, "
            f"Unicode-3.0."
        ),
    ]
    lines += [
        f"List and groups of emoji: unicode-emoji-json {PACKAGES['unicode-emoji-json']}, MIT.",
        "",
    ]
    return "\n".join(lines)


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; the package is not what was expected"
        ) from None
