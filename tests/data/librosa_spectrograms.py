"""What librosa says of the signals of `test_audio.py`, kept beside it: librosa compiles itself for
20 seconds where it has not run before.

`python tests/data/librosa_spectrograms.py` writes the file again; a slow test compares it with the
librosa that is installed.
"""

import pathlib

import numpy as np

from jaxvl.data.audio import Spectrogram

FILE = pathlib.Path(__file__).with_suffix(".npz")
SMALL = dict(frame=256, step=128, bins=24)
CONFIGS = {
    "default": {},
    "small": SMALL,
    "htk": dict(SMALL, scale="htk", area=False, low=60.0, high=7000.0),
    "8 kHz, frames apart": dict(rate=8000, frame=200, step=240, bins=10),
}
SAMPLES = {name: 131072 if name == "default" else 5000 for name in CONFIGS}
EVERY = {name: 16 if name == "default" else 1 for name in CONFIGS}  # frames that are kept
HERTZ = np.linspace(0, 8000, 50)


def signals(n):
    """Noise; a gliding voice with overtones that fades; silence with a click."""
    rng = np.random.default_rng(0)
    t = np.arange(n) / 16000
    glide = 2 * np.pi * (120 * t + 400 * t**2)
    voice = sum(np.sin(k * glide) / k for k in range(1, 9)) * np.exp(-2 * t) * 0.3
    click = np.zeros(n)
    click[n // 3] = 0.9
    return np.stack([rng.normal(0, 0.2, n), voice, click]).astype(np.float32)


def padded(name):
    """A config's signals in float64, with silence behind them, and the number of its frames."""
    c = Spectrogram(**CONFIGS[name])
    x = signals(SAMPLES[name]).astype(np.float64)
    count = -(-x.shape[1] // c.step)
    return np.pad(x, ((0, 0), (0, max(0, (count - 1) * c.step + c.frame - x.shape[1])))), count


def computed():
    """librosa's figures, by config: the mel bank and the window in float32, the power of some
    frames in float64; and mels of frequencies."""
    import librosa

    arrays = {}
    for name, options in CONFIGS.items():
        c = Spectrogram(**options)
        about = dict(
            sr=c.rate,
            n_fft=c.frame,
            n_mels=c.bins,
            fmin=c.low,
            fmax=c.high,
            htk=c.scale == "htk",
            norm="slaney" if c.area else None,
        )
        arrays[f"{name}/bank"] = librosa.filters.mel(**about)
        arrays[f"{name}/window"] = librosa.filters.get_window("hann", c.frame).astype(np.float32)
        x, count = padded(name)
        power = librosa.feature.melspectrogram(
            y=x, hop_length=c.step, center=False, power=2.0, dtype=np.float64, **about
        )
        arrays[f"{name}/mel"] = power.swapaxes(1, 2)[:, : count : EVERY[name]]
    for scale in ("slaney", "htk"):
        arrays[f"{scale}/mels"] = librosa.hz_to_mel(HERTZ, htk=scale == "htk")
    return arrays


if __name__ == "__main__":
    np.savez_compressed(FILE, **computed())
