"""Methods that keep most of a model as it is: what each stage of their configs trains."""

import pathlib

import pytest

from jaxvl.models.functional import functional
from jaxvl.training.experiment import Command
from jaxvl.training.optim import optimiser
from jaxvl.training.stages import stages_of

METHODS = pathlib.Path(__file__).parents[2] / "configs/methods"
ENCODERS = ("image/encoder/", "text/encoder/")
TOWERS = ("image/", "text/")
MLPS = lambda path: "/mlp/" in path
# Config and stage -> whether the parameter at a path is trained.
TRAINED = {
    "clip_moe/mcl_1": MLPS,
    "clip_moe/mcl_2": MLPS,
    "clip_moe/mcl_3": MLPS,
    "clip_moe/moe": lambda path: "/moe/router/" in path,
    "close/captioner": lambda path: not path.startswith(TOWERS) and path != "log_scale",
    # The texts' prompts, and the maps that make the images' of them.
    "maple/prompts": lambda path: (
        path == "adapter/maple/tokens"
        or path.startswith("image/encoder/transformer/adapter/maple/map/")
    ),
    "one_encoder/image_text": lambda path: not path.startswith(ENCODERS),
    "one_encoder/sounds": lambda path: (
        path == "heads/joint/token/waveform" or path.startswith("heads/joint/align/waveform/")
    ),
    "projectors/aligned": lambda path: not path.startswith(ENCODERS),
    "two_stage_retrieval/texts": lambda path: not path.startswith("image/encoder/"),
    "vlm2vec/instructed": lambda path: "/adapter/low/" in path,
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_trains_its_own_parameters_alone(name):
    config, name_of_stage = name.split("/")
    stages = stages_of(Command(str(METHODS / f"{config}.py"), {}, {}), pathlib.Path("runs"))
    (experiment,) = (stage.experiment for stage in stages if stage.name == name_of_stage)
    freeze = experiment.optim.freeze
    inputs = experiment.inputs(64, 0, 1)
    model = functional(experiment.model, inputs, freeze=freeze, adapters=experiment.adapters)
    _, trained = optimiser(experiment.optim, model.axes, model.frozen)
    found = {path for path, learns in trained.items() if learns}
    assert found == {path for path in trained if TRAINED[name](path)}
    assert 0 < len(found) < len(trained)
