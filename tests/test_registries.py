"""A component is found by looking into its package: no list is kept, and nothing is imported to be
listed."""

import importlib
import pathlib
import py_compile
import sys
import zipfile

import pytest
from training import tiny

import jaxvl.objectives
from jaxvl.config import ConfigError, resolve
from jaxvl.data.fields import FIELDS
from jaxvl.data.samplers import SAMPLERS
from jaxvl.data.sources import SOURCES
from jaxvl.evals import EVALUATORS
from jaxvl.models import IMAGE_ENCODERS, MODELS, TEXT_ENCODERS
from jaxvl.objectives import OBJECTIVES
from jaxvl.training.experiment import Experiment

HEAD = "import dataclasses\nfrom {package} import PETS\n"
CLASS = (
    "\n@PETS.register('{name}')\n@dataclasses.dataclass(frozen=True)\nclass {cls}:\n    legs: "
    "int = 4\n"
)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A function from module -> text to the registry `PETS` of a new package that has these
    modules."""
    names = []

    def make(modules, archive=False, bytecode=False):
        name = f"zoo_{len(names)}_{tmp_path.name.replace('-', '_')}"
        names.append(name)
        modules = {
            "__init__": "from jaxvl.config import Registry\nPETS = Registry('pet', __name__)\n",
            **modules,
        }
        if archive:
            with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as zipped:
                for module, text in modules.items():
                    zipped.writestr(f"{name}/{module}.py", text.replace("{package}", name))
            monkeypatch.syspath_prepend(str(tmp_path / f"{name}.zip"))
        else:
            for module, text in modules.items():
                file = tmp_path / name / f"{module}.py"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text.replace("{package}", name))
                if bytecode and module != "__init__":
                    py_compile.compile(str(file), str(file.with_suffix(".pyc")))
                    file.unlink()
            monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        return importlib.import_module(name).PETS, name

    yield make
    for name in [module for module in sys.modules if module.partition(".")[0] in names]:
        del sys.modules[name]


def pet(name, before=""):
    return HEAD + before + CLASS.replace("{name}", name).replace("{cls}", name.title())


def loaded(name):
    return {
        module.removeprefix(f"{name}.") for module in sys.modules if module.startswith(f"{name}.")
    }


def test_modules_are_found_and_imported_only_when_chosen(zoo):
    pets, name = zoo(
        {
            "canine": pet("dog") + CLASS.format(name="wolf", cls="Wolf"),
            "felines/__init__": pet("cat"),
            "helper": "1 / 0",
        }
    )
    assert (
        list(pets) == ["cat", "dog", "wolf"]
        and len(pets) == 3
        and "dog" in pets
        and "cow" not in pets
    )
    assert loaded(name) == set(), "listing imports nothing"
    assert pets["wolf"]().legs == 4 and loaded(name) == {"canine"}
    with pytest.raises(
        ConfigError,
        match=r"'dgo' is not a known pet; did you mean 'dog'\? \(known: cat, dog, wolf\)",
    ):
        pets.lookup("dgo", "pet.name")


def test_a_library_that_is_missing_is_told_when_its_component_is_chosen(zoo):
    pets, _ = zoo(
        {
            "canine": pet("dog"),
            "robotic": pet("aibo", "import not_installed.deep\n"),
            "broken": pet("fish", "1 / 0\n"),
        }
    )
    assert list(pets) == ["aibo", "dog", "fish"] and pets.lookup("dog", "pet")().legs == 4
    with pytest.raises(
        ConfigError,
        match=r"pet.name: the pet 'aibo' needs the package 'not_installed', which is not installed \(.*robotic.py\)",
    ):
        pets.lookup("aibo", "pet.name")
    with pytest.raises(
        ConfigError,
        match=r"the pet 'fish' cannot be loaded: .*broken.py, line 3: ZeroDivisionError: division by zero",
    ):
        pets.lookup("fish", "pet.name")


def test_a_file_that_is_no_python_is_in_nobodys_way(zoo):
    pets, _ = zoo({"canine": pet("dog"), "slip": pet("cat") + "def (:\n"})
    assert list(pets) == ["dog"]
    with pytest.raises(
        ConfigError, match=r"'cat' is not a known pet .*slip.py could not be read: .*invalid syntax"
    ):
        pets.lookup("cat", "pet.name")


@pytest.mark.parametrize("form", [dict(archive=True), dict(bytecode=True)], ids=["zip", "bytecode"])
def test_packages_without_files_of_source(zoo, form):
    pets, _ = zoo({"canine": pet("dog"), "helper": "x = 1\n"}, **form)
    assert list(pets) == ["dog"] and pets["dog"]().legs == 4


def test_names_that_only_the_module_knows(zoo):
    pets, _ = zoo(
        {
            "many": HEAD
            + "for n in ('ant', 'bee'):\n    PETS.register(n)(dataclasses.make_dataclass(n, []))\n"
        }
    )
    assert list(pets) == ["ant", "bee"]


def test_two_files_of_one_name_are_both_named(zoo):
    pets, _ = zoo({"canine": pet("dog"), "copy": pet("dog")})
    with pytest.raises(
        ConfigError, match=r"the pet 'dog' is registered by two files: .*canine.py and .*copy.py"
    ):
        pets.lookup("dog", "pet.name")


def test_all_components_of_the_packages_load():
    data = ((SOURCES, 8), (FIELDS, 8), (SAMPLERS, 6))
    for registry, least in (
        (OBJECTIVES, 10),
        (MODELS, 6),
        (EVALUATORS, 10),
        (IMAGE_ENCODERS, 2),
        (TEXT_ENCODERS, 2),
        *data,
    ):
        assert len(registry) >= least
        for name in registry:
            assert registry.lookup(name, "x").registered_name == name


def test_an_objective_is_one_file_and_one_line_in_a_config(tmp_path, monkeypatch):
    """A file put beside the others, as README has it; no list of modules is edited."""
    text = pathlib.Path(jaxvl.objectives.__path__[0], "clip.py").read_text()
    (tmp_path / "another.py").write_text(text.replace('register("clip")', 'register("another")'))
    monkeypatch.setattr(jaxvl.objectives, "__path__", [*jaxvl.objectives.__path__, str(tmp_path)])
    monkeypatch.setattr(OBJECTIVES, "_modules", None)
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))
    data = tiny.config().tasks.pairs.data
    experiment = resolve(
        Experiment, tiny.config(tasks=dict(pairs=dict(data=data, objectives=dict(another=0.5))))
    )
    used = experiment.tasks["pairs"].objectives["another"]
    assert (
        used.weight == 0.5
        and pathlib.Path(sys.modules[type(used.objective).__module__].__file__)
        == tmp_path / "another.py"
    )
    del sys.modules["jaxvl.objectives.another"]
