"""CoCa, the contrastive captioner (Yu et al. 2022, arXiv 2205.01917): both losses in one pass.

image -> encoder -> caption pooler (N queries) ------------------------------+
                         |  cascade (or, in parallel, the encoder's tokens)  |
                         v                                                   v
                    contrastive pooler -> image embedding       cross-attention of every layer
                                                                             |
[start] w1 … wT [CLS] -> unimodal layers, causal -- tokens --> multimodal layers, causal
                               | [CLS], which sees                           |
                               v the whole text                              v
                         text embedding                               w1 … wT, EOS

The models that open_clip calls CoCa are `open_clip_coca`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.models import MODELS
from jaxvl.models.base import InputSpec
from jaxvl.models.captioner import Captioner
from jaxvl.models.captioner_config import CaptionerConfig
from jaxvl.models.image_pools import LAYOUTS, make_two_poolers
from jaxvl.nn.norms import LayerNorm


@MODELS.register("coca")
@dataclasses.dataclass(frozen=True)
class CoCaConfig(CaptionerConfig):
    """CoCa: the options of every captioner (`CaptionerConfig`), and

    Attributes:
      poolers: `cascade`: the contrastive pooler reads the caption pooler's tokens (the paper's
        default); `parallel`: both read the encoder's.
    """

    poolers: Literal["cascade", "parallel"] = "cascade"

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> CoCa:
        return CoCa(self, inputs, rngs=rngs, dtype=dtype)


class CoCa(Captioner):
    """See the top of this file.

    Args:
      config: see `CoCaConfig`. inputs: fixes vocabulary, text length, padding and EOS.
    """

    def build_poolers(self, config: CoCaConfig, rngs: nnx.Rngs) -> int:
        self.poolers = config.poolers
        poolers = make_two_poolers(self, config, config.poolers, rngs)
        self.caption_pooler, self.contrastive_pooler = poolers
        return self.width

    def pool_image(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return LAYOUTS[self.poolers](self, tokens)

    def build_text(self, config: CoCaConfig, inputs: InputSpec, rngs: nnx.Rngs) -> None:
        self.positions = self.make_positions(inputs.text_length + 2, rngs)
        self.start_token = self.make_token(rngs)
        self.class_token = self.make_token(rngs)
        self.text_norm = LayerNorm(self.width, eps=1e-5, dtype=self.dtype)

    @jax.named_scope("text")
    def read_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """text int [B, T] -> tokens [B, T + 1, D], the learned start first; and [CLS], which sees
        the whole text, [B, D]."""
        b = len(text)
        always = jnp.ones((b, 1), bool)
        start = self.repeat_token(self.start_token, b)
        last = self.repeat_token(self.class_token, b)
        x = jnp.concatenate([start, self.words(text), last], 1)
        mask = jnp.concatenate([always, text != self.pad_id, always], 1)
        # [CLS] has the last row of the table whatever the length of the text.
        positions = jnp.concatenate([self.positions[: text.shape[1] + 1], self.positions[-1:]])
        x = x + positions.astype(self.dtype)
        x = self.unimodal(x, mask=mask, causal=True, train=train, key=key)
        return x[:, :-1], self.text_norm(x[:, -1])

    def embed_last(self, token: jax.Array, position: jax.Array) -> jax.Array:
        start = self.start_token[...].astype(self.dtype)
        return jnp.where(position == 0, start, self.words(token))
