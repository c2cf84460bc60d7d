"""The layering rule, sizes that keep a file readable, and what a program can hold of style.md."""

import ast
import importlib
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxvl").rglob("*.py"))
# Each layer may import the ones before it; packages of one layer do not import each other, except
# where listed.
LAYERS = [
    {"aliases", "paths", "chips", "slices"},
    {"config", "kernels"},
    {"sharding", "hlo"},
    {"command"},
    {"nn", "data"},
    {"models", "objectives", "adapters", "before"},
    {"tasks", "evals", "interop"},
    {"jobs"},
    {"training"},
    {"planning"},
    {"train", "evaluate", "benchmark", "caption", "convert", "plan", "bench"},
]
LEVEL = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def package(path):
    return path.relative_to(ROOT / "jaxvl").parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module
            else []
        )
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxvl" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    mine = package(path)
    if mine == "__init__":
        return
    for other in imports(path):
        assert other == mine or LEVEL[other] < LEVEL[mine], f"{mine} may not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    limit = 600 if package(path) == "kernels" else 500
    text = path.read_text()
    assert text.count("\n") <= limit
    longest = 100 if package(path) != "kernels" else 150
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= longest, node.name


def test_the_loop_names_no_model_and_no_loss():
    text = (ROOT / "jaxvl" / "train.py").read_text().lower()
    for word in ("softmax", "align", "sigmoid", "contrastive", "efficientnet", "bert"):
        assert word not in text.replace("align_emoji", ""), word


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    """So that a command that no other test starts is not left behind when what it uses moves."""
    importlib.import_module(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    )


# --------------------------------------------------------------------------------------------------
# How code reads. `LEFT` may only shrink.

# Modules that ask objects of other libraries, or a user's class, for what these may lack.
ASKS = {
    "caption.py",
    "config/files.py",
    "config/plugins.py",
    "config/registry.py",
    "config/schema.py",
    "data/ahead.py",
    "data/fast_pictures.py",
    "data/pictures.py",
    "data/reading/memory.py",
    "data/sources/demo/motion.py",
    "data/sources/demo/store.py",
    "data/tokenizer.py",
    "interop/timm_vit.py",
    "kernels/contrastive/dispatch.py",
    "paths.py",
}
# Names that stand for any type at all, by file; each has its reason beside it.
FREE_TYPES = {
    "aliases.py": {"ColumnValue", "Foreign", "Leaf", "Tree"},
    "config/schema.py": {"Annotation", "Component"},
    "data/preparing/gathering.py": {"PCollection", "Pipeline"},  # where Beam is not installed
}
# Offences that were there when a rule came, by rule and file.
LEFT: dict[str, dict[str, int]] = {}


def held():
    for path in FILES:
        name = path.relative_to(ROOT / "jaxvl").as_posix()
        yield name, path.read_text()


def long_lines(name, text):
    """Lines of more than 100 characters. Tables (`fmt: skip`, or columns in a docstring), strings
    without a space and comments behind code may be longer."""
    free = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno
            lines = text.splitlines()[node.lineno - 1 : end]
            if any("# fmt: skip" in line for line in lines):
                free.update(range(node.lineno, end + 1))
    within = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        for number in range(token.start[0], token.end[0] + 1):
            within.setdefault(number, []).append(token)
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) <= 100 or number in free:
            continue
        tokens = within[number]
        columns = re.search(r"\S {2,}\S", line) and any(t.start[0] < number for t in tokens)
        comment = any(t.type == tokenize.COMMENT and 0 < t.start[1] <= 100 for t in tokens)
        whole = any(t.type == tokenize.STRING and " " not in t.string for t in tokens)
        if not (columns or comment and line.strip()[0] != "#" or whole):
            yield number


def nested_conditionals(name, text):
    for outer in ast.walk(ast.parse(text)):
        if isinstance(outer, ast.IfExp):
            inner = [n for n in ast.walk(outer) if isinstance(n, ast.IfExp) and n is not outer]
            yield from (node.lineno for node in inner)


