"""What evaluators of one split of a corpus share: its records, texts and thumbnails."""

from __future__ import annotations

import dataclasses
import functools
import io
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from PIL import Image

from jaxvl.config import Range, check, nearest
from jaxvl.data.captions import CaptionConfig
from jaxvl.data.corpora import CORPORA
from jaxvl.data.loader import Batches, DataConfig
from jaxvl.evals.encoders import EncodedImages, Encoders
from jaxvl.sharding.mesh import batch_shards

THUMBNAIL = 64  # pixels


@functools.lru_cache(maxsize=8)
def prepared(corpus: Any) -> Any:
    """The corpus of a config, prepared once per process."""
    return corpus.prepare()


def open_split(corpus: Any, split: str) -> Any:
    """The corpus's source of a split. Raises ConfigError at `split` where there is none of that name."""
    splits = list(prepared(corpus).splits)
    check(split in splits, "split", f"{split!r} is not a split of the corpus{nearest(split, splits)} (splits: {', '.join(splits)})")
    return prepared(corpus).split(split)


@functools.lru_cache(maxsize=8)
def captions(corpus: Any, split: str, locale: str, kind: str) -> tuple[tuple[str, ...], ...]:
    """Texts of every record of a split, by position; empty where a record cannot be read or has none.

    Args:
      kind: "name", "keywords", or "all" of them.
    """
    source, out = open_split(corpus, split), []
    for i in range(len(source)):
        try:
            name, keywords = source[i]["captions"].get(locale, (None, ()))
        except Exception:  # noqa: BLE001 (counted by `Encoders.images`, which meets the same record)
            name, keywords = None, ()
        texts = {"name": [name], "keywords": list(keywords), "all": [name, *keywords]}[kind]
        out.append(tuple(dict.fromkeys(t for t in texts if t)))
    return tuple(out)


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
        self._source, self._preprocess, self._made = source, preprocess, {}

    def __call__(self, i: int) -> bytes:
        if i not in self._made:
            pixels = self._preprocess.decode(self._source[int(i)]["image"])
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
    """

    corpus: Annotated[Any, CORPORA]
    split: str
    every: Annotated[int, Range(0, 2**31 - 1)] = 0
    locale: str = "en"
    gallery: Annotated[int, Range(0, 10_000)] = 12

    def __post_init__(self):
        check(self.every >= 0, "every", f"{self.every!r} must be >= 1 step, or 0 for only after the last step")
        check(self.gallery >= 0, "gallery", f"{self.gallery!r} must be >= 0 queries")

    def encode(self, encoders: Encoders) -> tuple[Any, EncodedImages]:
        """The split's source, and its images' rows (encoded once for all evaluators of this split).

        Raises ConfigError where the split does not exist, ValueError where none of its images can be encoded.
        """
        source = open_split(self.corpus, self.split)
        encoded = encoders.images(source, memo=(self.corpus, self.split))
        if not len(encoded.index):
            counts = f"records: {len(source)}, skipped: {encoded.skipped or 0}"
            raise ValueError(f"split {self.split!r} has no image that can be encoded ({counts})")
        return source, encoded


def rows_of(options: SplitOptions, encoders: Encoders, **data: Any) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """A split in batches as a model is trained with, names as texts, in an order that is random but always the same.

    Pictures and frames are exactly as `encoders.preprocess` makes them. Every process makes whole batches. Records that cannot be
    used are replaced by the ones after them.

    Args:
      data: more of `DataConfig` (`images_per_row`).

    Returns:
      Batches of at most `encoders.batch` rows without `index`, and how many of their rows count (the last batch is filled up).

    Raises:
      ValueError: the split is smaller than one row. DataError: it has no record of the modalities that are asked for.
    """
    open_split(options.corpus, options.split)
    config = DataConfig(
        options.corpus, options.split, encoders.batch, image_size=encoders.preprocess.image_size, text_length=encoders.text_length,
        captions=CaptionConfig(locale=options.locale), cache_mb=0, fast_decode=False, **data,
    )  # fmt: skip
    source = config.open(prepared(options.corpus))
    rows, shards = len(source) // config.images_per_row, batch_shards(encoders.mesh)
    if not rows:
        raise ValueError(f"split {options.split!r} has {len(source)} records, too few for a row of {config.images_per_row}")
    config = dataclasses.replace(config, batch=min(config.batch, -(-rows // shards) * shards))
    batches = Batches(config, source, encoders.tokenizer, seed=0, preprocess=encoders.preprocess)
    for i in range(-(-rows // config.batch)):
        batch = batches[i]
        batches.check_budget()
        yield {k: v for k, v in batch.items() if k != "index"}, min(config.batch, rows - i * config.batch)


def skipped_figures(*counts: Mapping[str, int]) -> dict[str, float]:
    """Counts by cause as figures `skipped/CAUSE`; causes that did not occur are left out."""
    return {f"skipped/{cause}": float(n) for part in counts for cause, n in part.items() if n}
