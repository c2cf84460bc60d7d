"""What frozen towers give of every record, so that it is computed once."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from jaxvl.config import check
from jaxvl.data.sources.base import Source
from jaxvl.data.tables import PRESENT, Columns
from jaxvl.evals.columns import PICTURES, check_column, check_texts
from jaxvl.evals.columns import Columns as Names
from jaxvl.evals.encoders import EMBEDDING, MEAN_TOKENS, TOKENS, Encoders
from jaxvl.evals.source_options import check_tokenizer
from jaxvl.jobs import JOBS
from jaxvl.jobs.base import Job
from jaxvl.jobs.embedding import BLOCK, blocks_of, spread, text_rows

FEW = 1_024  # records whose tokens are in memory at a time
Feature = Literal["image", "text", "image_tokens", "image_mean"]
Side = Literal["image", "text"]
PICTURE_FEATURES = {"image": EMBEDDING, "image_tokens": TOKENS, "image_mean": MEAN_TOKENS}


@JOBS.register("cache_features")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheFeatures(Job):
    """A column of arrays for each feature:

        image          [n, D], the picture's embedding, of length 1
        text           [n, D], the first text's embedding, of length 1
        image_tokens   [n, P, D'], the image encoder's tokens before pooling
        image_mean     [n, D'], their mean

    and for each of `outputs`. With the head `encoded` at the label `bare`,

        outputs=dict(image_pooled=("image", "bare/image_pooled"),
                     text_tokens=("text", "bare/text_tokens"), …)

    are what encoders give before any projection, which is what the model `frozen_encoders` reads.

    The field `array` puts them into batches. A task that reads them and nothing else of the source
    reads no picture. They are of pictures as evaluators see them, without augmentation. A record
    that lacks one of the features has none of them.

    Each picture is read and decoded once, whatever is asked of it. The rows are made and written
    block by block, so that tokens of many records need no memory.

    Attributes:
      features: which.
      outputs: further column -> the input that it is of, and the model's output that it holds.
      image: column of pictures.
      text: column of texts, or several.
      dtype: that they are saved in; the field `array` makes float32 of either.
    """

    features: tuple[Feature, ...] = ("image", "text")
    outputs: dict[str, tuple[Side, str]] = dataclasses.field(default_factory=dict)
    image: str = "image"
    text: Names = "text"
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self):
        super().__post_init__()
        names = self.features
        named = bool(names) or bool(self.outputs)
        check(named, "features", "must name at least one feature, or outputs")
        check(len(set(names)) == len(names), "features", f"{names!r} must be different ones")

        for column, (side, _) in self.outputs.items():
            key = f"outputs.{column}"
            check(side in ("image", "text"), key, f"{side!r} must be 'image' or 'text'")
            check(column not in names, key, "is the name of a feature already")

    def check(self, encoders: Encoders, source: Source) -> None:
        """See `Job`."""
        sides = {side for side, _ in self.outputs.values()}
        shapes = encoders.input_shapes
        for side, output in self.outputs.values():
            encoders.check_outputs({side: shapes[side]}, (output,))
        if set(self.features) - {"text"} or "image" in sides:
            check_column(source, self.image, PICTURES, "image")
        if {"image_tokens", "image_mean"} & set(self.features):
            encoders.require("image_tokens")
        if {"image", "text"} & set(self.features):
            encoders.check_embeds()
        if "text" in {*self.features, *sides}:
            check_tokenizer(encoders)
            check_texts(source, self.text, "text")

    def run(self, encoders: Encoders, source: Source) -> Columns:
        """See `Job`."""
        present = np.ones(len(source), bool)
        pictures = {name: PICTURE_FEATURES[name] for name in self.features if name != "text"}
        texts: dict[str, str | None] = {"text": None} if "text" in self.features else {}
        for name, (side, output) in self.outputs.items():
            if side == "image":
                pictures[name] = output
            else:
                texts[name] = output
        columns: dict[str, Iterator[np.ndarray] | np.ndarray] = {}
        if pictures:
            blocks = self._pictures(encoders, source, present, pictures)
            for name, shared in zip(pictures, itertools.tee(blocks, len(pictures))):
                columns[name] = map(operator.itemgetter(name), shared)
        for name, output in texts.items():
            columns[name] = self._texts(encoders, source, present, output)
        return {**columns, PRESENT: present}

    def _pictures(
        self, encoders: Encoders, source: Source, present: np.ndarray, wanted: Mapping[str, str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of all columns of pictures, each of which is decoded once; column -> what
        `Encoders.together` calls it."""
        block = BLOCK if set(wanted.values()) <= {EMBEDDING, MEAN_TOKENS} else FEW
        for start, some in blocks_of(source, block):
            encoded = encoders.together(some, tuple(wanted.values()), self.image)
            rows = {}
            for column, name in wanted.items():
                of_name = encoded[name]
                spread_rows, found = spread(of_name.rows, of_name.index, len(some))
                rows[column] = spread_rows.astype(self.dtype)
            present[start : start + len(some)] &= found
            yield rows

    def _texts(
        self,
        encoders: Encoders,
        source: Source,
        present: np.ndarray,
        output: str | None,
    ) -> Iterator[np.ndarray]:
        for start, some in blocks_of(source, BLOCK if output is None else FEW):
            rows, found = text_rows(encoders, some, self.text, output)
            present[start : start + len(some)] &= found
            yield rows.astype(self.dtype)
