"""Every notebook runs from its first cell to its last, on tiny settings and generated pictures, one
of them daily; none is committed with outputs."""

import ast
import importlib
import json
import os
import pathlib

import matplotlib.pyplot as plt
import papermill
import pytest

from jaxvl.evals.encoders import Encoders

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
SHAPES = dict(name="shapes", size=16, variants=1)
EVAL = dict(source=dict(SHAPES, split="test_a"), every=4)
IMAGE = dict(name="picture", size=16)
TEXT = dict(name="caption", columns="name/en", length=8)
CAPTIONER = dict(
    model=dict(
        name="coca",
        image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean"),
        width=16,
        heads=2,
        hidden=32,
        unimodal=1,
        multimodal=1,
        queries=2,
        embed_dim=16,
    ),
    preprocess=dict(image_size=16),
    tokenizer=dict(vocab_size=64),
    tasks=dict(
        pairs=dict(
            data=dict(
                source=dict(SHAPES, split="train_a"),
                batch=16,
                fields=dict(image=IMAGE, text=TEXT),
                reader=dict(threads=2),
            ),
            objectives=dict(align=1.0, captioning=2.0),
        )
    ),
    steps=4,
    optim=dict(lr=1e-3, warmup=1),
    mesh=dict(data=-1),
    checkpoint=dict(every=4),
    log=dict(every=2, tensorboard=False, report=False),
    evals=dict(
        written=dict(name="captioning", references="name/en", **EVAL),
        found=dict(name="retrieval", text="name/en", **EVAL),
    ),
)
CLIPS = dict(SHAPES, clips=True)
HELD_OUT = dict(CLIPS, split="test_b_new")
VIDEO = dict(name="frames", size=16, frames=4)
SPEECH = dict(
    name="waveform",
    columns="speech/*",
    languages=("en", "fr"),
    seconds=0.512,
    text="name/*",
    text_length=8,
)


def _task(pair, **fields):
    fields["group_id"] = dict(name="group", column="class_label")
    return dict(
        data=dict(
            source=dict(CLIPS, split="train_b"), batch=8, fields=fields, reader=dict(threads=2)
        ),
        objectives=dict(nce=dict(pairs=(pair,), duplicates="positive")),
    )


PERCEIVER = dict(
    model=dict(
        name="imp",
        variant="small",
        width=16,
        depth=1,
        heads=2,
        hidden=32,
        patch=8,
        most_frames=8,
        most_pixels=16,
        most_steps=64,
        most_bins=32,
        most_words=8,
        log_mel=dict(frame=1024, step=256, bins=32),
        embed_dim=16,
        projection_hidden=16,
        scan=False,
        pairs=("vision-text", "vision-audio"),
        inputs=("image", "video", "spectrogram", "text"),
        moe=dict(last=1, experts=4, span="row"),
    ),
    preprocess=dict(image_size=16),
    tokenizer=dict(vocab_size=64),
    tasks=dict(
        images=_task("vision-text", image=IMAGE, text=TEXT),
        clips=_task("vision-text", video=VIDEO, text=TEXT),
        speech=_task("vision-audio", image=IMAGE, waveform=SPEECH),
    ),
    schedule=dict(name="weighted", weights=dict(images=2, clips=1, speech=2)),
    steps=6,
    optim=dict(lr=1e-3, warmup=1),
    mesh=dict(data=-1),
    checkpoint=dict(every=6),
    log=dict(every=2, tensorboard=False, report=False),
    evals=dict(
        heard=dict(
            name="cross_modal_retrieval",
            source=HELD_OUT,
            pair=("image", "waveform"),
            waveform="speech/{language}",
            languages=("en", "fr"),
            seconds=0.512,
            group="class_label",
            every=6,
        )
    ),
)
# A config file as the shipped ones, which takes the folders that the notebook wrote.
OF_FOLDERS = """
import ml_collections

from jaxvl.config import parse_arg
from jaxvl.data.own import own_evals, own_pairs


def get_config(arg=""):
    arg = parse_arg(arg, data="", val="", steps=0)
    data = dict(source=own_pairs(arg.data, "data", {}).source, batch=16, reader=dict(threads=2))
    data["fields"] = dict(image=dict(name="picture", size=16), text=dict(name="caption", length=8))
    return ml_collections.ConfigDict(dict(
        model=dict(
            name="dual_encoder", image=dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean"),
            text=dict(name="text_transformer", variant="Ti", width=16, depth=1, heads=2, positions=8), embed_dim=16,
        ),
        preprocess=dict(image_size=16), tokenizer=dict(vocab_size=64), tasks=dict(pairs=dict(data=data, objectives=dict(clip=1.0))),
        steps=arg.steps, optim=dict(lr=1e-3, warmup=1), mesh=dict(data=-1), evals=own_evals(arg.val, "", 4),
        checkpoint=dict(every=arg.steps), log=dict(every=2, tensorboard=False, report=False),
    ))
"""
EXAMPLES = dict(
    EXAMPLE=dict(SHAPES, split="train_a"), EXAMPLE_HELD_OUT=dict(SHAPES, split="test_a")
)
# Config, parameters, and what the notebook must print.
SETTINGS = {
    "own_data": (
        OF_FOLDERS,
        dict(EXAMPLES, STEPS=4, QUERIES=["one red circle", "two blue squares"]),
        "wds/texts",
    ),
    "caption_and_search": (
        CAPTIONER,
        dict(SOURCE=dict(SHAPES, split="test_a"), QUERIES=["red circle", "blue square"]),
        "written",
    ),
    "imp_agd": (
        PERCEIVER,
        dict(SOURCE=HELD_OUT, LANGUAGE="fr", QUERIES=2),
        "a right picture among the first ten for",
    ),
}


