"""Where the arrays of every shipped config lie on its meshes: as it is written down, and in enough
parts."""

import difflib
import functools
import math
import re

import golden_tables
import jax
import pytest
from golden_tables import ALIKE, CASES, COMMAND, FOLDER, ROOT, abstract, grouped, system, table
from training import tiny

from jaxvl.planning.measure import Setting, measure
from jaxvl.sharding import rules
from jaxvl.sharding.mesh import AXES

# One of each system daily; its other sizes, and those that take long to trace, nightly.
DAILY = {
    *("clip-B16", "siglip-B16", "coca-base", "imp-base"),
    *("albef", "clip_moe", "fdt", "maple", "projectors"),
    *("align_emoji", "close", "imp_demo-experts", "visualness", "vlm2vec"),
}
NAMES = [pytest.param(n, marks=() if n in DAILY else (pytest.mark.slow,)) for n in CASES]
LARGE = 2**18  # elements
# Large arrays that are whole along `fsdp`, by pattern, and why.
WHOLE = {
    r"^projections/.*/down/kernel$": "4 MiB; the shared space of IMP's losses is never split, and "
    "its hidden width is for tensor",
}


@functools.cache
def made(name):
    return system(CASES[name])


@pytest.mark.parametrize("name", NAMES)
def test_arrays_lie_as_written_down(name):
    file = FOLDER / f"{name}.txt"
    written = _unpadded(file.read_text())
    now = _unpadded(table(CASES[name], made(name)))
    differences = list(difflib.unified_diff(written, now, file.name, "now", lineterm="", n=1))
    if differences:
        told = [f"if it is meant: {COMMAND} {name}", *differences]
        pytest.fail("\n".join(told), pytrace=False)


def _unpadded(text):
    return [re.sub(" {2,}", "  ", line) for line in text.splitlines()]


def test_every_file_has_its_case():
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(CASES)


def test_every_config_has_its_case():
    configs = ROOT / "configs"
    shipped = {str(file.relative_to(configs)) for file in configs.rglob("*.py")}
    cases = [*CASES.values(), *(case for case, _ in ALIKE.values())]
    assert {case.config.partition(":")[0] for case in cases} == shipped


@pytest.mark.parametrize("name", ALIKE)
def test_arrays_lie_as_those_of_another_config(name):
    case, other = ALIKE[name]
    _, *written = _unpadded((FOLDER / f"{other}.txt").read_text())
    _, *now = _unpadded(table(case, system(case)))
    assert now == written


def indivisible(array, shards):
    """Whether it is a kernel whose output channels cannot be split evenly: 344 and 824 of
    EfficientNet-L2's blocks by 16."""
    sizes = dict(zip(array.axes, array.shape))
    return sizes.get("conv_out", 0) % shards != 0


@pytest.mark.parametrize("name", NAMES)
def test_large_parameters_are_split_over_fsdp(name):
    for shape in CASES[name].meshes:
        on = dict(zip(AXES, shape))
        for array in made(name).parameters(abstract(shape)):
            if on["fsdp"] == 1 or math.prod(array.shape) < LARGE:
                continue
            excepted = any(re.search(pattern, array.path) for pattern in WHOLE)
            excepted |= name == "align-l2" and indivisible(array, on["fsdp"])
            assert ("fsdp" in array.spec) != excepted, (on, array)


def test_a_changed_rule_shows(monkeypatch):
    changed = {**rules.RULES, "vocab": None}
    monkeypatch.setattr("jaxvl.sharding.rules.spec.__defaults__", (changed, None, None))
    monkeypatch.setattr("jaxvl.sharding.rules.param_shardings.__defaults__", (changed,))
    with pytest.raises(pytest.fail.Exception) as told:
        test_arrays_lie_as_written_down("clip-B16")
    lines = told.value.msg.splitlines()
    assert lines[0].endswith(f"{COMMAND} clip-B16")
    added = [line for line in lines if re.match(r"\+[^+]", line)]
    # The table's line, and the sums above it.
    assert len(added) == 2 and added[1].startswith("+text/encoder/words/embedding  49408x512")
    assert "  ., fsdp  12,352.0  " in added[1]


def test_lines_stand_for_all_arrays():
    """No array is lost in a line that stands for several."""
    arrays = made("coca-base").parameters(abstract((4, 8, 4, 1)))
    lines = grouped(arrays)
    assert sum(number for _, number, _ in lines) == len(arrays)
    named = set()
    for paths, _, _ in lines:
        named |= set(_spelled(paths))
    assert named == {array.path for array in arrays}


def _spelled(paths):
    """`a/{b,c}/d` as `a/b/d` and `a/c/d`."""
    found = re.match(r"(.*?)\{(.*?)\}(.*)", paths)
    if found is None:
        yield paths
        return
    before, words, after = found.groups()
    for word in words.split(","):
        first, _, last = word.partition("-")
        run = range(int(first), int(last) + 1) if last.isdigit() else [word]
        for one in run:
            yield from _spelled(f"{before}{one}{after}")


@pytest.mark.parametrize("zero1", [False, True])
def test_bytes_are_the_compiled_programs_arguments(zero1):
    """The table's sum, with what it leaves out, against what the compiler says of the step."""
    changes = dict(mesh=dict(data=2, fsdp=4), optim=dict(lr=1e-3, warmup=2, zero1=zero1))
    experiment = tiny.experiment(**changes)
    plan = measure(experiment, Setting.of("cpu:8", {}))
    here = golden_tables.System(experiment)
    mesh = abstract((2, 4, 1, 1))
    parameters = here.parameters(mesh)
    assert sum(a.bytes for a in parameters) == plan.state.parameters
    moments = [a.moments[1] for a in parameters]
    if not zero1:  # they lie as their parameters
        moments = [a.moments[2] * a.bytes for a in parameters]
    counters = 4 * sum(leaf.shape == () for leaf in jax.tree.leaves(here.shapes.opt_state))
    scalars = sum(a.moments[2] * 4 for a in parameters if a.shape == ())
    assert sum(moments) + counters - scalars == plan.state.optimiser
    [step] = plan.steps
    assert step.bytes.state == plan.state.total
