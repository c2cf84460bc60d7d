"""From sound to what a model sees: log-mel spectrograms, on the devices."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.config import Range, check
from jaxvl.data.clips import RATE


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    """A log-mel spectrogram: power of short-time Fourier frames under a Hann window, summed by
    triangles on the mel scale.

    The defaults make 8.192 seconds 128 x 128, as IMP does (Akbari et al. 2023).

    Attributes:
      rate: samples per second.
      frame: samples under one window.
      step: samples between two windows. Frame `l` begins at sample `l * step`; what lies beyond the
        end is silence.
      bins: mel bins F.
      low, high: frequencies in Hz that the bins cover; `high` None: half the rate.
      scale: "slaney" (linear to 1 kHz, then logarithmic) or "htk" (2595 log10(1 + f / 700)).
      area: every triangle has area one (in Hz); False: height one.
      floor: power below which the logarithm is cut.
      mean, std: of the logarithm; a model sees `(value - mean) / std`.
    """

    rate: Annotated[int, Range(1, 1_000_000)] = RATE
    frame: Annotated[int, Range(1, 65_536)] = 2048
    step: Annotated[int, Range(1, 65_536)] = 1024
    bins: Annotated[int, Range(1, 65_536)] = 128
    low: float = 0.0
    high: float | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    area: bool = True
    floor: float = 1e-6
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        for name in ("rate", "frame", "step", "bins"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")
        top = self.rate / 2 if self.high is None else self.high
        check(
            0 <= self.low < top <= self.rate / 2,
            "low",
            f"{self.low!r} … {top!r} Hz must lie in 0 … {self.rate / 2:g}",
        )
        check(self.scale in ("slaney", "htk"), "scale", f"{self.scale!r} must be slaney or htk")
        check(self.floor > 0, "floor", f"{self.floor!r} must be > 0")
        check(self.std > 0, "std", f"{self.std!r} must be > 0")

    def length(self, samples: int) -> int:
        """Frames L of `samples` samples."""
        return -(-samples // self.step)

    def __call__(
        self, waveform: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The spectrograms of a batch, to be traced in a compiled step.

        Args:
          waveform: int16, or float in -1..1, [B, N].
          lengths: int32 [B], samples before the padding; None: all N.

        Returns:
          float32 [B, L, F], and bool [B, L]: the frames that begin before the padding does.
        """
        count = self.length(waveform.shape[1])
        x = (
            waveform.astype(jnp.float32) * (1 / 32768)
            if waveform.dtype == jnp.int16
            else waveform.astype(jnp.float32)
        )
        x = jnp.pad(x, ((0, 0), (0, max((count - 1) * self.step + self.frame - x.shape[1], 0))))
        frames = x[:, np.arange(count)[:, None] * self.step + np.arange(self.frame)]
        spectrum = jnp.fft.rfft(frames * hann(self.frame))
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        mel = jnp.matmul(power, mel_bank(self).T, precision=jax.lax.Precision.HIGHEST)
        values = (jnp.log(jnp.maximum(mel, self.floor)) - self.mean) / self.std
        ends = jnp.full(len(x), waveform.shape[1]) if lengths is None else lengths
        return values, np.arange(count)[None] * self.step < ends[:, None]


def hann(n: int) -> np.ndarray:
    """The periodic Hann window, float32 [n]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def mel_bank(config: Spectrogram) -> np.ndarray:
    """Weights of the Fourier frequencies in every mel bin, float32 [F, frame / 2 + 1]."""
    top = config.rate / 2 if config.high is None else config.high
    edges = from_mel(
        np.linspace(*to_mel(np.array([config.low, top]), config.scale), config.bins + 2),
        config.scale,
    )
    frequencies = np.fft.rfftfreq(config.frame, 1 / config.rate)
    rise = (frequencies[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - frequencies[None]) / np.diff(edges)[1:, None]
    weights = np.maximum(0, np.minimum(rise, fall))
    if config.area:
        weights *= 2 / (edges[2:] - edges[:-2])[:, None]
    return weights.astype(np.float32)


# of Slaney's Auditory Toolbox (1998)
KNEE = 1000.0
PER_MEL = 200 / 3
LOG_STEP = np.log(6.4) / 27


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Frequencies in Hz on the mel scale."""
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    return np.where(
        hertz < KNEE,
        hertz / PER_MEL,
        KNEE / PER_MEL + np.log(np.maximum(hertz, KNEE) / KNEE) / LOG_STEP,
    )


def from_mel(mel: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of `to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    knee = KNEE / PER_MEL
    return np.where(mel < knee, mel * PER_MEL, KNEE * np.exp(LOG_STEP * (mel - knee)))
