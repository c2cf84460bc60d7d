"""Cross-entropy over the texts of classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxvl.objectives import OBJECTIVES, Loss, Objective


@OBJECTIVES.register("class_texts")
@dataclasses.dataclass(frozen=True)
class ClassTextEntropy(Objective):
    """Which class's text fits a picture: the loss of prompt learning (MaPLe, Khattak et al. 2023,
    arXiv 2210.03117, equation 1 of section 3.1; CoOp, Zhou et al. 2022).

        L = - mean_i log softmax_c(exp(log_scale) x_i . t_c)_{y_i}

    Reads image: Float[Array, "B D"] and the texts' vectors: Float[Array, "B N D"], unit rows;
    log_scale: Float[Array, ""]; from the batch the classes of the texts: Int[Array, "B N"], each
    once, those < 0 left out; label: Int[Array, "B"]. Rows whose label has no text are left out.

    MaPLe itself is the adapter `prompts` with `coupled`, and the hook `class_texts`, whose label is
    `classes` here.

    Attributes:
      image, text: outputs of the model.
      number, label: batch entries of the texts' classes and of the rows'.
    """

    image: str = "image"
    text: str = "classes/text"
    number: str = "classes/number"
    label: str = "class_label"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.image, self.text, "log_scale")

    @property
    def batch_keys(self) -> tuple[str, ...]:
        return (self.number, self.label)

    def __call__(self, outputs, batch, state, context):
        del context
        image = outputs[self.image].astype(jnp.float32)
        text = outputs[self.text].astype(jnp.float32)
        text = text.reshape(-1, text.shape[-1])
        numbers = batch[self.number].reshape(-1)
        logits = jnp.exp(outputs["log_scale"]) * image @ text.T
        logits = jnp.where(numbers >= 0, logits, -jnp.inf)
        right = (batch[self.label][:, None] == numbers) & (numbers >= 0)
        known = right.any(1)
        place = right.argmax(1)
        log_p = jax.nn.log_softmax(logits)[jnp.arange(len(image)), place]
        total = jnp.maximum(known.sum(), 1)
        loss = -jnp.where(known, log_p, 0.0).sum() / total
        hits = known & (logits.argmax(1) == place)
        return Loss(loss, {"accuracy": hits.sum() / total}), state
