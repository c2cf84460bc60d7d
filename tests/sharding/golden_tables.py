"""Where every array of a shipped config's state lies on its meshes, as text.

    python tests/sharding/golden_tables.py            # writes the files in golden/ anew
    python tests/sharding/golden_tables.py clip-B16   # one of them

Shapes and rules only: nothing is compiled, and the meshes have no devices.
"""

import dataclasses
import itertools
import math
import pathlib
import re
import sys

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from jaxvl.planning.measure import vocabulary_of
from jaxvl.sharding.mesh import AXES
from jaxvl.training.build import build_model, fresh_state, make_tasks
from jaxvl.training.experiment import Command, Experiment
from jaxvl.training.stages import one_of
from jaxvl.training.state import TrainState, parameter_of, state_shardings
from jaxvl.training.teacher_models import make_teachers

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = pathlib.Path(__file__).parent / "golden"
COMMAND = "python tests/sharding/golden_tables.py"
# Devices over data, fsdp, tensor, expert.
DENSE = ((16, 1, 1, 1), (4, 16, 1, 1), (4, 8, 4, 1))
EXPERTS = ((16, 1, 1, 1), (4, 16, 1, 1), (4, 8, 4, 1), (2, 8, 1, 4), (2, 4, 2, 4))
DEMO = ((8, 1, 1, 1), (2, 2, 2, 1))
DEMO_EXPERTS = (*DEMO, (1, 2, 2, 2))
MIXED = ((2, 2, 2, 1),)
MIXED_EXPERTS = ((1, 2, 2, 2),)


@dataclasses.dataclass(frozen=True)
class Case:
    """A config file with its argument, one of its stages, and the meshes."""

    config: str
    meshes: tuple[tuple[int, ...], ...] = DENSE
    stage: str | None = None


CASES = {
    "align-b0": Case("align.py:variant=b0"),
    "align-b7": Case("align.py:variant=b7"),
    "align-l2": Case("align.py:variant=l2"),
    "clip-B32": Case("clip.py:variant=B/32"),
    "clip-B16": Case("clip.py:variant=B/16"),
    "clip-L14": Case("clip.py:variant=L/14"),
    "siglip-B16": Case("siglip.py:variant=B/16"),
    "siglip-L16": Case("siglip.py:variant=L/16"),
    "siglip-So400m14": Case("siglip.py:variant=So400m/14"),
    "coca-base": Case("coca.py:variant=base"),
    "coca-large": Case("coca.py:variant=large"),
    "coca-2b": Case("coca.py:variant=2b"),
    "imp-small": Case("imp.py:variant=small", EXPERTS),
    "imp-base": Case("imp.py:variant=base", EXPERTS),
    "imp-large": Case("imp.py:variant=large", EXPERTS),
    # Arrays of other kinds: a teacher and a queue, a codebook, prompts, experts of a CLIP,
    # an encoder for all, class prototypes.
    "albef": Case("methods/albef.py", DEMO),
    "capro": Case("methods/capro.py", DEMO, "texts"),
    "clip_moe": Case("methods/clip_moe.py", DEMO_EXPERTS, "moe"),
    "coconut": Case("methods/coconut.py", DEMO, "first"),
    "fdt": Case("methods/fdt.py", DEMO),
    "irra": Case("methods/irra.py", DEMO),
    "m3el": Case("methods/m3el.py", DEMO),
    "maple": Case("methods/maple.py", DEMO, "prompts"),
    "one_encoder": Case("methods/one_encoder.py", DEMO, "sounds"),
    "projectors": Case("methods/projectors.py", DEMO, "aligned"),
    "recipe": Case("methods/recipe.py", DEMO),
    # All other files, on one mesh. Of several stages, one whose arrays are the most or the oddest.
    "align_emoji": Case("align_emoji.py", MIXED),
    "align_shapes": Case("align_shapes.py", MIXED),
    "coca_distance": Case("coca_distance.py", MIXED),
    "coca_emoji": Case("coca_emoji.py", MIXED),
    "coca_scst_emoji": Case("coca_scst_emoji.py", MIXED),
    "coca_shapes_vqa": Case("coca_shapes_vqa.py", MIXED),
    "cosmo_shapes": Case("cosmo_shapes.py", MIXED),
    "imp_demo": Case("imp_demo.py", MIXED),
    "imp_demo-experts": Case("imp_demo.py:experts=8", MIXED_EXPERTS),
    "sycoca_shapes": Case("sycoca_shapes.py", MIXED),
    "clippings": Case("methods/clippings.py", MIXED, "linked"),
    "close": Case("methods/close.py", MIXED, "captioner"),
    "collap": Case("methods/collap.py", MIXED),
    "gap": Case("methods/gap.py", MIXED),
    "late_interaction": Case("methods/late_interaction.py", MIXED),
    "mcl": Case("methods/mcl.py", MIXED, "one"),
    "mm_embed": Case("methods/mm_embed.py", MIXED, "one"),
    "one_to_k": Case("methods/one_to_k.py", MIXED),
    "sepclr": Case("methods/sepclr.py", MIXED),
    "two_stage_retrieval": Case("methods/two_stage_retrieval.py", MIXED, "texts"),
    "visualness": Case("methods/visualness.py", MIXED),
    "vlm2vec": Case("methods/vlm2vec.py", MIXED, "instructed"),
}
# Files whose arrays are those of another, so that they need no table of their own.
ALIKE = {
    "cwcl": (Case("methods/cwcl.py", MIXED), "gap"),
    "hinge": (Case("methods/hinge.py", MIXED), "gap"),
    "m3col": (Case("methods/m3col.py", MIXED), "gap"),
}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a state on a mesh.

    Attributes:
      axes: logical ones, of a parameter.
      bytes: of one device.
      moments: of a parameter those of its shape, if `optim.zero1`: (mesh axes, bytes of all, how
        many).
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...] | None
    spec: str
    bytes: int
    moments: tuple[str, int, int] | None = None


