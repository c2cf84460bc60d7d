"""CAPro from its config, in miniature: labels of the web, cleaned; killed runs."""

import copy
import pathlib
import shutil

import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.config import choose, load_file
from jaxvl.data.sources import SOURCES
from jaxvl.data.tables import read_table
from jaxvl.training.encode import open_run
from jaxvl.training.stages import build_stages, train_stages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

CONFIG = pathlib.Path(__file__).parents[2] / "configs/methods/capro.py"
SEEDS = (0, 1, 2)
SIZE = 24
SHAPES = dict(name="shapes", size=SIZE, split="train_a", variants=1)  # 576 pictures


def small(seed):
    """The config's shared part and stages: small pictures, so few and so unchanging that wrong
    labels are learnt by heart; a last stage that learns from the labels as they are, as long as
    both that clean."""
    shared = load_file(f"{CONFIG}:seed={seed}").to_dict()
    texts, clean, final = (dict(stage) for stage in shared.pop("stages"))
    shared["model"]["image"] |= dict(variant="Ti/4", width=64, depth=2, heads=2)
    shared["model"]["text"] |= dict(width=48)
    shared["preprocess"]["image_size"] = SIZE
    pairs = shared["tasks"]["pairs"]["data"]
    for picture in (pairs["fields"]["image"], clean["tasks"]["pairs"]["data"]["fields"]["image_2"]):
        picture |= dict(size=SIZE, augment={})
    pairs["source"]["source"]["source"] = SHAPES
    texts["after"]["seeds"]["count"] = 20
    shared["evals"]["neighbours"]["source"]["size"] = SIZE
    shared["log"] = dict(every=50, tensorboard=False, report=False)
    noisy = copy.deepcopy(final)
    data = noisy["tasks"]["pairs"]["data"]
    del data["tables"], data["keep"], data["fields"]["kind"]
    noisy |= dict(start="{stages.texts}", steps=2 * shared["steps"])
    stages = dict(texts=texts, clean=clean, final=final, noisy=noisy)
    for stage in stages.values():
        stage.pop("name", None)
    return shared, stages


def accuracy(workdir):
    """Of the class head, on pictures that are not in training."""
    source = choose(SOURCES, dict(SHAPES, seed=1), "source").open(print)
    encoded = open_run(str(workdir)).images(source, output="logits/kind")
    return float((encoded.rows.argmax(1) == source.column("colour")[encoded.index]).mean())


def table(workdir, name, *columns):
    saved = read_table(workdir / "tables" / name)
    return [np.asarray(saved.array(column)) for column in columns]


def trained(workdir, seed):
    """Shares of right labels and accuracies."""
    shared, stages = small(seed)
    train_stages(build_stages(shared, stages, workdir), train_command.train, workdir)
    web = choose(SOURCES, shared["tasks"]["pairs"]["data"]["source"], "source").open(print)
    truth = choose(SOURCES, SHAPES, "source").open(print).column("colour")
    given = web.column("colour")
    (seeds,) = table(workdir / "texts", "seeds", "seed")
    label, keep = table(workdir / "clean", "cleaned", "label", "keep")
    kept = keep > 0
    found = dict(
        given=(given == truth).mean(),
        seeds=(given == truth)[seeds > 0].mean(),
        cleaned=(label == truth)[kept].mean(),
        kept=kept.mean(),
        corrected=(label != given)[kept].mean(),
        **{name: accuracy(workdir / name) for name in stages},
    )
    print(seed, {name: round(float(value), 3) for name, value in found.items()}, flush=True)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_and_accuracy_rise(seed, tmp_path):
    found = trained(tmp_path, seed)
    assert 0.6 < found["given"] < 0.72, "of six classes, 40 % are drawn anew"
    assert found["seeds"] > found["given"] + 0.1, found
    assert found["cleaned"] > found["given"] + 0.1, found
    assert found["kept"] > 0.5, found
    assert found["final"] > found["noisy"] + 0.1, found
    # The prototypes that a checkpoint holds are of length 1.
    state = tiny.saved_state(tmp_path / "clean", 200)["objective_state"]
    rows = state["pairs/capro"]["prototypes"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """Prototypes, queue and teacher; the warm-up ends with the step of the checkpoint."""
    model = tiny.config().model.to_dict()
    heads = dict(
        projected=dict(name="projection", reads="image", dim=8),
        kind=dict(name="classifier", reads="image", classes=8),
    )
    options = dict(head="kind", label="kind", seed=None, queue=40, warmup=0.5, decay=0.9)
    fields = tiny.fields(kind=dict(name="label", column="shape"), group_id=None)
    outputs = ("projected", "logits/kind")
    hook = dict(name="teach", teacher="momentum", outputs=outputs)
    run = tiny.experiment(
        model=dict(model, heads=heads),
        teachers=dict(momentum=dict(source="ema", decay=0.9)),
        tasks=dict(
            pairs=dict(
                data=tiny.data(fields=fields),
                before=dict(momentum=hook),
                objectives=dict(capro=dict(weight=1.0, **options)),
            )
        ),
    )
    train_command.train(run, tmp_path / "whole")
    whole, killed = (tmp_path / name / "checkpoints" for name in ("whole", "killed"))
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "6")
    train_command.train(run, tmp_path / "killed")
    tiny.assert_same_state(tmp_path / "whole", tmp_path / "killed", 6)
    state = tiny.saved_state(tmp_path / "whole", 6)["objective_state"]["pairs/capro"]
    there = state["visited"] > 0
    lengths = np.linalg.norm(state["prototypes"], axis=1)
    np.testing.assert_allclose(lengths[there], 1.0, atol=1e-6)
    assert state["filled"] == 40 and state["place"] == 6 * 16 % 40
