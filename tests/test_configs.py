"""Every shipped config resolves, has evaluators that find their columns, and takes one tiny step of
each of its tasks on generated data."""

import pathlib

import jax
import pytest

from jaxvl import train
from jaxvl.config import ConfigError, load_file, override, resolve
from jaxvl.evals.contract import check_evaluators
from jaxvl.sharding.mesh import make_mesh
from jaxvl.training.build import build_model
from jaxvl.training.encode import make_encoders
from jaxvl.training.experiment import Command, Experiment
from jaxvl.training.inputs import open_sources, task_tokenizer
from jaxvl.training.stages import stages_of

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = pathlib.Path(__file__).parent.parent
ARGUMENTS = {
    "align_emoji.py": ["", "long", "split=b"],
    "align.py": ["", "variant=b7"],
    "clip.py": ["", "variant=L/14", "variant=S/16"],
    "coca_distance.py": ["", "run=text_class+pooler+queries_1", "run=coca+captions_2"],
    "coca_emoji.py": ["", "loss=caption"],
    "coca_scst_emoji.py": ["", "grammar=0.0"],
    "imp.py": ["", "variant=large,fsdp=4,expert=4"],
    "imp_demo.py": ["", "experts=8", "mode=summed", "mode=speech"],
    "cosmo_shapes.py": ["", "across=False"],
    "sycoca_shapes.py": ["", "masking=random"],
    "methods/close.py": ["", "adapter=linear"],
    "methods/hinge.py": ["", "negatives=sum"],
    "methods/late_interaction.py": ["", "form=colbert"],
}
NAMES = [str(p.relative_to(ROOT / "configs")) for p in sorted((ROOT / "configs").rglob("*.py"))]
CONFIGS = [f"{p}:{a}" if a else p for p in NAMES for a in ARGUMENTS.get(p, [""])]
SOURCE = dict(name="shapes", size=16, variants=1, split="train_a")


@pytest.mark.parametrize("name", CONFIGS)
def test_resolves(name):
    assert stages_of(Command(str(ROOT / "configs" / name), {}, {}), pathlib.Path("runs"))


DAILY = "align_shapes.py"  # a step of any other compiles for long, and is taken nightly
STEPS = [
    pytest.param(c, marks=[] if c == DAILY else [pytest.mark.slow]) for c in CONFIGS if ":" not in c
]


def small_source(source, **options):
    """Generated records; columns that a source adds to another's are kept."""
    records = dict(SOURCE, **options)
    return dict(source, source=records) if source["name"] == "replaced" else records


def small_field(field):
    """A field of a size that compiles at once."""
    sizes = dict(
        picture=dict(size=32),
        frames=dict(size=32),
        caption=dict(length=8),
        waveform=dict(text_length=8),
    )
    field = {**field, **sizes.get(field["name"], {})}
    if field.get("languages"):
        field["languages"] = ("en", "fr")
    return field


def small_head(head):
    """A head of the small model: attention has two heads in it."""
    return {**head, "heads": 2} if "heads" in head else head


def small_model(model):
    """The model with a few thousand parameters."""
    model = dict(model)
    image = dict(
        efficientnet=dict(stages=("mbconv_r1_k3_s2_e2_o8_se0.25",), width=1.0, depth=1.0),
        vit=dict(variant="Ti/16", width=16, depth=1, heads=2),
    )
    text = dict(
        bert=dict(variant="tiny", width=16, heads=2),
        text_transformer=dict(width=16, depth=1, heads=2),
    )
    if "image" in model:
        model["image"] = {**model["image"], **image[model["image"]["name"]]}
    if model["name"] == "imp":
        model |= dict(width=16, depth=2, heads=2, hidden=32, patch=16, projection_hidden=16)
        model["moe"] = model.get("moe") and dict(last=1, experts=2)
    elif "text" in model:
        model["text"] = {**model["text"], **text[model["text"]["name"]]}
    else:
        model |= dict(width=16, heads=2, hidden=32, unimodal=1, multimodal=1, queries=2)
    if model.get("embed_dim", 1):
        model["embed_dim"] = 16
    if "heads" in model and isinstance(model["heads"], dict):
        model["heads"] = {label: small_head(head) for label, head in model["heads"].items()}
    return model


