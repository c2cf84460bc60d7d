"""Projectors on features that were computed once: what a run of them reads, and what they reach."""

import copy
import json
import pathlib

import numpy as np
import pytest
import tiny

from jaxvl import train as train_command
from jaxvl.bench.cka import alignments
from jaxvl.config import load_file
from jaxvl.data import preprocess
from jaxvl.data.sources.opened import opened
from jaxvl.data.tables import write_table
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer
from jaxvl.interop.tokens import write_tokenizer
from jaxvl.training.stages import build_stages, recorded_stages, train_stages

pytestmark = pytest.mark.usefixtures("one_device", "programs_kept")

CONFIG = pathlib.Path(__file__).parents[2] / "configs/methods/projectors.py"
SHAPES = dict(
    image_pooled=(16,), image_tokens=(4, 16), text_pooled=(16,), text_tokens=(6, 16), text_mask=(6,)
)
PROJECTOR = dict(name="token_projector", reads=("image", "text"), dim=8)


def test_no_picture_is_decoded_and_no_encoder_trained(tmp_path, monkeypatch):
    data = tiny.experiment().tasks["pairs"].data
    source = opened(data.source, print)
    rng = np.random.default_rng(0)
    table = {n: rng.normal(size=(len(source), *s)).astype(np.float32) for n, s in SHAPES.items()}
    about = dict(records=len(source), source=source.fingerprint, made_from={}, step=1)
    write_table(tmp_path / "tables" / "features" / "1", table, **about)

    def refuse(*args, **kwargs):
        raise AssertionError("a picture is decoded")

    read = []
    once = type(source).read
    monkeypatch.setattr(preprocess, "decode_picture", refuse)
    monkeypatch.setattr(type(source), "read", lambda *args: read.append(args) or once(*args))
    fields = {
        name: dict(name="array", column=f"features/{name}", shape=shape)
        for name, shape in SHAPES.items()
    }
    towers = tiny.config().to_dict()["model"]
    towers = {side: towers[side] for side in ("image", "text")}
    task = tiny.task(fields=fields, tables=dict(features=str(tmp_path / "tables" / "features")))
    tokenizer = make_tokenizer(
        TokenizerConfig(vocab_size=24), 20 * ["a red ring", "two blue stars"]
    )
    write_tokenizer(tokenizer, tmp_path, 6)
    changes = dict(
        tokenizer=dict(kind="json", path=str(tmp_path)),
        model=dict(name="frozen_encoders", heads=dict(joint=PROJECTOR), **towers),
        tasks=dict(pairs=dict(task, objectives=dict(clip=1.0))),
        optim=dict(lr=1e-2, warmup=0, freeze="^(image|text)/encoder/"),
        text_length=6,
        steps=3,
        checkpoint=dict(every=1, keep=3),
    )
    train_command.train(tiny.experiment(**changes), tmp_path / "run")
    assert read == []
    assert len(set(tiny.losses(tmp_path / "run").values())) == 3
    first, last = (tiny.saved_state(tmp_path / "run", step)["params"] for step in (1, 3))
    for path, value in first.items():
        frozen = path.startswith(("image/encoder/", "text/encoder/"))
        assert np.array_equal(value, last[path]) == frozen, path


# --------------------------------------------------------------------------------------------------
# What the paper says, in miniature: three seeds

SEEDS = (0, 1, 2)
SIZE = 24
ENCODERS = ("apart", "some", "nothing")  # stages


def miniature(seed):
    """The config's shared part, and stages: three image encoders that were trained for long, for
    little and not at all; projectors from each to the texts of the first; all trained on pixels."""
    shared = load_file(f"{CONFIG}:full").to_dict()
    (apart, full), aligned = shared.pop("stages"), load_file(str(CONFIG)).to_dict()["stages"][1]
    shared |= dict(seed=seed, steps=150, checkpoint=dict(every=150))
    shared["log"] = dict(every=10, tensorboard=False, report=False)
    aligned["tasks"]["pairs"]["data"]["fields"]["image_tokens"]["shape"] = ((SIZE // 8) ** 2, 96)
    stages = dict(apart=apart)
    for name, steps in dict(some=30, nothing=1).items():
        features = dict(features=apart["after"]["features"])
        short = dict(
            steps=steps, optim=dict(warmup=min(steps, 30) - 1), checkpoint=dict(every=steps)
        )
        stages[name] = dict(short, start=(), after=features)
    stages["full"] = full
    tables = dict(images="{stages.X}/tables/features", texts="{stages.apart}/tables/features")
    for image in ENCODERS:
        stage = copy.deepcopy(aligned)
        data = stage["tasks"]["pairs"]["data"]
        data["tables"] = dict(tables, images=tables["images"].replace("X", image))
        del data["keep"]
        for name, field in data["fields"].items():
            field["column"] = f"{name.split('_')[0]}s/{name}"
        stage["start"] = (
            dict(source=f"{{stages.{image}}}", take="^image/encoder/"),
            dict(source="{stages.apart}", take="^text/encoder/"),
        )
        stages[f"on_{image}"] = stage
    for stage in stages.values():
        stage.pop("name", None)
    return tiny.sized(shared, SIZE), tiny.sized(stages, SIZE)


def cost(workdir):
    """Seconds, data included, and GFLOP of a step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (program,) = [r for r in lines if r["name"] == "compile/pairs"]
    seconds = np.median([r["seconds_per_step"] for r in lines if r["kind"] == "train"])
    return np.array([seconds, program["gflop"]])


def trained(seed, workdir):
    """R@1 of each stage, CKA of each encoder with the texts, and the projectors' share of a step's
    seconds and GFLOP."""
    train_stages(build_stages(*miniature(seed), workdir), train_command.train, workdir)
    figures = {stage["stage"]: stage["figures"] for stage in recorded_stages(workdir)}
    recall = {name: f["pairs/i2t_r@1"] for name, f in figures.items()}
    images = [f"{workdir / name}/tables/features:image_pooled" for name in ENCODERS]
    rows = alignments(images, [f"{workdir / 'apart'}/tables/features:text_pooled"])
    cka = {pathlib.Path(row["image"]).parts[-3]: row["cka"] for row in rows}
    share = cost(workdir / "on_apart") / cost(workdir / "full")
    print(seed, {k: round(v, 3) for k, v in recall.items()}, cka, share.round(3), flush=True)
    return recall, cka, share


@pytest.mark.slow
def test_projectors_reach_what_full_training_does(tmp_path):
    """R@1 is at least 90 % of that of training everything for as many steps, in each seed; over the
    seeds, CKA chooses the image encoder that is best by R@1."""
    by_seed = [trained(seed, tmp_path / str(seed)) for seed in SEEDS]
    for recall, _, share in by_seed:
        assert recall["on_apart"] >= 0.9 * recall["full"] > 0.1, by_seed
        assert share[1] < 0.1, "of the operations; seconds are printed"
    mean_recall = {e: np.mean([recall[f"on_{e}"] for recall, _, _ in by_seed]) for e in ENCODERS}
    mean_cka = {e: np.mean([cka[e] for _, cka, _ in by_seed]) for e in ENCODERS}
    assert max(mean_cka, key=mean_cka.get) == max(mean_recall, key=mean_recall.get), by_seed
