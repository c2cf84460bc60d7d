"""Prompt templates of zero-shot classification, and the class vectors they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxvl.config import check, nearest

# Sets by name. A template is any text with one `{}` in it, where the class name goes.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photos": ("{}", "a photo of {}", "a close-up photo of {}", "a blurry photo of {}", "a photo with {} in it", "many {} in a photo"),
    "drawings": ("{}", "a drawing of {}", "an icon of {}", "a picture of {}", "an emoji of {}", "a cartoon of {}", "{} in flat colours"),
}


def templates_of(choice: str | Sequence[str], field: str = "templates") -> tuple[str, ...]:
    """The templates of a named set, or the given ones.

    Raises:
      ConfigError: at `field`: an unknown set, an empty list, a template without exactly one `{}`.
    """
    if isinstance(choice, str):
        known = sorted(TEMPLATES)
        hint = f"; one template of your own is a list: [{choice!r}]" if "{}" in choice else nearest(choice, known)
        valid = f"(known: {', '.join(known)}; or a list of texts)"
        check(choice in TEMPLATES, field, f"{choice!r} is not a known set of templates{hint} {valid}")
        return TEMPLATES[choice]
    check(len(choice) > 0, field, "must hold at least one template, such as '{}'")
    for i, template in enumerate(choice):
        check(template.count("{}") == 1, f"{field}[{i}]", f"{template!r} must hold '{{}}' once, where the class name goes")
    return tuple(choice)


def class_vectors(encode: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One unit vector per class: the mean of its prompts' unit vectors, renormalised (CLIP, Radford et al. 2021, 3.1.4).

    Args:
      encode: texts -> float32 [n, D] rows; they are normalised here.
      names: C class names.
      templates: each with one `{}`.

    Returns:
      float32 [C, D]. A class whose prompts cancel out exactly keeps the zero vector.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    rows = encode(prompts).astype(np.float64)
    mean = _unit(rows).reshape(len(names), len(templates), -1).mean(1)
    return _unit(mean).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm == 0, 1.0, norm)
