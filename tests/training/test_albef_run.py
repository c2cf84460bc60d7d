"""ALBEF's config, as a whole run."""

import json
import pathlib

import pytest

from jaxvl import train as train_command
from jaxvl.config import load_file, resolve
from jaxvl.training.experiment import Experiment

ROOT = pathlib.Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


def test_pairs_are_told_from_hard_negatives(tmp_path):
    """Matching is right for nine pairs of ten, of which two are hard negatives; a constant answer
    is right for two of three."""
    config = load_file(str(ROOT / "configs" / "methods" / "albef.py"))
    train_command.train(resolve(Experiment, config), tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if line["kind"] == "train"][-1]
    print({name: value for name, value in last.items() if name.startswith("itm")})
    assert last["itm/accuracy"] > 0.9 and last["itm/accuracy_pairs"] > 0.8
    assert last["masked_words/accuracy"] > 0.6
