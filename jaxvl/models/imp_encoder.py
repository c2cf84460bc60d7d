"""IMP, the integrated multimodal perceiver (Akbari et al. 2023, arXiv 2305.06324).

One encoder for pictures, video, sound and text.

image, video -> 4 x 16 x 16 patches --+ spectrogram  -> 16 x 16 patches ------+-- drop some -> +
positions -> one transformer -> norm -> mean
waveform     -> 256 samples ----------+                 (dense or MoE)                            |
text         -> words ----------------+     projection of each (source, target) pair  <-----------+
                                                                         class heads  <-----------+

A batch is encoded modality by modality. A picture is a video whose frames are equal. A row may be
several instances of a modality (texts [B, N, T] of one picture): they are encoded like rows, and
stay together in what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxvl.config import nearest
from jaxvl.models.base import Encoded, InputSpec, Model
from jaxvl.nn.gradients import clip_with_gradient
from jaxvl.nn.linear import Embedding, Linear, normal
from jaxvl.nn.moe import MoeInputs, MoeOutput
from jaxvl.nn.norms import LayerNorm, l2_normalize
from jaxvl.nn.patches import FactoredPositions, GridTokens, drop_tokens
from jaxvl.nn.transformer import Transformer

if TYPE_CHECKING:
    from jaxvl.models.imp import ImpConfig

# What a batch may hold, and which modality that is for projections, experts and skills.
INPUTS: Mapping[str, str] = {
    "image": "vision",
    "video": "vision",
    "spectrogram": "audio",
    "waveform": "audio",
    "text": "text",
}
MODALITIES = ("vision", "audio", "text")
# Dimensions of a batch of one instance a row.
DIMENSIONS: Mapping[str, int] = {"image": 4, "video": 5, "spectrogram": 3, "waveform": 2, "text": 2}


class Projection(nnx.Module):
    """From the encoder to the space that one modality shares with one other: a hidden layer, and a
    linear one."""

    def __init__(self, width: int, hidden: int, embed: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.up = Linear(width, hidden, axes=("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.down = Linear(hidden, embed, axes=("mlp", "joint"), rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[…, D] -> unit rows float32 […, E]."""
        return l2_normalize(self.down(jax.nn.gelu(self.up(x))))


