"""Time and MFU of the steps of five systems, bfloat16, on a random batch that stays on the chip."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from jaxvl.bench.accelerator_parts.part import Deadline, Row, Sizes, reason, seconds_of
from jaxvl.bench.one_step import one_step
from jaxvl.chips import peak_flops
from jaxvl.config import load_file, override, resolve
from jaxvl.training.experiment import Experiment

# System -> its config and task (None: the first).
SYSTEMS = {
    "CLIP ViT-B/16": ("configs/clip.py:variant=B/16", None),
    "CLIP ViT-L/14": ("configs/clip.py:variant=L/14", None),
    "CoCa base": ("configs/coca.py:variant=base", None),
    "ALIGN B0": ("configs/align.py:variant=b0", None),
    "IMP-MoE base": ("configs/imp.py:variant=base", "image_text"),
}
# Pixels of the side of a picture where sizes are tiny: two patches.
TINY_SIDE = {"CLIP ViT-B/16": 32, "CLIP ViT-L/14": 28, "CoCa base": 36, "ALIGN B0": 32}
# Rows that are tried, largest first: the first that fits counts.
BATCHES = (512, 256, 128, 64, 32)
_SMALL = {"width": "32", "heads": "2", "depth": "1"}
_VIT = {f"model.image.{k}": v for k, v in _SMALL.items()}
_TEXT = {f"model.text.{k}": v for k, v in _SMALL.items()}
_DECODER = {"model.width": "32", "model.heads": "2", "model.hidden": "64"}
TINY = {
    "CLIP ViT-B/16": {**_VIT, **_TEXT},
    "CLIP ViT-L/14": {**_VIT, **_TEXT},
    "CoCa base": {**_VIT, **_DECODER, "model.unimodal": "1", "model.multimodal": "1"},
    "ALIGN B0": {**_TEXT, "model.image.width": "0.25", "model.image.depth": "0.1"},
    "IMP-MoE base": {f"model.{k}": v for k, v in _SMALL.items()} | {"model.moe.last": "1"},
}


def run(sizes: Sizes, deadline: Deadline) -> Iterator[Row]:
    """One row per system."""
    peak = peak_flops(jax.devices()[0].device_kind)
    for system in SYSTEMS:
        for batch in (8,) if sizes.tiny else BATCHES:
            if deadline.left < 0:
                return
            row: Row = {"system": system, "batch": batch}
            try:
                row |= _measured(system, batch, sizes, peak)
            except Exception as error:  # out of memory, above all
                row["failed"] = reason(error)
            yield row
            if "seconds" in row:
                break


def experiment(system: str, batch: int, tiny: bool) -> Experiment:
    """A system's published config at another batch; tiny: with a few thousand parameters."""
    config, _ = SYSTEMS[system]
    node = load_file(config)
    changes = {f"tasks.{name}.data.batch": str(batch) for name in node.tasks}
    changes |= TINY[system] if tiny else {}
    if tiny:
        changes["tokenizer.vocab_size"] = "300"
    if tiny and system in TINY_SIDE:
        side = str(TINY_SIDE[system])
        changes["preprocess.image_size"] = side
        changes |= {f"tasks.{name}.data.fields.image.size": side for name in node.tasks}
    return resolve(Experiment, override(node, changes))


def _measured(system: str, batch: int, sizes: Sizes, peak: float | None) -> Row:
    step = one_step(experiment(system, batch, sizes.tiny), SYSTEMS[system][1])
    seconds = seconds_of(step.take, sizes)
    flops = step.cost.model_flops
    return {
        "seconds": seconds,
        "examples_per_second": step.batch / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "hfu": step.cost.flops / seconds / peak if peak else None,
        "tflop": flops / 1e12,
        "temporary_gib": step.cost.temporary / 2**30,
        "compile_seconds": step.seconds,
        "loss": float(step.take()),
    }
