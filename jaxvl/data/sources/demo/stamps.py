"""The stamps corpus: Tux Paint's 950 stamps, captioned and spoken in many languages.

Pictures (drawings and cut-out photos), sentences ("A duck.") and clips come from the Debian package
`tuxpaint-stamps-default`. A picture's label is its English caption: equal captions are the same
thing. A caption's locale is written as CLDR does, like the emoji corpus's (`pt` is Brazil's,
`pt-PT` Portugal's, `zh` is simplified). Clips are of three kinds: `speech` (descriptions read
aloud: fr, ro, ru, bg, ca, es, be and el have many), `sound` (what the thing sounds like; locale
`zxx`, no language) and `symbol` (letters and digits read aloud, `und` where the package does not
say in which language).

Splits `train`, `val` and `test` keep a group together: stamps that share the English caption, the
file's name but for a number at its end, or a clip. About 150 captions name something that is an
emoji as well ("A frog."): a model trained on one corpus has met many words of the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.progress import track

from jaxvl.config import check
from jaxvl.data import clips
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo import debian, drawing
from jaxvl.data.sources.demo.recipe import Recipe
from jaxvl.data.sources.demo.store import Corpus, build_once, write_corpus
from jaxvl.data.text_files import read_lines

VERSION = 1  # of the content: raise it when pictures, captions, clips or splits change

PACKAGE = "tuxpaint-stamps-default"
PACKAGE_VERSION = "2022.06.04-1"
PATH = f"pool/main/t/tuxpaint-stamps/{PACKAGE}_{PACKAGE_VERSION}_all.deb"
SHA256 = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
STAMPS = "usr/share/tuxpaint/stamps"  # below the package's root

# The package's locale -> CLDR's, where more than the separator differs.
LOCALES = {
    "pt": "pt-PT",
    "pt_BR": "pt",
    "zh_CN": "zh",
    "zh_TW": "zh-Hant",
    "zh_tw": "zh-Hant",
    "nb": "no",
    "sr@latin": "sr-Latn",
    "ca@valencia": "ca-valencia",
}
KINDS = ("speech", "sound", "symbol")
SPOKEN = ("symbols/alphabets/", "symbols/math/")  # stamps whose sound is their name
# percent of the groups
TEST = 15
VAL = 5

# What the pinned package gives; a build that differs is refused.
EXPECT = {
    "images": 950,
    "concepts": 774,
    "locales": 78,
    "captions": 62340,
    "groups": 733,
    "train": 764,
    "val": 47,
    "test": 139,
}
EXPECT_AUDIO = {
    "clips/speech": 7391,
    "clips/sound": 110,
    "clips/symbol": 328,
    "clips_unreadable": 0,
}


class Clip(NamedTuple):
    """A sound file of a stamp."""

    kind: str
    locale: str
    path: pathlib.Path


@dataclasses.dataclass
class Stamp:
    """What the package has of one stamp; `pictures` in order of preference, `captions` by locale,
    "en" first."""

    pictures: list[pathlib.Path]
    captions: dict[str, str]
    clips: list[Clip] = dataclasses.field(default_factory=list)


@SOURCES.register("stamps")
@dataclasses.dataclass(frozen=True)
class Stamps(Recipe):
    """See the module's text.

    Attributes:
      size: side in pixels at which the pictures are stored; loaders scale them to what a task asks
        for.
      audio: whether clips are stored as well (needs jaxvl[audio]); without them a build takes
        seconds.
      package: the `.deb` file, its URL, or a Debian mirror's URL; empty: apt-get, or
        deb.debian.org.
    """

    size: int = 96
    audio: bool = True
    package: str = ""

    def __post_init__(self):
        check(16 <= self.size <= 512, "size", f"{self.size!r} must be in 16 … 512 pixels")

    def prepare(self, log: Callable[[str], None] = print) -> Corpus:
        """The corpus, built if it is not in the cache (161 MB to fetch).

        Raises:
          DataError: the package cannot be fetched, or is not what it should be; libraries for clips
            are missing.
        """
        if self.audio:
            clips.require()
        name = f"stamps-v{VERSION}-{self.size}{'' if self.audio else '-mute'}"
        expect = EXPECT | (EXPECT_AUDIO if self.audio else {})
        return build_once(name, functools.partial(build, config=self, log=log), log, expect)


def build(folder: pathlib.Path, *, config: Stamps, log: Callable[[str], None]) -> dict[str, int]:
    """Writes the corpus into `folder`; returns its counts."""
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxvl-deb-"))
        )
        log(f"stamps corpus: fetching {PACKAGE} {PACKAGE_VERSION}")
        debian.unpack(
            debian.fetch(PACKAGE, PACKAGE_VERSION, PATH, SHA256, scratch / "deb", config.package),
            scratch / "files",
        )
        stamps = find_stamps(scratch / "files" / STAMPS)
        keys = sorted(stamps)
        groups = find_groups(stamps)
        english = sorted({same(stamp.captions["en"]) for stamp in stamps.values()})
        labels = [english.index(same(stamps[key].captions["en"])) for key in keys]
        wanted = [clip for key in keys for clip in stamps[key].clips] if config.audio else []
        log(
            f"stamps corpus: {len(keys)} pictures at {config.size} x {config.size}, "
            f"{len(wanted)} clips"
        )
        pool = stack.enter_context(drawing.workers())
        drawn = pool.map(
            functools.partial(draw_first, size=config.size),
            [stamps[k].pictures for k in keys],
            chunksize=16,
        )
        sounds = pool.map(encode, [clip.path for clip in wanted], chunksize=64)
        have: dict[str, np.ndarray] = {}
        counts = {f"clips/{kind}": 0 for kind in KINDS} | {"clips_unreadable": 0}

        def audio(number: int) -> dict[str, dict[str, bytes]]:
            found: dict[str, dict[str, bytes]] = {}
            for clip in stamps[keys[number]].clips if config.audio else ():
                data = next(sounds)
                if data is None:
                    counts["clips_unreadable"] += 1
                    continue
                counts[f"clips/{clip.kind}"] += 1
                found.setdefault(clip.kind, {})[clip.locale] = data
                for thing in (clip.kind, f"{clip.kind}/{clip.locale}"):
                    have.setdefault(thing, np.zeros(len(keys), bool))[number] = True
            return found

        def records() -> Iterator[dict[str, Any]]:
            for i, (key, image) in enumerate(
                track(zip(keys, drawn), "drawing", total=len(keys), transient=True)
            ):
                captions = {locale: [text, []] for locale, text in stamps[key].captions.items()}
                style = key.rsplit("/", 1)[0]
                yield {
                    "key": key,
                    "image": image,
                    "label": labels[i],
                    "style": style,
                    "captions": captions,
                    "audio": audio(i),
                }

        written = write_corpus(
            folder,
            records(),
            np.array(labels, np.int32),
            make_splits(keys, groups),
            class_names(stamps, keys, labels),
            ATTRIBUTION,
            present=have,
        )
    captions = sum(len(stamp.captions) for stamp in stamps.values())
    return (
        written
        | {"captions": captions, "groups": len(set(groups.values()))}
        | (counts if config.audio else {})
    )


def find_stamps(root: pathlib.Path) -> dict[str, Stamp]:
    """Key ("animals/birds/duck") -> stamp, of every picture that has an English caption.

    Raises DataError where there are none.
    """
    files = sorted(p for p in root.rglob("*") if p.is_file())
    stamps: dict[str, Stamp] = {}
    for path in (p for p in files if p.suffix == ".txt"):
        pictures = [p for p in (path.with_suffix(".svg"), path.with_suffix(".png")) if p.is_file()]
        captions = read_captions(path)
        if pictures and "en" in captions:
            stamps[path.relative_to(root).with_suffix("").as_posix()] = Stamp(pictures, captions)
    if not stamps:
        raise DataError(f"{root}: no stamps; the package is not what was expected")
    for path in (p for p in files if p.suffix in (".ogg", ".wav")):
        add_clip(stamps, path.relative_to(root).as_posix(), path)
    return stamps


def read_captions(path: pathlib.Path) -> dict[str, str]:
    """Locale -> caption: English in the first line, then lines `pt_BR.utf8=…`; empty ones are left
    out."""
    first, *others = read_lines(path.read_bytes(), errors="replace") or [""]
    captions = {"en": first.strip()}
    for line in others:
        found = re.fullmatch(r"([A-Za-z]+(?:_[A-Za-z]+)?(?:@[a-z]+)?)\.utf8=(.*)", line)
        if found:
            captions.setdefault(locale(found[1]), found[2].strip())
    return {k: text for k, text in captions.items() if text}


def locale(name: str) -> str:
    """CLDR's name of one of the package's locales (`en_GB` -> `en-GB`)."""
    return LOCALES.get(name, name.replace("_", "-"))


def add_clip(stamps: Mapping[str, Stamp], name: str, path: pathlib.Path) -> None:
    """Gives a sound file to its stamp: `duck_desc_fr.ogg` is French speech, `duck.ogg` a sound,
    `7_de.ogg` a symbol's name."""
    stem = name.split(".", 1)[0]
    described = re.fullmatch(r"(.+?)_desc(?:_([A-Za-z]{2,3}(?:_[A-Za-z]{2})?))?", stem)
    named = re.fullmatch(r"(.+)_([a-z]{2,3}(?:_[A-Za-z]{2})?)", stem)
    if described and described[1] in stamps:
        clip = described[1], "speech", locale(described[2] or "en")
    elif stem in stamps:
        spoken = stem.startswith(SPOKEN)
        clip = stem, "symbol" if spoken else "sound", "und" if spoken else "zxx"
    elif named and _longest(stem, stamps):
        key = _longest(stem, stamps)
        clip = key, "symbol", locale(stem[len(key) + 1 :])
    else:
        return
    key, kind, where = clip
    if all((c.kind, c.locale) != (kind, where) for c in stamps[key].clips):
        stamps[key].clips.append(Clip(kind, where, path))


