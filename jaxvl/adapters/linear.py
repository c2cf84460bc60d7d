"""Adapters that change the output of linear maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvl.adapters import ADAPTERS
from jaxvl.adapters.base import Adapter
from jaxvl.config import Count, Range, Scale, Width, check
from jaxvl.nn.activations import Activation
from jaxvl.nn.adapters import Bottleneck, Gate, GatedExperts, LowRank
from jaxvl.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class OfLinear(Adapter):
    """Base of adapters of linear maps; `paths` as in `attention/(query|value)$` or `mlp/up$`."""

    kind = "linear map"

    def fits(self, module: nnx.Module) -> bool:
        return isinstance(module, Linear) and module.adaptable

    def stacked(self, module: Linear) -> int | None:
        lead = module.kernel.shape[: -len(module.inputs) - len(module.outputs)]
        check(len(lead) <= 1, "paths", f"{len(lead)} axes of layers; must be one at most")
        return lead[0] if lead else None


@ADAPTERS.register("lora")
@dataclasses.dataclass(frozen=True)
class LoraConfig(OfLinear):
    """LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): `y = W x + alpha / r · B A x`.

    A is drawn, B is zero, so that the model begins as it was. `A` is
    `MODULE/adapter/LABEL/a/kernel` [in, r], `B` is `…/b/kernel` [r, out].

    Attributes:
      rank: r; 8 as in VLM2Vec (Jiang et al. 2024, arXiv 2410.05160).
      alpha: None: r, a scale of 1. The paper sets it to the first r that is tried.
      dropout: rate on x, in training.
    """

    rank: Width = 8
    alpha: Scale | None = None
    dropout: Annotated[float, Range(0.0, 1.0, below=True)] = 0.0

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def build(self, module: Linear, number: int, rngs: nnx.Rngs) -> LowRank:
        return LowRank(
            module,
            rank=self.rank,
            scale=self.scale,
            dropout=self.dropout,
            number=number,
            rngs=rngs,
        )

    def merge(self, label: str, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """W + alpha / r · A B in place of W, A and B, in float32."""
        merged = dict(params)
        end = f"/adapter/{label}/a/kernel"
        for path in [p for p in params if p.endswith(end)]:
            module = path.removesuffix(end)
            a = merged.pop(path)
            b = merged.pop(f"{module}/adapter/{label}/b/kernel")
            kernel = merged[f"{module}/kernel"]
            lead = a.ndim + b.ndim - kernel.ndim - 2  # axes of layers
            stacked = kernel.shape[:lead]
            left = a.reshape(*stacked, -1, self.rank)
            right = b.reshape(*stacked, self.rank, -1)
            change = jnp.matmul(left, right, precision="highest").reshape(kernel.shape)
            merged[f"{module}/kernel"] = kernel + self.scale * change
        return merged


@ADAPTERS.register("gated_experts")
@dataclasses.dataclass(frozen=True)
class GatedExpertsConfig(OfLinear):
    """Low-rank experts with gates, as in Slide-LoRA (TextHarmony, Zhao et al. 2024):
    `y = W x + alpha / r · sum_e g_e(x) B_e A_e x`.

    There, one expert is for images, one for texts and one shared. A is drawn, B is zero.

    Attributes:
      experts: with a gate, a linear map of x.
      shared: further ones whose gate is 1.
      rank, alpha: as in `lora`, of each expert.
      gate: `softmax` over the experts, or `sigmoid` of each; not from the paper.
    """

    experts: Count = 2
    shared: Annotated[int, Range(0, 1_024)] = 1
    rank: Width = 8
    alpha: Scale | None = None
    gate: Gate = "softmax"

    def build(self, module: Linear, number: int, rngs: nnx.Rngs) -> GatedExperts:
        del number
        return GatedExperts(
            module,
            experts=self.experts,
            shared=self.shared,
            rank=self.rank,
            scale=(self.rank if self.alpha is None else self.alpha) / self.rank,
            gate=self.gate,
            rngs=rngs,
        )


@ADAPTERS.register("bottleneck")
@dataclasses.dataclass(frozen=True)
class BottleneckConfig(OfLinear):
    """Bottleneck adapters on the output of a block's branch: `y + U f(D y)`.

    On `(attention/out|mlp/down)$`, before the residual sum, they are those of Houlsby et al. 2019
    (arXiv 1902.00751); on `mlp/down$` alone, those of Pfeiffer et al. 2021 (arXiv 2005.00247).

    Attributes:
      hidden: features between; 64, of 8 to 256 in the paper.
      activation: f.
      std: of the normal distribution that D and U are drawn from: nearly the identity.
    """

    hidden: Width = 64
    activation: Activation = "gelu"
    std: Annotated[float, Range(0.0, 1.0)] = 0.01

    def build(self, module: Linear, number: int, rngs: nnx.Rngs) -> Bottleneck:
        del number
        return Bottleneck(
            module, hidden=self.hidden, activation=self.activation, std=self.std, rngs=rngs
        )
