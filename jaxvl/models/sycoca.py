"""SyCoCa (Ma et al. 2024, arXiv 2401.02137): CoCa, and texts that help to see hidden patches.

image -> encoder -> patches --+-- contrastive pooler -> image embedding
                              |
                              +-- all but those LEAST like the text -> caption pooler -> captions
                              |
                              +-- all but those MOST like the text, a mask token in their place
                                    -> image decoder, cross-attention to the text's tokens -> pixels
                                    of the hidden patches

One pass gives all three losses: the scores that choose the patches come from the very embeddings
that the contrast compares, and no gradient goes through the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import Depth, check
from jaxvl.models import MODELS
from jaxvl.models.base import InputSpec
from jaxvl.models.captioner_config import CaptionerConfig
from jaxvl.models.coca import CoCa
from jaxvl.nn.linear import Linear, normal
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.random import split
from jaxvl.nn.transformer import Transformer


@MODELS.register("sycoca")
@dataclasses.dataclass(frozen=True)
class SyCoCaConfig(CaptionerConfig):
    """SyCoCa: the options of every captioner (`CaptionerConfig`), and

    Attributes:
      masking: `attentive`: patches are chosen by the cosine of their embedding with the text's;
        `random`: by lot, for comparison.
      masked_share: share of the patches that is hidden from the image decoder, the most text-like
        (not from the paper).
      hidden_share: share of the patches that is hidden from the captioner, the least text-like (not
        from the paper).
      masked: `tokens`: the encoder's output is replaced, so that one pass does it, but the tokens
        around have seen what is hidden; `pixels`: what is hidden is painted over with a learned
        patch and the encoder runs once more.
      image_layers: layers of the image decoder; None: as many as the multimodal ones.

    Both poolers read the encoder's tokens, as CoCa's `parallel` ones do: a patch's embedding is
    what the contrastive pooler makes of that patch alone, and the image's must not depend on which
    patches the text has chosen.
    """

    masking: Literal["attentive", "random"] = "attentive"
    masked_share: float = 0.5
    hidden_share: float = 0.5
    masked: Literal["tokens", "pixels"] = "tokens"
    image_layers: Depth | None = None

    poolers: ClassVar[str] = "parallel"  # CoCa's option, which is none here

    def __post_init__(self):
        super().__post_init__()
        check(
            0 < self.masked_share < 1,
            "masked_share",
            f"{self.masked_share!r} is a share of the patches; must be in (0, 1)",
        )
        check(
            0 <= self.hidden_share < 1,
            "hidden_share",
            f"{self.hidden_share!r} is a share of the patches; must be in [0, 1)",
        )
        check(
            self.image_layers is None or self.image_layers >= 1,
            "image_layers",
            f"{self.image_layers!r} must be >= 1",
        )

    def check_inputs(self, inputs: InputSpec) -> None:
        """Raises ConfigError as CoCa does, and where the image encoder's tokens are not patches, or
        too few to hide some."""
        super().check_inputs(inputs)
        check(
            self.image.patch is not None and not self.image.class_token,
            "image",
            "must be a vit without a class token (pool mean or map), whose tokens are patches",
        )
        patches = (inputs.image_size // self.image.patch) ** 2
        some = (
            1 <= round(self.masked_share * patches) < patches
            and round(self.hidden_share * patches) < patches
        )
        check(
            some,
            "masked_share",
            f"{self.masked_share!r} and hidden_share {self.hidden_share!r} leave none of "
            f"{patches} patches",
        )

    def build(self, inputs: InputSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> SyCoCa:
        return SyCoCa(self, inputs, rngs=rngs, dtype=dtype)


class SyCoCa(CoCa):
    """See the top of this file.

    Args:
      config: see `SyCoCaConfig`. inputs: as for CoCa.
    """

    def __init__(
        self,
        config: SyCoCaConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(config, inputs, rngs=rngs, dtype=dtype)
        self.patch = config.image.patch
        width = self.width
        patches = (inputs.image_size // self.patch) ** 2
        values = self.patch**2 * inputs.channels
        sizes = dataclasses.replace(
            config.sizes("multimodal"),
            depth=config.image_layers or config.sizes("multimodal").depth,
        )
        options = dict(rngs=rngs, dtype=dtype)

        def table(*shape: int, axes: tuple[str, ...]) -> nnx.Param:
            return nnx.Param(normal(0.02)(rngs.params(), shape, jnp.float32), axes=axes)

        self.patch_projection = Linear(
            self.encoder.width, width, axes=("joint", "embed"), **options
        )
        self.patch_positions = table(patches, width, axes=("length", "embed"))
        self.mask_token = table(width, axes=("norm",)) if config.masked == "tokens" else None
        self.mask_patch = (
            table(self.patch, self.patch, inputs.channels, axes=("kernel", "kernel", "conv_in"))
            if config.masked == "pixels"
            else None
        )
        self.image_decoder = Transformer(sizes, config.options(), memory_width=width, **options)
        self.image_norm = LayerNorm(width, eps=1e-5, dtype=dtype)
        self.pixels = Linear(width, values, axes=("embed", "joint"), **options)
        self.random = config.masking == "random"
        self.masked_count = round(config.masked_share * patches)
        self.hidden_count = round(config.hidden_share * patches)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds a batch, reads its texts as captions and its hidden patches, in one pass.

        Args:
          batch: image float [B, S, S, C], normalised; text int [B, T], ended by EOS, then padding.
            Optional: patch_scores float [B, P], which choose the patches instead of the cosine.
          train, key, progress: as for CoCa. Random masks are drawn from the key; without one they
            are the same at every call.

        Returns:
          What CoCa returns; patch_prediction: float32 [B, P, p² C], the pixels of each patch in
          reading order as the image decoder sees them; patch_weight: float32 [B, P], 1 where a
          patch was hidden from it; patch_scores: float32 [B, P], what chose.
        """
        keys = split(key, 6)
        text = batch["text"]
        with jax.named_scope("image"):
            patches = self.encode_tokens(batch["image"], train=train, key=keys[0])
            image = l2_normalize(self.image_projection(self.contrastive_pooler(patches)[:, 0]))
        tokens, pooled = self.read_text(text, train=train, key=keys[1])
        embedding = self.embed_text(pooled)
        scores = batch.get("patch_scores")
        if scores is None:
            scores = (
                self._lot(patches, keys[2]) if self.random else self._cosine(patches, embedding)
            )
        scores = jax.lax.stop_gradient(scores.astype(jnp.float32))
        order = jnp.argsort(jnp.argsort(-scores, axis=1), axis=1)  # 0: the most text-like
        masked = order < self.masked_count
        seen = order < order.shape[1] - self.hidden_count
        with jax.named_scope("captioner"):
            x = self.multimodal(
                tokens[:, :-1],
                self.caption_pooler(patches, seen),
                causal=True,
                train=train,
                key=keys[3],
            )
            captions = self.head.scores(self.norm(x), self.words, text)
        there = text != self.pad_id
        prediction = self._complete(
            batch["image"], patches, masked, tokens, there, train=train, keys=keys[4:]
        )
        return {
            "image": image,
            "text": embedding,
            "log_scale": self.scale(),
            "caption_weight": there.astype(jnp.float32),
            **{f"caption_{k}": v for k, v in captions.items()},
            "patch_prediction": prediction,
            "patch_weight": masked.astype(jnp.float32),
            "patch_scores": scores,
        }

    def _cosine(self, patches: jax.Array, text: jax.Array) -> jax.Array:
        """[B, P, D'] and unit rows [B, E] -> [B, P]: of what the contrastive pooler makes of a
        patch alone (as Zhou et al. 2022)."""
        b, p, _ = patches.shape
        alone = self.image_projection(self.contrastive_pooler.alone(patches))
        return jnp.einsum(
            "BPE,BE->BP", l2_normalize(alone.reshape(b * p, -1)).reshape(b, p, -1), text
        )

    def _lot(self, patches: jax.Array, key: jax.Array | None) -> jax.Array:
        return jax.random.uniform(jax.random.key(0) if key is None else key, patches.shape[:2])

    @jax.named_scope("image_decoder")
    def _complete(self, image, patches, masked, tokens, there, *, train: bool, keys) -> jax.Array:
        """Pixels float32 [B, P, p² C] of all patches, from those that are not `masked` (bool [B,
        P]) and the text's tokens [B, T + 1, D]."""
        if self.mask_patch is not None:
            patches = self.encode_tokens(self._paint(image, masked), train=train, key=keys[0])
        x = self.patch_projection(patches)
        if self.mask_token is not None:
            x = jnp.where(masked[..., None], self.mask_token[...].astype(self.dtype), x)
        x = x + self.patch_positions[...].astype(self.dtype)
        there = jnp.concatenate(
            [jnp.ones_like(there[:, :1]), there], axis=1
        )  # [start] stands before the text
        x = self.image_decoder(x, tokens, memory_mask=there, train=train, key=keys[1])
        return self.pixels(self.image_norm(x)).astype(jnp.float32)

    def _paint(self, image: jax.Array, masked: jax.Array) -> jax.Array:
        """The image [B, S, S, C] with the learned patch over those of bool [B, P]."""
        b = len(image)
        s = image.shape[1]
        grid = image.shape[1] // self.patch
        over = masked.reshape(b, grid, 1, grid, 1, 1)
        cut = image.reshape(b, grid, self.patch, grid, self.patch, -1)
        return jnp.where(over, self.mask_patch[...][:, None].astype(image.dtype), cut).reshape(
            b, s, s, -1
        )
