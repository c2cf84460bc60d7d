"""What a row of a batch can show: a picture, the frames of a clip, or a sound.

Each class says which arrays it fills, reads its part of a record (once; the loader keeps what it gives), and writes a row.
A row's choices (where a picture is cut, which of a record's clips, where it starts) are functions of uniform numbers that the
loader draws by seed and position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image

from jaxvl.config import Range, check
from jaxvl.data import clips
from jaxvl.data.preprocess import Preprocess, crop_box, fit
from jaxvl.data.records import Record

Arrays = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], type]]  # name -> shape of a row, dtype


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Which frames of a clip a row gets; a clip that is too short holds its last frame.

    Attributes:
      frames: F.
      stride: every how many stored frames one is taken.
      random: start anywhere that leaves room for all frames; False: with the first.
    """

    frames: Annotated[int, Range(1, 65_536)] = 16
    stride: Annotated[int, Range(1, 65_536)] = 1
    random: bool = True

    def __post_init__(self):
        for name in ("frames", "stride"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")

    def choose(self, length: int, draw: float) -> np.ndarray:
        """Numbers of the frames, int [F], of a clip of `length` frames."""
        room = max(length - (self.frames - 1) * self.stride, 1)
        start = int(draw * room) if self.random else 0
        return np.minimum(start + self.stride * np.arange(self.frames), length - 1)


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Which clip of a record a row gets, 16 kHz mono.

    Attributes:
      kind: `speech`, `sound` … as the corpus has them.
      locales: languages; empty: any.
      seconds: N / 16,000; longer clips are cut, shorter ones followed by zeros.
      random: cut anywhere; False: keep the beginning.
      paired: the row's text is the record's name in the language of its clip; clips without one are left out.
    """

    kind: str = "speech"
    locales: tuple[str, ...] = ()
    seconds: Annotated[float, Range(0.0, 86_400.0, above=True)] = 8.192
    random: bool = True
    paired: bool = False

    def __post_init__(self):
        check(self.samples >= 1, "seconds", f"{self.seconds!r} must be at least one sample")

    @property
    def samples(self) -> int:
        """N."""
        return round(self.seconds * clips.RATE)

    @property
    def things(self) -> tuple[str, ...]:
        """What a record has to have one of, as `store.Corpus.split` names it."""
        return tuple(f"{self.kind}/{locale}" for locale in self.locales) or (self.kind,)


class Picture:
    """`image` uint8 [S, S, 4].

    Args:
      preprocess: S, and what of a picture is seen and how it is scaled.
      crop, ratio: see `DataConfig`; a random part takes the place of what `preprocess` would keep.
      fast: see `Preprocess.decode`.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        crop: tuple[float, float] = (1.0, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        *,
        fast: bool = False,
    ):
        self.preprocess, self.crop, self.ratio, self.fast = preprocess, crop, ratio, fast
        self.size = preprocess.image_size

    @property
    def shapes(self) -> Shapes:
        return {"image": ((self.size, self.size, 4), np.uint8)}

    def load(self, record: Record) -> np.ndarray | Image.Image:
        """The picture: scaled, or whole where a part is cut out of it for each row. Raises BadRecord."""
        if self.crop == (1.0, 1.0):
            return self.preprocess.decode(record["image"], fast=self.fast)
        return self.preprocess.open(record["image"])

    def fill(self, out: Arrays, row: int, value: np.ndarray | Image.Image, draws: Sequence[float]) -> None:
        if not isinstance(value, np.ndarray):
            box = crop_box(*value.size, self.crop, self.ratio, draws)
            value = fit(value, self.size, box, self.preprocess.interpolation, fast=self.fast)
        with_alpha(out["image"][row], value)


class Frames:
    """`video` uint8 [F, S, S, 4]; each frame is a picture. `fast`: see `Preprocess.decode`."""

    def __init__(self, preprocess: Preprocess, config: VideoConfig, *, fast: bool = False):
        self.preprocess, self.config, self.fast = preprocess, config, fast
        self.size = preprocess.image_size

    @property
    def shapes(self) -> Shapes:
        return {"video": ((self.config.frames, self.size, self.size, 4), np.uint8)}

    def load(self, record: Record) -> np.ndarray | None:
        """All stored frames, uint8 [n, S, S, 4], so that a broken one is met whatever is asked for. Raises BadRecord."""
        if not record.get("frames"):
            return None
        out = np.empty((len(record["frames"]), self.size, self.size, 4), np.uint8)
        for frame, data in zip(out, record["frames"]):
            with_alpha(frame, self.preprocess.decode(data, fast=self.fast))
        return out

    def fill(self, out: Arrays, row: int, value: np.ndarray, draws: Sequence[float]) -> None:
        out["video"][row] = value[self.config.choose(len(value), draws[0])]


class Clip(NamedTuple):
    """A sound of a record: int16 [n], and the record's name in its language where that is asked for."""

    samples: np.ndarray
    name: str | None


class Waveform:
    """`waveform` int16 [N], `waveform_length` int32 []: the samples before the padding."""

    def __init__(self, config: AudioConfig):
        self.config = config

    @property
    def shapes(self) -> Shapes:
        return {"waveform": ((self.config.samples,), np.int16), "waveform_length": ((), np.int32)}

    def load(self, record: Record) -> list[Clip] | None:
        """The clips that are asked for. Raises BadRecord."""
        found = record.get("audio", {}).get(self.config.kind, {})
        names = {k: record["captions"].get(k, [None])[0] for k in sorted(found)} if self.config.paired else dict.fromkeys(sorted(found))
        kept = [k for k in names if (not self.config.locales or k in self.config.locales) and (names[k] or not self.config.paired)]
        return [Clip(clips.decode_clip(found[k]), names[k]) for k in kept] or None

    def choose(self, value: list[Clip], draws: Sequence[float]) -> Clip:
        return value[int(draws[0] * len(value))]

    def fill(self, out: Arrays, row: int, value: list[Clip], draws: Sequence[float]) -> None:
        samples, n = self.choose(value, draws).samples, self.config.samples
        start = int(draws[1] * max(len(samples) - n + 1, 1)) if self.config.random else 0
        out["waveform"][row], out["waveform_length"][row] = clips.fit(samples, n, start)


def with_alpha(out: np.ndarray, pixels: np.ndarray) -> None:
    """Writes uint8 [S, S, 3 or 4] into [S, S, 4]; without transparency it is opaque."""
    out[..., : pixels.shape[-1]] = pixels
    if pixels.shape[-1] == 3:
        out[..., 3] = 255


def by_name(names: Sequence[str], image: Picture, video: VideoConfig, audio: AudioConfig) -> dict[str, Any]:
    """The classes of some modalities, but for `text`, which the loader tokenises."""
    made = {
        "image": lambda: image,
        "video": lambda: Frames(image.preprocess, video, fast=image.fast),
        "waveform": lambda: Waveform(audio),
    }
    return {name: made[name]() for name in names if name != "text"}
