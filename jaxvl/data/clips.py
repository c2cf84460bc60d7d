"""Sound clips: mono at 16 kHz, stored as 16-bit FLAC.

Needs `soundfile` and, for clips of another rate, `soxr` (jaxvl[audio]).
"""

from __future__ import annotations

import importlib.util
import io
import pathlib

import numpy as np

from jaxvl.data.records import BadRecord, DataError

RATE = 16_000  # samples per second of every stored clip


def require() -> None:
    """Raises DataError where the libraries of clips are not installed."""
    missing = [name for name in ("soundfile", "soxr") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"sound clips need {' and '.join(missing)}: pip install 'jaxvl[audio]'")


def encode_clip(path: str | pathlib.Path) -> bytes:
    """A sound file (any rate, any number of channels) as FLAC, 16 kHz, mono: the mean of its
    channels.

    Raises BadRecord for a file that cannot be read or has no samples.
    """
    import soundfile
    import soxr

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except Exception as error:  # libsndfile's errors, and those of a broken header
        raise BadRecord(
            "clip cannot be decoded", f"{path}: {type(error).__name__}: {error}"
        ) from None
    if not len(samples):
        raise BadRecord("clip cannot be decoded", f"{path}: it has no samples")
    mono = samples.mean(1)
    return to_flac(mono if rate == RATE else soxr.resample(mono, rate, RATE, "HQ"))


def to_flac(samples: np.ndarray) -> bytes:
    """float [N] in -1..1, at 16 kHz -> FLAC; louder samples are clipped."""
    import soundfile

    out = io.BytesIO()
    values = np.clip(np.rint(np.asarray(samples, np.float64) * 32768), -32768, 32767).astype(
        np.int16
    )
    soundfile.write(out, values, RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def decode_clip(data: bytes) -> np.ndarray:
    """int16 [N] of a stored clip. Raises BadRecord where it is broken or not 16 kHz mono."""
    require()
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    except Exception as error:
        raise BadRecord("clip cannot be decoded", f"{type(error).__name__}: {error}") from None
    if rate != RATE or samples.ndim != 1 or not len(samples):
        raise BadRecord("clip is not 16 kHz mono", f"rate {rate}, shape {samples.shape}")
    return samples


def fit(samples: np.ndarray, n: int, start: int = 0) -> tuple[np.ndarray, int]:
    """`n` samples from `start` on, zeros where the clip has ended: int16 [n], and how many are the
    clip's."""
    part = samples[start : start + n]
    return np.pad(part, (0, n - len(part))), len(part)
