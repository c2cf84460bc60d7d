"""A model's encode functions as evaluators use them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxvl.aliases import Weights
from jaxvl.config import to_path
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals.differentiable import Functions
from jaxvl.evals.encoders import Encoders
from jaxvl.models.functional import Functional
from jaxvl.models.generate import TextShape, generate
from jaxvl.training.experiment import Experiment


def make_encoders(
    experiment: Experiment,
    model: Functional,
    tokenizer: Tokenizer,
    mesh: Mesh,
    weights: Weights | None = None,
) -> Encoders:
    """`Encoders` over the model's `encode_image` and `encode_text`.

    Args:
      weights: (params, model_state), or None.
    """

    def image(weights, pixels):
        return model.apply(*weights, pixels, method="encode_image")[0]

    def text(weights, tokens):
        return model.apply(*weights, tokens, method="encode_text")[0]

    length = experiment.longest_text
    capabilities = experiment.model.capabilities()
    first = capabilities.start_id
    begun = int(first is not None)

    def caption(weights, pixels, generation, numbers, index, prompt):
        apply = functools.partial(model.apply, *weights)
        (kv_cache, cross_kv), _ = apply(pixels, length, method="prefill")
        step = lambda kv_cache, *args: apply(kv_cache, cross_kv, *args, method="decode_step")[0]
        prompt = prompt if prompt is None else prompt[:, begun:]
        texts = TextShape(len(pixels), length - begun, tokenizer.eos_id, tokenizer.pad_id)
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(numbers.seed)))(index)
        tokens = generate(
            step,
            kv_cache,
            generation,
            texts,
            keys=keys,
            numbers=numbers,
            prompt=prompt,
        ).tokens
        return jnp.pad(tokens, ((0, 0), (begun, 0)), constant_values=first or 0)

    def score(weights, pixels, tokens, begin):
        memory, _ = model.apply(*weights, pixels, method="memory")[0]

        def of_one(text):
            scores, _ = model.apply(*weights, memory, text, method="caption_scores")
            counts = ((text != tokenizer.pad_id) & (jnp.arange(text.shape[1]) >= begin[:, None]))[
                :, begun:
            ]
            log_p = jnp.where(counts, scores["target"] - scores["lse"], 0.0)
            return jnp.stack(
                [
                    log_p.sum(1),
                    counts.sum(1, dtype=jnp.float32),
                    (counts & scores["correct"]).sum(1, dtype=jnp.float32),
                ],
                -1,
            )

        return jax.lax.map(of_one, tokens.swapaxes(0, 1)).swapaxes(0, 1)

    def image_tokens(weights, pixels):
        return model.apply(*weights, pixels, method="image_tokens")[0]

    def outputs(weights, batch):
        return model.apply(*weights, batch)[0]

    functions = Functions(
        image,
        text,
        outputs,
        caption=caption if capabilities.generates else None,
        score=score if capabilities.generates else None,
        tokens=image_tokens if "image" in model.inputs else None,
    )
    encoders = Encoders(functions, weights, tokenizer, experiment.preprocess, length, mesh)
    encoders.open_run = open_run
    return encoders


def open_run(workdir: str) -> Encoders:
    """The encoders of another run's newest weights. Raises ConfigError, CheckpointError."""
    from jaxvl.training.restore import restore_encoders  # which itself makes encoders

    return restore_encoders(to_path(workdir, "runs"))[2]
