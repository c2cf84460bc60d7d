"""How much a picture's fit to its text loses by a step along the sign of the gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.evals import EVALUATORS, EvalResult
from jaxvl.evals.rows import caption, picture, rows_of
from jaxvl.evals.source_options import SourceOptions


@EVALUATORS.register("adversarial")
@dataclasses.dataclass(frozen=True)
class Adversarial(SourceOptions):
    """Fast gradient sign method (Goodfellow et al. 2014, arXiv 1412.6572)."""

    size: float = 0.1
    figures = ("clean", "pushed")

    def run(self, encoders):
        def fit(model, pixels, tokens):
            cosine = lambda x: jnp.sum(model.image(x) * model.text(tokens), -1)
            pixels = encoders.preprocess.normalise(pixels[..., :3])
            away = -jnp.sign(jax.grad(lambda x: cosine(x).sum())(pixels))
            return cosine(pixels), cosine(pixels + self.size * away)

        fields = {"image": picture("image", encoders), "text": caption("name/en", encoders)}
        batch, count = next(iter(rows_of(self, encoders, fields)))
        clean, pushed = encoders.apply(fit, batch["image"], batch["text"])
        mean = lambda values: float(np.mean(values[:count]))
        return EvalResult({"clean": mean(clean), "pushed": mean(pushed)}, [])