def packed_assignments(name, text):
    """`a, b = 1, 2`. A swap of the same names is one thought."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            values = sorted(ast.unparse(value) for value in node.value.elts)
            for target in node.targets:
                packed = isinstance(target, ast.Tuple) and len(target.elts) == len(values)
                if packed and sorted(ast.unparse(item) for item in target.elts) != values:
                    yield node.lineno


def functions(text):
    tree = ast.parse(text)
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def parameters(function):
    given = function.args
    return [
        parameter
        for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if parameter.arg not in ("self", "cls")
    ]


def many_parameters(name, text):
    for function in functions(text):
        if len(parameters(function)) > 8 and not name.startswith("kernels/"):
            yield function.lineno


def asked_attributes(name, text):
    """`getattr` and `hasattr` by a name that is known when the code is written."""
    for node in ast.walk(ast.parse(text)):
        if name not in ASKS and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            literal = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            if node.func.id in ("getattr", "hasattr") and literal:
                yield node.lineno


def untyped_signatures(name, text):
    """`Any` in what a public function takes or gives."""
    every = functions(text)
    inner = {node for function in every for node in ast.walk(function) if node is not function}
    for function in every:
        private = function.name.startswith("_") and not function.name.startswith("__")
        if private or function in inner:
            continue
        hints = [p.annotation for p in parameters(function)] + [function.returns]
        nodes = [node for hint in hints if hint is not None for node in ast.walk(hint)]
        if any(isinstance(node, ast.Name) and node.id == "Any" for node in nodes):
            yield function.lineno


def hidden_types(name, text):
    """Names for `Any` that are not among `FREE_TYPES`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in ("Any", "typing.Any"):
            names = {ast.unparse(target) for target in node.targets}
            if not names <= FREE_TYPES.get(name, set()):
                yield node.lineno


RULES = [
    long_lines,
    nested_conditionals,
    packed_assignments,
    many_parameters,
    asked_attributes,
    untyped_signatures,
    hidden_types,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_code_reads_well(rule):
    found = {name: list(rule(name, text)) for name, text in held()}
    left = LEFT.get(rule.__name__, {})
    more = {name: lines for name, lines in found.items() if len(lines) > left.get(name, 0)}
    assert not more, f"{rule.__name__}: {more}"
    fewer = {name: len(found.get(name, ())) for name in left}
    assert fewer == left, f"{rule.__name__} is better now: lower what is in LEFT"


@pytest.mark.parametrize(
    "rule, text, offends",
    [
        (long_lines, "x = " + " + ".join(["number"] * 20), True),
        (long_lines, "x = " + " + ".join(["number"] * 20) + "  # fmt: skip", False),
        (long_lines, f"x = '{'y' * 120}'", False),
        (long_lines, f"x = 'a word {'y' * 120}'", True),
        (long_lines, f"# {'word ' * 30}", True),
        (long_lines, f"x = 1  # {'word ' * 30}", False),
        (long_lines, f'"""A table.\n\nleft   {"right " * 20}\n"""', False),
        (long_lines, f'"""A sentence.\n\n{"right " * 20}\n"""', True),
        (nested_conditionals, "x = 1 if a else 2 if b else 3", True),
        (nested_conditionals, "x = f(1 if a else 2, 3 if b else 4)", False),
        (packed_assignments, "a, b = 1, 2", True),
        (packed_assignments, "a, b = b, a", False),
        (packed_assignments, "a, b = f()", False),
        (many_parameters, "def f(a, b, c, d, e, f, g, h, i): pass", True),
        (many_parameters, "def f(self, a, b, c, d, e, f, g, h): pass", False),
        (asked_attributes, "getattr(x, 'y', None)", True),
        (asked_attributes, "hasattr(x, 'y')", True),
        (asked_attributes, "getattr(x, name)", False),
        (untyped_signatures, "def f(x: dict[str, Any]) -> int: pass", True),
        (untyped_signatures, "def f(x: int) -> Any: pass", True),
        (untyped_signatures, "def _f(x: Any) -> Any: pass", False),
        (hidden_types, "Thing = Any", True),
        (hidden_types, "Thing = dict[str, Any]", False),
    ],
)
def test_the_rules_find_what_they_are_for(rule, text, offends):
    assert bool(list(rule("file.py", text))) is offends
