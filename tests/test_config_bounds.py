"""Every number of every config: what is hostile is one line that names key and bounds, what
resolves can be built."""

import copy
import dataclasses
import math
import types
import typing
from typing import Annotated

import jax
import numpy as np
import pytest
from training import tiny

from jaxvl import train
from jaxvl.config import ConfigError, Plugin, Range, Registry, parse_arg, resolve, to_dict
from jaxvl.models.generate import Generation
from jaxvl.nn.moe import MoeConfig
from jaxvl.sharding import make_mesh
from jaxvl.tasks import Task
from jaxvl.training.build import Vocabulary, build_model, fresh_state
from jaxvl.training.experiment import Experiment
from jaxvl.training.optim import learning_rate
from jaxvl.training.teacher_models import make_teachers

HOSTILE = [
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**30,
    10**5000,
    1e400,
    -1e400,
    math.nan,
    -0.0,
    1e300,
    True,
    "",
    "x",
    None,
    [],
    {},
    (1, 2),
    b"x",
]
TASK = tiny.config().tasks.pairs.to_dict()
SPLIT = dict(source=tiny.TEST)
# What dataclasses need to have, by name of the class or of the component.
NEEDED = {
    "lora": dict(paths="query$"),
    "gated_experts": dict(paths="query$"),
    "bottleneck": dict(paths="query$"),
    "prompts": dict(paths="query$"),
    "prefix": dict(paths="query$"),
    "HeadConfig": dict(reads="image"),
    "classifier": dict(reads="image", classes=10),
    "null_vector": dict(reads="image"),
    "predictor": dict(reads="image"),
    "projection": dict(reads="image"),
    "prototypes": dict(reads="image"),
    "StartConfig": dict(source="runs/a"),
    "Experiment": tiny.config().to_dict(),
    "TaskConfig": TASK,
    "DataConfig": TASK["data"],
    "PartConfig": dict(source=tiny.TEST),
    "MixtureConfig": dict(parts=(dict(source=tiny.TEST),)),
    "array_record": dict(files="a.array_record"),
    "csv": dict(files="a.tsv"),
    "energon": dict(path="shards"),
    "folder": dict(path="pictures"),
    "huggingface": dict(path="saved"),
    "joined": dict(source=tiny.TEST, other=tiny.TEST, key="key"),
    "jsonl": dict(files="a.jsonl"),
    "mds": dict(path="shards"),
    "parquet": dict(files="a.parquet"),
    "tfds": dict(data_dir="tfds"),
    "webdataset": dict(files="a.tar"),
    "where": dict(source=tiny.TEST, column="key", among=("a",)),
    "array": dict(column="features", shape=(4,)),
    "constant": dict(value=1.0),
    "number": dict(column="weight"),
    "few_shot": dict(k=4),
    "per_cluster": dict(table="clusters"),
    "with_negatives": dict(table="negatives"),
    "Interleave": dict(records=2),
    "ensemble": dict(runs=("runs/one",), evaluator=dict(name="zero_shot", source=tiny.TEST)),
    "replay": dict(parts=("old",), share=0.5),
    "NamedClasses": dict(names=("cat", "dog")),
    "ClassFile": dict(path="names.txt"),
    "MoeConfig": dict(last=1),
    "WandbConfig": dict(project="p"),
    "classification": dict(head="colour"),
    "weighted": dict(weights=dict(pairs=1.0)),
    "stages": dict(shares=(("pairs", 1.0),)),
    "ClassTexts": dict(count=10),
    "codebook": dict(reads=("image", "text")),
    "capro": dict(head="kind"),
    "coconut": dict(old_classes=4),
    "logit_distillation": dict(head="kind", teacher="last/logits/kind"),
    "prototype_clean": dict(head="kind"),
    "encoded": dict(reads=("image", "text")),
    "token_projection": dict(reads=("text",)),
    "token_projector": dict(reads=("image", "text")),
    "universal": dict(reads=("image", "text")),
    "frozen_encoders": dict(heads=dict(joint=dict(name="projection", reads=("image", "text")))),
    "learned_scale": dict(reads="image"),
    "replaced": dict(source=tiny.TEST, column="name/en", share=0.5, texts=("none",)),
}
# Of evaluators that need more than a source.
EVALUATED = {
    "linear_probe": dict(source=tiny.TEST, train=tiny.TRAIN),
    "attentional_probe": dict(source=tiny.TEST, train=tiny.TRAIN),
    "base_to_new": dict(source=tiny.TEST, new=tiny.TEST),
    "class_head": dict(source=tiny.TEST, head="kind"),
    "entity_linking": dict(source=tiny.TEST, entities=tiny.TEST),
}


