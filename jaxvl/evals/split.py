"""What evaluators of one split of a corpus share: its records, texts and thumbnails."""

from __future__ import annotations

import dataclasses
import functools
import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from jaxvl.config import ConfigError, Range, Steps, check, nearest
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora import CORPORA
from jaxvl.data.corpora.prepared import prepared
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.data.records import BadRecord, DataError, causes
from jaxvl.evals.encoders import EncodedImages, Encoders
from jaxvl.evals.result import EvaluatorError
from jaxvl.sharding.mesh import batch_shards

THUMBNAIL = 64  # pixels


def open_split(corpus: Any, split: str, field: str = "split") -> Any:
    """The corpus's source of a split. Raises ConfigError at `field` where there is none of that name, or it has no record."""
    splits = list(prepared(corpus).splits)
    check(split in splits, field, f"{split!r} is not a split of the corpus{nearest(split, splits)} (splits: {', '.join(splits)})")
    source = prepared(corpus).split(split)
    check(len(source) > 0, field, f"{split!r} has no records")
    return source


def read_all(source: Any, read: Callable[[int], Any]) -> list[Any | None]:
    """`read(i)` of every record of a source; None for the bad ones, on which all processes agree.

    Every process reads all records. A record that is bad in one process is left out in all of them.

    Raises:
      EvaluatorError: in every process, where `read` raised anything but BadRecord in one of them.
    """
    good = 0
    bad = 1
    failed = 2
    out: list[Any | None] = [None] * len(source)
    faults = np.full(len(source), good, np.int32)
    error: Exception | None = None
    for i in range(len(source)):
        try:
            out[i] = read(i)
        except BadRecord:
            faults[i] = bad
        except Exception as met:  # noqa: BLE001 (raised below, where all processes have learnt of it)
            faults[i], error = failed, met
            break
    if jax.process_count() > 1:
        faults = np.max(multihost_utils.process_allgather(faults), axis=0)
    if (faults == failed).any():
        what = "another process met an error at it and names it" if error is None else f"{type(error).__name__}: {error}"
        raise EvaluatorError(f"record {int(np.argmax(faults == failed))}: {what}") from error
    return [value if fault == good else None for value, fault in zip(out, faults)]


def texts_of(record: Mapping[str, Any], locale: str, kind: str) -> tuple[str, ...]:
    """A record's distinct texts in a language; `kind`: "name", "keywords", or "all" of them."""
    name, keywords = record["captions"].get(locale, (None, ()))
    texts = {"name": [name], "keywords": list(keywords), "all": [name, *keywords]}[kind]
    return tuple(dict.fromkeys(text for text in texts if text))


def captions(corpus: Any, split: str, locale: str, kind: str) -> tuple[tuple[str, ...], ...]:
    """Texts of every record of a split, by position, as `texts_of`; empty where a record is bad or has none.

    Bad records are not counted here: `Encoders.images` meets the same ones.
    """
    open_split(corpus, split)
    return _captions(prepared(corpus), split, locale, kind)


@functools.lru_cache(maxsize=8)
def _captions(corpus: Any, split: str, locale: str, kind: str) -> tuple[tuple[str, ...], ...]:
    source = corpus.split(split)
    return tuple(of or () for of in read_all(source, lambda i: texts_of(source[i], locale, kind)))


def check_captions(corpus: Any, split: str, locale: str, kind: str, field: str = "locale") -> None:
    """Raises ConfigError at `field` where no record of a split has such texts. Reads records until one has."""
    source = open_split(corpus, split)
    found: set[str] = set()
    for i in range(len(source)):
        try:
            record = source[i]
        except BadRecord:
            continue
        if texts_of(record, locale, kind):
            return
        found.update(record["captions"])
    what = {"name": "a name", "keywords": "keywords", "all": "a name or keywords"}[kind]
    languages = f"{nearest(locale, sorted(found))} (its languages: {', '.join(sorted(found)) or 'none'})"
    raise ConfigError(field, f"{locale!r}: no record of split {split!r} has {what} in it{languages}")


