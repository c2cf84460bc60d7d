"""The rules, in the order in which they are applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxvl.data.preparing.gathering import PCollection
from jaxvl.data.preparing.losses import Context, JoinRule, Loss, RowRule, Rule
from jaxvl.data.preparing.near import NearTestImages
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.rare import RareWords
from jaxvl.data.preparing.rows import Place, Row
from jaxvl.data.preparing.scoring import MinScore, TopShare
from jaxvl.data.preparing.subsets import subset
from jaxvl.data.preparing.words import text_key, words
from jaxvl.data.sources.pairs import find_pairs, pairs_of_hex

OF_DATACOMP = "DataComp (arXiv 2304.14108), subset files"
OF_MODEL = "score of a model"
OF_IMAGES = "ALIGN (arXiv 2102.05918), section 3, image-based filtering"
OF_TEXTS = "ALIGN (arXiv 2102.05918), section 3, text-based filtering"


@dataclasses.dataclass(frozen=True)
class MinSide(RowRule):
    pixels: int

    def judge(self, row: Row) -> Loss | None:
        fits = min(row.width, row.height) > self.pixels
        return None if fits else Loss(row.position, (), f"{row.width} x {row.height} pixels")


@dataclasses.dataclass(frozen=True)
class MaxAspect(RowRule):
    ratio: float

    def judge(self, row: Row) -> Loss | None:
        long = max(row.width, row.height)
        short = min(row.width, row.height)
        fits = long < self.ratio * short
        return (
            None
            if fits
            else Loss(
                row.position, (), f"{row.width} x {row.height} pixels, {long / short:.2f} to 1"
            )
        )


@dataclasses.dataclass(frozen=True)
class WordCount(RowRule):
    """Texts of too few or too many words go."""

    least: int | None
    most: int | None

    def judge(self, row: Row) -> Loss | None:
        counts = {place: len(words(text)) for place, text in row.texts}
        gone = tuple(place for place, count in counts.items() if not self.fits(count))
        if not gone:
            return None
        word_counts = ", ".join(str(counts[place]) for place in gone[:3])
        return Loss(row.position, gone, f"{word_counts} words")

    def fits(self, count: int) -> bool:
        enough = self.least is None or count >= self.least
        return enough and (self.most is None or count <= self.most)


@dataclasses.dataclass(frozen=True)
class UidSubset(RowRule):
    file: str

    def judge(self, row: Row) -> Loss | None:
        if row.uid is None:
            return Loss(row.position, (), "it has no uid")
        pairs, valid = pairs_of_hex([row.uid])
        if not valid[0]:
            return Loss(row.position, (), f"{row.uid[:64]!r} is not 32 hex digits")
        there = find_pairs(subset(self.file), pairs)[0] >= 0
        return None if there else Loss(row.position, (), f"{row.uid} is not in the file")


# --------------------------------------------------------------------------------------------------
# Rules that group records. They read a group twice and hold none of it: the text "image" has
# millions of pictures. Some runners themselves hold one group whole, about 100 bytes a member.


def _too_many(
    group: tuple[bytes, Iterable[tuple[bytes, int, tuple[Place, ...]]]], most: int, what: str
) -> Iterator[Loss]:
    """Losses of all members of a group that has more than `most` distinct other sides.

    Args:
      group: its key; (other side, position, texts that would be lost) of its members.
    """
    _, members = group
    others: set[bytes] = set()
    for other, _, _ in members:
        others.add(other)
        if len(others) > most:
            break
    if len(others) <= most:
        return
    for _, position, places in members:
        yield Loss(position, places, f"more than {most} {what}")


def _by_image(row: Row) -> Iterator[tuple[bytes, tuple[bytes, int, tuple[Place, ...]]]]:
    for _, text in row.texts:
        yield row.image, (text_key(text), row.position, ())


def _by_text(row: Row) -> Iterator[tuple[bytes, tuple[bytes, int, tuple[Place, ...]]]]:
    for place, text in row.texts:
        yield text_key(text), (row.image, row.position, (place,))


@dataclasses.dataclass(frozen=True)
class TextsPerImage(JoinRule):
    most: int

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        grouped = (
            rows
            | f"{self.name}: by image" >> beam.FlatMap(_by_image)
            | f"{self.name}: group" >> beam.GroupByKey()
        )
        return grouped | f"{self.name}: count" >> beam.FlatMap(
            _too_many, self.most, "distinct texts"
        )


@dataclasses.dataclass(frozen=True)
class ImagesPerText(JoinRule):
    most: int

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        grouped = (
            rows
            | f"{self.name}: by text" >> beam.FlatMap(_by_text)
            | f"{self.name}: group" >> beam.GroupByKey()
        )
        return grouped | f"{self.name}: count" >> beam.FlatMap(
            _too_many, self.most, "distinct pictures"
        )


def _repeated(group: tuple[bytes, Iterable[tuple[int, tuple[Place, ...]]]]) -> Iterator[Loss]:
    """Losses of all members of a group but the first in the source."""
    _, members = group
    first = min(members)
    for member in members:
        if member != first:
            yield Loss(member[0], member[1], f"as record {first[0]}")


def _whole(row: Row) -> tuple[bytes, tuple[int, tuple[Place, ...]]]:
    return row.image, (row.position, ())


def _pairs(row: Row) -> Iterator[tuple[bytes, tuple[int, tuple[Place, ...]]]]:
    for place, text in row.texts:
        yield row.image + text_key(text), (row.position, (place,))


@dataclasses.dataclass(frozen=True)
class Duplicates(JoinRule):
    of: str

    def losses(self, rows: PCollection, context: Context) -> PCollection:
        import apache_beam as beam

        if self.of == "images":
            keyed = rows | f"{self.name}: by image" >> beam.Map(_whole)
        else:
            keyed = rows | f"{self.name}: by pair" >> beam.FlatMap(_pairs)
        grouped = keyed | f"{self.name}: group" >> beam.GroupByKey()
        return grouped | f"{self.name}: but the first" >> beam.FlatMap(_repeated)


# --------------------------------------------------------------------------------------------------


def rules_of(config: PrepareConfig) -> list[Rule]:
    """The rules that hold, in their order: those that need the least first, the model's last."""
    rules = config.rules
    test_distance = rules.test_distance if config.test_images else None
    no_near = (
        "no near-duplicate of a test picture (perceptual hashes that differ in at most {} of 64 "
        "bits)"
    )
    found = [
        _rule(UidSubset, "uid_subset", rules.uid_subset, "uid in {}", OF_DATACOMP),
        _rule(
            MinSide, "min_side", rules.min_side, "shorter side of more than {} pixels", OF_IMAGES
        ),
        _rule(
            MaxAspect, "max_aspect", rules.max_aspect, "aspect ratio of less than {:g}", OF_IMAGES
        ),
        _rule(
            TextsPerImage,
            "texts_per_image",
            rules.max_texts_per_image,
            "pictures of at most {:,} distinct texts",
            OF_IMAGES,
        ),
        _rule(NearTestImages, "near_test_images", test_distance, no_near, OF_IMAGES),
        _rule(
            ImagesPerText,
            "images_per_text",
            rules.max_images_per_text,
            "texts of at most {:,} distinct pictures",
            OF_TEXTS,
        ),
        _rule(
            RareWords,
            "rare_words",
            rules.vocabulary,
            "texts of the {:,} most frequent unigrams and bigrams only",
            OF_TEXTS,
        ),
        _word_count(rules.min_words, rules.max_words),
        _rule(
            Duplicates,
            "duplicates",
            rules.duplicates,
            "equal {} once, the first in the source",
            "exact copies: SHA-256, normalised text",
        ),
        _rule(MinScore, "score", rules.min_score, "pairs that score at least {:g}", OF_MODEL),
        _rule(
            TopShare, "score", rules.top_share, "the best {:.1%} of the pairs by score", OF_MODEL
        ),
    ]
    return [rule for rule in found if rule is not None]


def _rule(
    kind: Callable[..., Rule], name: str, threshold: Any, says: str, source: str
) -> Rule | None:
    return None if threshold is None else kind(name, says.format(threshold), source, threshold)


def _word_count(least: int | None, most: int | None) -> Rule | None:
    if least is None and most is None:
        return None
    says = (
        f"texts of at least {least} words"
        if most is None
        else f"texts of {least or 0} to {most} words"
    )
    return WordCount("word_count", says, OF_TEXTS, least, most)
