"""Every shipped config resolves, and takes one tiny step of each of its tasks on generated data."""

import pathlib

import pytest

from jaxvl import train
from jaxvl.config import ConfigError, load_file, override, resolve
from jaxvl.training.experiment import Experiment

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = pathlib.Path(__file__).parent.parent
ARGUMENTS = {
    "align_emoji.py": ["", "long", "split=b"],
    "align.py": ["", "variant=b7"],
    "clip.py": ["", "variant=L/14"],
    "coca_emoji.py": ["", "loss=caption"],
    "coca_scst_emoji.py": ["", "grammar=0.0"],
    "imp.py": ["", "variant=large,fsdp=4,expert=4"],
    "imp_demo.py": ["", "experts=8", "mode=summed", "mode=speech"],
    "cosmo_shapes.py": ["", "across=False"],
    "sycoca_shapes.py": ["", "masking=random"],
}
CONFIGS = [f"{p.name}:{a}" if a else p.name for p in sorted((ROOT / "configs").glob("*.py")) for a in ARGUMENTS.get(p.name, [""])]
CORPUS = dict(name="shapes", size=16, variants=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_resolves(name):
    resolve(Experiment, load_file(str(ROOT / "configs" / name)))


DAILY = "align_shapes.py"  # a step of any other compiles for long, and is taken nightly
STEPS = [pytest.param(c, marks=[] if c == DAILY else [pytest.mark.slow]) for c in CONFIGS if ":" not in c]


@pytest.mark.parametrize("name", STEPS)
def test_takes_a_tiny_step(name, tmp_path):
    config = load_file(str(ROOT / "configs" / name)).to_dict()
    for task in config["tasks"].values():
        data = task["data"]
        clips = not set(data.get("modalities", ())) <= {"image", "text"}
        data |= dict(corpus=dict(CORPUS, clips=clips), split="train_a", batch=8, image_size=32, text_length=8, threads=1)
        if data.get("audio", {}).get("locales"):
            data["audio"]["locales"] = ("en", "fr")
        task["microbatches"] = 1
    config["preprocess"]["image_size"] = 32
    config["tokenizer"] = dict(vocab_size=64)
    small_image = dict(
        efficientnet=dict(stages=("mbconv_r1_k3_s2_e2_o8_se0.25",), width=1.0, depth=1.0),
        vit=dict(variant="Ti/16", width=16, depth=1, heads=2),
    )
    small_text = dict(bert=dict(variant="tiny", width=16, heads=2), text_transformer=dict(width=16, depth=1, heads=2))
    model = config["model"]
    if "image" in model:
        model["image"] |= small_image[model["image"]["name"]]
    if model["name"] == "imp":
        model |= dict(width=16, depth=2, heads=2, hidden=32, patch=16, projection_hidden=16)
        model["moe"] = model.get("moe") and dict(last=1, experts=2)
    elif "text" in model:
        model["text"] |= small_text[model["text"]["name"]]
    else:
        model |= dict(width=16, heads=2, hidden=32, unimodal=1, multimodal=1, queries=2)
    if model.get("embed_dim", 1):
        model["embed_dim"] = 16
    config.pop("init_from", None)  # a run that is not there
    steps = len(config["tasks"])
    config |= dict(steps=steps, evals={}, schedule=dict(name="round_robin"), mesh=dict(data=-1), dtype="float32")
    config["optim"] |= dict(warmup=0)
    config["checkpoint"] = dict(every=steps)
    config["log"] = dict(every=1, tensorboard=False, report=False)
    train.train(resolve(Experiment, config), tmp_path)
    assert (tmp_path / "checkpoints" / str(steps)).is_dir()


def test_a_wrong_argument_of_a_config_names_the_right_one():
    with pytest.raises(ConfigError, match="lnog: unknown argument; did you mean 'long'"):
        load_file(str(ROOT / "configs" / "align_emoji.py") + ":lnog")


def test_an_override_of_a_key_that_is_not_there_is_refused():
    config = override(load_file(str(ROOT / "configs" / "align_emoji.py")), {"optim.ler": "1"})
    with pytest.raises(ConfigError, match="optim.ler: unknown key; did you mean 'lr'"):
        resolve(Experiment, config)