def check_tokenizer(encoders: Encoders) -> None:
    """Raises ConfigError where no text can be read: the tokenizer was left behind, a package is missing, there is no room for a word."""
    try:
        encoders.tokenizer.encode(["a"], encoders.text_length)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError("name", f"reads texts, which the tokenizer cannot: {error}") from None


def class_names(corpus: Any, locale: str) -> list[str | None]:
    """Name of every label of a corpus. Raises ConfigError at `locale` for a language that it does not have."""
    try:
        return prepared(corpus).class_names(locale)
    except DataError as error:
        raise ConfigError("locale", str(error)) from None


def same_text(text: str) -> str:
    """What two captions must share to be the same caption: letters, whatever their case, width and spacing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_ids(texts: Sequence[str]) -> np.ndarray:
    """Ids int32 [n] of texts; equal captions have equal ids, numbered by first appearance."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(same_text(t), len(ids)) for t in texts], np.int32)


def sample(n: int, size: int) -> np.ndarray:
    """At most `size` of `n` positions: random, but the same ones at every evaluation, so that runs can be compared."""
    return np.sort(np.random.default_rng(0).permutation(n)[:size])


class Thumbnails:
    """Small pictures of a source's records as PNG, as the model sees them: decoded, on the background."""

    def __init__(self, source: Any, preprocess: Any):
        self._source = source
        self._preprocess = preprocess
        self._made: dict[int, bytes] = {}

    def __call__(self, i: int) -> bytes | None:
        """PNG of record `i`; None where it can no longer be read."""
        if i not in self._made:
            try:
                pixels = self._preprocess.decode(self._source[int(i)]["image"])
            except BadRecord:
                return None
            self._made[i] = png(flatten(pixels, self._preprocess.background), THUMBNAIL)
        return self._made[i]


