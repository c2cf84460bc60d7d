"""Optimisers, learning-rate schedules and parameter masks.

The optax chain yields an update of unit learning rate; `step.py` multiplies it by
`-schedule(step)`. So a skipped step does not shift the schedule, and the schedule is a pure
function of the global step.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from jaxvl.aliases import Arrays
from jaxvl.config import Epsilon, Range, Scale, Weight, check
from jaxvl.models.functional import Bounds

PARAMETERS = "parameters"  # of `OptimConfig.evaluate`: no average


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser of all parameters.

    Attributes:
      name: `adamw` (Loshchilov & Hutter 2019), `lamb` (You et al. 2020; ALIGN), `adafactor`
        (Shazeer & Stern 2018; factored second moment, momentum `b1`, updates clipped to RMS 1;
        CoCa), `lion` (Chen et al. 2023), `muon` (Jordan 2024: matrices orthogonalised, vectors,
        embeddings and heads by Adam).
      lr: peak learning rate.
      schedule: shape after the warm-up: to `final_lr` at the last step (`linear`, `cosine`),
        `rsqrt`, or `constant`.
      warmup: steps of linear warm-up from 0.
      cooldown: last steps over which `rsqrt` and `constant` fall linearly to `final_lr`.
      final_lr: as a fraction of `lr`.
      b1, b2, eps: moments.
      weight_decay: decoupled; multiplied by the current learning rate.
      decay: regular expression of the parameter paths that decay (`re.search`); the default leaves
        out biases, norms, scalars, and IMP's tables of positions.
      unused: what a step does to parameters that its task's loss does not depend on (found from the
        program, so a `stop_gradient` counts). `skip`: nothing; value and moments stay, and nothing
        decays. `decay`: IMP's released behaviour; their gradient is 0, so they drift on by momentum
        and decay. Adam's step count is one for all parameters either way: its bias correction is
        that of the run's step, not of a parameter's own steps. A parameter first used late
        therefore starts with steps up to `(1 - b1) / sqrt(1 - b2)` times as long (3.2 by default).
      freeze: regular expression of the parameter paths that stay as they are (no update, no
        moments), or None. An encoder that it covers as a whole runs as in evaluation (no dropout,
        batch statistics kept): `^image/encoder/` is locked-image tuning (LiT, Zhai et al. 2022).
      lr_scale: (regular expression, factor) pairs; the first that matches a path scales its
        updates.
      clip_norm: largest global norm of the gradient, or None.
      clamp: how the model's bounds of its log-scales (`max_scale`, `min_scale`, log 100 by default;
        None there: no bound) are kept. `loss`: the loss reads the bounded value and passes no
        gradient that leads farther beyond; the parameter itself may lie a little beyond, by its
        momentum. `update`: the parameter is set within its bounds after every update, as CLIP and
        open_clip do. The two are the same until a bound is met.
      ema: decay of a moving average of the parameters, or of several by name (`dict(fast=0.999,
        slow=0.9999)`), or None. First steps use `(1 + t) / (10 + t)` where that is smaller.
      evaluate: weights that evaluation and export use: `parameters`, or an average by its name.
        None: the average, of several the one with the largest decay; without any the parameters.
        Of a finished run, `--config.optim.evaluate=NAME` of `jaxvl.evaluate` and `jaxvl.caption`
        and `--weights=NAME` of `jaxvl.convert` take another.
      moment_dtype: dtype of the first moment.
      zero1: whether the moments and averages (`ema`) are split over the mesh axis `data` too,
        beside the axes of their parameters: gradients are reduce-scattered, every device updates
        its part, and the new parameters are gathered (ZeRO stage 1, `sharding/spread.py`). Layout
        only: the numbers are the same to rounding. A teacher that is an average is gathered in
        every step.
    """

    name: Literal["adamw", "lamb", "adafactor", "lion", "muon"] = "adamw"
    lr: Scale = 1e-3
    schedule: Literal["linear", "cosine", "rsqrt", "constant"] = "cosine"
    warmup: Annotated[int, Range(0, 2**31 - 1)] = 100
    cooldown: Annotated[int, Range(0, 2**31 - 1)] = 0
    final_lr: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: Epsilon = 1e-8
    weight_decay: Weight = 0.0
    decay: str = r"(kernel|embedding|query|pos\w*)$"
    unused: Literal["skip", "decay"] = "skip"
    freeze: str | None = None
    lr_scale: tuple[tuple[str, Weight], ...] = ()
    clip_norm: float | None = 1.0
    clamp: Literal["loss", "update"] = "loss"
    ema: float | dict[str, float] | None = None
    evaluate: str | None = None
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    zero1: bool = False

    def __post_init__(self):
        check(self.lr > 0, "lr", f"{self.lr!r} must be > 0")
        check(self.warmup >= 0, "warmup", f"{self.warmup!r} must be >= 0 steps")
        check(self.cooldown >= 0, "cooldown", f"{self.cooldown!r} must be >= 0 steps")
        check(
            0 <= self.final_lr <= 1,
            "final_lr",
            f"{self.final_lr!r} is a fraction of lr; must be in [0, 1]",
        )
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, name, f"{getattr(self, name)!r} must be in [0, 1)")
        check(self.weight_decay >= 0, "weight_decay", f"{self.weight_decay!r} must be >= 0")
        check(
            self.clip_norm is None or self.clip_norm > 0,
            "clip_norm",
            f"{self.clip_norm!r} must be > 0, or None",
        )
        self._check_averages()
        for key, pattern in (
            ("decay", self.decay),
            ("freeze", self.freeze),
            *(("lr_scale", p) for p, _ in self.lr_scale),
        ):
            try:
                re.compile(pattern or "")
            except re.error as error:
                check(False, key, f"{pattern!r} is not a regular expression: {error}")

    def _check_averages(self) -> None:
        for name, decay in self.averages.items():
            key = f"ema.{name}" if name else "ema"
            check(0 < decay < 1, key, f"{decay!r} must be in (0, 1), or None")
            fits = "/" not in name and name != PARAMETERS
            check(fits, key, f"{name!r} may not be the name of an average")
        check(self.ema != {}, "ema", "has no average; must be None, or name one")
        known = [PARAMETERS, *filter(None, self.averages)]
        check(
            self.evaluate in (None, *known),
            "evaluate",
            f"{self.evaluate!r} must be None or one of {', '.join(known)}",
        )

    @property
    def averages(self) -> dict[str, float]:
        """Name -> decay of the averages that are kept; the name of the only one is empty, where it
        has none."""
        if self.ema is None:
            return {}
        return dict(self.ema) if isinstance(self.ema, Mapping) else {"": self.ema}

    @property
    def main_average(self) -> str | None:
        """The average that evaluation uses, or would use were it not for `evaluate="parameters"`;
        None: there is none."""
        if self.evaluate not in (None, PARAMETERS):
            return self.evaluate
        averages = self.averages
        return max(averages, key=lambda name: (averages[name], name), default=None)

    @property
    def evaluated(self) -> str | None:
        """The average that evaluation uses; None: the parameters themselves."""
        return None if self.evaluate == PARAMETERS else self.main_average


