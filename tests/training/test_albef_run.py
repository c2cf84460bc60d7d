"""ALBEF's config, as a whole run."""

import json
import pathlib

import numpy as np
import pytest

from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.training.experiment import Experiment

ROOT = pathlib.Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


NAMES = ("itm/accuracy", "itm/accuracy_pairs", "masked_words/accuracy")
LAST = 4  # records, each of one step of 96 pairs


def test_pairs_are_told_from_hard_negatives(tmp_path):
    """Matching is right for nine pairs of ten, of which two are hard negatives; a constant answer
    is right for two of three."""
    config = load_file(str(ROOT / "configs" / "methods" / "albef.py"))
    config.log = dict(every=25, tensorboard=False, report=False)
    train_command.train(resolve(Experiment, config), tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    course = [line for line in lines if line["kind"] == "train"]
    found = {name: np.mean([line[name] for line in course[-LAST:]]) for name in NAMES}
    print(found)
    assert found["itm/accuracy"] > 0.9 and found["itm/accuracy_pairs"] > 0.8
    assert found["masked_words/accuracy"] > 0.6
