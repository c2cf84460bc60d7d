"""What a model can do for an evaluator, asked before anything is compiled: from shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxvl.aliases import Tree
from jaxvl.config import ConfigError
from jaxvl.data.preprocess import Preprocess
from jaxvl.models.generate import Generation


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What a model can do for an evaluator.

    Attributes:
      embeds: gives rows of images and texts that can be compared.
      generates: writes captions.
      scores: gives the probability of a text under an image.
      image_tokens: has tokens of an image before pooling.
      outputs: gives named outputs of a batch as in training.
    """

    embeds: bool
    generates: bool
    scores: bool
    image_tokens: bool
    outputs: bool


BOOKKEEPING = ("position", "group_id")  # batch entries that no model is given
_WORDS = {
    "embeds": "compares images with texts",
    "generates": "writes captions, as coca",
    "scores": "gives the probability of a text, as coca",
    "image_tokens": "has tokens of an image, as coca",
    "outputs": "gives named outputs",
}


class Abstract:
    """What `Encoders` answer without computing anything; their weights may be shapes.

    Attributes:
      abilities: what the model can do.
      batch, text_length, preprocess, mesh, weights: see `Encoders`.
    """

    batch: int
    text_length: int
    preprocess: Preprocess
    mesh: Mesh
    weights: Tree
    _embeds: bool
    _image: Callable
    _text: Callable
    _caption: Callable | None
    _score: Callable | None
    _features: Callable | None
    _outputs: Callable | None
    _embedding: Callable[[str, str | None], Callable]

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            embeds=self._embeds,
            generates=self._caption is not None,
            scores=self._score is not None,
            image_tokens=self._features is not None,
            outputs=self._outputs is not None,
        )

    def require(self, ability: str) -> None:
        """Raises ConfigError at `name` where the model cannot do what this field of `Abilities`
        says."""
        if not getattr(self.abilities, ability):
            raise ConfigError("name", f"needs a model that {_WORDS[ability]}")

    def check_embeds(self, texts: bool = True) -> None:
        """Raises ConfigError at `name` where the model does not give rows of images, and of texts
        (`texts`) of the same width."""
        self.require("embeds")
        of_images, _ = self._shapes(self._image, *self._pictures)
        if not texts:
            return
        of_texts = self._shapes(self._text, self._text_ids())
        if of_images.shape != of_texts.shape:
            problem = (
                f"needs a model that {_WORDS['embeds']}; its rows are {of_images.shape[1:]} and "
                f"{of_texts.shape[1:]}"
            )
            raise ConfigError("name", problem)

    def check_generates(self, generation: Generation) -> None:
        """Raises ConfigError at `name` where the model writes nothing, at `generation` where it
        cannot write in that way."""
        self.require("generates")
        how, numbers = generation.split()

        def write(weights: Any, pixels: jax.Array, fault: jax.Array) -> Any:
            return self._caption(weights, pixels, fault, how, numbers, jnp.int32(0))

        self._shapes(write, *self._pictures, field="generation")

    def check_scores(self) -> None:
        """Raises ConfigError at `name` where the model does not tell how likely a text is."""
        self.require("scores")
        begin = jax.ShapeDtypeStruct((self.batch,), jnp.int32)
        self._shapes(self._score, *self._pictures, self._text_ids(1), begin)

    def check_outputs(
        self, batch: Mapping[str, jax.ShapeDtypeStruct], names: tuple[str, ...]
    ) -> None:
        """Raises ConfigError at `name` where the model does not give the outputs `names` of a batch
        of such shapes."""
        self.require("outputs")
        shapes = {name: shape for name, shape in batch.items() if name not in BOOKKEEPING}
        self._shapes(lambda weights, batch: self._outputs(weights, batch, names), shapes)

    def gives(self, batch: Mapping[str, jax.ShapeDtypeStruct], name: str) -> bool:
        """Whether the model has the output `name` for a batch of such shapes."""
        try:
            self.check_outputs(batch, (name,))
        except ConfigError:
            return False
        return True

    def output_shape(self, output: str) -> tuple[int, ...]:
        """Shape of one picture's output of this name. Raises ConfigError at `output` where the
        model has none such of pictures alone."""
        encode = self._embedding("image", output)
        rows, _ = self._shapes(encode, *self._pictures, field="output")
        return rows.shape[1:]

    def token_shape(self) -> jax.ShapeDtypeStruct:
        """Shape [P, D] and dtype of one image's `features`. Raises ConfigError where the model has
        none."""
        self.require("image_tokens")
        tokens, _ = self._shapes(lambda *args: self._features(*args, False), *self._pictures)
        return jax.ShapeDtypeStruct(tokens.shape[1:], tokens.dtype)

    def token_bytes(self) -> int:
        """Bytes of one image's `features`."""
        tokens = self.token_shape()
        return tokens.size * tokens.dtype.itemsize

    @property
    def input_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of pictures, and of texts, as `outputs` takes them."""
        return {"image": self._pictures[0], "text": self._text_ids()}

    @property
    def _pictures(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of a batch of pictures, and of their faults."""
        size = self.preprocess.image_size
        return jax.ShapeDtypeStruct((self.batch, size, size, 4), jnp.uint8), jax.ShapeDtypeStruct(
            (self.batch,), jnp.int32
        )

    def _text_ids(self, *texts: int) -> jax.ShapeDtypeStruct:
        """Shape [B, *texts, T] of token ids."""
        return jax.ShapeDtypeStruct((self.batch, *texts, self.text_length), jnp.int32)

    def _shapes(self, function: Callable, *args: Any, field: str = "name") -> Any:
        """Shapes of `function(weights, *args)`. Raises ConfigError at `field` where the model does
        not take such inputs."""
        try:
            with jax.set_mesh(self.mesh):
                return jax.eval_shape(function, self.weights, *args)
        except ConfigError:
            raise
        except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
            problem = error.args[0] if error.args else type(error).__name__
            raise ConfigError(
                field, f"the model does not take this evaluator's inputs: {problem}"
            ) from error