def learning_rate(config: OptimConfig, total: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate as a function of the step, float32. Step `total - 1` is the last one that uses
    it."""
    peak = config.lr
    final = config.lr * config.final_lr
    after = max(total - config.warmup, 1)
    if config.schedule == "linear":
        main = optax.linear_schedule(peak, final, after)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, after, alpha=config.final_lr)
    elif config.schedule == "rsqrt":
        shift = max(config.warmup, 1)
        main = lambda t: peak * jnp.sqrt(shift / (t + shift))  # noqa: E731
    else:
        main = optax.constant_schedule(peak)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        value = main(jnp.maximum(step - config.warmup, 0))
        if config.schedule in ("rsqrt", "constant") and config.cooldown:
            left = jnp.clip((total - step) / config.cooldown, 0, 1)
            value = final + (value - final) * left
        return jnp.float32(
            value * jnp.minimum(1.0, (step + 1) / config.warmup) if config.warmup else value
        )

    return rate


def optimiser(
    config: OptimConfig, axes: Mapping[str, tuple[str, ...]], frozen: frozenset[str] = frozenset()
) -> tuple[optax.GradientTransformation, dict[str, bool]]:
    """The optax chain (unit learning rate, positive sign) and which parameters it trains.

    Args:
      config: see `OptimConfig`.
      axes: path -> logical axes of every parameter (muon takes its matrices from them).
      frozen: paths that are not trained, beside those of `config.freeze` (`Functional.frozen`).

    Raises:
      ConfigError: `freeze` or an `lr_scale` pattern that matches no parameter.
    """
    paths = list(axes)
    for key, pattern in (
        ("optim.freeze", config.freeze),
        *(("optim.lr_scale", p) for p, _ in config.lr_scale),
    ):
        check(
            pattern is None or any(re.search(pattern, p) for p in paths),
            key,
            f"{pattern!r} matches no parameter (such as {paths[:3]})",
        )
    trained = {
        p: p not in frozen and not (config.freeze and re.search(config.freeze, p)) for p in paths
    }
    decayed = {p: bool(re.search(config.decay, p)) for p in paths}
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    chain.append(_rule(config, axes))
    if config.weight_decay:
        chain.append(
            optax.add_decayed_weights(
                config.weight_decay, mask=lambda params: {p: decayed[p] for p in params}
            )
        )
    if config.name == "lamb":
        chain.append(optax.scale_by_trust_ratio())
    if config.lr_scale:
        factor = {p: next((f for r, f in config.lr_scale if re.search(r, p)), 1.0) for p in paths}
        chain.append(
            optax.stateless(lambda updates, params: {p: u * factor[p] for p, u in updates.items()})
        )
    return optax.chain(*chain), trained


def _rule(config: OptimConfig, axes: Mapping[str, tuple[str, ...]]) -> optax.GradientTransformation:
    mu_dtype = jnp.dtype(config.moment_dtype)
    if config.name in ("adamw", "lamb"):
        return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=mu_dtype)
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2, mu_dtype=mu_dtype)
    if config.name == "adafactor":
        decay = lambda step, _: config.b2 * jnp.ones_like(jnp.float32(step))  # noqa: E731
        return optax.chain(
            optax.scale_by_factored_rms(decay_rate_fn=decay),
            optax.clip_by_block_rms(1.0),
            optax.ema(config.b1, debias=False, accumulator_dtype=mu_dtype),
        )
    numbers = {p: _matrix(p, a) for p, a in axes.items()}
    muon = optax.contrib.muon(
        1.0,
        beta=config.b1,
        eps=config.eps,
        adam_b2=config.b2,
        mu_dtype=mu_dtype,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda params: {p: numbers[p] for p in params},
    )
    return optax.chain(muon, optax.scale(-1.0))  # undo optax's descent sign


def _matrix(path: str, axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which dimensions of a kernel are its input and its output; None: not a matrix for Muon."""
    dims = [
        i for i, a in enumerate(axes) if a not in ("layers", "expert")
    ]  # one matrix for each of these
    if not path.endswith("kernel") or len(dims) < 2 or {"vocab", "route"} & {*axes}:
        return None
    names = [axes[i] for i in dims]
    if names[-1] == "kv" and len(dims) == 3:  # [D, H, K]: heads and their width are the output
        return optax.contrib.MuonDimensionNumbers(
            reduction_axis=(dims[0],), output_axis=tuple(dims[1:])
        )
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=tuple(dims[:-1]), output_axis=(dims[-1],)
    )


def ema_decay(decay: float, step: jax.Array) -> jax.Array:
    """Decay of a parameter average at `step`: `min(decay, (1 + t) / (10 + t))`."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def clamp(params: Arrays, bounds: Mapping[str, Bounds]) -> Arrays:
    """Parameters with those that have bounds within them."""
    return {p: jnp.clip(v, *bounds[p]) if p in bounds else v for p, v in params.items()}
