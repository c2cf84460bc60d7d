"""A text with hidden tokens, for masked language modelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import Range, TokenId, check
from jaxvl.data.fields import FIELDS
from jaxvl.data.fields.base import Context, RowShape
from jaxvl.data.fields.caption import DRAWS, Caption, CaptionReader, Texts, choose
from jaxvl.data.sources.base import Record, Source

MASK = "[MASK]"


@FIELDS.register("masked_text")
@dataclasses.dataclass(frozen=True)
class MaskedText(Caption):
    """Fills NAME int32 [B, T] with a text some of whose tokens are hidden, and NAME_target int32
    [B, T]: the hidden token, else -1.

    Of the tokens that are hidden (Devlin et al. 2019, section 3.1) `masked` become the mask token,
    `random` any token of the vocabulary, and the rest stay as they are. Padding and the tokens
    before and after a text are never hidden.

    Attributes:
      share: probability that a token is hidden.
      masked, random: shares of the hidden tokens.
      mask_id: id of the mask token; None: the tokenizer's `[MASK]`.
    """

    share: Annotated[float, Range(0.0, 1.0)] = 0.15
    masked: Annotated[float, Range(0.0, 1.0)] = 0.8
    random: Annotated[float, Range(0.0, 1.0)] = 0.1
    mask_id: TokenId | None = None

    def __post_init__(self):
        super().__post_init__()
        check(
            self.masked + self.random <= 1,
            "masked",
            f"{self.masked!r} and random {self.random!r} must be <= 1 together",
        )
        check(self.count == 1, "count", f"{self.count!r} must be 1 for a masked text")
        problem = "must be left out for a masked text, whose tokens are hidden instead"
        check(not self.augment.changes, "augment", problem)

    @property
    def draws(self) -> int:
        """See `Field`: two for every token beside those of the choice."""
        return DRAWS + 2 * self.length

    def arrays(self, name: str) -> dict[str, RowShape]:
        """See `Field`."""
        return super().arrays(name) | {f"{name}_target": RowShape((self.length,), np.int32)}

    def inputs(self, name: str) -> dict[str, str]:
        """See `Field`: objectives and heads read it, beside the model's own text."""
        return {}

    def reader(self, name: str, source: Source, context: Context) -> MaskedTextReader:
        """See `Field`."""
        mask_id = self.mask_id if self.mask_id is not None else context.tokenizer.id_of(MASK)
        check(
            mask_id is not None,
            "mask_id",
            f"the tokenizer has no {MASK}; name the id of the token that takes its place",
        )
        size = context.tokenizer.vocab_size
        check(
            mask_id < size, "mask_id", f"{mask_id!r} must be < {size}, the size of the vocabulary"
        )
        return MaskedTextReader(
            name, self, CaptionReader(name, self, self.matched(source), context), context, mask_id
        )


class MaskedTextReader:
    """The host half of `MaskedText`; see `base.Reader`."""

    def __init__(
        self, name: str, config: MaskedText, captions: CaptionReader, context: Context, mask_id: int
    ):
        self._name = name
        self._config = config
        self._captions = captions
        self._mask_id = mask_id
        self._size = context.tokenizer.vocab_size
        tokenizer = context.tokenizer
        kept = [tokenizer.pad_id, tokenizer.eos_id, tokenizer.cls_id]
        self._kept = np.array([token for token in kept if token is not None], np.int32)
        self.columns = captions.columns
        self.key = captions.key

    def load(self, record: Record) -> Texts | None:
        """The record's texts."""
        return self._captions.load(record)

    def write(self, out: HostArrays, row: int, value: Texts, draws: Sequence[float]) -> None:
        """See `base.Reader`."""
        config = self._config
        ids = self._captions.tokens(choose(value, config.joined, draws[:DRAWS])).copy()
        chance = np.array(draws[DRAWS : DRAWS + config.length])
        what = np.array(draws[DRAWS + config.length :])
        hidden = (chance < config.share) & ~np.isin(ids, self._kept)
        out[f"{self._name}_target"][row] = np.where(hidden, ids, -1)
        ids[hidden & (what < config.masked)] = self._mask_id
        other = hidden & (what >= config.masked) & (what < config.masked + config.random)
        # Within its range `what` is uniform, so it chooses the token as well.
        chosen = (what - config.masked) / max(config.random, 1e-12) * self._size
        ids[other] = np.minimum(chosen[other].astype(np.int32), self._size - 1)
        out[self._name][row] = ids
