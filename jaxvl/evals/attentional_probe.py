"""Attentional probe: a new pooler and a linear layer on the frozen tokens of the image encoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxvl.aliases import Arrays
from jaxvl.config import Batch, Count, Heads, Scale, Seed, Weight, Width, check
from jaxvl.data.sources.base import Source
from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.encoders import EncodedImages, Encoders
from jaxvl.evals.probing import Labelled, ProbeOptions, expected_accuracy
from jaxvl.evals.ranking import put
from jaxvl.models.functional import functional
from jaxvl.models.probe import ProbeConfig
from jaxvl.sharding.mesh import batch_sharding, batch_shards, replicated


@EVALUATORS.register("attentional_probe")
@dataclasses.dataclass(frozen=True)
class AttentionalProbe(ProbeOptions):
    """CoCa's evaluation of frozen features (Yu et al. 2022): the encoder stays, a pooler with one
    query and a linear layer learn.

    Trained with AdamW, linear warm-up over a twentieth of the steps and cosine decay, on tokens
    that are computed once. They lie in every process's memory, P x D values an image (twice that
    while they are put together), which `memory_gib` limits.

    Figures as of `linear_probe`, with `train_loss` (mean of the last epoch) and `train_acc@1`.

    Attributes:
      epochs, batch, learning_rate, weight_decay, label_smoothing: of the training. batch is rounded
        up to what the mesh divides.
      width: of the pooler; None: that of the tokens. heads: of the pooler.
      memory_gib: most memory of the tokens of one source.
      seed: of initialisation and order.
    """

    epochs: Count = 20
    batch: Batch = 256
    learning_rate: Scale = 1e-3
    weight_decay: Weight = 1e-4
    label_smoothing: float = 0.0
    width: Width | None = None
    heads: Heads = 8
    memory_gib: Scale = 16.0
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("epochs", "batch", "heads"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")
        check(self.learning_rate > 0, "learning_rate", f"{self.learning_rate!r} must be > 0")
        check(self.weight_decay >= 0, "weight_decay", f"{self.weight_decay!r} must be >= 0")
        check(
            0 <= self.label_smoothing < 1,
            "label_smoothing",
            f"{self.label_smoothing!r} must be in [0, 1)",
        )

    @property
    def figures(self) -> tuple[str, ...]:
        return (*super().figures, "train_loss")

    def check(self, encoders: Encoders) -> None:
        """See `contract.Evaluator.check`."""
        super().check(encoders)
        width = self.width or encoders.token_shape().shape[-1]
        check(width % self.heads == 0, "heads", f"{self.heads} must divide the width of {width}")
        for source in (self.open_train(), self.open()):
            self._check_memory(encoders, source)

    def run(self, encoders: Encoders) -> EvalResult:
        """Raises ConfigError for a model without tokens or where they do not fit, DataError where
        there is nothing to learn from."""
        train, test, names = self.both(lambda source, _: self._tokens(encoders, source))
        width = self.width or train.rows.shape[-1]
        check(width % self.heads == 0, "heads", f"{self.heads} must divide the width of {width}")
        batch = rounded(min(self.batch, len(train.rows)), encoders.mesh)
        steps = -(-len(train.rows) // batch) * self.epochs
        probe = ProbeConfig(len(names), train.rows.shape[-1], width, self.heads)
        programs = compiled(
            probe,
            str(train.rows.dtype),
            self.learning_rate,
            self.weight_decay,
            self.label_smoothing,
            steps,
            encoders.mesh,
        )
        params, loss = self.fit(programs, train, batch, encoders.mesh)
        logits = lambda rows: programs.predict(params, rows, batch, encoders.mesh)
        more = {
            "train_loss": loss,
            "train_acc@1": expected_accuracy(logits(train.rows), train.labels).mean(),
        }
        return self.result(encoders, logits(test.rows), train, test, names, more)

    def _tokens(self, encoders: Encoders, source: Source) -> EncodedImages:
        """Tokens of all pictures of a source, if they are not too large."""
        self._check_memory(encoders, source)
        return encoders.features(source, column=self.image)

    def _check_memory(self, encoders: Encoders, source: Source) -> None:
        need = encoders.token_bytes() * len(source) / 2**30
        problem = (
            f"{self.memory_gib!r}: the tokens of the {len(source)} images of {source.name} take "
            f"{need:.1f} GiB"
        )
        check(
            need <= self.memory_gib, "memory_gib", f"{problem}; raise it, or probe a smaller source"
        )

    def fit(
        self, programs: Programs, train: Labelled, batch: int, mesh: Mesh
    ) -> tuple[Arrays, float]:
        """Trained parameters, replicated, and the mean loss of the last epoch."""
        place = lambda a: put(a, batch_sharding(mesh))
        n = len(train.rows)
        losses = []
        with jax.set_mesh(mesh):
            state = programs.start(jax.random.key(self.seed))
            for epoch in range(self.epochs):
                order = np.random.default_rng([self.seed, epoch]).permutation(n)
                losses = []
                for at in range(0, n, batch):
                    own = order[at : at + batch]
                    rows = np.resize(own, batch)
                    real = (np.arange(batch) < len(own)).astype(
                        np.float32
                    )  # the last batch is filled up with rows that do not count
                    state, value = programs.step(
                        state,
                        *map(place, (train.rows[rows], train.labels[rows].astype(np.int32), real)),
                    )
                    losses.append((value, len(own)))
                    if len(losses) > 2:
                        jax.block_until_ready(
                            losses[-3][0]
                        )  # so that batches do not pile up on the devices
            values = np.array([float(v) for v, _ in losses])
            sizes = np.array([k for _, k in losses])
        return state[0], float(values @ sizes / sizes.sum())


class Programs(NamedTuple):
    """Compiled functions of a probe: key -> state; (state, tokens, labels, real float [B]) ->
    (state, loss); (params, tokens) -> logits."""

    start: Callable
    step: Callable
    apply: Callable

    def predict(self, params: Arrays, rows: np.ndarray, batch: int, mesh: Mesh) -> np.ndarray:
        """Logits float32 [n, C] of tokens [n, P, D]."""
        out = []
        with jax.set_mesh(mesh):
            for at in range(0, len(rows), batch):
                part = rows[np.minimum(np.arange(at, at + batch), len(rows) - 1)]
                out.append(np.asarray(self.apply(params, put(part, batch_sharding(mesh)))))
        return np.concatenate(out)[: len(rows)]


@functools.lru_cache(maxsize=8)
def compiled(
    config: ProbeConfig,
    dtype: str,
    learning_rate: float,
    decay: float,
    smoothing: float,
    steps: int,
    mesh: Mesh,
) -> Programs:
    """Kept, so that an evaluation later in the run compiles nothing."""
    probe = functional(config, None, jnp.dtype(dtype))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(max(1, steps // 20), steps - 1), steps
    )
    tx = optax.adamw(
        rate,
        weight_decay=decay,
        mask={path: path.endswith(("kernel", "query")) for path in probe.params},
    )
    everywhere = replicated(mesh)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def start(key):
        params, _ = probe.init(key)
        return params, tx.init(params)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def step(state, tokens, labels, real):
        def loss(params):
            logits, _ = probe.apply(params, {}, tokens)
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
            return (optax.softmax_cross_entropy(logits, targets) * real).sum() / real.sum()

        params, moments = state
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = tx.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    return Programs(
        start,
        step,
        jax.jit(
            lambda params, tokens: probe.apply(params, {}, tokens)[0], out_shardings=everywhere
        ),
    )


def rounded(batch: int, mesh: Mesh) -> int:
    """Rows rounded up to what the mesh divides."""
    return -(-batch // batch_shards(mesh)) * batch_shards(mesh)