def parts(hint):
    """Dataclasses and registries that an annotation holds."""
    if isinstance(hint, Registry) or (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        yield hint
    for part in typing.get_args(hint):
        yield from parts(part)


def schemas():
    """Every dataclass that a config can hold: (name for the test, class, node of what it needs)."""
    seen = {}
    left = [("Experiment", Experiment), ("Generation", Generation), ("MoeConfig", MoeConfig)]
    from jaxvl.objectives import OBJECTIVES  # a task's are of type Any

    left += [(name, OBJECTIVES[name]) for name in OBJECTIVES]
    while left:
        name, cls = left.pop()
        if cls in seen or cls is Plugin:
            continue
        seen[cls] = name
        for hint in typing.get_type_hints(cls, include_extras=True).values():
            if typing.get_origin(hint) is typing.ClassVar:
                continue
            for part in parts(hint):
                left += (
                    [(key, part[key]) for key in part]
                    if isinstance(part, Registry)
                    else [(part.__name__, part)]
                )
    return sorted(
        ((name, cls) for cls, name in seen.items()), key=lambda pair: (pair[0], pair[1].__module__)
    )


SCHEMAS = schemas()


def numeric(hint):
    """(int or float, function from a hostile value to one of the annotation with that in the place
    of one of its numbers)."""
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if hint in (int, float):
        yield hint, lambda value: value
    elif origin is Annotated:
        yield from numeric(args[0])
    elif origin in (typing.Union, types.UnionType):
        for option in args:
            yield from numeric(option)
    elif origin is dict:
        for kind, inner in numeric(args[1]):
            yield kind, lambda value, inner=inner: {"pairs": inner(value)}
    elif origin is tuple and args[-1] is Ellipsis:
        for kind, inner in numeric(args[0]):
            yield kind, lambda value, inner=inner: (inner(value),)
    elif origin is tuple:
        for i, part in enumerate(args):
            for kind, inner in numeric(part):
                others = ["image" if a is str else 1.0 for a in args]
                yield (
                    kind,
                    lambda value, i=i, inner=inner, others=others: (
                        *others[:i],
                        inner(value),
                        *others[i + 1 :],
                    ),
                )


def needed(name, cls, folder):
    """A node with what the class cannot be without."""
    if name == "benchmarks":
        return dict(root=str(folder))
    if cls.__module__.startswith("jaxvl.evals.") and name != "ensemble":
        return EVALUATED.get(name, dict(source=tiny.TEST))
    if name == "questions":
        return dict(folder=str(folder), split="questions")
    return NEEDED.get(cls.__name__, NEEDED.get(name, {}))


def test_the_walk_meets_all_kinds():
    names = {name for name, _ in SCHEMAS}
    assert {
        "Experiment",
        "DataConfig",
        "dual_encoder",
        "vit",
        "bert",
        "token_choice",
        "nce",
        "zero_shot",
        "shapes",
        "weighted",
    } <= names
    assert len(SCHEMAS) > 60


@pytest.mark.parametrize(
    "name, cls", SCHEMAS, ids=[f"{cls.__module__.split('.')[-1]}-{name}" for name, cls in SCHEMAS]
)
def test_every_number_resolves_or_is_refused_by_name(name, cls, tmp_path):
    (tmp_path / "questions.jsonl").write_text("{}\n")
    node = needed(name, cls, tmp_path)
    plain = to_dict(resolve(cls, node))
    if getattr(cls, "registered_name", ""):
        del plain["name"]
    assert to_dict(resolve(cls, plain)) == to_dict(resolve(cls, node)), (
        "the defaults are inside the bounds"
    )
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        for kind, put in numeric(hints[field.name]):
            for hostile in HOSTILE:
                try:
                    resolve(cls, {**node, field.name: put(hostile)}, "root")
                except ConfigError as error:
                    assert error.key.startswith("root."), error
                    assert "\n" not in str(error) and len(str(error)) < 1_500, error
                else:
                    if isinstance(hostile, (int, float)):
                        most = 2**31 - 1 if kind is int else float(np.finfo(np.float32).max)
                        assert -most <= hostile <= most, f"{name}.{field.name} took it"


# --------------------------------------------------------------------------------------------------
# What resolves can be built


def leaves(node, path=()):
    """Paths of the numbers in a plain nested config."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield (*path, key)


def bounds(path):
    """The bounds of a number of `ROOT`, where its field declares some."""
    holder = resolve(Experiment, ROOT)
    for key in path[:-1]:
        holder = holder[key] if isinstance(holder, (dict, tuple)) else getattr(holder, key)
    hint = (
        typing.get_type_hints(type(holder), include_extras=True).get(path[-1])
        if dataclasses.is_dataclass(holder)
        else None
    )
    found = [
        note
        for part in (hint, *typing.get_args(hint))
        for note in typing.get_args(part)
        if isinstance(note, Range)
    ]
    return [found[0].low + (1e-6 if found[0].above else 0), found[0].high] if found else []


def changed(root, changes):
    """A copy of the plain nested `root` with other numbers: (path, value) pairs."""
    root = copy.deepcopy(root)
    for path, value in changes:
        node = root
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    return root


def build(experiment):
    """The model, the first state, and the inputs of a step; shapes only."""
    mesh = make_mesh(experiment.mesh)
    experiment.check_mesh(mesh)
    vocabulary = Vocabulary(64, 0, 1)
    model = build_model(experiment, vocabulary)
    with jax.set_mesh(mesh):
        fresh_state(experiment, model, mesh, make_teachers(experiment, model, vocabulary))
    for name, config in experiment.tasks.items():
        batch = {
            key: value for key, value in config.data.shapes.items() if key in ("image", "position")
        }
        jax.eval_shape(Task(name, config, experiment.preprocess).prepare, batch, jax.random.key(0))


def plan(experiment):
    """What a run makes of its config besides: turns, learning rate, mesh, shapes of a batch."""
    experiment.check_mesh(make_mesh(experiment.mesh))
    turns = experiment.schedule.build(list(experiment.tasks), experiment.steps, {"pairs": 3.0})
    assert [str(turns(step)) for step in (0, experiment.steps - 1)] == ["pairs", "pairs"]
    if (experiment.optim, experiment.steps) != (AS_IT_WAS.optim, AS_IT_WAS.steps):
        rate = learning_rate(experiment.optim, experiment.steps)
        assert all(np.isfinite(rate(step)) for step in (0, experiment.steps - 1))
    assert all(task.data.shapes for task in experiment.tasks.values())


ROOT = to_dict(tiny.experiment(schedule=dict(name="weighted", weights=dict(pairs=1.0))))
AS_IT_WAS = resolve(Experiment, ROOT)
NUMBERS = [value for value in HOSTILE if value is None or isinstance(value, (int, float))]
CHANGES = [(path, value) for path in leaves(ROOT) for value in [*NUMBERS, *bounds(path)]]


def walk(check):
    """How many single changes of a number resolve; `check` may raise nothing but ConfigError for
    them."""
    kept = 0
    for change in CHANGES:
        try:
            experiment = resolve(Experiment, changed(ROOT, [change]))
            if experiment != AS_IT_WAS:
                kept += 1
                check(experiment)
        except ConfigError as error:
            assert "\n" not in str(error)
    return kept


def test_what_resolves_can_be_planned():
    assert walk(plan) > 100


@pytest.mark.slow
def test_what_resolves_can_be_built():
    assert walk(build) > 100


@pytest.mark.parametrize("end", [0, 1], ids=["smallest", "largest"])
def test_models_at_their_bounds_can_be_built(end):
    changes = [
        (path, bounds(path)[end])
        for path in leaves(ROOT)
        if path[0] in ("model", "optim") and bounds(path)
    ]
    # Those that depend on others: a warm-up is no longer than the run, a table of positions no
    # shorter than a text.
    changes = [change for change in changes if change[0][-1] not in ("warmup", "positions")]
    assert len(changes) > 10
    build(resolve(Experiment, changed(ROOT, changes)))


# --------------------------------------------------------------------------------------------------
# Through the command

FILE = """
import ml_collections
from training import tiny

def get_config():
    return tiny.config(schedule=dict(name="weighted", weights=dict(pairs=1.0)))
"""


def refusal(tmp_path, capsys, config, *words):
    """The one line that the command ends with."""
    file = tmp_path / "config.py"
    file.write_text(config)
    assert train.main([f"--config={file}", f"--workdir={tmp_path / 'run'}", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("config error "), lines
    return lines[0].removeprefix("config error ")


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("optim.lr=1e400", "optim.lr: inf is not finite"),
        ("optim.lr=nan", "optim.lr: 'nan' is of type str; must be a number > 0 and <= 1e+06"),
        (f"steps={10**30}", f"steps: {10**30} must be >= 1 and <= 2,147,483,647"),
        (f"steps={'9' * 5000}", "steps: '9999"),
        ("seed=-1", "seed: -1 must be >= 0 and <= 2,147,483,647"),
        ("text_length=-4", "text_length: -4 must be >= 3 and <= 1,048,576"),
        ("text_length=0", "text_length: 0 must be >= 3 and <= 1,048,576"),
        ("start=", "start[0].source: is empty; must be a path"),
        (
            f"tokenizer.vocab_size={2**31}",
            f"tokenizer.vocab_size: {2**31} must be >= 16 and <= 16,777,216",
        ),
        ("model.image.depth=1000000", "model.image.depth: 1000000 must be >= 1 and <= 1,024"),
        (f"schedule.seed={2**64}", f"schedule.seed: {2**64} must be >= 0 and <= 2,147,483,647"),
        ("tasks.pairs.objectives.align=1e400", "tasks.pairs.objectives.align: inf is not finite"),
        (
            "tasks.pairs.objectives.align=-1",
            "tasks.pairs.objectives.align.weight: -1.0 must be >= 0 and <= 1e+06",
        ),
        ("tasks.pairs.encode.drop=-1e999", "tasks.pairs.encode.drop: -inf is not finite"),
        (
            "tasks.pairs.data.source={'name':'questions','folder':'','split':'val'}",
            "tasks.pairs.data.source.folder: is empty; must be a path",
        ),
        (
            "tasks.pairs.data.fields.image.size=0",
            "tasks.pairs.data.fields.image.size: 0 must be >= 1 and <= ",
        ),
        (
            "tasks.pairs.data.fields.text.length=2",
            "tasks.pairs.data.fields.text.length: 2 must be >= 3",
        ),
        (
            "tasks.pairs.data.fields.text.lenght=8",
            "tasks.pairs.data.fields.text.lenght: unknown key; did you mean 'length'",
        ),
        (
            "tasks.pairs.data.fields.more.name=pictrue",
            (
                "tasks.pairs.data.fields.more.name: 'pictrue' is not a known field; did you mean "
                "'picture'"
            ),
        ),
        ("tasks.pairs.data.reader.threads=0", "tasks.pairs.data.reader.threads: 0 must be >= 1"),
        ("tasks.pairs.data.corpus=shapes", "tasks.pairs.data.corpus: unknown key"),
        ("model.image.variant=Ti/" + "9" * 5000, "model.image.variant: "),
        ("optim..lr=1", "--config.optim..lr: must be keys with one dot between two"),
        ("seed=" + "(" * 3000, "seed: '(((("),
    ],
)
def test_the_command_names_key_and_bounds(tmp_path, capsys, assignment, message):
    if "folder" in message:
        source = dict(name="questions", folder="", split="val")
        with pytest.raises(ConfigError, match="folder: is empty; must be a path"):
            resolve(Experiment, tiny.config(tasks=dict(pairs=tiny.task(source=source))))
    assert refusal(tmp_path, capsys, FILE, f"--config.{assignment}").startswith(message)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n    pass\n", "config.py, line 1: invalid syntax"),
        ("import math\nx = math.sqrt(-1)\n", "config.py, line 2: ValueError: math domain error"),
        (
            "def get_config():\n    a = 1\n    return a.b\n",
            "config.py, line 3: AttributeError: 'int' object has no attribute 'b'",
        ),
        (
            "def get_config():\n    raise ValueError('a\\nb')\n",
            "config.py, line 2: ValueError: a b",
        ),
        ("import sys\nsys.exit('no')\n", "config.py, line 2: SystemExit: no"),
        ("def f(): f()\nget_config = f\n", "config.py, line 1: RecursionError: "),
        (
            "def get_config(arg):\n    return arg\n",
            "config.py': get_config() needs an argument; must be --config=",
        ),
        ("get_config = 3\n", "config.py' defines no get_config()"),
        (
            "x = '\\0'\nimport none_such\n",
            "config.py, line 2: ModuleNotFoundError: No module named 'none_such'",
        ),
        (
            (
                "from ml_collections import ConfigDict\ndef get_config():\n    return "
                "ConfigDict({'a.b': 1})\n"
            ),
            "config.py, line 3: ValueError: ",
        ),
        (
            (
                "import ml_collections as m\ndef get_config():\n    return "
                "m.ConfigDict(dict(steps=m.config_dict.required_placeholder(int)))\n"
            ),
            "config: ",
        ),
    ],
)
def test_what_fails_in_a_config_file_is_one_line_with_its_place(tmp_path, capsys, text, message):
    assert message in refusal(tmp_path, capsys, text)


def test_files_that_are_no_config(tmp_path, capsys):
    (tmp_path / "noise.py").write_bytes(bytes(range(128, 256)))
    (tmp_path / "nul.py").write_bytes(b"x = 1\0")
    (tmp_path / "plain.py").write_text("def get_config():\n    return None\n")
    for spec, message in (
        (tmp_path, "is a folder; must be a Python file"),
        (tmp_path / "noise.py", "noise.py, "),
        (tmp_path / "nul.py", "nul.py, "),
        (f"{tmp_path / 'plain.py'}:big", "get_config() takes no argument; must be --config="),
        ("x" * 5000, "cannot be read: "),
        ("a\0b", "cannot be read: "),
    ):
        assert train.main([f"--config={spec}", f"--workdir={tmp_path / 'run'}"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0], lines


def test_arguments_of_a_file_are_finite_and_of_their_type():
    for arg, message in (
        ("lr=1e400", "lr: inf is not finite"),
        ("lr=nan", "lr: 'nan' is of type str"),
        (f"n={10**30}", "n: 10{30} must be >= "),
        ("n", "n: True is of type bool; must be an integer"),
        ("flag=2", "flag: 2 is of type int; must be True or False"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_arg(arg, lr=1e-3, n=1, flag=False)
