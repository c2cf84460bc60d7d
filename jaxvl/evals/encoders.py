"""The encode functions of a model as an evaluator uses them: pictures and texts in, rows of numpy
out, on any mesh."""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxvl.aliases import Tree
from jaxvl.config import ConfigError
from jaxvl.data.augment import plain
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals.abilities import Abstract
from jaxvl.evals.differentiable import Functions, apply, of_output
from jaxvl.evals.picture_batches import CAUSES, FAILED, PictureBatches, Pictures
from jaxvl.evals.ranking import put
from jaxvl.models.generate import Generation, Numbers
from jaxvl.sharding.mesh import batch_sharding, batch_shards, replicated

THREADS = 4  # for reading and decoding

# What `Encoders.together` gives beside the model's named outputs, none of which is called so.
EMBEDDING = "(embedding)"
TOKENS = "(tokens)"
MEAN_TOKENS = "(mean of tokens)"


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Rows of the records that could be encoded.

    Attributes:
      rows: float32 [n, D]; of `Encoders.scores` and `Encoders.features` other arrays [n, …].
      index: int64 [n], positions in the source, ascending.
      skipped: cause -> number of records left out.
    """

    rows: np.ndarray
    index: np.ndarray
    skipped: dict[str, int]


class Encoders(Abstract):
    """Encodes sources and texts in padded, sharded batches; every process gets all rows.

    Pictures are those of a source's column, of which nothing else is read, or uint8 [n, S, S, 3 or
    4] of the model's size.

    In a multi-host run every process must make the same calls in the same order. Each reads and
    decodes only the records of its own devices. Only a `BadRecord` is left out and counted. Any
    other error of a source or a decoder ends the call in every process with `EvaluatorError`.

    Args:
      functions: of the model.
      weights: any pytree of arrays; an argument of the compiled functions, so that new weights
        compile nothing.
      tokenizer, preprocess: those that the model was trained with.
      text_length: T.
      mesh: the batch is sharded over its data x fsdp axes.
      batch: rows per call, rounded up to what the mesh divides.

    Attributes:
      threads: for reading and decoding, THREADS.
      open_run: workdir of another run -> its encoders; None: no other run can be opened.
    """

    open_run: Callable[[str], Encoders] | None = None

    def __init__(
        self,
        functions: Functions,
        weights: Tree,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        text_length: int,
        mesh: Mesh,
        *,
        batch: int = 256,
    ):
        self.weights = weights
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.text_length = text_length
        self.mesh = mesh
        self.threads = THREADS
        self.batch = -(-batch // batch_shards(mesh)) * batch_shards(mesh)
        self._sharding = batch_sharding(mesh)
        self._memo: tuple[Hashable, EncodedImages] | None = None
        self._picture_batches = PictureBatches(preprocess, self._sharding, self.batch, self.threads)
        self._embeds = functions.image is not None and functions.text is not None
        self.functions = functions
        self.applied: dict[Callable, Callable] = {}  # functions given to `apply` -> compiled
        self._by_output: dict[tuple[str, str | tuple[str, ...]], Callable] = {}
        ready = self._ready

        def from_pixels(
            weights: Tree, pixels: jax.Array, fault: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return functions.image(weights, ready(pixels)).astype(jnp.float32), fault

        def from_tokens(weights: Tree, tokens: jax.Array) -> jax.Array:
            return functions.text(weights, tokens).astype(jnp.float32)

        def written(
            weights: Tree,
            pixels: jax.Array,
            fault: jax.Array,
            how: Generation,
            numbers: Numbers,
            first: jax.Array,
            prompt: jax.Array | None = None,
        ) -> tuple:
            return functions.caption(
                weights, ready(pixels), how, numbers, first + jnp.arange(len(pixels)), prompt
            ), fault

        def scored(
            weights: Tree, pixels: jax.Array, fault: jax.Array, tokens: jax.Array, begin: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return functions.score(weights, ready(pixels), tokens, begin), fault

        def featured(
            weights: Tree, pixels: jax.Array, fault: jax.Array, mean: bool
        ) -> tuple[jax.Array, jax.Array]:
            tokens = functions.tokens(weights, ready(pixels))
            return tokens.mean(1, dtype=jnp.float32) if mean else tokens, fault

        def named(
            weights: Tree, batch: dict[str, jax.Array], names: tuple[str, ...]
        ) -> dict[str, jax.Array]:
            found = functions.outputs(
                weights,
                batch
                | {
                    name: _pictures(ready, batch[name])
                    for name in ("image", "video")
                    if name in batch
                },
            )
            missing = [name for name in names if name not in found]
            if missing:
                raise ConfigError(
                    "name",
                    f"needs the model output {missing[0]!r}, which is not there (there are: "
                    f"{', '.join(sorted(found))})",
                )
            return {name: found[name] for name in names}

        self._outputs = functions.outputs and jax.jit(
            named, out_shardings=replicated(mesh), static_argnums=2
        )
        self._caption = functions.caption and jax.jit(
            written, out_shardings=replicated(mesh), static_argnums=3
        )
        self._score = functions.score and jax.jit(scored, out_shardings=replicated(mesh))
        self._features = functions.tokens and jax.jit(
            featured, out_shardings=replicated(mesh), static_argnums=3
        )
        self._image, self._text = (
            jax.jit(f, out_shardings=replicated(mesh)) for f in (from_pixels, from_tokens)
        )

    def _ready(self, pixels: jax.Array) -> jax.Array:
        """Model inputs of uint8 pixels."""
        return self.preprocess.normalise(plain(pixels, self.preprocess.background))

    def with_weights(self, weights: Tree) -> Encoders:
        """The same compiled functions with other weights; nothing encoded before is kept."""
        other = copy.copy(self)
        other.weights = weights
        other._memo = None
        return other

    def apply(self, function: Callable[..., Tree], *rows: np.ndarray | jax.Array) -> Tree:
        """`function(model, *rows)` on the mesh; differentiable. See `differentiable.apply`."""
        return apply(self, function, rows)

    def images(
        self,
        source: Pictures | np.ndarray,
        column: str = "image",
        memo: Hashable = None,
        output: str | None = None,
    ) -> EncodedImages:
        """Encodes the pictures of every record of a source, or pictures themselves.

        Records that cannot be read or decoded are left out and counted. `memo` names the source:
        rows of the last named one are kept, so that several evaluators of one source encode it
        once. `output` names the model's output that is wanted (a head's) instead of the embedding;
        ConfigError at `output` where the model has none such of pictures alone.
        """
        key = None if memo is None else (memo, column, output)
        if key is not None and self._memo is not None and self._memo[0] == key:
            return self._memo[1]
        encoded = self._encoded(self._embedding("image", output), source, column)
        if key is not None:
            self._memo = key, encoded
        return encoded

    def together(
        self, source: Pictures, names: Sequence[str], column: str = "image"
    ) -> dict[str, EncodedImages]:
        """Several things of every picture, which is read and decoded once.

        Args:
          names: `EMBEDDING` as `images` gives it; `TOKENS` and `MEAN_TOKENS` as `features` does;
            others are outputs of the model, of pictures alone.

        Raises ConfigError for what the model does not have, at `output` for one of its outputs.
        """
        names = tuple(dict.fromkeys(names))
        key = ("image", names)
        if key not in self._by_output:
            each = {name: self._of_pictures(name) for name in names}

            def all_of(
                weights: Tree, pixels: jax.Array, fault: jax.Array
            ) -> tuple[dict[str, jax.Array], jax.Array]:
                found = {name: of(weights, pixels, fault)[0] for name, of in each.items()}
                return found, fault

            self._by_output[key] = jax.jit(all_of, out_shardings=replicated(self.mesh))
        rows, index, skipped = self._collected(self._by_output[key], source, column)
        none = dict.fromkeys(names, np.zeros((0, 1), np.float32))
        return {name: EncodedImages((rows or none)[name], index, skipped) for name in names}

    def _of_pictures(self, name: str) -> Callable:
        """The function of pixels and faults that `together` means by a name."""
        if name == EMBEDDING:
            return self._image
        if name in (TOKENS, MEAN_TOKENS):
            self.require("image_tokens")
            return lambda *args: self._features(*args, name == MEAN_TOKENS)
        return self._embedding("image", name)

    def captions(
        self,
        source: Pictures | np.ndarray,
        generation: Generation,
        prompt: np.ndarray | None = None,
        first: int = 0,
        column: str = "image",
    ) -> tuple[list[str], EncodedImages]:
        """Texts that the model writes of every record that can be read, and their token ids as
        `rows` of `EncodedImages`.

        Args:
          prompt: int32 [n, T], padded at the end: each text begins with its own; it is not part of
            what is returned as text.
          first: number of the first record; what is drawn for a record depends on its number.
          column: of the pictures.

        Raises ConfigError where the model writes none.
        """
        self.require("generates")
        how, numbers = generation.split()
        firsts = itertools.count(first, self.batch)

        def write(weights, pixels, fault, *more):
            return self._caption(
                weights, pixels, fault, how, numbers, np.int32(next(firsts)), *more
            )

        rows = (
            encoded := self._encoded(write, source, column, *(() if prompt is None else (prompt,)))
        ).rows
        if prompt is not None and len(rows):
            rows = np.where(
                prompt[encoded.index] == self.tokenizer.pad_id, rows, self.tokenizer.pad_id
            )
        return self.tokenizer.decode(rows), encoded

    def scores(
        self,
        source: Pictures | np.ndarray,
        tokens: np.ndarray,
        begin: np.ndarray | None = None,
        column: str = "image",
    ) -> EncodedImages:
        """How likely texts are under the images of records, given all tokens before each (teacher
        forcing).

        Args:
          tokens: int32 [n, K, T], K texts of each record, padded at the end; a text may be padding
            alone.
          begin: int32 [n]: tokens before this position are read, but do not count; None: all count.
          column: of the pictures.

        Returns:
          `rows` float32 [n', K, 3]: the sum of log-probabilities (natural) of a text's tokens, how
          many they are, and how many of them are the likeliest token at their place. EOS counts,
          padding does not.

        Raises ConfigError where the model does not give probabilities.
        """
        self.require("scores")
        begin = np.zeros(len(tokens), np.int32) if begin is None else begin
        return self._encoded(self._score, source, column, tokens, begin)

    def features(
        self, source: Pictures | np.ndarray, mean: bool = False, column: str = "image"
    ) -> EncodedImages:
        """The image encoder's own tokens before any pooling, `rows` [n, P, D] in the dtype of
        computation, or their mean float32 [n, D].

        Raises ConfigError where the model has none.
        """
        self.require("image_tokens")
        return self._encoded(lambda *args: self._features(*args, mean), source, column)

    def outputs(
        self, batch: dict[str, np.ndarray], names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """The model's outputs `names` of a batch as the loader makes it (image, video uint8), not
        in training; `self.batch` rows.

        Raises ConfigError for an output that the model does not have.
        """
        with jax.set_mesh(self.mesh):
            whole = {name: put(a, self._sharding) for name, a in batch.items()}
            return {
                name: np.asarray(a) for name, a in self._outputs(self.weights, whole, names).items()
            }

    def _encoded(
        self, function: Callable, source: Pictures | np.ndarray, column: str, *extra: np.ndarray
    ) -> EncodedImages:
        """Rows of `function(weights, pixels, fault, *rows of extra)`."""
        rows, index, skipped = self._collected(function, source, column, *extra)
        return EncodedImages(np.zeros((0, 1), np.float32) if rows is None else rows, index, skipped)

    def _collected(
        self, function: Callable, source: Pictures | np.ndarray, column: str, *extra: np.ndarray
    ) -> tuple[Tree | None, np.ndarray, dict[str, int]]:
        """The results of `function(weights, pixels, fault, *rows of extra)`, trees of rows, of the
        records that could be encoded (None where the source is empty); these records; and how many
        were left out, by cause."""
        rows = []
        faults = []
        pictures = self._picture_batches
        pictures.errors.clear()
        for out, fault in self._lagging(function, pictures.of(source, column, extra)):
            if (fault == FAILED).any():
                raise pictures.failure(self.batch * len(faults) + int(np.argmax(fault == FAILED)))
            rows.append(jax.tree.map(lambda a: a[fault == 0], out))  # noqa: B023 (used at once)
            faults.append(fault)
        fault = np.concatenate(faults) if faults else np.zeros(0, np.int32)
        skipped = {
            cause: int((fault == i + 1).sum())
            for i, cause in enumerate(CAUSES)
            if (fault == i + 1).any()
        }
        found = jax.tree.map(lambda *parts: np.concatenate(parts), *rows) if rows else None
        return found, np.flatnonzero(fault == 0), skipped

    def texts(self, texts: Sequence[str], output: str | None = None) -> np.ndarray:
        """Encodes texts, equal ones once: float32 [n, D]. `output` as of `images`."""
        distinct = list(dict.fromkeys(texts))
        encode = self._embedding("text", output)
        rows = [out for (out,) in self._lagging(lambda *a: (encode(*a),), self._tokens(distinct))]
        if not rows:
            return np.zeros((0, 1), np.float32)
        place = {text: i for i, text in enumerate(distinct)}
        return np.concatenate(rows)[[place[t] for t in texts]]

    def _embedding(self, side: str, output: str | None) -> Callable:
        """The compiled function of pictures and their faults, or of token ids, that gives the
        embedding, or another output of the model."""
        if output is None:
            return self._image if side == "image" else self._text
        if (side, output) not in self._by_output:
            size = self.preprocess.image_size
            shapes = {
                "image": jax.ShapeDtypeStruct((self.batch, size, size, 3), jnp.float32),
                "text": jax.ShapeDtypeStruct((self.batch, self.text_length), jnp.int32),
            }
            given = side, shapes.pop(side)
            with jax.set_mesh(self.mesh):
                encode = of_output(self.functions.outputs, self.weights, output, given, shapes)

            def from_pixels(
                weights: Tree, pixels: jax.Array, fault: jax.Array
            ) -> tuple[jax.Array, jax.Array]:
                return encode(weights, self._ready(pixels)), fault

            function = from_pixels if side == "image" else encode
            self._by_output[side, output] = jax.jit(function, out_shardings=replicated(self.mesh))
        return self._by_output[side, output]

    def _lagging(
        self, encode: Callable, batches: Iterator[tuple[jax.Array, ...]]
    ) -> Iterator[tuple[Tree, ...]]:
        """Results of the batches in order; the devices work on one batch while the host makes the
        next."""
        pending: collections.deque = collections.deque()
        with jax.set_mesh(self.mesh):
            for batch in batches:
                pending.append(encode(self.weights, *batch))
                if len(pending) > 2:
                    yield jax.tree.map(np.asarray, pending.popleft())
            while pending:
                yield jax.tree.map(np.asarray, pending.popleft())

    def _tokens(self, texts: list[str]) -> Iterator[tuple[jax.Array]]:
        for start in range(0, len(texts), self.batch):
            part = texts[start : start + self.batch]
            tokens = self.tokenizer.encode(
                part + [part[-1]] * (self.batch - len(part)), self.text_length
            )
            yield (put(np.asarray(tokens, np.int32), self._sharding),)


def _pictures(ready: Callable[[jax.Array], jax.Array], pixels: jax.Array) -> jax.Array:
    """Model inputs [..., S, S, 3] of uint8 [..., S, S, 4]."""
    return ready(pixels.reshape(-1, *pixels.shape[-3:])).reshape(*pixels.shape[:-1], 3)
