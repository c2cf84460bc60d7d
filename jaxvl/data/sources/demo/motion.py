"""The motion corpus: animated emoji as short video clips, named in the emoji corpus's languages.

Clips come from the npm packages `@lobehub/fluent-emoji-anim-1` … `-4` (animated WebP, 256 x 256,
about 24 frames a second and three seconds long), of which a build keeps every `stride`-th frame at
`size` pixels. Names and keywords are CLDR's; a clip's label is its number in the emoji corpus, so
names of classes are the same there. A record's `image` is its middle frame.

Splits `train` and `test` are by CONCEPT: the concept groups that the emoji corpus's split B holds
out are `test`. The art is of the same family as its fluent styles, so a split by style would say
nothing; train on `train_b` there to keep `test` unseen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from rich.progress import track

from jaxvl.config import Range, check
from jaxvl.data.records import DataError
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.demo import drawing, emoji, npm
from jaxvl.data.sources.demo.recipe import Recipe
from jaxvl.data.sources.demo.store import Corpus, build_once, write_corpus

VERSION = 1  # of the content: raise it when frames, captions or splits change

CLIPS = {f"@lobehub/fluent-emoji-anim-{i}": "1.0.0" for i in (1, 2, 3, 4)}
NAMES = {
    name: emoji.PACKAGES[name]
    for name in ("cldr-annotations-full", "cldr-annotations-derived-full", "unicode-emoji-json")
}
PARTS = {"small": ("@lobehub/fluent-emoji-anim-3",), "full": tuple(CLIPS)}
QUALITY = 85  # of WebP

# What the pinned packages give; a build that differs is refused.
EXPECT = {
    "small": {"images": 223, "locales": 122, "train": 190, "test": 33, "unreadable": 0},
    "full": {"images": 734, "locales": 122, "train": 627, "test": 107, "unreadable": 0},
}


@SOURCES.register("motion")
@dataclasses.dataclass(frozen=True)
class Motion(Recipe):
    """See the module's text.

    Attributes:
      part: "small": 223 clips, 195 MB to fetch; "full": 734 clips, 730 MB.
      size: side in pixels at which frames are stored; loaders scale them to what a task asks for.
      stride: every how many frames one is kept.
      frames: at most this many are kept, from the first on.
    """

    part: Literal["small", "full"] = "small"
    size: int = 96
    stride: Annotated[int, Range(1, 1_024)] = 2
    frames: Annotated[int, Range(2, 4_096)] = 36

    def __post_init__(self):
        check(self.part in PARTS, "part", f"{self.part!r} must be one of {', '.join(PARTS)}")
        check(16 <= self.size <= 256, "size", f"{self.size!r} must be in 16 … 256 pixels")
        check(self.stride >= 1, "stride", f"{self.stride!r} must be >= 1")
        check(self.frames >= 2, "frames", f"{self.frames!r} must be >= 2")

    def prepare(self, log: Callable[[str], None] = print) -> Corpus:
        """The corpus, built if it is not in the cache.

        Raises:
          DataError: no network or no npm, with what to do; packages that do not hold what they
            should.
        """
        name = f"motion-v{VERSION}-{self.part}-{self.size}-{self.stride}-{self.frames}"
        return build_once(
            name, functools.partial(build, config=self, log=log), log, EXPECT[self.part]
        )


def build(folder: pathlib.Path, *, config: Motion, log: Callable[[str], None]) -> dict[str, int]:
    """Writes the corpus into `folder`; returns its counts."""
    with contextlib.ExitStack() as stack:
        packages = {name: CLIPS[name] for name in PARTS[config.part]}
        log(f"motion corpus: fetching {len(packages) + len(NAMES)} packages through npm")
        scratch = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxvl-npm-"))
        )
        modules = npm.fetch(packages | NAMES, scratch)
        groups = emoji.emoji_groups(modules)
        captions = emoji.find_captions(modules, set(groups))
        files = find_clips([modules / name for name in packages], set(groups))
        label = {key: i for i, key in enumerate(sorted(groups))}
        log(
            f"motion corpus: reading {len(files)} files, keeping frames at {config.size} x "
            f"{config.size}"
        )
        pool = stack.enter_context(drawing.workers())
        order = sorted(files)
        work = functools.partial(
            read_clip, size=config.size, stride=config.stride, most=config.frames
        )
        read = pool.map(work, [files[key] for key in order], chunksize=4)
        clips = {}
        for key, frames in track(zip(order, read), "reading", total=len(order), transient=True):
            if frames is None or len(frames) > 1:  # the packages hold still pictures as well
                clips[key] = frames
        kept = [key for key, frames in clips.items() if frames is not None]

    held = {
        key
        for key, group in groups.items()
        if group != "Flags" and emoji.held_out(captions[key]["en"][0])
    }
    test = np.array([key in held for key in kept], bool)
    splits = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    locales = sorted({locale for texts in captions.values() for locale in texts})
    classes = {
        locale: [captions[key].get(locale, [None])[0] for key in sorted(groups)]
        for locale in locales
    }
    records = (
        {
            "key": f"fluent-anim/{key}",
            "image": png(clips[key][len(clips[key]) // 2]),
            "label": label[key],
            "style": "fluent-anim",
            "captions": captions[key],
            "frames": clips[key],
        }
        for key in kept
    )
    labels = np.array([label[key] for key in kept], np.int32)
    present = {"frames": np.ones(len(kept), bool)}
    counts = write_corpus(folder, records, labels, splits, classes, ATTRIBUTION, present=present)
    return counts | {"unreadable": len(clips) - len(kept)}


def find_clips(packages: list[pathlib.Path], known: set[str]) -> dict[str, pathlib.Path]:
    """Emoji -> WebP file, of the known ones. Raises DataError for a package without any."""
    files: dict[str, pathlib.Path] = {}
    for package in packages:
        found = {emoji.code(p.stem): p for p in sorted((package / "assets").glob("*.webp"))}
        if not found.keys() & known:
            raise DataError(
                f"{package}: no WebP files of emoji; the package is not what was expected"
            )
        files |= {key: path for key, path in found.items() if key in known}
    return files


def read_clip(path: pathlib.Path, size: int, stride: int, most: int) -> list[bytes] | None:
    """Frames of an animated picture as WebP, RGBA, `size` x `size`; one for a still picture, None
    for a broken file."""
    try:
        with Image.open(path) as picture:
            count = getattr(picture, "n_frames", 1)
            frames = []
            for i in range(0, min(count, stride * most), stride):
                picture.seek(i)
                out = io.BytesIO()
                drawing.framed(picture, size).save(out, "WEBP", quality=QUALITY)
                frames.append(out.getvalue())
            return frames
    except Exception:  # noqa: BLE001 (Pillow raises many types for one broken file)
        return None


def png(frame: bytes) -> bytes:
    """A stored frame as PNG."""
    out = io.BytesIO()
    Image.open(io.BytesIO(frame)).save(out, "PNG")
    return out.getvalue()


ATTRIBUTION = f"""# Attribution

Fetched from the npm registry and converted; not part of jaxvl and not redistributed with it.

Animated emoji: Microsoft's Fluent Emoji, packaged by LobeHub as
{", ".join(f"{name} {v}" for name, v in CLIPS.items())}.
Licence as the packages state it: MIT.
Names and keywords: Unicode CLDR annotations {NAMES["cldr-annotations-full"]}, Unicode-3.0.
List and groups of emoji: unicode-emoji-json {NAMES["unicode-emoji-json"]}, MIT.
"""
