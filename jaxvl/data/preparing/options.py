"""Options of `python -m jaxvl.data.prepare`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from jaxvl.aliases import Node
from jaxvl.config import Count, PathText, Plugin, Range, Seed, check, load_plugins
from jaxvl.data.preparing import SCORERS
from jaxvl.data.sources import SOURCES

# Registers the scorer "checkpoint". It needs models, which this package knows nothing of.
CHECKPOINT_SCORER = "jaxvl.training.pair_scores"
Limit = Annotated[int, Range(0, 2**31 - 1)]
ShardRecords = Annotated[int, Range(1, 10_000)]  # four digits of a key are the place in the shard


@dataclasses.dataclass(frozen=True)
class Rules:
    """Thresholds of the rules. Defaults are those of ALIGN (arXiv 2102.05918, section 3). A rule
    whose threshold is None is left out.

    Attributes:
      uid_subset: a file of DataComp's subsets: `.npy` of dtype `u8,u8`, sorted; records are kept
        whose `uid` is in it.
      min_side: pixels; the shorter side of a picture is longer.
      max_aspect: the longer side divided by the shorter one is less.
      max_texts_per_image: distinct texts of equal pictures.
      test_distance: bits of 64 in which a perceptual hash may differ from that of a near-duplicate
        among `test_images`.
      max_images_per_text: distinct pictures of equal texts.
      vocabulary: most frequent unigrams and bigrams, together; a text with any other is rare.
      min_words, max_words: unigrams of a text, both included.
      duplicates: what is kept once: `pairs` of equal picture and equal text, or equal `images`.
      score: a scorer of pairs: `dict(name="checkpoint", workdir="runs/align")`.
      min_score: of a pair.
      top_share: of the pairs that are left, by score; 0.3 keeps the best 30 %.
    """

    uid_subset: PathText | None = None
    min_side: Limit | None = 200
    max_aspect: Annotated[float, Range(1.0, 1e6)] | None = 3.0
    max_texts_per_image: Count | None = 1000
    test_distance: Annotated[int, Range(0, 15)] | None = 4
    max_images_per_text: Count | None = 10
    vocabulary: Annotated[int, Range(1, 2**40)] | None = 100_000_000
    min_words: Limit | None = 3
    max_words: Limit | None = 20
    duplicates: Literal["pairs", "images"] | None = "pairs"
    score: Annotated[Any, SCORERS] | None = None
    min_score: Annotated[float, Range(-1e6, 1e6)] | None = None
    top_share: Annotated[float, Range(0.0, 1.0, above=True)] | None = None

    @classmethod
    def before_resolving(cls, node: Node) -> Node:
        score = node.get("score")
        chosen = score.get("name") if isinstance(score, Mapping) else score
        if chosen == "checkpoint":
            importlib.import_module(CHECKPOINT_SCORER)
        return node

    def __post_init__(self):
        if self.min_words is not None and self.max_words is not None:
            check(
                self.min_words <= self.max_words,
                "min_words",
                f"{self.min_words} is more than max_words ({self.max_words})",
            )
        chosen = [name for name in ("min_score", "top_share") if getattr(self, name) is not None]
        if self.score is None:
            check(
                not chosen,
                chosen[0] if chosen else "",
                "needs a scorer, as rules.score = dict(name='checkpoint', workdir=…)",
            )
        else:
            check(len(chosen) == 1, "score", "needs either min_score or top_share beside it")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """One run of the preparation.

    Attributes:
      source: where the records come from.
      out: folder that is made; it may not be there yet.
      image: column of the pictures.
      texts: columns of the texts, of kind `text` or `texts`.
      uid: column that `rules.uid_subset` is about.
      rules: see Rules.
      test_images: name -> source whose pictures (column `image`) may not be among the data, nor
        anything that looks like them.
      format: `tar` (WebDataset, as img2dataset writes it) or `array_record`.
      shard_records: records of a shard; the last one may have fewer.
      range_records: records that a worker reads at a time; what it has read of them is a file of
        the work folder.
      examples: removed records that the report shows, for each rule.
      seed: of the examples.
      plugins: files and modules of your own, which may register sources and scorers.
    """

    source: Annotated[Any, SOURCES]
    out: PathText
    image: str = "image"
    texts: tuple[str, ...] = ("text",)
    uid: str = "uid"
    rules: Rules = Rules()
    test_images: dict[str, Annotated[Any, SOURCES]] = dataclasses.field(default_factory=dict)
    format: Literal["tar", "array_record"] = "tar"
    shard_records: ShardRecords = 10_000
    range_records: Annotated[int, Range(1, 1_000_000)] = 1_000
    examples: Annotated[int, Range(0, 200)] = 12
    seed: Seed = 0
    plugins: tuple[Plugin, ...] = ()

    @classmethod
    def before_resolving(cls, node: Node) -> Node:
        """Imports the plugins, whose components the other keys may name."""
        return {**node, "plugins": load_plugins(node.get("plugins", ()))}

    def __post_init__(self):
        check(bool(self.texts), "texts", "must name at least one column")
