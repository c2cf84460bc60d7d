"""From records to batches; `feed.py` puts them on the mesh.

A task reads a stream of records. Which record stands at a position of it (a new permutation every epoch), which caption it shows and where
its picture is cut are pure functions of (seed, position). So the position of a run is one integer, the number of records that it has
consumed. It means the same with any batch size and on any number of hosts: each reads its own rows of the global batch. Host work
(reading, decoding, tokenising) runs in threads ahead of the step; augmentation is the devices' (`augment.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from jaxvl.config import Batch, Pixels, Range, Steps, Threads, Tokens, check, nearest
from jaxvl.data import budget
from jaxvl.data.augment import Augment
from jaxvl.data.cache import Cache
from jaxvl.data.captions import DRAWS, CaptionConfig, Texts
from jaxvl.data.corpora import CORPORA
from jaxvl.data.draws import Uniforms, epochs
from jaxvl.data.modalities import AudioConfig, Picture, VideoConfig, by_name
from jaxvl.data.packing import LEAST, pack
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import BadRecord, DataError, Record, causes
from jaxvl.data.tokenizers import Tokenizer

Ratio = Annotated[float, Range(0.01, 100.0)]  # width / height of a part of a picture
REPLACEMENTS = 100  # bad records in a row for one row of a batch
MODALITIES = ("image", "text", "video", "waveform")
DRAWN = {"image": 4, "text": DRAWS, "video": 1, "waveform": 2}  # uniform numbers that one row of a modality may use


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data of one task.

    Attributes:
      corpus: by name, with its options.
      split: which of its splits.
      batch: rows B of the global batch.
      image_size: side S in pixels, of pictures and frames.
      text_length: tokens T of one text.
      images_per_row: images K of a row; more than one makes interleaved rows of consecutive records (`packing.py`), for models that
        read them (cosmo). `batch` counts rows.
      row_length: tokens R of such a row; None: K T, so that no text is cut.
      captions: which caption a row gets.
      texts_per_row: texts N of a row, drawn each on its own (two may be equal); more than one are for models that read them (imp), and make
        `text` [B, N, T].
      attribute: of the corpus, for class heads: the batch's `label` is a record's value of it.
      modalities: what a batch shows: image, text, video (frames of clips), waveform.
      missing: records that lack one of these: "skip" leaves them out of the split; "mask" keeps those that have any, with
        `has_KEY` in the batch for every modality, and zeros where a row does not have it.
      video: which frames. audio: which clip.
      augment: what is done to training pictures, on the devices.
      crop: smallest and largest share of a picture's area that is kept, a random part of it, cut on the host before
        scaling (0.08, 1.0 for photos as in SimCLR); (1, 1): none is cut, and training sees what evaluation sees, as
        `preprocess` has it.
      crop_ratio: smallest and largest width / height of such a part.
      fast_decode: decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is still large enough, and scale in two steps:
        large photos cost a fraction of the time, and their pixels differ by 1 to 3 of 255 on average from evaluation's,
        which never does so. False: exactly evaluation's pixels.
      shuffle: a new permutation every epoch; False: the order of the file.
      threads: for reading and decoding.
      prefetch: batches made ahead.
      cache_mb: memory for what is read, decoded and tokenised, so that a small corpus is read once; with `crop` pictures are kept whole.
        0: nothing is kept. What is kept of a larger corpus: see `cache.py`.
      error_budget: share of bad records, of all hosts together, that a run goes on with; it ends when their share is surely above it
        (`budget.py`).
      error_minimum: bad records that there must be before the run ends.
    """

    corpus: Annotated[Any, CORPORA]
    split: str
    batch: Batch
    image_size: Pixels = 224
    text_length: Tokens = 64
    images_per_row: Annotated[int, Range(1, 1_024)] = 1
    row_length: Tokens | None = None
    texts_per_row: Annotated[int, Range(1, 1_024)] = 1
    captions: CaptionConfig = CaptionConfig()
    attribute: str | None = None
    modalities: tuple[str, ...] = ("image", "text")
    missing: Literal["skip", "mask"] = "skip"
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    augment: Augment = Augment()
    crop: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (3 / 4, 4 / 3)
    fast_decode: bool = True
    shuffle: bool = True
    threads: Threads = 4
    prefetch: Annotated[int, Range(1, 65_536)] = 4
    cache_mb: Annotated[int, Range(0, 16_777_216)] = 1024
    error_budget: float = 0.01
    error_minimum: Steps = 10

    def __post_init__(self):
        for name in ("batch", "image_size", "images_per_row", "texts_per_row", "threads", "prefetch", "error_minimum"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")
        for name in self.modalities:
            check(name in MODALITIES, "modalities", f"{name!r} is none{nearest(name, MODALITIES)} (known: {', '.join(MODALITIES)})")
        check(0 < len(set(self.modalities)) == len(self.modalities), "modalities", f"{self.modalities!r} must name each one once")
        check(self.missing in ("skip", "mask"), "missing", f"{self.missing!r} must be skip or mask")
        check(
            not self.audio.paired or {"text", "waveform"} <= set(self.modalities),
            "audio.paired",
            f"pairs a text with a waveform; modalities are {self.modalities!r}",
        )
        check(self.text_length >= 3, "text_length", f"{self.text_length!r} must be >= 3 tokens")
        given, k = self.row_length, self.images_per_row
        check(given is None or k > 1, "row_length", f"{given!r} is of interleaved rows, with images_per_row > 1")
        pairs = {"image", "text"} <= set(self.modalities) and self.missing == "skip"
        check(k == 1 or pairs, "images_per_row", f"{k!r} images a row need the modalities image and text, and missing='skip'")
        check(given is None or given >= LEAST * k, "row_length", f"{given!r} must be >= {LEAST} tokens for each of {k} texts")
        several = "text" in self.modalities and not self.audio.paired and k == 1
        check(
            self.texts_per_row == 1 or several,
            "texts_per_row",
            f"{self.texts_per_row!r} texts a row need the modality text, without audio.paired, and images_per_row=1",
        )
        check(self.cache_mb >= 0, "cache_mb", f"{self.cache_mb!r} must be >= 0 MB")
        check(0 < self.crop[0] <= self.crop[1] <= 1, "crop", f"{self.crop!r} must be a smallest and a largest share in (0, 1]")
        check(
            0 < self.crop_ratio[0] <= self.crop_ratio[1],
            "crop_ratio",
            f"{self.crop_ratio!r} must be a smallest and a largest width / height",
        )
        check(0 <= self.error_budget <= 1, "error_budget", f"{self.error_budget!r} is a share; must be in [0, 1]")

    @property
    def on_device(self) -> dict[str, Any]:
        """The options that the compiled step reads. The others decide what is in a batch, or the shapes of its arrays (`shapes`)."""
        return {"augment": self.augment}

    @property
    def records_per_batch(self) -> int:
        """B K: how far a step moves the position of the task's stream."""
        return self.batch * self.images_per_row

    @property
    def tokens(self) -> int:
        """Tokens of a row: T, or R of an interleaved one."""
        return self.row_length or self.images_per_row * self.text_length

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the global batch: those of image uint8 [B, S, S, 4], text int32 [B, T] or [B, N, T], video uint8 [B, F, S, S, 4], waveform int16
        [B, W] with waveform_length int32 [B] that are asked for, has_KEY bool [B] under `missing="mask"`, label int32 [B] of an `attribute`, id and index int32 [B].

        Interleaved: image uint8 [B, K, S, S, 4], text int32 [B, R], id int32 [B, K], index int32 [B, K], and segment int32 [B, R], lengths
        int32 [B, K], weight float32 [B, R] (`packing.py`).
        """
        rows = self.record_shapes
        k = self.images_per_row
        r = self.tokens
        if k > 1:
            rows = {name: ((k, *shape), dtype) for name, (shape, dtype) in rows.items()}
            rows |= dict(text=((r,), np.int32), segment=((r,), np.int32), lengths=((k,), np.int32), weight=((r,), np.float32))
        return {name: jax.ShapeDtypeStruct((self.batch, *shape), dtype) for name, (shape, dtype) in rows.items()}

    @property
    def locales(self) -> tuple[str, ...] | None:
        """Languages of its texts; None: all; (): it reads none."""
        if "text" not in self.modalities:
            return ()
        spoken = self.audio.locales or None if self.audio.paired else ()
        return None if None in (spoken, self.captions.locales) else tuple(dict.fromkeys((*self.captions.locales, *spoken)))

    @property
    def text_shape(self) -> tuple[int, ...]:
        """(T,) or (N, T): of a record's texts."""
        return (self.text_length,) if self.texts_per_row == 1 else (self.texts_per_row, self.text_length)

    @property
    def record_shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype of what one record gives a batch."""
        fillers = self.fillers(Preprocess())  # of which only the side matters here, and that is the config's own
        shapes: dict[str, tuple[tuple[int, ...], type]] = {}
        for name in self.modalities:
            shapes |= {"text": (self.text_shape, np.int32)} if name == "text" else fillers[name].shapes
        if self.missing == "mask":
            shapes |= {f"has_{name}": ((), np.bool_) for name in self.modalities}
        if self.attribute is not None:
            shapes["label"] = ((), np.int32)
        return shapes | {"id": ((), np.int32), "index": ((), np.int32)}

    def fillers(self, preprocess: Preprocess) -> dict[str, Any]:
        """Modality -> who reads it and writes its rows; `text` is the loader's own."""
        image = Picture(preprocess.at(self.image_size), self.crop, self.crop_ratio, fast=self.fast_decode)
        return by_name(self.modalities, image, self.video, self.audio)

    @property
    def having(self) -> list[tuple[str, ...]]:
        """What records must have that not all do, as `store.Corpus.split` names it."""
        needed = {"video": ("frames",), "waveform": self.audio.things}
        return [needed[name] for name in self.modalities if name in needed and self.missing == "skip"]

    def open(self, corpus: Any) -> Any:
        """The records of `split` that the task can use. Raises KeyError; DataError where the corpus has none."""
        return corpus.split(self.split, self.having) if self.having else corpus.split(self.split)

    def classes(self, corpus: Any) -> tuple[np.ndarray, list[str]] | None:
        """The attribute's value of every label of the corpus, int32, and the values' names; None where none is asked for. Raises ConfigError."""
        if self.attribute is None:
            return None
        known = list(getattr(corpus, "attributes", ()))
        problem = (
            f"{self.attribute!r} is not an attribute of the corpus{nearest(self.attribute, known)} (it has: {', '.join(known) or 'none'})"
        )
        check(self.attribute in known, "attribute", problem)
        return corpus.attribute_of_labels(self.attribute)


class Row(NamedTuple):
    """A record, read: modality -> what its filler made of it (for `text`, the texts by source); absent ones are not in it."""

    label: int
    values: dict[str, Any]


class Batches:
    """Random access to the batches of a source, as this host's rows: numpy, nothing of jax. Batch `i` has the records
    `[start + i B K, start + (i + 1) B K)` of the stream.

    Args:
      rows: positions within the global batch that this host fills (all of them on one host).
      values: int32, of every label: the batch's `label`, where the config has an `attribute`.
      preprocess: what is seen of pictures and how they are scaled: those of the model; its side is the config's `image_size`.
      start: position in the stream of the first record of batch 0.
      counted: bool, which of `rows` this host counts; one that several hosts read is counted by one of them. None: all.
    """

    def __init__(
        self, config: DataConfig, source: Any, tokenizer: Tokenizer, *, seed: int, rows: np.ndarray | None = None,
        values: np.ndarray | None = None, start: int = 0, counted: np.ndarray | None = None, preprocess: Preprocess = Preprocess(),
    ):  # fmt: skip
        self.config = config
        self.rows = np.arange(config.batch) if rows is None else np.asarray(rows)
        self._source = source
        self._tokenizer = tokenizer
        self._values = values
        self._start = start
        self._counted = np.ones(len(self.rows), bool) if counted is None else np.asarray(counted)
        if len(source) == 0:
            raise DataError(f"split {config.split!r} has no records")
        if config.attribute is not None and values is None:
            raise ValueError(f"values: those of the attribute {config.attribute!r} are needed")
        if hasattr(source, "order"):  # a mixture has an order of its own
            self._order = source.order(seed, config.shuffle)
        else:
            self._order = epochs(0, len(source), seed, config.shuffle)
        # Each has numbers of its own, so that what a row draws for one stays as it is whatever else is added.
        self._draws = {name: Uniforms(seed, "row", name, n=DRAWN[name]) for name in config.modalities}
        self._more_texts = [Uniforms(seed, "row", "text", n, n=DRAWS) for n in range(1, config.texts_per_row)]
        self._seen = 0
        self._skipped: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._fillers = config.fillers(preprocess)
        self._cache = Cache(config.cache_mb * 2**20)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Rows of batch `i`, as `DataConfig.shapes` says, of this host. Interleaved rows hold K consecutive records of the stream each.

        Raises DataError where `REPLACEMENTS` records in a row are bad.
        """
        config, k = self.config, self.config.images_per_row
        records = (self.rows[:, None] * k + np.arange(k)).reshape(-1)
        positions = self._start + i * config.records_per_batch + records
        counted = np.repeat(self._counted, k).tolist()
        draws = {name: uniforms(positions).tolist() for name, uniforms in self._draws.items()}
        more_texts = [uniforms(positions).tolist() for uniforms in self._more_texts]
        out = {name: np.zeros((len(records), *shape), dtype) for name, (shape, dtype) in config.record_shapes.items()}
        texts: list[str | None] = []
        for row, position in enumerate(positions.tolist()):
            out["id"][row], values = self._row(position, counted[row])
            drawn = {name: numbers[row] for name, numbers in draws.items()}
            for name, filler in self._fillers.items():
                if name in values:
                    filler.fill(out, row, values[name], drawn[name])
            if "text" in config.modalities:
                texts.append(self._text(values, drawn))
            for further in more_texts:
                texts.append(config.captions.choose(values["text"], further[row]) if "text" in values else None)
            if config.missing == "mask":
                for name in config.modalities:
                    out[f"has_{name}"][row] = name in values
        if texts:
            out["text"] = self._encode(texts).reshape(len(records), *config.text_shape)
        if config.attribute is not None:
            out["label"] = self._values[out["id"]]
        out["index"] = (positions % 2**31).astype(np.int32)
        if k == 1:
            return out
        out = {name: a.reshape(-1, k, *a.shape[1:]) for name, a in out.items()}
        return out | pack(out["text"], config.tokens, eos_id=self._tokenizer.eos_id, pad_id=self._tokenizer.pad_id)

    @property
    def path(self) -> str:
        """Where the records come from, for a message."""
        return str(getattr(self._source, "path", "the corpus"))

    def counts(self) -> tuple[int, dict[str, int]]:
        """Records that were counted so far, and the bad ones of these by cause."""
        with self._lock:
            return self._seen, dict(self._skipped)

    def check_budget(self) -> None:
        """Raises DataError where too many of the records that this host counted are bad. For whoever reads on one host; a run of several
        sums up the counts of all of them."""
        seen, skipped = self.counts()
        check_budget(self.config, self.path, seen, sum(skipped.values()), f" ({causes(skipped)})")

    def _text(self, values: dict[str, Any], drawn: dict[str, list[float]]) -> str | None:
        """The row's text; None where it has none."""
        if self.config.audio.paired and "waveform" in values:
            return self._fillers["waveform"].choose(values["waveform"], drawn["waveform"]).name
        return self.config.captions.choose(values["text"], drawn["text"]) if "text" in values else None

    def _row(self, position: int, counted: bool) -> Row:
        """The record at a position of the stream, or the next good one after it."""
        record = self._order[position]
        for _ in range(REPLACEMENTS):
            try:
                row = self._load(record)
            except BadRecord as error:
                self._count(counted, error)
                record = (record + 1) % len(self._source)
            else:
                self._count(counted)
                return row
        _, skipped = self.counts()
        raise DataError(f"split {self.config.split!r} of {self.path}: {REPLACEMENTS} bad records in a row ({causes(skipped)})")

    def _load(self, record: int) -> Row:
        kept = self._cache.get(record)
        if kept is not None:
            return kept
        data, config = self._source[record], self.config
        values = {name: filler.load(data) for name, filler in self._fillers.items()}
        if "text" in config.modalities:
            values["text"] = self._texts(data, spoken=config.audio.paired and values["waveform"] is not None)
        absent = [name for name in config.modalities if values[name] is None]
        if absent and (config.missing == "skip" or len(absent) == len(config.modalities)):
            raise BadRecord(f"no {absent[0]}", f"{data['key']!r} has none of the asked kind")
        row = Row(data["label"], {name: value for name, value in values.items() if value is not None})
        self._cache.put(record, row)
        return row

    def _texts(self, record: Record, spoken: bool) -> Texts | None:
        """The record's texts; none are needed where its clips bring their own (`spoken`)."""
        try:
            return self.config.captions.texts(record)
        except BadRecord:
            if spoken:
                return (), (), ()
            if self.config.missing == "mask":
                return None
            raise

    def _encode(self, texts: list[str | None]) -> np.ndarray:
        """int32 [b, T]; a row of padding for None."""
        rows: dict[str | None, np.ndarray | None] = {text: self._cache.get(text) for text in texts if text is not None}
        new = [text for text, row in rows.items() if row is None]
        if new:
            for text, row in zip(new, self._tokenizer.encode(new, self.config.text_length)):
                rows[text] = row.copy()  # a view would keep the tokens of all new texts
                self._cache.put(text, rows[text])
        rows[None] = np.full(self.config.text_length, self._tokenizer.pad_id, np.int32)
        return np.stack([rows[text] for text in texts])

    def _count(self, counted: bool, error: BadRecord | None = None) -> None:
        if not counted:
            return
        with self._lock:
            self._seen += 1
            if error is not None:
                self._skipped[error.cause] += 1


def check_budget(config: DataConfig, path: str, seen: int, bad: int, detail: str) -> None:
    """Raises DataError where too many records are bad.

    Args:
      path: where the records come from.
      seen: records, bad ones included.
      detail: more about the bad ones, for the message.
    """
    if budget.exceeded(bad, seen, config.error_budget, config.error_minimum):
        raise DataError(
            f"split {config.split!r} of {path}: {bad} of {seen} records are bad{detail}, "
            f"more than error_budget {config.error_budget:g} allows"
        )
