import dataclasses

import pytest

from jaxvl.config import ConfigError
from jaxvl.data.sources import opened as module
from jaxvl.data.sources.demo.shapes import Shapes
from jaxvl.data.sources.opened import forget, opened

COUNT = []


@dataclasses.dataclass(frozen=True)
class Counted:
    """Every opening is counted."""

    name: str = "a"

    def open(self, log=print):
        COUNT.append(self.name)
        log(f"opening {self.name}")
        return object()


@dataclasses.dataclass(frozen=True)
class Broken:
    tries: list = dataclasses.field(default_factory=list, compare=False)

    def open(self, log=print):
        self.tries.append(1)
        raise ConfigError("path", "'x' is not there")


@pytest.fixture(autouse=True)
def nothing_is_open(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_OPENED", {})
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    COUNT.clear()


def test_equal_configs_are_opened_once():
    said = []
    one = opened(Counted(), said.append)
    assert opened(Counted(), said.append) is one and opened(Counted("a")) is one
    assert opened(Counted("b")) is not one
    assert COUNT == ["a", "b"] and said == ["opening a"]


def test_a_new_run_opens_anew():
    one = opened(Counted())
    forget()
    assert opened(Counted()) is not one and COUNT == ["a", "a"]


def test_another_cache_folder_is_another_place(monkeypatch, tmp_path):
    one = opened(Counted())
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "other"))
    assert opened(Counted()) is not one
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    assert opened(Counted()) is one


def test_what_cannot_be_opened_is_tried_again():
    broken = Broken()
    for _ in range(2):
        with pytest.raises(ConfigError, match="path: 'x' is not there"):
            opened(broken)
    assert len(broken.tries) == 2


def test_the_splits_of_a_recipe_share_what_was_built(monkeypatch):
    prepared = []
    prepare = Shapes.prepare
    monkeypatch.setattr(
        Shapes, "prepare", lambda self, log=print: prepared.append(self) or prepare(self, log)
    )
    sources = [
        opened(Shapes(size=8, variants=1, split=split), lambda text: None)
        for split in ("train_a", "test_a", None)
    ]
    assert len(prepared) == 1 and sources[0].corpus is sources[1].corpus is sources[2].corpus
    assert len(sources[0]) + len(sources[1]) == len(sources[2])
