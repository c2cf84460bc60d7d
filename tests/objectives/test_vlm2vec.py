"""VLM2Vec's loss: its equation in float64, and eight devices."""

import numpy as np
import pytest
from objective_checks import compare, embeddings, log_softmax, same_on_a_mesh

from jaxvl.config import ConfigError, load_file
from jaxvl.objectives.vlm2vec import InstructedContrast


def example(b=8, d=5):
    query, target = embeddings((b, d), (b, d))
    return {"text": query, "image": target}


def test_only_queries_look_for_targets():
    """Equation 1 with the temperature of the paper."""

    def oracle(o):
        logits = o["text"] @ o["image"].T / 0.02
        return -np.diag(log_softmax(logits, 1)).mean()

    compare(InstructedContrast(), example(), {}, oracle)


def test_pictures_may_be_queries():
    oracle = lambda o: -np.diag(log_softmax(o["image"] @ o["text"].T / 0.5, 1)).mean()
    objective = InstructedContrast(query="image", target="text", temperature=0.5)
    assert objective.reads == ("image", "text")
    compare(objective, example(), {}, oracle)


def test_devices():
    same_on_a_mesh(InstructedContrast(temperature=0.1), example(b=16), {})


def test_refusals():
    with pytest.raises(ConfigError, match="target: 'text' is the query too"):
        InstructedContrast(target="text")


def test_the_config_has_the_rest_of_the_method():
    """The instruction of training is that of evaluation; parts of a batch are of one kind, and as
    many as GradCache's chunks."""
    config = load_file("configs/methods/vlm2vec.py").to_dict()
    base, stage = config["stages"]
    pairs = stage["tasks"]["pairs"]
    template = pairs["data"]["fields"]["text"]["template"]
    plain = config["tasks"]["pairs"]["data"]["fields"]["text"]["template"]
    assert template == config["evals"]["unseen_style"]["template"]
    assert template.replace("{}", "").strip() and template != plain
    assert config["model"]["text"]["causal"] and config["model"]["text"]["pool"] == "last"
    sampler = pairs["data"]["sampler"]
    assert (sampler["name"], sampler["table"]) == ("per_cluster", "shape")
    assert pairs["microbatches"] == pairs["data"]["batch"] // sampler["batch"] > 1
    assert stage["adapters"]["low"]["rank"] == 8 and "adapters" not in base