class System:
    """A config's model and the shapes of its state."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        vocabulary = vocabulary_of(experiment)
        self.model = build_model(experiment, vocabulary)
        self.teachers = make_teachers(experiment, self.model, vocabulary)
        mesh = abstract((1, 1, 1, 1))
        with jax.sharding.use_abstract_mesh(mesh):
            _, self.shapes, _ = fresh_state(experiment, self.model, mesh, self.teachers)

    def places(self, mesh: AbstractMesh, *, zero1: bool) -> TrainState:
        tasks = make_tasks(self.experiment)
        how = dict(teachers=self.teachers, tasks=tasks, zero1=zero1)
        return state_shardings(self.model, self.shapes, mesh, **how)

    def parameters(self, mesh: AbstractMesh) -> list[Array]:
        places = self.places(mesh, zero1=False)
        split = self.places(mesh, zero1=True)
        params = self.shapes.params
        moments: dict[str, list[tuple[str, int]]] = {path: [] for path in params}
        for path, leaf, where in _leaves(self.shapes.opt_state, split.opt_state):
            name = _moment_of(path, leaf, params)
            if name:
                moments[name].append((spec(where, leaf), size(where, leaf)))
        found = []
        for path, leaf in params.items():
            kept = moments[path]
            assert len({where for where, _ in kept}) <= 1, path
            together = (kept[0][0], sum(n for _, n in kept), len(kept)) if kept else None
            array = _array(path, leaf, places.params[path])
            axes = self.model.axes[path]
            found.append(dataclasses.replace(array, axes=axes, moments=together))
        return found

    def others(self, mesh: AbstractMesh) -> list[Array]:
        """The rest of the state without its counters, and without teachers' arrays that lie as
        parameters of the same name do."""
        places = self.places(mesh, zero1=False)
        split = self.places(mesh, zero1=True)
        params = self.shapes.params
        found = [
            _array(f"zero1 {_words(path)}", leaf, where)
            for path, leaf, where in _leaves(self.shapes.opt_state, split.opt_state)
            if math.prod(leaf.shape) > 1 and not _moment_of(path, leaf, params)
        ]
        for part in ("model_state", "teachers", "objective_state"):
            leaves = _leaves(getattr(self.shapes, part), getattr(places, part))
            for path, leaf, where in leaves:
                name = _moment_of(path, leaf, params) if part == "teachers" else None
                follows = name is not None and where == places.params[name]
                if math.prod(leaf.shape) > 1 and not follows:
                    found.append(_array(f"{part} {_words(path)}", leaf, where))
        return found


def abstract(shape):
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def system(case: Case) -> System:
    command = Command(str(ROOT / "configs" / case.config), {}, {})
    return System(one_of(command, case.stage))


def _leaves(shapes, places):
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), where in zip(paths, jax.tree.leaves(places), strict=True):
        yield path, leaf, where


def _moment_of(path, leaf, params) -> str | None:
    """The parameter that an array at `path` of a state is named and shaped like."""
    name = parameter_of(path, params)
    return name if name and leaf.shape == params[name].shape else None


def _words(path) -> str:
    """`[1][0].mu['image/kernel']` as `1/0/mu/image/kernel`."""
    return "/".join(re.findall(r"[\w>/.-]+", jax.tree_util.keystr(path))).replace("/.", "/")


def _array(path: str, leaf, where: NamedSharding) -> Array:
    return Array(path, leaf.shape, None, spec(where, leaf), size(where, leaf))


def spec(where: NamedSharding, leaf) -> str:
    """Mesh axes of each dimension, `data+fsdp, ., tensor`; those of one device do not count."""
    names = [*where.spec, *[None] * (len(leaf.shape) - len(where.spec))]
    words = []
    for name in names:
        several = (name,) if isinstance(name, str) else tuple(name or ())
        words.append("+".join(n for n in several if where.mesh.shape[n] > 1) or ".")
    return ", ".join(words) if {*words} - {"."} else "whole"


def size(where: NamedSharding, leaf) -> int:
    return math.prod(where.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


# --------------------------------------------------------------------------------------------------
# As text


def grouped(arrays: list[Array]) -> list[tuple[str, int, Array]]:
    """(paths, how many, one of them): arrays that differ in nothing but words of their paths, which
    stand in braces, are one line."""
    lines = [(tuple((w,) for w in re.split(r"(?<!>)/", a.path)), a) for a in arrays]
    for place in range(max(len(words) for words, _ in lines)):
        merged: dict[tuple, tuple] = {}
        for words, array in lines:
            if place >= len(words):
                key = (words, array)
            else:
                alike = dataclasses.replace(array, path="")
                key = (words[:place], words[place + 1 :], len(words), alike)
            if key in merged:
                before, first = merged[key]
                both = (*before[place], *words[place])
                merged[key] = (*before[:place], both, *before[place + 1 :]), first
            else:
                merged[key] = words, array
        lines = list(merged.values())
    return [
        ("/".join(map(_braces, words)), math.prod(map(len, words)), array) for words, array in lines
    ]


def _braces(words: tuple[str, ...]) -> str:
    if len(words) == 1:
        return words[0]
    if not all(word.isdigit() for word in words):
        return "{" + ",".join(words) + "}"
    numbers = [int(word) for word in words]
    runs = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
    return "{" + ",".join(runs) + "}"


HEADINGS = ("arrays", "each", "logical axes", "mesh axes", "KiB", "moments if zero1", "KiB")
LEAST = (76, 13, 31, 23, 11, 31, 11)  # widths, so that one wide cell does not move all others


def table(case: Case, made: System) -> str:
    """The text of a config's file."""
    optim = made.experiment.optim
    stage = f", stage {case.stage}" if case.stage else ""
    number = sum(math.prod(s.shape) for s in made.shapes.params.values())
    lines = [
        f"configs/{case.config}{stage}: {number:,} parameters, {optim.name}",
        "KiB: of one device, all arrays of a line together",
        f"written by: {COMMAND}",
    ]
    for shape in case.meshes:
        mesh = abstract(shape)
        parameters = made.parameters(mesh)
        devices = " x ".join(f"{a} {n}" for a, n in zip(AXES, shape) if n > 1)
        own = sum(a.bytes for a in parameters)
        moments = sum(a.moments[1] for a in parameters if a.moments)
        total = f"parameters {kib(own)} KiB, moments if zero1 {kib(moments)} KiB"
        rows = [HEADINGS, *map(_row, grouped(parameters + made.others(mesh)))]
        lines += ["", f"{devices}: {total}", *_aligned(rows)]
    return "\n".join(lines) + "\n"


def _row(line: tuple[str, int, Array]) -> tuple[str, ...]:
    paths, number, array = line
    each = "x".join(map(str, array.shape)) or "scalar"
    axes = ", ".join(axis or "." for axis in array.axes or ())
    moments = array.moments
    split = ("", "")
    if moments is not None:
        split = (f"{moments[2]} of {moments[0]}", kib(number * moments[1]))
    return (paths, each, axes, array.spec, kib(number * array.bytes), *split)


def kib(n: int) -> str:
    return f"{n / 1024:,.1f}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(least, *(len(row[i]) for row in rows)) for i, least in enumerate(LEAST)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if heading == "KiB" else cell.ljust(width)
            for cell, width, heading in zip(row, widths, HEADINGS)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or CASES:
        (FOLDER / f"{name}.txt").write_text(table(CASES[name], system(CASES[name])))
        print(name, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main(sys.argv[1:])