def tiny_config(notebook, folder):
    """The file of the notebook's tiny config."""
    config = SETTINGS[notebook.stem][0]
    if not isinstance(config, str):
        config = (
            f"from ml_collections import ConfigDict\n\n\ndef get_config(arg=''):\n    return "
            f"ConfigDict({config!r})\n"
        )
    file = folder / "tiny.py"
    file.write_text(config)
    return file


DAILY = "own_data"
RUNS = [pytest.param(p, marks=[] if p.stem == DAILY else [pytest.mark.slow]) for p in NOTEBOOKS]


@pytest.mark.parametrize("notebook", RUNS, ids=lambda p: p.stem)
def test_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    )  # compiles in half the time
    _, parameters, printed = SETTINGS[notebook.stem]
    file = tiny_config(notebook, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of commands that a notebook runs
    settings = dict(parameters, CONFIG=str(file), WORKDIR=str(tmp_path / "run"))
    papermill.execute_notebook(
        notebook,
        tmp_path / "out.ipynb",
        settings,
        cwd=notebook.parent,
        progress_bar=False,
        kernel_name="python3",
    )
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    pictures = sum(
        "image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", [])
    )
    assert pictures >= 2 and printed in json.dumps([cell.get("outputs") for cell in cells])


def cells_of(notebook):
    """Texts of the notebook's cells of code."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_names_are_those_of_the_package(notebook):
    """What all cells import is there, and the encoders have the methods that are called."""
    for node in ast.walk(ast.parse("\n".join(cells_of(notebook)))):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("encoders."):
            assert callable(getattr(Encoders, node.func.attr)), node.func.attr


@pytest.mark.parametrize(
    "notebook", [p for p in NOTEBOOKS if p.stem != DAILY], ids=lambda p: p.stem
)
def test_runs_up_to_its_training(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setattr(plt, "show", plt.close)
    _, parameters, _ = SETTINGS[notebook.stem]
    names = {}
    for cell in cells_of(notebook):
        before, training, _ = cell.partition("figures = train(")
        exec(before, names)
        if "CONFIG" in names and "experiment" not in names:  # the cell of the parameters
            names |= dict(
                parameters,
                CONFIG=str(tiny_config(notebook, tmp_path)),
                WORKDIR=str(tmp_path / "run"),
            )
        if training:
            break
    assert training and names["experiment"].steps == SETTINGS[notebook.stem][0]["steps"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_committed_without_outputs(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
