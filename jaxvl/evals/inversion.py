"""Retrieval of images by images through the text encoder: textual inversion of CLIP."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvl.aliases import Arrays, Weights
from jaxvl.config import Count, Range, Steps, check
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.columns import groups_of
from jaxvl.evals.differentiable import BoundModel
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.source_options import (
    SourceOptions,
    check_template,
    check_tokenizer,
    sample,
    skipped_figures,
)


@EVALUATORS.register("inversion")
@dataclasses.dataclass(frozen=True)
class Inversion(SourceOptions):
    """How much better images find images of their class when they ask as texts ("Cross the gap",
    Mistretta et al. 2025, arXiv 2502.04263; optimisation-based textual inversion).

    For each query one word vector w is sought by AdamW, so that the text "a photo of w" has the
    image's embedding:

        min_w 1 - cos(text("a photo of w"), image)

    That text then queries the images, across the modality gap that a contrastive loss has shaped,
    where the image itself would query within one modality, which no loss has. An image is no answer
    to itself.

    Figures: `native_map` and `inverted_map`, the mean average precision of the images and of their
      texts as queries; `cosine`, what the optimisation reached; `queries`, `skipped/CAUSE`.

    Attributes:
      group: the column whose equal values are right answers.
      template: the text, with `{}` at its end, where the word stands.
      table: path of the parameter of word vectors [V, D].
      steps, learning_rate, weight_decay: of AdamW; the paper's. It starts from the mean word, which
        is not from the paper.
      queries: at most so many, always the same ones.
    """

    group: str = "class_label"
    template: str = "a photo of {}"
    table: str = "text/encoder/words/embedding"
    steps: Steps = 150
    learning_rate: Annotated[float, Range(0.0, 1e3, above=True)] = 2e-2
    weight_decay: Annotated[float, Range(0.0, 1e3)] = 0.01
    queries: Count = 1000

    @property
    def figures(self) -> tuple[str, ...]:
        return "native_map", "inverted_map", "cosine", "queries", "skipped/*"

    def __post_init__(self):
        super().__post_init__()
        check_template(self.template, "word")
        ends = self.template.endswith("{}")
        check(ends, "template", f"{self.template!r} must end in '{{}}', the word that is sought")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        source = self.open()
        self.check_images(source)
        groups_of(source, self.group)
        encoders.check_embeds()
        check_tokenizer(encoders)
        params = parameters(encoders.weights)
        near = ", ".join(path for path in params if "words" in path or "token" in path)
        check(self.table in params, "table", f"{self.table!r} is no parameter (near: {near})")
        self.search(encoders)

    def run(self, encoders: Encoders) -> EvalResult:
        source, encoded = self.encode(encoders)
        groups = groups_of(source, self.group)[encoded.index]
        asked = sample(len(encoded.index), self.queries)
        targets = encoded.rows[asked]
        inverted = encoders.apply(self.search(encoders), targets, self.tokens(encoders, len(asked)))
        cosine = np.sum(inverted * np.asarray(unit_rows(targets)), 1)
        metrics = {
            "native_map": mean_average_precision(targets, encoded.rows, groups, asked),
            "inverted_map": mean_average_precision(inverted, encoded.rows, groups, asked),
            "cosine": float(cosine.mean()),
            "queries": float(len(asked)),
        }
        return EvalResult(metrics | skipped_figures(encoded.skipped), [])

    def search(self, encoders: Encoders) -> Search:
        """The optimisation for this model. Raises ConfigError where its vocabulary is too small for
        a batch."""
        used = {encoders.tokenizer.pad_id, encoders.tokenizer.eos_id, *self.tokens(encoders, 1)[0]}
        rows = len(parameters(encoders.weights)[self.table])
        free = [i for i in range(rows) if i not in used][: encoders.batch]
        enough = len(free) == encoders.batch
        check(enough, "table", f"{rows} words are too few for a batch of {encoders.batch} queries")
        return Search(self.table, self.steps, self.learning_rate, self.weight_decay, tuple(free))

    def tokens(self, encoders: Encoders, n: int) -> np.ndarray:
        """int32 [n, T], the template with `-1` for the word."""
        tokenizer = encoders.tokenizer
        filled = np.asarray(tokenizer.encode([self.template.format("")], encoders.text_length))[0]
        ends = np.isin(filled, [i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None])
        place = int(np.argmax(ends)) if ends.any() else len(filled) - 2
        check(
            0 < place < len(filled) - 1,
            "template",
            f"{self.template!r} and a word do not fit in {len(filled)} tokens",
        )
        row = np.concatenate([filled[:place], [-1], filled[place:-1]]).astype(np.int32)
        return np.tile(row, (n, 1))


@dataclasses.dataclass(frozen=True)
class Search:
    """The optimisation, for `Encoders.apply`; options of `Inversion`.

    Attributes:
      free: ids of words that the template does not use, one for each row of a batch.
    """

    table: str
    steps: int
    learning_rate: float
    weight_decay: float
    free: tuple[int, ...]

    def __call__(self, model: BoundModel, targets: jax.Array, tokens: jax.Array) -> jax.Array:
        """Unit text embeddings [b, E] of the words that were found for the targets [b, E].

        Every row writes its word over a row of the table that the template does not use, so that
        one call of the text encoder serves all rows and no table is copied for each.
        """
        table = parameters(model.weights)[self.table]
        own = jnp.asarray(self.free[: len(tokens)], tokens.dtype)
        ids = jnp.where(tokens < 0, own[:, None], tokens)
        targets = unit_rows(targets)

        def embed(words: jax.Array) -> jax.Array:
            written = table.at[own].set(words.astype(table.dtype))
            weights = with_parameter(model.weights, self.table, written)
            return unit_rows(dataclasses.replace(model, weights=weights).text(ids))

        def loss(words: jax.Array) -> jax.Array:
            return jnp.sum(1.0 - jnp.sum(embed(words) * targets, -1))

        optimiser = optax.adamw(self.learning_rate, weight_decay=self.weight_decay)

        def step(i: jax.Array, carry: tuple) -> tuple:
            words, state = carry
            updates, state = optimiser.update(jax.grad(loss)(words), state, words)
            return optax.apply_updates(words, updates), state

        # From the mean word: the same for every query, whatever the batch.
        start = jnp.tile(jnp.mean(table, 0, keepdims=True), (len(tokens), 1))
        words, _ = jax.lax.fori_loop(0, self.steps, step, (start, optimiser.init(start)))
        return embed(words)


def parameters(weights: Arrays | Weights) -> Arrays:
    """Path -> array, of the weights of `Encoders`: parameters, or those and the model's state."""
    return weights[0] if isinstance(weights, tuple) else weights


def with_parameter(weights: Arrays | Weights, path: str, value: jax.Array) -> Arrays | Weights:
    """The same weights with another array at a path."""
    changed = {**parameters(weights), path: value}
    return (changed, *weights[1:]) if isinstance(weights, tuple) else changed


def unit_rows(x: jax.Array) -> jax.Array:
    """Rows scaled to length 1; a zero row stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def mean_average_precision(
    queries: np.ndarray, candidates: np.ndarray, groups: np.ndarray, asked: np.ndarray
) -> float:
    """Mean over queries of the mean, over right candidates, of the share of right ones among those
    that rank as high; 0 where no query has a right candidate.

    Args:
      queries: float [m, D]. candidates: float [n, D].
      groups: int [n]; candidates of the query's group are right.
      asked: int [m], the candidate that each query stands for, which is left out.
    """
    precisions = []
    for query, own in zip(queries, asked):
        order = np.argsort(-(candidates @ query), kind="stable")
        right = groups[order[order != own]] == groups[own]
        if right.any():
            found = np.cumsum(right) / np.arange(1, len(right) + 1)
            precisions.append(found[right].mean())
    return float(np.mean(precisions)) if precisions else 0.0
