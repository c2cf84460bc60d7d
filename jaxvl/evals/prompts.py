"""Prompt templates of zero-shot classification, and the class vectors they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxvl.config import check, nearest
from jaxvl.data.class_sets import imagenet_templates, to_template

PROMPTS = 8192  # texts at a time

# Sets by name. A template is any text with `{}` in it, once or more, where the class name goes.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photos": (
        "{}",
        "a photo of {}",
        "a close-up photo of {}",
        "a blurry photo of {}",
        "a photo with {} in it",
        "many {} in a photo",
    ),
    "drawings": (
        "{}",
        "a drawing of {}",
        "an icon of {}",
        "a picture of {}",
        "an emoji of {}",
        "a cartoon of {}",
        "{} in flat colours",
    ),
    "imagenet80": imagenet_templates(),
}


def templates_of(choice: str | Sequence[str], field: str = "templates") -> tuple[str, ...]:
    """The templates of a named set, or the given ones.

    Raises:
      ConfigError: at `field`: an unknown set, an empty list, a template without `{}` or `{c}`.
    """
    if isinstance(choice, str):
        known = sorted(TEMPLATES)
        hint = (
            f"; one template of your own is a list: [{choice!r}]"
            if "{}" in choice
            else nearest(choice, known)
        )
        valid = f"(known: {', '.join(known)}; or a list of texts)"
        check(
            choice in TEMPLATES, field, f"{choice!r} is not a known set of templates{hint} {valid}"
        )
        return TEMPLATES[choice]
    check(len(choice) > 0, field, "must hold at least one template, such as '{}'")
    for i, template in enumerate(choice):
        held = "{}" in to_template(template)
        check(
            held,
            f"{field}[{i}]",
            f"{template!r} must hold '{{}}' once or more, where the class name goes",
        )
    return tuple(to_template(template) for template in choice)


def class_vectors(
    encode: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """One unit vector per class: the mean of its prompts' unit vectors, renormalised (CLIP, Radford
    et al. 2021, 3.1.4).

    At most `PROMPTS` texts are made and encoded at a time, or those of one class.

    Args:
      encode: texts -> float32 [n, D] rows; they are normalised here.
      names: C class names.
      templates: each with `{}`, once or more.

    Returns:
      float32 [C, D]. A class whose prompts cancel out exactly keeps the zero vector.
    """
    step = max(1, PROMPTS // len(templates))
    parts = [
        _some_vectors(encode, names[start : start + step], templates)
        for start in range(0, len(names), step)
    ]
    return np.concatenate(parts)


def _some_vectors(
    encode: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    prompts = [template.replace("{}", name) for name in names for template in templates]
    rows = encode(prompts).astype(np.float64)
    mean = _unit(rows).reshape(len(names), len(templates), -1).mean(1)
    return _unit(mean).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm == 0, 1.0, norm)
