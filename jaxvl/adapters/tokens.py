"""Adapters that are learned tokens: prompts of a stack, prefixes of attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from flax import nnx

from jaxvl.adapters import ADAPTERS
from jaxvl.adapters.base import Adapter, check_pattern, put
from jaxvl.config import Count, Depth, Range, check
from jaxvl.nn.attention import Attention
from jaxvl.nn.prompts import CoupledPrompts, Mode, Prefix, Prompts
from jaxvl.nn.transformer import Transformer

Std = Annotated[float, Range(0.0, 1.0)]


@ADAPTERS.register("prompts")
@dataclasses.dataclass(frozen=True)
class PromptsConfig(Adapter):
    """Learned tokens in a transformer's sequence.

    Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119): `layers=1` is VPT-Shallow,
    `layers=None` VPT-Deep. MaPLe (Khattak et al. 2023, arXiv 2210.03117): prompts of the text
    stack, and of the image stack a linear map of them for each layer: `dict(paths="^text/",
    coupled="^image/", tokens=2, layers=9, mode="add")`; texts then begin with "a photo of a", and
    the images' prompts are further tokens.

    They are at `STACK/adapter/LABEL/tokens` [J, n, D]. With `coupled` they are at
    `adapter/LABEL/tokens`, and the maps at `STACK/adapter/LABEL/map`.

    Attributes:
      paths: of transformer stacks, such as `^image/encoder/transformer$`.
      tokens: n of a layer.
      layers: J, how many layers from the first on have prompts of their own; None: all.
      after: tokens of the sequence in front of them: [CLS], the start token.
      mode: `insert`: further tokens. `replace`: in place of tokens of the sequence. `add`: added to
        those before the first layer, from 0, so that the prompts begin as the words that are there
        (MaPLe's "a photo of a"); later layers replace them.
      std: of the normal distribution that they are drawn from; 0.02 as in MaPLe. VPT draws them
        uniformly within ±sqrt(6 / (3 · patch² + D)).
      coupled: regular expression of stacks whose prompts are maps of those of the one in `paths`.
      coupled_mode: `mode` of those stacks.
    """

    tokens: Count = 4
    layers: Depth | None = 1
    after: Annotated[int, Range(0, 1_048_576)] = 1
    mode: Mode = "insert"
    std: Std = 0.02
    coupled: str | None = None
    coupled_mode: Mode = "insert"

    kind = "transformer"

    def __post_init__(self):
        super().__post_init__()
        check_pattern("coupled", self.coupled or "")

    def fits(self, module: nnx.Module) -> bool:
        return isinstance(module, Transformer)

    def attach(self, label: str, model: nnx.Module, rngs: nnx.Rngs) -> None:
        stacks = self.chosen(model, self.paths)
        if self.coupled is None:
            for path, stack in stacks:
                layers = self._layers([(path, stack)])
                put(stack, label, self._prompts(stack, layers, rngs), path, most=1)
            return
        followers = self.chosen(model, self.coupled)
        check(
            len(stacks) == 1,
            "paths",
            f"{self.paths!r} names {len(stacks)} transformers; must be one with coupled",
        )
        [(path, stack)] = stacks
        source = self._prompts(stack, self._layers([*stacks, *followers]), rngs)
        put(stack, label, source, path, most=1)
        for path, stack in followers:
            how = dict(after=self.after, mode=self.coupled_mode, rngs=rngs)
            put(stack, label, CoupledPrompts(source, stack.sizes.width, **how), path, most=1)
        # Also at the root, and so first there: the path does not depend on who follows.
        model.adapter = nnx.Dict({**(model.adapter or {}), label: source})

    def _layers(self, stacks: Sequence[tuple[str, Transformer]]) -> int:
        """J. Raises ConfigError where one of the stacks has fewer layers."""
        path, least = min(stacks, key=lambda named: named[1].depth)
        layers = least.depth if self.layers is None else self.layers
        problem = f"{layers} are more than the {least.depth} layers of {path}"
        check(layers <= least.depth, "layers", problem)
        return layers

    def _prompts(self, stack: Transformer, layers: int, rngs: nnx.Rngs) -> Prompts:
        how = dict(after=self.after, mode=self.mode, std=self.std, rngs=rngs)
        return Prompts(self.tokens, layers, stack.sizes.width, **how)


@ADAPTERS.register("prefix")
@dataclasses.dataclass(frozen=True)
class PrefixConfig(Adapter):
    """Prefix tuning (Li & Liang 2021, arXiv 2101.00190, equation 3): learned keys and values in
    front of those that attention reads.

    They are parameters themselves, as in P-Tuning v2 (Liu et al. 2022, arXiv 2110.07602), without
    the perceptron that the paper draws them from. They are at `ATTENTION/adapter/LABEL/keys` and
    `values` [n, H, K].

    Attributes:
      paths: of attentions, such as `^text/.*/attention$`.
      tokens: n; 10 of the paper's table-to-text.
      std: of the normal distribution that they are drawn from; not from the paper.
    """

    tokens: Count = 10
    std: Std = 0.02

    kind = "attention"

    def fits(self, module: nnx.Module) -> bool:
        return isinstance(module, Attention)

    def stacked(self, module: Attention) -> int | None:
        lead = module.query.kernel.shape[:-3]
        return lead[0] if lead else None

    def build(self, module: Attention, number: int, rngs: nnx.Rngs) -> Prefix:
        del number
        return Prefix(self.tokens, module.query.outputs, std=self.std, rngs=rngs)
