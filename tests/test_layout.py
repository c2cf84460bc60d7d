"""The layering rule, and sizes that keep a file readable."""

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "jaxvl").rglob("*.py"))
# Each layer may import the ones before it; packages of one layer do not import each other, except
# where listed.
LAYERS = [
    {"paths"},
    {"config", "kernels"},
    {"sharding"},
    {"command"},
    {"nn", "data"},
    {"models", "objectives", "adapters"},
    {"tasks", "evals", "interop"},
    {"jobs"},
    {"training"},
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
