"""Predictions of a slow teacher's projection of the other modality: BYOL across modalities."""

from __future__ import annotations

import dataclasses

from jaxvl.objectives import OBJECTIVES, Objective
from jaxvl.objectives.simsiam import Pairs, check_pairs, predicted


@OBJECTIVES.register("byol")
@dataclasses.dataclass(frozen=True)
class Byol(Objective):
    """A predictor of each modality guesses the teacher's projection of the other (BYOLIP, Fini et
    al. 2023, arXiv 2305.08675, section 3; BYOL, Grill et al. 2020, arXiv 2006.07733, equation 2).

        L = mean over pairs (p, v') of  mean_i 2 - 2 cos(p_i, v'_i)

    v' is of a moving average of the model, which has no gradient:

        c.teachers = dict(momentum=dict(source="ema", decay=0.99))
        before = dict(momentum=dict(name="teach", teacher="momentum", outputs=("projected/image",
          "projected/text")))

    The release's decay is 0.99. There the teacher's batch normalisation has the statistics of the
    batch; here those of its running average.

    Reads predictions from the outputs: Float[Array, "B D"] (the head `predictor`), what they
    predict from the batch (the hook `teach`). Config: configs/methods/recipe.py:method=byol.

    Attributes:
      pairs: (prediction, what it predicts): a model output and a batch entry.
    """

    pairs: Pairs = (
        ("predicted_text/image", "momentum/projected_text/text"),
        ("predicted_image/text", "momentum/projected_image/image"),
    )

    def __post_init__(self):
        check_pairs(self.pairs)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(guess for guess, _ in self.pairs))

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(truth for _, truth in self.pairs))

    def __call__(self, outputs, batch, state, context):
        del context
        pairs = [(outputs[guess], batch[truth]) for guess, truth in self.pairs]
        return predicted(pairs, [guess for guess, _ in self.pairs]), state
