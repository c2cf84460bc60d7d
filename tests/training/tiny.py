"""A whole run in miniature: generated pictures of 16 pixels, towers of a few thousand parameters;
and what it leaves."""

import json
import pathlib

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from jaxvl import paths
from jaxvl.config import resolve
from jaxvl.training.checkpoint import Checkpoints, whole
from jaxvl.training.experiment import Experiment

SHAPES = dict(name="shapes", size=16, variants=1)
TRAIN = dict(SHAPES, split="train_a")
TEST = dict(SHAPES, split="test_a")
FIELDS = dict(
    image=dict(name="picture", size=16, augment=dict(rotate=10.0, hue=10.0)),
    text=dict(name="caption", columns="name/en", length=6),
    group_id=dict(name="group", column="class_label"),
)
# Models in miniature.
VIT = dict(name="vit", variant="Ti/8", width=16, depth=1, heads=2, pool="mean")
COCA = dict(
    name="coca",
    image=VIT,
    width=16,
    heads=2,
    hidden=32,
    unimodal=1,
    multimodal=1,
    queries=2,
    embed_dim=8,
)
IMP = dict(
    name="imp",
    variant="small",
    width=16,
    depth=1,
    heads=2,
    hidden=16,
    patch=8,
    patch_frames=2,
    most_frames=2,
    most_pixels=16,
    most_words=8,
    embed_dim=8,
    projection_hidden=8,
    scan=False,
    inputs=("image", "video", "text"),
)


def fields(**changes) -> dict:
    """The miniature's fields, with other options of some and further ones; a field that is None is
    left out."""
    merged = {
        name: {**FIELDS.get(name, {}), **(changes.get(name, {}) or {})}
        for name in {**FIELDS, **changes}
    }
    return {
        name: options for name, options in merged.items() if changes.get(name, options) is not None
    }


def data(**changes) -> dict:
    """The miniature's data; `changes` replace its keys."""
    return {**dict(source=TRAIN, batch=16, fields=FIELDS, reader=dict(threads=2)), **changes}


def task(**changes) -> dict:
    """The miniature's task, with other data; `changes` are of `data`."""
    return dict(data=data(**changes), objectives=dict(align=1.0))


def config(**changes) -> ml_collections.ConfigDict:
    """The miniature as a ConfigDict; `changes` replace keys of the root."""
    root = dict(
        model=dict(
            name="dual_encoder",
            image=VIT,
            text=dict(
                name="text_transformer", variant="Ti", width=16, depth=1, heads=2, pool="mean"
            ),
            embed_dim=16,
        ),
        preprocess=dict(image_size=16),
        tokenizer=dict(vocab_size=64),
        tasks=dict(pairs=task()),
        steps=6,
        optim=dict(lr=1e-3, warmup=2, ema=0.9),
        mesh=dict(data=-1),
        checkpoint=dict(every=3),
        log=dict(every=1, tensorboard=False, report=False),
    )
    return ml_collections.ConfigDict({**root, **changes}, convert_dict=True)


def experiment(**changes) -> Experiment:
    return resolve(Experiment, config(**changes))


def config_file(path: pathlib.Path | str, **changes) -> pathlib.Path | str:
    """Writes the miniature as a config file, for commands."""
    text = (
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return "
        f"ConfigDict({config(**changes).to_dict()!r})\n"
    )
    paths.write_text(paths.as_path(path), text)
    return path


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """{step: loss} of everything that was logged there."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def saved_state(workdir: pathlib.Path | str, step: int) -> dict:
    """The state of a checkpoint, as arrays of this machine."""
    manager = Checkpoints(paths.as_path(workdir) / "checkpoints", read_only=True)._manager
    # The devices that it was saved from need not be here.
    arrays = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), manager.item_metadata(step)["state"].tree
    )
    return manager.restore(step, args=ocp.args.Composite(state=whole(arrays)))["state"]


def save_as_before(folder: pathlib.Path, step: int, state: dict, frame: dict) -> None:
    """A checkpoint as versions without checksums wrote it."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.StandardSave, ocp.StandardCheckpointHandler())
    registry.add("frame", ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    items = dict(state=ocp.args.StandardSave(state), frame=ocp.args.JsonSave(frame))
    with ocp.CheckpointManager(folder, handler_registry=registry) as manager:
        manager.save(step, args=ocp.args.Composite(**items), force=True)


def assert_same_state(one: pathlib.Path | str, other: pathlib.Path | str, step: int) -> None:
    """Both have the same checkpoint of `step`, to the last bit."""
    pairs = zip(
        jax.tree.leaves_with_path(saved_state(one, step)),
        jax.tree.leaves_with_path(saved_state(other, step)),
        strict=True,
    )
    for (path, a), (_, b) in pairs:
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def sized(node, size: int):
    """A shipped config's groups with pictures of `size` pixels, half as many of generated ones."""
    if isinstance(node, dict):
        node = dict(node, variants=2) if node.get("name") == "shapes" else node
        sides = ("size", "image_size")
        return {key: size if key in sides else sized(value, size) for key, value in node.items()}
    return tuple(sized(x, size) for x in node) if isinstance(node, (list, tuple)) else node
