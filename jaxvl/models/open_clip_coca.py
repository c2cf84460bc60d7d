"""The models that open_clip calls CoCa (github.com/mlfoundations/open_clip, `coca_model.py`), which
differ from the paper's (`coca`): texts begin with a token of the vocabulary, the multimodal layers
have a second pair of attention and MLP, and one pooler may serve both losses.

    poolers    captions read                    the image embedding is of
    shared     the pooler's tokens 1 … N - 1    its first token                      coca_ViT-B-32, -L-14
    none       the encoder's patches            its class token                      coca_base
    cascade    the caption pooler's tokens      a second pooler's, which reads them
    parallel   the caption pooler's tokens      a second pooler's, which reads the encoder's
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.aliases import Leaf, Node
from jaxvl.config import TokenId, check
from jaxvl.models import IMAGE_ENCODERS, MODELS
from jaxvl.models.base import Capabilities, InputSpec
from jaxvl.models.captioner import Captioner
from jaxvl.models.captioner_config import CaptionerConfig
from jaxvl.models.image_pools import LAYOUTS, make_pooler, make_two_poolers
from jaxvl.models.vit import ViTConfig
from jaxvl.nn.norms import LayerNorm
from jaxvl.nn.poolers import QueryPooler, eos
from jaxvl.nn.transformer import Cross, StackOptions


@MODELS.register("open_clip_coca")
@dataclasses.dataclass(frozen=True)
class OpenClipCoCaConfig(CaptionerConfig):
    """open_clip's CoCa: the options of every captioner (`CaptionerConfig`), and those below; none
    of them is from the paper. `presets.coca_open_clip` has the published models.

    Attributes:
      image: with `poolers="none"` it must have a class token (a vit with pool='cls').
      start_id: the token that begins every text, from which captions are written (CLIP's: 49406).
      poolers: see the top of this file.
      pooler_norm: layer norm of what poolers give.
      cross: place of the attention to the image in a layer, see `nn.transformer.StackOptions`.
      text_pool: text embedding from an appended [CLS], `class`, or from the EOS token, `eos` (as in
        CLIP; the final norm is then that of all tokens, and captions read them normalised).
      late_mask: repeats a mistake that open_clip's released weights were trained with: the mask of
        padding is shifted by one place. [CLS] then sees the first token of padding, and sees itself
        only where a text has no padding. For `text_pool="class"`.
    """

    image: Annotated[Any, IMAGE_ENCODERS] = ViTConfig(
        variant="B/32",
        pool="cls",
        patch_bias=False,
        pre_norm=True,
        post_norm=False,
        activation="gelu",
        eps=1e-5,
    )
    start_id: TokenId = 49406
    poolers: Literal["shared", "none", "cascade", "parallel"] = "shared"
    pooler_norm: bool = True
    cross: Cross = "after"
    text_pool: Literal["class", "eos"] = "class"
    late_mask: bool = False

    def __post_init__(self):
        super().__post_init__()
        check(
            self.poolers != "shared" or self.queries >= 2,
            "queries",
            f"{self.queries!r} must be >= 2, the first of which is the image's",
        )
        check(
            self.poolers != "none" or self.image.class_token,
            "poolers",
            "'none' needs an image encoder with a class token (a vit with pool='cls')",
        )
        check(
            not self.late_mask or self.text_pool == "class",
            "late_mask",
            "is of [CLS], which text_pool='eos' has not",
        )

    def options(self) -> StackOptions:
        return dataclasses.replace(super().options(), cross=self.cross)

    def capabilities(self, inputs: InputSpec | None = None) -> Capabilities:
        return Capabilities(generates=True, start_id=self.start_id)

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError as every captioner's, and where the start is no token of its own."""
        super().check_inputs(inputs)
        start = self.start_id
        special = (inputs.pad_id, inputs.eos_id)
        check(
            0 <= start < inputs.vocab_size and start not in special,
            "start_id",
            f"{start!r} must be a token (below {inputs.vocab_size}) that is neither padding "
            f"nor EOS",
        )

    def build(
        self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> OpenClipCoCa:
        return OpenClipCoCa(self, inputs, rngs=rngs, dtype=dtype)


class OpenClipCoCa(Captioner):
    """See the top of this file.

    Args:
      config: see `OpenClipCoCaConfig`. inputs: fixes vocabulary, text length, padding and EOS.
    """

    def build_poolers(self, config: OpenClipCoCaConfig, rngs: nnx.Rngs) -> int:
        self.poolers = config.poolers
        poolers = self._make_poolers(config, rngs)
        self.caption_pooler, self.contrastive_pooler = poolers
        return self.encoder.width if config.poolers == "none" else self.width

    def _make_poolers(
        self, config: OpenClipCoCaConfig, rngs: nnx.Rngs
    ) -> tuple[QueryPooler | None, QueryPooler | None]:
        norm = config.pooler_norm
        if config.poolers == "none":
            return None, None
        if config.poolers == "shared":
            width = self.encoder.width
            one = make_pooler(self, config, width, rngs, queries=config.queries, norm=norm)
            return one, None
        return make_two_poolers(self, config, config.poolers, rngs, norm=norm)

    def pool_image(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return IMAGE_POOLS[self.poolers](self, tokens)

    def build_text(self, config: OpenClipCoCaConfig, inputs: InputSpec, rngs: nnx.Rngs) -> None:
        has_class = config.text_pool == "class"
        self.positions = self.make_positions(inputs.text_length + has_class, rngs)
        self.class_token = self.make_token(rngs) if has_class else None
        self.text_norm = LayerNorm(self.width, eps=1e-5, dtype=self.dtype)
        self.text_pool = config.text_pool
        self.late_mask = config.late_mask
        self.start_id = config.start_id

    @jax.named_scope("text")
    def read_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """text int [B, T], its start first -> tokens [B, T, D], and what the text embedding is
        projected from [B, D]."""
        return TEXT_POOLS[self.text_pool](self, text, train, key)

    def text_mask(self, text: jax.Array) -> jax.Array:
        return text != self.pad_id

    def targets(self, text: jax.Array) -> jax.Array:
        return text[:, 1:]

    def embed_last(self, token: jax.Array, position: jax.Array) -> jax.Array:
        return self.words(jnp.where(position == 0, self.start_id, token))

    def finish_unimodal(self, x: jax.Array) -> jax.Array:
        return self.text_norm(x) if self.text_pool == "eos" else x


# --------------------------------------------------------------------------------------------------
# Images


def _shared(model: OpenClipCoCa, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    memory = model.caption_pooler(tokens)
    return memory[:, 1:], memory[:, 0]


def _no_pooler(model: OpenClipCoCa, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tokens[:, 1:], tokens[:, 0]


IMAGE_POOLS = {"shared": _shared, "none": _no_pooler, **LAYOUTS}

# --------------------------------------------------------------------------------------------------
# Texts


def _pool_class(
    model: OpenClipCoCa, text: jax.Array, train: bool, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    b, t = text.shape
    x = jnp.concatenate([model.words(text), model.repeat_token(model.class_token, b)], 1)
    mask = jnp.concatenate([text != model.pad_id, jnp.ones((b, 1), bool)], 1)
    mask = jnp.roll(mask, 1, axis=1) if model.late_mask else mask
    # [CLS] has the last row of the table whatever the length of the text.
    positions = jnp.concatenate([model.positions[:t], model.positions[-1:]])
    x = x + positions.astype(model.dtype)
    x = model.unimodal(x, mask=mask, causal=True, train=train, key=key)
    return x[:, :-1], model.text_norm(x[:, -1])


def _pool_eos(
    model: OpenClipCoCa, text: jax.Array, train: bool, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """No token sees the padding, which comes after it."""
    x = model.words(text) + model.positions[: text.shape[1]].astype(model.dtype)
    x = model.text_norm(model.unimodal(x, causal=True, train=train, key=key))
    return x, eos(x, text, model.eos_id)


TEXT_POOLS = {"class": _pool_class, "eos": _pool_eos}


# --------------------------------------------------------------------------------------------------
# Configurations from before this model had a name

# The options that `coca` had for these models, with the values of the paper's form.
_FORMERLY = dict(
    pooler_norm=True, cross="between", start_id=None, text_pool="class", late_mask=False
)


def renamed(node: Node) -> dict[str, Leaf]:
    """A recorded model node, in which `coca` may have these options, in today's terms.

    A `coca` with any of them is an `open_clip_coca`; one with the paper's values, and its variants,
    are without them.

    Raises:
      ConfigError: a mixture that neither model has: a learned start with open_clip's options.
    """
    name = node.get("name")
    if name not in ("coca", "sycoca", "cosmo"):
        return dict(node)
    rest = {key: value for key, value in node.items() if key not in _FORMERLY}
    given = {key: node.get(key, value) for key, value in _FORMERLY.items()}
    if name == "sycoca":
        rest.pop("poolers", None)  # one that it could have: parallel
    if given == _FORMERLY and node.get("poolers") not in ("shared", "none"):
        return rest
    check(
        name == "coca" and given["start_id"] is not None,
        "model",
        f"a {name!r} of an earlier version with a learned start and options of open_clip's form "
        f"is a model that is no longer there",
    )
    poolers = node.get("poolers", "cascade")
    return {**rest, **given, "name": "open_clip_coca", "poolers": poolers}
