"""The contract of models and encoders: what they take, give and declare; and the named sizes of
transformers.

A model is a `ModelConfig` (what it can do, from its options alone) and the `Model` that it builds.
An encoder is an `EncoderConfig` and a module that maps its input to `Encoded`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.aliases import Node, Tree
from jaxvl.config import ConfigError, check, nearest
from jaxvl.nn.moe import Skills
from jaxvl.nn.transformer import Sizes

if TYPE_CHECKING:
    from jaxvl.data.config import DataConfig


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The inputs that a model is built for.

    Attributes:
      image_size: side S in pixels.
      text_length: tokens T.
      vocab_size: V.
      pad_id: token of padding, at the end of a text.
      eos_id: token that ends a text, or None where the tokenizer has none.
      channels: C of an image.
    """

    image_size: int
    text_length: int
    vocab_size: int
    pad_id: int = 0
    eos_id: int | None = None
    channels: int = 3


class Encoded(NamedTuple):
    """What an encoder gives.

    Attributes:
      pooled: [B, D], one vector per row.
      tokens: [B, T, D], the sequence before pooling (an image: patches or pixels in reading order).
      mask: bool [B, T], True where a token is not padding; None where there is no padding.
      routing: losses and health of MoE layers by row, see `nn.moe.MoeOutput.by_row`; None where
        there are no such layers.
    """

    pooled: jax.Array
    tokens: jax.Array
    mask: jax.Array | None = None
    routing: dict[str, jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a model can do, beyond mapping a batch to named outputs.

    Attributes:
      generates: it writes captions; its module is a `Generator`.
      start_id: the token that begins every text, or None where texts have none of their own.
      interleaved: it reads rows of several images and texts (`data.packing`).
      multi_instance: it reads rows of several texts, int [B, N, T].
      reports_missing: its outputs `has/…` say which rows lack an input (`data.missing="mask"`).
      classes: name of a class head -> its number of classes.
    """

    generates: bool = False
    start_id: int | None = None
    interleaved: bool = False
    multi_instance: bool = False
    reports_missing: bool = False
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)


class EncoderConfig:
    """Base class of the configurations of image and text encoders.

    Its module maps one input to `Encoded`: `module(x, *, train=False, key=None)`.

    Attributes:
      registered_name: set by the registry.
      patch: side of a patch in pixels, where the tokens are patches of an image; else None.
      class_token: whether a class token stands before the other tokens.
    """

    registered_name: ClassVar[str] = ""
    patch: int | None = None

    @property
    def class_token(self) -> bool:
        return False

    @property
    def routed(self) -> bool:
        """Whether it has MoE layers, whose losses `Encoded.routing` reports."""
        return False

    @property
    def drops_tokens(self) -> bool:
        """Whether its module takes `drop` and `row_keys`, by which rows lose tokens in training."""
        return False

    @property
    def features(self) -> int:
        """Width of the pooled output."""
        raise NotImplementedError(f"{type(self).__name__} must say the width of its output")

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the encoder cannot take such inputs."""

    def build(
        self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> nnx.Module:
        """The encoder's module; parameters are float32, computing in `dtype`."""
        raise NotImplementedError(f"{type(self).__name__} must build its module")


class ModelConfig:
    """Base class of the configurations of models.

    Attributes:
      registered_name: set by the registry.
      training_fields: options that change nothing of what given weights compute.
    """

    registered_name: ClassVar[str] = ""
    training_fields: ClassVar[frozenset[str]] = frozenset()

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        """Input -> the configuration of the encoder that reads it; of those chosen by name."""
        return {}

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        """What the model can do.

        Args:
          inputs: that it is built for; None where they are not known yet.
        """
        del inputs
        return Capabilities()

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError where the model cannot take such inputs."""

    def check_task(self, data: DataConfig, encode: Node) -> None:
        """Raises ConfigError where the model cannot take a task's data, or has not
        the options of the call that the task names."""

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> Model:
        """The model's module; parameters are float32, computing in `dtype`."""
        raise NotImplementedError(f"{type(self).__name__} must build its module")


class Model(nnx.Module):
    """Base class of models.

    Attributes:
      frozen: encoders that run as in evaluation in training too, because no parameter of theirs is
        trained; keys of `encoder_paths`. Set by `freeze`.
      adapter: label -> what an adapter has for the model as a whole; None without.
    """

    frozen: frozenset[str] = frozenset()
    adapter: nnx.Dict | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Batch entries that `encode` takes."""
        raise NotImplementedError(f"{type(self).__name__} must name its inputs")

    def encoder_paths(self) -> dict[str, str]:
        """Encoder -> path of its parameters, as `dict(image="image/encoder")`; of those that
        `freeze` can make run as in evaluation."""
        return {}

    def freeze(self, is_frozen: Callable[[str], bool]) -> None:
        """Has the encoders run as in evaluation whose parameters are all frozen.

        Args:
          is_frozen: whether the parameter at a path is not trained.
        """
        trained = [path for path in parameter_paths(self) if not is_frozen(path)]
        self.frozen = frozenset(
            name
            for name, prefix in self.encoder_paths().items()
            if not any(path.startswith(f"{prefix}/") for path in trained)
        )

    def encode(
        self, name: str, x: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> Encoded:
        """Encodes one input.

        Args:
          name: of `inputs`.
          x: the batch's entry of this name.
          train: whether batch statistics and dropout are those of training.
          key: of dropout and drop-path; needed in training where a rate is > 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must encode its inputs")

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, E]."""
        raise NotImplementedError(f"{type(self).__name__} does not embed images")

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, E]."""
        raise NotImplementedError(f"{type(self).__name__} does not embed texts")

    def head(self, output: str, name: str, x: jax.Array) -> jax.Array:
        """One named output of one input alone, as in evaluation.

        Args:
          output: as `__call__` names it: a head's (`clean`, `projector/image`) or the model's own.
          name, x: as for `encode`.

        Raises:
          KeyError: the model does not give this output of that input.
        """
        found = self({name: x})
        if output not in found:
            raise KeyError(
                f"{output!r} is not an output of {name!r} alone{nearest(output, list(found))} "
                f"(there are: {', '.join(sorted(found))})"
            )
        return found[output]

    def image_tokens(self, image: jax.Array) -> jax.Array:
        """image [B, S, S, C] -> the image encoder's tokens before pooling [B, P, D]."""
        return self.encode("image", image).tokens

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Named outputs of a batch.

        Args:
          batch: entries by name, as `Task.prepare` gives them.
          train, key: as for `encode`.
          progress: share of the run's steps that are done, float32 [] in [0, 1]; None: the end.

        Returns:
          Arrays [B, …], and scalars that are the same for any rows of the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} must give named outputs")