def flatten(pixels: np.ndarray, background: Sequence[float]) -> np.ndarray:
    """uint8 [S, S, 3 or 4] on a background colour (0..1 per channel) -> uint8 [S, S, 3]."""
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.rint(pixels[..., :3] * alpha + 255 * np.asarray(background, np.float32) * (1 - alpha)).astype(np.uint8)


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] with at most `size` pixels a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def png(pixels: np.ndarray, size: int) -> bytes:
    """uint8 [H, W, 3] as PNG of at most `size` pixels a side."""
    out = io.BytesIO()
    Image.fromarray(shrink(pixels, size)).save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Options that every evaluator of a split has.

    Attributes:
      corpus: the corpus by name, with its options.
      split: which of its splits.
      every: steps between two evaluations in the training loop; 0: only after the last step.
      locale: language of the texts.
      gallery: queries shown with what was retrieved, in each direction; 0: none.
      error_budget: share of bad records that ends the evaluator, once `error_minimum` have been met. The whole split is
        read, so the share is exact; training, which has seen a sample, asks a statistical test (`data/budget.py`).
      error_minimum: see `error_budget`.
    """

    corpus: Annotated[Any, CORPORA]
    split: str
    every: Annotated[int, Range(0, 2**31 - 1)] = 0
    locale: str = "en"
    gallery: Annotated[int, Range(0, 10_000)] = 12
    error_budget: float = 0.01
    error_minimum: Steps = 10

    def __post_init__(self):
        check(self.every >= 0, "every", f"{self.every!r} must be >= 1 step, or 0 for only after the last step")
        check(self.gallery >= 0, "gallery", f"{self.gallery!r} must be >= 0 queries")
        check(0 <= self.error_budget <= 1, "error_budget", f"{self.error_budget!r} is a share; must be in [0, 1]")
        check(self.error_minimum >= 1, "error_minimum", f"{self.error_minimum!r} must be >= 1")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        open_split(self.corpus, self.split)

    def within_budget(self, skipped: Mapping[str, int], seen: int, split: str | None = None) -> None:
        """Raises DataError where more records of a split (None: the own one) are bad than the error budget allows.

        Args:
          skipped: cause -> bad records. seen: how many records were tried.
        """
        bad = sum(skipped.values())
        if bad < self.error_minimum or bad <= self.error_budget * seen:
            return
        raise DataError(
            f"split {split or self.split!r}: {bad} of {seen} records are bad ({causes(skipped)}), more than error_budget {self.error_budget:g} allows"
        )

    def encode(self, encoders: Encoders, split: str | None = None) -> tuple[Any, EncodedImages]:
        """The source of a split (None: the own one), and its images' rows (encoded once for all evaluators of the split).

        Raises ConfigError where the split does not exist, DataError where too many of its images cannot be encoded.
        """
        split = split or self.split
        source = open_split(self.corpus, split)
        encoded = encoders.images(source, memo=(self.corpus, split))
        self.within_budget(encoded.skipped, len(source), split)
        if not len(encoded.index):
            counts = f"records: {len(source)}, skipped: {encoded.skipped or 0}"
            raise DataError(f"split {split!r} has no image that can be encoded ({counts})")
        return source, encoded


def rows_config(options: SplitOptions, encoders: Encoders, **data: Any) -> DataConfig:
    """How `rows_of` reads a split; `data`: more of `DataConfig` (`images_per_row`). Raises ConfigError as that does."""
    return DataConfig(
        options.corpus,
        options.split,
        encoders.batch,
        image_size=encoders.preprocess.image_size,
        text_length=encoders.text_length,
        captions=CaptionConfig(locale=options.locale),
        cache_mb=0,
        fast_decode=False,
        error_budget=options.error_budget,
        error_minimum=options.error_minimum,
        **data,
    )


def check_rows(options: SplitOptions, encoders: Encoders, field: str, **data: Any) -> DataConfig:
    """How `rows_of` reads a split. Raises ConfigError at `field` where it has no row of what `data` asks for."""
    open_split(options.corpus, options.split)
    config = rows_config(options, encoders, **data)
    try:
        records = len(config.open(prepared(options.corpus)))
    except DataError as error:
        raise ConfigError(field, str(error)) from None
    check(records > 0, field, f"split {options.split!r} has no record with all of {', '.join(config.modalities)}")
    k = config.images_per_row
    check(records >= k, field, f"split {options.split!r} has {records} records, too few for a row of {k}")
    return config


def rows_of(options: SplitOptions, encoders: Encoders, **data: Any) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """A split in batches as a model is trained with, names as texts, in an order that is random but always the same.

    Pictures and frames are exactly as `encoders.preprocess` makes them. Every process makes whole batches. Records that cannot be
    used are replaced by the ones after them.

    Args:
      data: more of `DataConfig` (`images_per_row`).

    Returns:
      Batches of at most `encoders.batch` rows without `index`, and how many of their rows count (the last batch is filled up).

    Raises:
      DataError: the split is smaller than one row, has no record of the modalities that are asked for, or too many bad ones.
      EvaluatorError: a record raised anything but BadRecord.
    """
    open_split(options.corpus, options.split)
    config = rows_config(options, encoders, **data)
    source = config.open(prepared(options.corpus))
    rows, shards = len(source) // config.images_per_row, batch_shards(encoders.mesh)
    if not rows:
        raise DataError(f"split {options.split!r} has {len(source)} records, too few for a row of {config.images_per_row}")
    config = dataclasses.replace(config, batch=min(config.batch, -(-rows // shards) * shards))
    batches = Batches(config, source, encoders.tokenizer, seed=0, preprocess=encoders.preprocess)
    for i in range(-(-rows // config.batch)):
        try:
            batch = batches[i]
            batches.check_budget()
        except (ConfigError, DataError):
            raise
        except Exception as error:
            raise EvaluatorError(f"batch {i} of split {options.split!r}: {type(error).__name__}: {error}") from error
        yield {k: v for k, v in batch.items() if k != "index"}, min(config.batch, rows - i * config.batch)


def skipped_figures(*counts: Mapping[str, int]) -> dict[str, float]:
    """Counts by cause as figures `skipped/CAUSE`; causes that did not occur are left out."""
    return {f"skipped/{cause}": float(n) for part in counts for cause, n in part.items() if n}
