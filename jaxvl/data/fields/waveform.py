"""A sound, and the text that is spoken in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import Count, Range, Tokens, check
from jaxvl.data import clips
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Context, Field, RowShape, match
from jaxvl.data.fields.caption import TextEncoder
from jaxvl.data.sources.base import Record, Source

TEXT = "text"  # batch entry of a clip's own text


@FIELDS.register("waveform")
@dataclasses.dataclass(frozen=True)
class Waveform(Field):
    """Fills NAME int16 [B, W], 16 kHz mono, and NAME_length int32 [B]: samples before the padding.
    A row draws one of its clips. In K parts: int16 [B, K, W / K] and int32 [B, K], of which parts
    that are padding alone have none.

    Attributes:
      columns: of encoded sounds: a name, or a pattern such as `speech/*`.
      languages: of a pattern, the last parts of the names that are taken (`fr`); empty: all.
      seconds: W / 16,000; longer clips are cut, shorter ones followed by zeros.
      random: cut anywhere; False: keep the beginning.
      parts: K equal ones that a long recording is cut into; a model reads a row of several sounds.
      text: pattern of text columns, such as `name/*`: the row's `text` int32 [B, T] is then the
        text in the language of its clip, and clips without one are left out. None: no text.
      text_length: tokens T of it.
    """

    columns: str = "audio"
    languages: tuple[str, ...] = ()
    seconds: Annotated[float, Range(0.0, 86_400.0, above=True)] = 8.192
    random: bool = True
    parts: Count = 1
    text: str | None = None
    text_length: Tokens = 64

    draws: ClassVar[int] = 2

    def __post_init__(self):
        check(self.samples >= 1, "seconds", f"{self.seconds!r} must be at least one sample")
        divides = self.parts >= 1 and self.samples % self.parts == 0
        problem = f"{self.parts!r} must divide the {self.samples} samples of {self.seconds!r} s"
        check(divides, "parts", problem)
        patterns = self.columns.endswith("*") and (self.text is None or self.text.endswith("*"))
        problem = (
            f"{self.languages!r}: columns are {self.columns!r}, which must end in '*' (and text "
            f"as well)"
        )
        check(not self.languages or patterns, "languages", problem)
        check(
            self.text is None or patterns,
            "text",
            f"{self.text!r} must end in '*', and so must columns ({self.columns!r})",
        )
        check(self.text_length >= 3, "text_length", f"{self.text_length!r} must be >= 3 tokens")

    @property
    def samples(self) -> int:
        """W."""
        return round(self.seconds * clips.RATE)

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        several = () if self.parts == 1 else (self.parts,)
        shapes = {
            name: RowShape((*several, self.samples // self.parts), np.int16),
            f"{name}_length": RowShape(several, np.int32),
        }
        if self.text is not None:
            shapes[TEXT] = RowShape((self.text_length,), np.int32)
        return shapes

    def inputs(self, name: str) -> dict[str, str]:
        """See `Field`."""
        return {name: "waveform"} | ({} if self.text is None else {TEXT: "text"})

    def needs(self, source: Source) -> list[tuple[str, ...]]:
        """See `Field`."""
        return [tuple(self.sounds(source))]

    def sounds(self, source: Source) -> dict[str, str | None]:
        """Column of sounds -> column of their texts, of those that are asked for. Raises
        ConfigError."""
        found: dict[str, str | None] = {}
        for column in match(source, self.columns, ("audio",), "columns"):
            language = column.removeprefix(self.columns.rstrip("*"))
            if self.languages and language not in self.languages:
                continue
            text = None if self.text is None else self.text.removesuffix("*") + language
            if text is None or text in source.columns:
                found[column] = text
        known = ", ".join(name for name, column in source.columns.items() if column.kind == "audio")
        check(
            bool(found),
            "languages",
            f"{self.languages!r}: {source.name} has no such sounds (it has: {known})",
        )
        return found

    def reader(self, name: str, source: Source, context: Context) -> WaveformReader:
        """See `Field`."""
        return WaveformReader(
            name,
            self,
            self.sounds(source),
            TextEncoder(context.tokenizer, self.text_length, context.cache),
        )


class Clip(NamedTuple):
    """A sound of a record: int16 [n], and its text where that is asked for."""

    samples: np.ndarray
    text: str | None


class WaveformReader:
    """The host half of `Waveform`; see `base.Reader`."""

    def __init__(
        self, name: str, config: Waveform, sounds: dict[str, str | None], encode: TextEncoder
    ):
        self._name = name
        self._config = config
        self._sounds = sounds
        self._encode = encode
        texts = [text for text in sounds.values() if text is not None]
        self.columns = (*sounds, *texts)
        self.key = ("waveform", tuple(sounds.items()))

    def load(self, record: Record) -> list[Clip] | None:
        """The clips that are asked for. Raises BadRecord."""
        found = []
        for column, text_column in self._sounds.items():
            data = record.get(column)
            text = None if text_column is None else record.get(text_column)
            if data is None or (text_column is not None and not text):
                continue
            found.append(Clip(clips.decode_clip(data), text))
        return found or None

    def write(self, out: HostArrays, row: int, value: list[Clip], draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        clip = value[int(draws[0] * len(value))]
        wanted = self._config.samples
        room = max(len(clip.samples) - wanted + 1, 1)
        start = int(draws[1] * room) if self._config.random else 0
        samples, count = clips.fit(clip.samples, wanted, start)
        part = wanted // self._config.parts
        out[self._name][row] = samples.reshape(out[self._name].shape[1:])
        first = part * np.arange(self._config.parts).reshape(out[f"{self._name}_length"].shape[1:])
        out[f"{self._name}_length"][row] = np.clip(count - first, 0, part)
        if clip.text is not None:
            out[TEXT][row] = self._encode(clip.text)