class Imp(Model):
    """See the top of this file.

    Args:
      config: see `ImpConfig`. inputs: fixes vocabulary, padding and channels.
    """

    def __init__(
        self,
        config: ImpConfig,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        width = config.sizes.width
        options = dict(rngs=rngs, dtype=dtype)
        c = config
        p = config.patch
        s = config.spectrogram_patch
        takes = set(c.inputs)
        sides = dict(time=c.patch_frames, height=p, width=p)
        most = dict(time=c.most_frames, height=c.most_pixels, width=c.most_pixels)
        self.vision = (
            GridTokens("video", sides, most, inputs.channels, width, **options)
            if {"image", "video"} & takes
            else None
        )
        sides = dict(time=s, bins=s)
        most = dict(time=c.most_steps, bins=c.most_bins)
        self.spectrogram = (
            GridTokens("spectrogram", sides, most, 1, width, **options)
            if "spectrogram" in takes
            else None
        )
        sides = dict(time=c.waveform_patch)
        most = dict(time=c.most_samples)
        self.waveform = (
            GridTokens("waveform", sides, most, 1, width, **options)
            if "waveform" in takes
            else None
        )
        # Words are as large as their positions.
        self.words = (
            Embedding(inputs.vocab_size, width, init=normal(width**-0.5), **options)
            if "text" in takes
            else None
        )
        self.word_positions = (
            FactoredPositions("text", dict(time=c.most_words), width, **options)
            if "text" in takes
            else None
        )
        self.transformer = Transformer(c.sizes, c.options(), **options)
        self.norm = LayerNorm(width, bias=False, dtype=dtype)
        directed = [
            f"{a}>{b}"
            for pair in map(lambda p: p.split("-"), c.pairs)
            for a, b in (pair, pair[::-1])
        ]
        self.projections = nnx.Dict(
            {
                name: Projection(width, c.projection_hidden, c.embed_dim, **options)
                for name in directed
            }
        )
        start = -math.log(c.temperature)
        self.most = None if c.max_scale is None else math.log(c.max_scale)
        of_scale = dict(axes=(), bounds=(None, self.most))
        self.log_scale = nnx.Dict(
            {pair: nnx.Param(jnp.float32(start), **of_scale) for pair in c.pairs}
        )
        self.classes = nnx.Dict(
            {
                name: Linear(width, n, axes=("embed", "classes"), init=normal(0.02), **options)
                for name, n in c.classes.items()
            }
        )
        self.config = config
        self.pad_id = inputs.pad_id
        self.dtype = dtype

    # ----------------------------------------------------------------------------------------------
    # One modality

    def _tokens(
        self, name: str, x: jax.Array, length: jax.Array | None, drop: float, key: jax.Array | None
    ) -> tuple[Any, Any]:
        """Tokens [B, P, D] of one input, and their mask bool [B, P] or None."""
        if name not in self.config.inputs:
            raise ValueError(
                f"{name}: the model does not take it (inputs: {', '.join(self.config.inputs)})"
            )
        if name == "text":
            b, t = x.shape
            self.word_positions.check([t])
            places = jnp.broadcast_to(jnp.arange(t)[:, None], (b, t, 1))
            if drop:
                raise ValueError(
                    "drop: 'text' has no tokens to drop; patches of image, video, "
                    "spectrogram and waveform have"
                )
            return self.words(x) + self.word_positions(places), x != self.pad_id
        grid = self.vision if name in ("image", "video") else getattr(self, name)
        if name in ("spectrogram", "waveform"):
            x = x[..., None]
        patches = grid.still(x) if name == "image" else grid.cut(x)
        if length is not None:  # in steps of the first axis; a patch counts from its first step on
            patches = patches._replace(
                mask=patches.places[..., 0] * grid.patch[0] < length[:, None]
            )
        if drop:
            patches = drop_tokens(patches, drop, key)
        return (grid.embed_still if name == "image" else grid)(patches), patches.mask

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.config.inputs

    def encode(
        self,
        name: str,
        x: jax.Array,
        length: jax.Array | None = None,
        *,
        drop: float = 0.0,
        skills: tuple[str, ...] | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Encoded:
        """Encodes one input.

        Args:
          name, x: `image` [B, S, S, C], `video` [B, F, S, S, C], `spectrogram` [B, T, M] of M bins,
            `waveform` [B, T], or `text` int [B, T]; with one dimension more after B, N instances a
            row.
          length: int [B] or [B, N], frames, steps or samples that are not padding; None: all.
          drop: share of its tokens that is left out, drawn with `key`.
          skills: that run, where the experts are skills; None: those named like the modality.
          train, key: as for `Model`.

        Returns:
          pooled: float32 [B, D], the mean of the tokens; tokens: [B, P, D]; mask: bool [B, P] or
          None; routing: of the MoE layers. Of several instances [B, N, …], but for `routing`.

        Raises:
          ValueError: sides that patches do not divide, or beyond the tables of positions.
        """
        out, encoded = self._routed(name, x, length, drop=drop, skills=skills, train=train, key=key)
        return encoded._replace(routing=_reports([out], len(x)) or None)

    def _routed(
        self,
        name: str,
        x: jax.Array,
        length: jax.Array | None,
        *,
        drop: float,
        skills: tuple[str, ...] | None,
        train: bool,
        key: jax.Array | None,
    ) -> tuple[MoeOutput, Encoded]:
        """What the transformer gives of one input; and `encode`'s result without `routing`."""
        if x.ndim == DIMENSIONS[name] + 1:
            b, n = x.shape[:2]
            length = None if length is None else length.reshape(-1)
            x = x.reshape(b * n, *x.shape[2:])
            options = dict(drop=drop, skills=skills, train=train, key=key)
            out, encoded = self._routed(name, x, length, **options)
            return out, jax.tree.map(lambda a: a.reshape(b, n, *a.shape[1:]), encoded)
        drop_key, key = (None, None) if key is None else jax.random.split(key)
        tokens, mask = self._tokens(name, x, length, drop, drop_key)
        kind = INPUTS[name]
        told = MoeInputs()
        if self.config.moe is not None:
            named = self.config.moe.skills
            told = MoeInputs(
                modality=jnp.int32(MODALITIES.index(kind)), skills=skills or (named and (kind,))
            )
        out = self.transformer.routed(tokens, mask=mask, moe_inputs=told, train=train, key=key)
        tokens = self.norm(out.y)
        y = tokens.astype(jnp.float32)
        if mask is None:
            return out, Encoded(y.mean(1), tokens)
        weight = mask.astype(jnp.float32)[..., None]
        pooled = (y * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)
        return out, Encoded(pooled, tokens, mask)

    def embed(
        self, name: str, x: jax.Array, target: str, length: jax.Array | None = None
    ) -> jax.Array:
        """One input in the space that its modality shares with `target`: unit rows float32 [B, E].

        Raises KeyError where the model has no such pair.
        """
        projection = f"{INPUTS[name]}>{target}"
        if projection not in self.projections:
            raise KeyError(
                f"{projection!r} is not among the model's "
                f"projections{nearest(projection, list(self.projections))}"
            )
        return self.projections[projection](self.encode(name, x, length).pooled)

    def encode_image(
        self, image: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """image float [B, S, S, C], normalised -> unit rows float32 [B, E], to be compared with
        texts."""
        return self.embed("image", image, "text")

    def encode_text(
        self, text: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> jax.Array:
        """text int [B, T] -> unit rows float32 [B, E], to be compared with pictures and video."""
        return self.embed("text", text, "vision")

    # ----------------------------------------------------------------------------------------------
    # A batch

    def _heard(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """The batch with its waveform as the model takes it: float, or a spectrogram."""
        if "waveform" not in batch:
            return batch
        if (log_mel := self.config.log_mel) is None:
            x = batch["waveform"]
            return {
                **batch,
                "waveform": x.astype(jnp.float32) * (1 / 32768 if x.dtype == jnp.int16 else 1.0),
            }
        rest = {
            k: v
            for k, v in batch.items()
            if k not in ("waveform", "waveform_length", "has_waveform")
        }
        x = batch["waveform"]
        length = batch.get("waveform_length")
        rows = x.shape[:-1]  # (B,) or (B, N)
        spectrogram, real = log_mel(
            x.reshape(-1, x.shape[-1]), None if length is None else length.reshape(-1)
        )
        rest["spectrogram"] = spectrogram.reshape(*rows, *spectrogram.shape[1:])
        if length is not None:
            rest["spectrogram_length"] = real.sum(1, dtype=jnp.int32).reshape(rows)
        return rest | (
            {"has_spectrogram": batch["has_waveform"]} if "has_waveform" in batch else {}
        )

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        drop: dict[str, float] | None = None,
        classes: dict[str, str] | None = None,
        skills: tuple[str, ...] | None = None,
        train: bool = False,
        key: jax.Array | None = None,
        progress: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Encodes whatever the batch holds.

        Args:
          batch: any of `INPUTS`, at most one of a modality, with `NAME_length` int [B] (or [B, N])
            where rows are padded, and `has_NAME` bool [B] where some rows lack it; see `encode` for
            several instances a row. A waveform is float in -1..1, or int16.
          drop: input -> share of its tokens to leave out.
          classes: heads to run -> the modality that each sees.
          skills: see `encode`.
          train, key, progress: as for `Model`.

        Returns:
          For each pair A-B of which the batch has both: `A>B` and `B>A`, unit rows float32 [B, E]
          or [B, N, E], and `log_scale/A-B` float32 []; `logits/NAME` float32 [B, K], and
          `has/logits/NAME` bool [B] where some rows lack what the head sees; `moe/loss/NAME` and
          `moe/health/NAME`, the same for every row: float32 [B] and [B, …], the sum of the losses
          over the layers and inputs, and the health by layer, mean over the inputs, dead experts
          those of all inputs; `has/A` bool [B] of modalities that some rows lack.
        """
        batch = self._heard(batch)
        drop = drop or {}
        given = [name for name in INPUTS if name in batch]
        found = {INPUTS[name] for name in given}
        if len(found) < len(given) or not given:
            raise ValueError(
                f"batch: has {', '.join(given) or 'no input'}; must be at least one of "
                f"{', '.join(INPUTS)}, one of a modality"
            )
        if unknown := set(drop) - set(INPUTS):
            raise ValueError(f"drop: {sorted(unknown)} are no inputs (inputs: {', '.join(INPUTS)})")
        keys = dict(
            zip(given, [None] * len(given) if key is None else jax.random.split(key, len(given)))
        )
        encoded = {}
        routed = []
        for name in given:
            options = dict(
                drop=drop.get(name, 0.0) if train else 0.0,
                skills=skills,
                train=train,
                key=keys[name],
            )
            with jax.named_scope(name):
                out, encoded[INPUTS[name]] = self._routed(
                    name, batch[name], batch.get(f"{name}_length"), **options
                )
            routed.append(out)
        outputs = {
            f"has/{INPUTS[name]}": batch[f"has_{name}"] for name in given if f"has_{name}" in batch
        }
        for pair, scale in self.log_scale.items():
            a, b = pair.split("-")
            if {a, b} <= found:
                outputs |= {
                    f"{s}>{t}": self.projections[f"{s}>{t}"](encoded[s].pooled)
                    for s, t in ((a, b), (b, a))
                }
                outputs[f"log_scale/{pair}"] = (
                    scale[...] if self.most is None else clip_with_gradient(scale[...], self.most)
                )
        for name, kind in (classes or {}).items():
            outputs[f"logits/{name}"] = self.classes[name](encoded[kind].pooled).astype(jnp.float32)
            outputs |= {
                f"has/logits/{name}": outputs[key] for key in (f"has/{kind}",) if key in outputs
            }
        return outputs | _reports(routed, len(batch[given[0]]))


def _reports(routed: list[MoeOutput], rows: int) -> dict[str, jax.Array]:
    """Losses and health for every row alike, so that they pass through microbatches as rows do; a
    row's loss is the whole loss."""
    if not routed[0].health:
        return {}
    losses = {k: sum(out.losses[k] for out in routed) for k in routed[0].losses}
    each = {k: jnp.stack([out.health[k] for out in routed]) for k in routed[0].health}
    # Of `load/MODALITY` all inputs but one have zeros; an expert is dead that no input wakes.
    health = {k: v.sum(0) if "/" in k else v.mean(0) for k, v in each.items()}
    if "dead" in each:
        health["dead"] = each["dead"].min(0)
    named = {f"moe/loss/{k}": v for k, v in losses.items()} | {
        f"moe/health/{k}": v for k, v in health.items()
    }
    return {k: jnp.broadcast_to(v, (rows, *v.shape)) for k, v in named.items()}
