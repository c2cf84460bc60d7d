"""Captions that the model writes itself, and a teacher's embeddings of them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from jaxvl.before import BEFORE, Arrays, Before, BoundModel, Models
from jaxvl.config import NonEmpty, Scale, check


@BEFORE.register("sample_captions")
@dataclasses.dataclass(frozen=True)
class SampleCaptions(Before):
    """Samples a caption of every picture, writes the greedy one, and embeds both.

    It finds, all under its label:
      sampled, greedy: int32 [B, T], tokens that the student writes.
      drawn: bool [B, T], the tokens of `sampled` that were drawn: up to EOS, without one that was
        forced.
      image, sampled_text, greedy_text: float32 [B, E], the teacher's embeddings, unit rows.
      real_text, broken_text: float32 [B, E], the teacher's embeddings of the batch's captions and
        of broken ones; differs: bool [B], whether the two texts differ. Only with `broken`.

    CoCa gives `sampled_log_p` of the captions of a hook with the label `captions`.

    Attributes:
      teacher: key of the config's `teachers`, which embeds.
      temperature: of the samples.
      broken: also embed captions that are broken on purpose (Cho et al. 2022, arXiv 2205.13115).
    """

    teacher: Annotated[str, NonEmpty("a key of teachers")]
    temperature: Scale = 1.0
    broken: bool = False

    def __post_init__(self):
        check(self.temperature > 0, "temperature", f"{self.temperature!r} must be > 0")

    @property
    def teachers(self) -> tuple[str, ...]:
        return (self.teacher,)

    def rows(self, models: Models, inputs: Arrays, keys: jax.Array) -> dict[str, jax.Array]:
        student = models.student
        teacher = models[self.teacher]
        length = inputs["text"].shape[1]
        sampled, drawn = student.generate(
            inputs["image"], length, keys, temperature=self.temperature
        )
        greedy, _ = student.generate(inputs["image"], length)
        found = {
            "sampled": sampled,
            "drawn": drawn,
            "greedy": greedy,
            "image": teacher.apply(inputs["image"], method="encode_image"),
            "sampled_text": teacher.apply(sampled, method="encode_text"),
            "greedy_text": teacher.apply(greedy, method="encode_text"),
        }
        if self.broken:
            found |= _broken(teacher, inputs["text"], keys)
        return found


def _broken(teacher: BoundModel, text: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
    own = jax.vmap(lambda key: jax.random.fold_in(key, 2**31))(keys)  # tokens draw with 0, 1, …
    broken, differs = jax.vmap(lambda *row: corrupt(*row, teacher.eos_id, teacher.pad_id))(
        text, own
    )
    return {
        "real_text": teacher.apply(text, method="encode_text"),
        "broken_text": teacher.apply(broken, method="encode_text"),
        "differs": differs,
    }


def corrupt(
    tokens: jax.Array, key: jax.Array, eos_id: int, pad_id: int
) -> tuple[jax.Array, jax.Array]:
    """One of its tokens repeated (up to three times more), its tokens shuffled, or one dropped:
    each with probability 1/3.

    Args:
      tokens: int [T], ended by EOS, then padding.

    Returns:
      tokens int [T], and whether they differ from those given, bool [].
    """
    length = tokens.shape[0]
    place = jnp.arange(tokens.shape[0])
    kind, where, times, order = jax.random.split(key, 4)
    n = jnp.argmax(tokens == eos_id)
    at = jax.random.randint(where, (), 0, jnp.maximum(n, 1))
    times = jax.random.randint(times, (), 1, 4)
    repeat = jnp.where(place <= at, place, jnp.maximum(at, place - times))
    shuffle = jnp.argsort(jnp.where(place < n, jax.random.uniform(order, (length,)), 1.0 + place))
    drop = jnp.where(place < at, place, place + 1)
    kind = jax.random.randint(kind, (), 0, 3)
    source = jnp.stack([repeat, shuffle, drop])[kind]
    end = jnp.clip(n + jnp.stack([times, 0, -1])[kind], 0, length - 1)
    new = jnp.where(
        place < end,
        tokens[jnp.minimum(source, length - 1)],
        jnp.where(place == end, eos_id, pad_id),
    ).astype(tokens.dtype)
    return new, (new != tokens).any()