def parameter_paths(module: nnx.Module) -> list[str]:
    """Paths of a module's parameters, as `image/encoder/norm/scale`."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return ["/".join(map(str, path)) for path, _ in flat]


# In a batch: a PRNG key of each row [B], the same on every mesh and in every chunk. Without it rows
# draw from the key of the call.
ROW_KEYS = "row_keys"


def drop_options(
    drop: Mapping[str, float] | None, name: str, batch: Mapping[str, jax.Array]
) -> dict[str, float | jax.Array | None]:
    """What the encoder of an input is called with, beside `train` and `key`, for the option `drop`
    of a model's call: nothing where the input loses no tokens.

    Each input has draws of its own, so that two views of an image lose other patches.
    """
    share = (drop or {}).get(name, 0.0)
    if not share:
        return {}
    keys = batch.get(ROW_KEYS)
    if keys is not None:
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))
    return {"drop": share, "row_keys": keys}


def check_drop(encode: Node, encoders: Mapping[str, EncoderConfig]) -> None:
    """For models with the option `drop`.

    Args:
      encode: a task's options of the call.
      encoders: input -> configuration of the encoder that reads it.

    Raises:
      ConfigError: an input whose encoder drops no tokens, or a share that is none.
    """
    able = [name for name, encoder in encoders.items() if encoder.drops_tokens]
    for name, share in (encode.get("drop") or {}).items():
        key = f"encode.drop.{name}"
        others = ", ".join(able) or "none"
        check(name in able, key, f"is no input that can lose tokens (those that can: {others})")
        check(0 <= share < 1, key, f"{share!r} is a share of the tokens; must be in [0, 1)")


class Generator(Protocol):
    """What a model that writes captions has beside `Model`, for `models.generate`."""

    def memory(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """image [B, S, S, C] -> what captions are read from [B, N, D], and the image embedding."""

    def caption_scores(self, memory: jax.Array, text: jax.Array) -> dict[str, jax.Array]:
        """What a cross-entropy needs of text int [B, T] under the image of `memory`."""

    def prefill(self, image: jax.Array, length: int) -> tuple[Tree, Tree]:
        """image [B, S, S, C] -> the cache before the first token of captions of up to `length`
        tokens, and what all tokens read (`cross_kv`)."""

    def decode_step(
        self, kv_cache: Tree, cross_kv: Tree, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Tree]:
        """Logits of the next token float32 [B, V], and the cache after it."""


# Widths and depths of the ViT family (Dosovitskiy et al. 2021; Zhai et al. 2022; Alabdulmohsin et
# al. 2023 for So400m), used for texts as well.
SIZES: Mapping[str, Sizes] = {
    "Ti": Sizes(192, 12, 3, 768),
    "S": Sizes(384, 12, 6, 1536),
    "M": Sizes(512, 12, 8, 2048),
    "B": Sizes(768, 12, 12, 3072),
    "L": Sizes(1024, 24, 16, 4096),
    "So400m": Sizes(1152, 27, 16, 4304),
    "H": Sizes(1280, 32, 16, 5120),
    "g": Sizes(1408, 40, 16, 6144),
    "G": Sizes(1664, 48, 16, 8192),
}


def sizes_of(config: object, name: str, table: Mapping[str, Sizes], key: str = "variant") -> Sizes:
    """Sizes of the variant `name`, with those of `config`'s `width, depth, heads, hidden` that are
    not None instead.

    A width without `hidden` keeps the variant's ratio of the two.

    Raises:
      ConfigError: an unknown variant; heads that do not divide the width; a size < 1.
    """
    if name not in table:
        raise ConfigError(
            key,
            f"{name!r} is not a known variant{nearest(name, list(table))} (known: "
            f"{', '.join(table)})",
        )
    base = table[name]
    width = base.width if config.width is None else config.width
    hidden = round(base.hidden / base.width * width) if config.hidden is None else config.hidden
    depth = base.depth if config.depth is None else config.depth
    heads = base.heads if config.heads is None else config.heads
    for field, value in (("width", width), ("depth", depth), ("heads", heads), ("hidden", hidden)):
        check(value >= 1, field, f"{value!r} must be >= 1")
    check(width % heads == 0, "heads", f"{heads} must divide the width of {width}")
    return Sizes(width, depth, heads, hidden)


def check_rates(config: object, *names: str) -> None:
    """Raises ConfigError unless the named fields are probabilities in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value < 1, name, f"{value!r} is a probability; must be in [0, 1)")


def check_moe(config: object, causal: bool = False) -> None:
    """Raises ConfigError where `config.moe` does not fit the layers, needs a call that names
    skills, or looks ahead in causal ones."""
    sizes = config.sizes
    moe = config.moe
    if moe is None:
        return
    try:
        moe.layers(sizes.depth)
    except ConfigError as error:
        raise error.under("moe") from None
    check(
        not isinstance(moe.router, Skills),
        "moe.router",
        "'skills' are named call by call, which this encoder does not do",
    )
    problem = moe.router.causal_problem() if causal else None
    check(problem is None, "moe.router", f"{problem}, but the layers are causal")
