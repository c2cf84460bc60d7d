"""Linking of mentions to the entities of a knowledge base by all scores of a model together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np

from jaxvl.aliases import Arrays
from jaxvl.data.fields.base import Field
from jaxvl.data.fields.numbers import Group
from jaxvl.data.sources import SOURCES
from jaxvl.data.sources.base import Source, SourceConfig
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import LABELS, PICTURES, check_column, check_texts
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.ranking import rank
from jaxvl.evals.rows import caption, check_rows, picture, rows_config, rows_of
from jaxvl.evals.source_options import SourceOptions, check_tokenizer, open_named
from jaxvl.objectives.m3el import SCORES, SIDES, MeanScore, Read, as_entity, as_mention, of_record

KS = (1, 3, 5, 10)
GROUP = "group_id"
TILE = 128  # entities at a time
BLOCK = 64  # mentions at a time: their tokens are compared with those of each entity


@EVALUATORS.register("entity_linking")
@dataclasses.dataclass(frozen=True)
class EntityLinking(SourceOptions):
    """Mentions, pictures with a text, find their entity among all of a knowledge base by the mean
    of the scores that the objective `m3el` is trained with (M3EL, Hu et al. 2024, arXiv
    2412.10440).

    Figures: `hits@1`, `hits@3`, `hits@5`, `hits@10` and `mrr`, the mean of 1 / rank (equal scores
    count by chance); `SCORE/hits@1` of each score alone; `hits@1_chance`, `mentions`, `entities`.

    Attributes:
      text: the mentions' column of texts.
      label: column of the mentions and of the entities, numbers or texts that are equal where a
        mention is of an entity.
      entities: source of the knowledge base.
      entity_image, entity_text: its columns of pictures and of texts.
      head: label of the model's head `entity_matching`.
    """

    entities: Annotated[Any, SOURCES] = dataclasses.field(kw_only=True)
    text: str = "text"
    label: str = "class_label"
    entity_image: str = "image"
    entity_text: str = "text"
    head: str = "matching"

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        return (self.source, self.entities)

    @property
    def figures(self) -> tuple[str, ...]:
        hits = tuple(f"hits@{k}" for k in KS)
        each = tuple(f"{name}/hits@1" for name in SCORES)
        return (*hits, "mrr", *each, "hits@1_chance", "mentions", "entities")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        check_tokenizer(encoders)
        base = open_named(self.entities, "entities")
        self._check_columns(self.open(), image=self.image, text=self.text)
        self._check_columns(base, entity_image=self.entity_image, entity_text=self.entity_text)
        of_base = dataclasses.replace(self, source=self.entities)
        fields = self._fields(encoders, self.entity_image, self.entity_text)
        check_rows(of_base, encoders, "entities", fields)
        fields = self._fields(encoders, self.image, self.text)
        encoders.check_outputs(check_rows(self, encoders, "source", fields).shapes, self._names)

    def _check_columns(self, source: Source, **columns: str) -> None:
        """Raises ConfigError where a source has not the columns, of pictures and of texts, that two
        options name."""
        (image, pictures), (text, texts) = columns.items()
        check_column(source, pictures, PICTURES, image)
        check_texts(source, texts, text)
        check_column(source, self.label, LABELS, "label")

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises DataError where a source has no record with a picture, a text and a label."""
        of_base = dataclasses.replace(self, source=self.entities)
        mention_fields = self._fields(encoders, self.image, self.text)
        entity_fields = self._fields(encoders, self.entity_image, self.entity_text)
        mentions, wanted = self._read(self, encoders, mention_fields, as_mention)
        entities, ids = self._read(of_base, encoders, entity_fields, as_entity)
        how = dict(tile=TILE, block=BLOCK)
        together = rank(
            mentions, entities, wanted, ids, encoders.mesh, score=MeanScore(SCORES), **how
        )
        metrics = {f"hits@{k}": float(together.recall(k).mean()) for k in KS}
        metrics["mrr"] = float(np.mean(np.where(together.right > 0, 1 / together.rank(), 0.0)))
        for name in SCORES:
            score = MeanScore((name,))
            alone = rank(mentions, entities, wanted, ids, encoders.mesh, score=score, **how)
            metrics[f"{name}/hits@1"] = float(alone.recall(1).mean())
        metrics["hits@1_chance"] = together.chance(1)
        metrics |= {"mentions": float(len(wanted)), "entities": float(len(ids))}
        return EvalResult(metrics, [])

    def _fields(self, encoders: Encoders, image: str, text: str) -> dict[str, Field]:
        fields = {"image": picture(image, encoders), "text": caption(text, encoders)}
        return fields | {GROUP: Group(self.label)}

    @property
    def _names(self) -> tuple[str, ...]:
        """Outputs of the model, which hold what a record needs in either place. Every record is
        read as the model's first one."""
        return of_record(f"{self.head}/mention", ("keys", "values", "wanted", "queries"))

    def _read(
        self,
        options: SourceOptions,
        encoders: Encoders,
        fields: dict[str, Field],
        place: Callable[[Arrays, str], Read],
    ) -> tuple[Read, np.ndarray]:
        """What the records of a source bring to the scores in their place, and what each record
        is, int32 [n]."""
        shapes = rows_config(options, encoders, fields).shapes
        masks = [f"{self.head}/mention/{side}_mask" for side in SIDES]
        names = (*self._names, *(mask for mask in masks if encoders.gives(shapes, mask)))
        parts = []
        labels = []
        for batch, n in rows_of(options, encoders, fields):
            inputs = {name: array for name, array in batch.items() if name != GROUP}
            found = encoders.outputs(inputs, names)
            rows = {name: array[:n] for name, array in found.items()}
            parts.append(place(rows, f"{self.head}/mention"))
            labels.append(batch[GROUP][:n])
        return jax.tree.map(lambda *a: np.concatenate(a), *parts), np.concatenate(labels)