def _longest(stem: str, stamps: Mapping[str, Stamp]) -> str | None:
    """The stamp of a file `KEY_LOCALE`: the locale has one part or two."""
    parts = stem.rsplit("_", 2)
    return next((k for k in ("_".join(parts[:-1]), parts[0]) if k in stamps), None)


def same(caption: str) -> str:
    """What captions of the same thing share."""
    return caption.lower().strip(" .")


def find_groups(stamps: Mapping[str, Stamp]) -> dict[str, str]:
    """Key -> its group, named by the first of its keys."""
    parent = {key: key for key in stamps}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    seen: dict[tuple[str, str], str] = {}
    for key in sorted(stamps):
        digests = {hashlib.md5(clip.path.read_bytes()).hexdigest() for clip in stamps[key].clips}
        shared = [
            ("caption", same(stamps[key].captions["en"])),
            ("file", re.sub(r"\d+$", "", key)),
            *(("clip", d) for d in digests),
        ]
        for thing in shared:
            a = root(seen.setdefault(thing, key))
            b = root(key)
            parent[max(a, b)] = min(a, b)
    return {key: root(key) for key in stamps}


def make_splits(keys: Sequence[str], groups: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Split -> numbers of its records: by the SHA-1 of the group's name, so that nobody chose."""
    places = np.array(
        [int(hashlib.sha1(groups[key].encode()).hexdigest(), 16) % 100 for key in keys]
    )
    masks = {
        "train": places >= TEST + VAL,
        "val": (places >= TEST) & (places < TEST + VAL),
        "test": places < TEST,
    }
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def class_names(
    stamps: Mapping[str, Stamp], keys: Sequence[str], labels: Sequence[int]
) -> dict[str, list[str | None]]:
    """Locale -> caption of every label: that of the first stamp that has it."""
    names: dict[str, list[str | None]] = {
        where: [None] * (max(labels) + 1)
        for where in sorted({k for s in stamps.values() for k in s.captions})
    }
    for key, label in zip(keys, labels):
        for where, text in stamps[key].captions.items():
            names[where][label] = names[where][label] or text
    return names


def draw_first(pictures: Iterable[pathlib.Path], size: int) -> bytes:
    """The first of a stamp's pictures that can be drawn and is not empty (an SVG of text, without
    its font, is).

    Raises DataError where there is none.
    """
    problems = []
    for path in pictures:
        try:
            data = drawing.draw(
                path.read_text(encoding="utf-8").lstrip("\ufeff \n")
                if path.suffix == ".svg"
                else str(path),
                size,
            )
        except Exception as error:  # resvg and Pillow raise many types
            problems.append(f"{path.name}: {type(error).__name__}: {error}")
            continue
        if Image.open(io.BytesIO(data)).getchannel("A").getextrema()[1]:
            return data
        problems.append(f"{path.name}: nothing is drawn")
    raise DataError(f"a stamp has no picture that can be drawn ({'; '.join(problems)})")


def encode(path: pathlib.Path) -> bytes | None:
    """A clip as it is stored; None where the file cannot be read."""
    try:
        return clips.encode_clip(path)
    except BadRecord:
        return None


ATTRIBUTION = f"""# Attribution

Fetched from Debian and converted; not part of jaxvl and not redistributed with it.

Tux Paint stamps (pictures, texts, recordings): Debian package {PACKAGE} {PACKAGE_VERSION},
copyright 2002-2022 Bill Kendrick and the contributors that the package's own documentation names.
Licence as the package states it: GPL-2.
"""
