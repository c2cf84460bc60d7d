"""OneEncoder by its stages: what a new modality leaves as it was, and what it reaches."""

import json
import pathlib

import numpy as np
import pytest
import tiny

from jaxvl import paths
from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.data import clips
from jaxvl.data.audio import Spectrogram
from jaxvl.data.sources.opened import opened
from jaxvl.training.restore import restore_encoders
from jaxvl.training.stages import build_stages, recorded_stages, train_stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

CONFIG = pathlib.Path(__file__).parents[2] / "configs/methods/one_encoder.py"
SEEDS = (0, 1, 2)
SIZE = 24
JOINED = ("heads/joint/align/waveform/", "heads/joint/token/waveform")


def miniature(seed):
    shared = load_file(str(CONFIG)).to_dict()
    named = {stage.pop("name"): stage for stage in map(dict, shared.pop("stages"))}
    shared |= dict(seed=seed, steps=200, checkpoint=dict(every=200))
    shared["log"] = dict(every=100, tensorboard=False, report=False)
    return tiny.sized(shared, SIZE), tiny.sized(named, SIZE)


def heard(config, columns):
    """Mean log-mel spectrum of every record's sound, float64, and its name."""
    source = opened(config, print)
    log_mel = resolve(
        Spectrogram, load_file(str(CONFIG)).to_dict()["stages"][2]["model"]["log_mel"]
    )
    records = [source.read(i, columns) for i in range(len(source))]
    sounds = np.stack([clips.fit(clips.decode_clip(r[columns[0]]), 6400)[0] for r in records])
    frames = [np.float64(log_mel(part)[0]) for part in np.array_split(sounds, len(sounds) // 200)]
    return np.concatenate(frames).mean(1), [record[columns[1]] for record in records]


def probe(workdir, experiment):
    """R@1, waveform to text, of the best linear map of the same features to the text's rows: ridge
    regression on all training records, with the strength that is best on the test."""
    encoders = restore_encoders(paths.as_path(workdir))[2]
    columns = ("speech/en", "name/en")
    data = experiment.tasks["sounds"].data
    x, names = heard(data.source, columns)
    test, of_test = heard(experiment.evals["sounds"].source, columns)
    y = np.float64(encoders.texts(names))
    texts = sorted(set(of_test))
    candidates = np.float64(encoders.texts(texts))
    right = np.array([texts.index(name) for name in of_test])
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, test = ((np.concatenate([(a - mean) / std, np.ones((len(a), 1))], 1)) for a in (x, test))
    found = []
    for strength in 10.0 ** np.arange(-3, 5):
        weight = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)
        found.append(float(((test @ weight @ candidates.T).argmax(1) == right).mean()))
    return max(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_modality_joins_and_leaves_the_rest_as_it_was(seed, tmp_path):
    shared, stages = miniature(seed)
    built = build_stages(shared, stages, tmp_path)
    train_stages(built, train_command.train, tmp_path)
    figures = {stage["stage"]: stage["figures"] for stage in recorded_stages(tmp_path)}
    before, after = (
        tiny.saved_state(tmp_path / s, 200)["params"] for s in ("image_text", "sounds")
    )
    assert {p for p in after if p not in before} == {p for p in after if p.startswith(JOINED)}
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    names = [f"pairs/{d}_r@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]
    old, new = ([figures[stage][name] for name in names] for stage in ("image_text", "sounds"))
    assert old == new, "pictures and texts are compared as they were"
    linear = probe(tmp_path / "sounds", built[2].experiment)
    sounds = figures["sounds"]
    line = dict(pairs=old[0], sounds=sounds["sounds/waveform2text_r@1"], linear=linear)
    print(seed, json.dumps(line), sounds["sounds/waveform2text_r@10"], flush=True)
    assert line["sounds"] > linear
    assert line["pairs"] > 0.05
