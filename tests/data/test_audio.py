"""Log-mel spectrograms against librosa."""

import jax
import librosa_spectrograms
import numpy as np
import pytest
from librosa_spectrograms import CONFIGS, EVERY, HERTZ, SAMPLES, SMALL, padded, signals

from jaxvl.config import ConfigError
from jaxvl.data import clips
from jaxvl.data.audio import Spectrogram, from_mel, hann, mel_bank, to_mel
from jaxvl.data.records import BadRecord

soundfile = pytest.importorskip("soundfile", reason="clips need jaxvl[audio]")


@pytest.fixture(scope="module")
def librosas():
    """librosa's figures, as `librosa_spectrograms.py` keeps them."""
    with np.load(librosa_spectrograms.FILE) as file:
        return dict(file)


@pytest.mark.slow
def test_what_is_kept_is_librosas(librosas):
    pytest.importorskip("librosa")
    computed = librosa_spectrograms.computed()
    assert computed.keys() == librosas.keys()
    for name, value in computed.items():
        np.testing.assert_allclose(librosas[name], value, rtol=1e-6, atol=1e-12, err_msg=name)


def expected(name, c, librosas):
    """Power of all frames in float64, by librosa's mel bank; where librosa's own power is kept, the
    two are equal."""
    x, count = padded(name)
    frames = np.stack([x[:, i * c.step : i * c.step + c.frame] for i in range(count)], axis=1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(c.frame) / c.frame)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    mel = power @ librosas[f"{name}/bank"].T.astype(np.float64)
    theirs = librosas[f"{name}/mel"]
    np.testing.assert_allclose(mel[:, :: EVERY[name]], theirs, rtol=1e-6, atol=1e-9)
    return mel


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_librosa(name, librosas):
    config = Spectrogram(**CONFIGS[name])
    x = signals(SAMPLES[name])
    values, valid = jax.jit(config)(x)
    mel = expected(name, config, librosas)
    assert values.shape == mel.shape and valid.all()
    assert name != "default" or values.shape == (3, 128, 128)  # 8.192 s
    # float32 Fourier sums err by eps * log2(frame) of the frame's power; where less is left than
    # that, only its smallness counts.
    power = np.exp(np.asarray(values, np.float64))
    loudest = mel.max(-1, keepdims=True)
    assert np.abs(power - np.maximum(mel, config.floor)).max() <= 5e-6 * loudest.max()
    clear = mel > np.maximum(1e-4 * loudest, 2 * config.floor)
    assert clear.mean() > 0.2
    np.testing.assert_allclose(np.asarray(values)[clear], np.log(mel[clear]), atol=1e-3)
    assert np.all(np.asarray(values)[mel < config.floor / 2] <= np.log(config.floor) + 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mel_bank_is_librosas(name, librosas):
    c = Spectrogram(**CONFIGS[name])
    np.testing.assert_allclose(mel_bank(c), librosas[f"{name}/bank"], atol=1e-7)
    np.testing.assert_allclose(hann(c.frame), librosas[f"{name}/window"], atol=1e-7)
    np.testing.assert_allclose(to_mel(HERTZ, c.scale), librosas[f"{c.scale}/mels"], rtol=1e-12)
    np.testing.assert_allclose(from_mel(to_mel(HERTZ, c.scale), c.scale), HERTZ, atol=1e-9)


def test_lengths_integers_and_scaling():
    config = Spectrogram(**SMALL)
    x = signals(1000)
    ints = np.rint(x.clip(-1, 1) * 32767).astype(np.int16)
    plain, valid = config(jax.numpy.asarray(ints), np.array([1000, 129, 128]))
    assert config.length(1000) == 8 == plain.shape[1]
    assert valid.sum(1).tolist() == [8, 2, 1]
    np.testing.assert_array_equal(
        valid, np.arange(8)[None] * 128 < np.array([1000, 129, 128])[:, None]
    )
    same, _ = config(jax.numpy.asarray(ints.astype(np.float32) / 32768))
    np.testing.assert_allclose(plain, same, atol=1e-5)
    scaled, _ = Spectrogram(**SMALL, mean=-4.0, std=2.5)(jax.numpy.asarray(ints))
    np.testing.assert_allclose(scaled, (plain + 4) / 2.5, atol=1e-5)
    # Silence behind a clip does not reach the frames before it.
    ints[:, 600:] = 0
    longer, _ = config(jax.numpy.asarray(np.pad(ints, ((0, 0), (0, 500)))))
    np.testing.assert_allclose(longer[:, :8], config(jax.numpy.asarray(ints))[0], atol=1e-5)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(step=0), "step: 0 must be >= 1"),
        (dict(low=9000.0), r"low: 9000.0 … 8000.0 Hz must lie in 0 … 8000"),
        (dict(high=9000.0), "low: 0.0 … 9000.0 Hz"),
        (dict(scale="bark"), "scale: 'bark' must be slaney or htk"),
        (dict(floor=0.0), "floor"),
    ],
)
def test_configs_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Spectrogram(**values)


# --------------------------------------------------------------------------------------------------
# Stored clips


def test_flac_keeps_16_bits_and_clips_what_is_louder(tmp_path):
    x = np.random.default_rng(1).integers(-32768, 32768, 3000)
    np.testing.assert_array_equal(clips.decode_clip(clips.to_flac(x / 32768)), x)
    assert clips.decode_clip(clips.to_flac(np.array([2.0, -3.0]))).tolist() == [32767, -32768]


@pytest.mark.parametrize(
    "rate, channels, kind",
    [(44100, 2, "OGG"), (48000, 1, "WAV"), (5000, 1, "WAV"), (16000, 1, "WAV")],
)
def test_any_sound_file_becomes_16_khz_mono(tmp_path, rate, channels, kind):
    t = np.arange(int(0.5 * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(tmp_path / "x", np.stack([tone] * channels, 1), rate, format=kind)
    got = clips.decode_clip(clips.encode_clip(tmp_path / "x")).astype(np.float64) / 32768
    assert abs(len(got) - 8000) <= 2
    n = np.arange(500, 7500)
    assert np.abs(got[n] - 0.5 * np.sin(2 * np.pi * 440 * n / 16000)).max() < (
        0.03 if kind == "OGG" else 2e-3
    )


def test_files_that_are_no_clips(tmp_path):
    (tmp_path / "x.ogg").write_bytes(b"OggS is how it begins")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    for name in ("x.ogg", "empty.wav"):
        with pytest.raises(BadRecord, match="clip cannot be decoded"):
            clips.encode_clip(tmp_path / name)
    with pytest.raises(BadRecord, match="clip cannot be decoded"):
        clips.decode_clip(clips.to_flac(np.zeros(99))[:20])
    soundfile.write(tmp_path / "x.flac", np.zeros(9), 8000)
    with pytest.raises(BadRecord, match="clip is not 16 kHz mono: rate 8000"):
        clips.decode_clip((tmp_path / "x.flac").read_bytes())


def test_fit_cuts_and_pads():
    x = np.arange(10, dtype=np.int16)
    assert [
        (a.tolist(), n) for a, n in (clips.fit(x, 4, 3), clips.fit(x, 4, 8), clips.fit(x, 3, 10))
    ] == [([3, 4, 5, 6], 4), ([8, 9, 0, 0], 2), ([0, 0, 0], 0)]