def small(name):
    """A shipped config with a small model, on generated records."""
    config = load_file(str(ROOT / "configs" / name)).to_dict()
    for task in config["tasks"].values():
        fields = {entry: small_field(field) for entry, field in task["data"]["fields"].items()}
        clips = bool({"video", "waveform"} & set(fields))
        task["data"] |= dict(
            source=small_source(task["data"]["source"], clips=clips),
            batch=8,
            fields=fields,
            reader=dict(threads=1),
        )
        task["data"].pop("sampler", None)  # of a mixture
        task["microbatches"] = 1
    config["model"] = small_model(config["model"])
    config["preprocess"]["image_size"] = 32
    config["tokenizer"] = dict(vocab_size=64)
    config.pop("start", None)  # a run that is not there
    config.pop("stages", None)  # what they share is a run of its own
    config |= dict(schedule=dict(name="round_robin"), mesh=dict(data=-1), dtype="float32")
    config["optim"] |= dict(warmup=0)
    return config


@pytest.mark.parametrize("name", STEPS)
def test_takes_a_tiny_step(name, tmp_path):
    config = small(name)
    steps = len(config["tasks"])
    config |= dict(
        steps=steps,
        evals={},
        checkpoint=dict(every=steps),
        log=dict(every=1, tensorboard=False, report=False),
    )
    train.train(resolve(Experiment, config), tmp_path)
    assert (tmp_path / "checkpoints" / str(steps)).is_dir()


def small_evaluator(evaluator):
    """An evaluator of generated records that have the columns of its own."""
    evaluator = dict(evaluator)
    for option in {"source", "train", "candidates"} & set(evaluator):
        asks = evaluator[option]["name"] == "shapes_vqa"
        evaluator[option] = (
            dict(evaluator[option], size=16, scenes=20)
            if asks
            else small_source(
                evaluator[option], clips=True, split="train_a" if option == "train" else "test_a"
            )
        )
    if evaluator.get("label") == "group":  # of emoji
        evaluator["label"] = "colour"
    if evaluator.get("languages"):
        evaluator["languages"] = ("en", "fr")
    return evaluator


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CONFIGS
        if ":" not in name and load_file(str(ROOT / "configs" / name)).get("evals")
    ],
)
def test_evaluators_find_their_columns(name):
    """As a run checks them before its first step; nothing is compiled."""
    config = small(name)
    config["text_length"] = min(
        32, config["model"].get("most_words", 32)
    )  # of questions with their answers
    config["evals"] = {
        key: small_evaluator(evaluator) for key, evaluator in config["evals"].items()
    }
    experiment = resolve(Experiment, config)
    tokenizer = task_tokenizer(experiment, open_sources(experiment, lambda text: None))
    mesh = make_mesh(experiment.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = build_model(experiment, tokenizer)
        encoders = make_encoders(experiment, model, tokenizer, mesh)
        check_evaluators(
            experiment.evals,
            encoders.with_weights((model.params, model.model_state)),
            experiment.checkpoint.best_metric,
        )


def test_a_wrong_argument_of_a_config_names_the_right_one():
    with pytest.raises(ConfigError, match="lnog: unknown argument; did you mean 'long'"):
        load_file(str(ROOT / "configs" / "align_emoji.py") + ":lnog")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("clip.py:variant=Ti/16", "variant: 'Ti/16' must be a size and a patch side, as 'B/32'"),
        ("clip.py:variant=B32", "variant: 'B32' must be a size"),
        ("coca.py:variant=huge", "variant: 'huge' is not known"),
    ],
)
def test_a_variant_that_is_not_there_is_told(argument, told):
    with pytest.raises(ConfigError, match=told):
        load_file(str(ROOT / "configs" / argument))


def test_an_override_of_a_key_that_is_not_there_is_refused():
    config = override(load_file(str(ROOT / "configs" / "align_emoji.py")), {"optim.ler": "1"})
    with pytest.raises(ConfigError, match="optim.ler: unknown key; did you mean 'lr'"):
        resolve(Experiment, config)
