"""Configs: what is wrong is one sentence that names the key, the value, what is valid and the
nearest key."""

import dataclasses
import re
from typing import Annotated, Any, Literal

import ml_collections
import pytest

from jaxvl import config as cfg
from jaxvl.config import ConfigError, Registry, check, resolve, resolve_call

PETS = Registry("pet")


@PETS.register("dog")
@dataclasses.dataclass(frozen=True)
class Dog:
    legs: int = 4

    def __post_init__(self):
        check(self.legs > 0, "legs", f"{self.legs!r} must be > 0")


@PETS.register("cat")
@dataclasses.dataclass(frozen=True)
class Cat:
    lives: float = 9


@dataclasses.dataclass(frozen=True)
class Leaf:
    width: int
    kind: Literal["a", "bee"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Root:
    leaf: Leaf
    pet: Annotated[Any, PETS] = Dog()
    pets: dict[str, Annotated[Any, PETS]] = dataclasses.field(default_factory=dict)
    flag: bool = False


def test_resolve_fills_defaults_nested_and_by_name():
    root = resolve(
        Root,
        ml_collections.ConfigDict(
            dict(leaf=dict(width=3, rate=1), pet=dict(name="cat"), pets=dict(x="dog"))
        ),
    )
    assert root == Root(Leaf(3, rate=1.0), Cat(), {"x": Dog()})
    assert isinstance(root.leaf.rate, float)


def test_resolved_config_round_trips_through_plain_dicts():
    root = Root(Leaf(3, sizes=(5,)), Cat(7.0), {"x": Dog(2)})
    assert resolve(Root, cfg.to_dict(root)) == root


@pytest.mark.parametrize(
    "node, message",
    [
        (
            dict(leaf=dict(widht=3)),
            r"leaf\.widht: unknown key; did you mean 'width'\? \(valid: width, kind, sizes, rate\)",
        ),
        (dict(leaf=dict()), r"leaf\.width: is required \(an integer\)"),
        (dict(leaf=dict(width="3")), r"leaf\.width: '3' is of type str; must be an integer"),
        (dict(leaf=dict(width=True)), r"leaf\.width: True is of type bool; must be an integer"),
        (dict(leaf=dict(width=1.5)), r"leaf\.width: 1\.5 is of type float; must be an integer"),
        (
            dict(leaf=dict(width=1, kind="be")),
            r"leaf\.kind: 'be' is not valid; one of 'a', 'bee'; did you mean 'bee'\?",
        ),
        (dict(leaf=dict(width=1, sizes=3)), r"leaf\.sizes: 3 must be a list of an integer"),
        (dict(leaf=dict(width=1, sizes=[1, "x"])), r"leaf\.sizes\[1\]: 'x' is of type str"),
        (dict(leaf=dict(width=1), flag=1), r"flag: 1 is of type int; must be True or False"),
        (
            dict(leaf=dict(width=1), pet="dgo"),
            r"pet\.name: 'dgo' is not a known pet; did you mean 'dog'\? \(known: cat, dog\)",
        ),
        (dict(leaf=dict(width=1), pet=dict(legs=3)), r"pet\.name: is required \(known: cat, dog\)"),
        (
            dict(leaf=dict(width=1), pets=dict(rex=dict(name="dog", legs=0))),
            r"pets\.rex\.legs: 0 must be > 0",
        ),
        (dict(leaf=4), r"leaf: 4 must be a group of keys"),
    ],
)
def test_what_is_wrong_is_one_line(node, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(Root, node)
    assert "\n" not in str(caught.value)


def test_overrides_reach_keys_that_the_file_does_not_write():
    config = ml_collections.ConfigDict(dict(leaf=dict(width=3), pet="dog"))
    root = resolve(
        Root,
        cfg.override(
            config, {"leaf.width": "8", "leaf.rate": "1e-3", "pet.legs": "3", "flag": "true"}
        ),
    )
    assert root == Root(Leaf(8, rate=1e-3), Dog(3), flag=True)
    assert config.leaf.width == 3, "the original is left alone"
    with pytest.raises(ConfigError, match=r"leaf\.wdith: unknown key; did you mean 'width'"):
        resolve(Root, cfg.override(config, {"leaf.wdith": "8"}))


def test_a_choice_may_be_called_none():
    """`--config.KEY=none` is None where there may be none, the choice where that is its name."""

    @dataclasses.dataclass(frozen=True)
    class Choices:
        remat: Literal["none", "full"] = "full"
        rate: float | None = 1.0

    config = ml_collections.ConfigDict()
    assert resolve(Choices, cfg.override(config, {"remat": "none", "rate": "none"})) == Choices(
        "none", None
    )
    with pytest.raises(ConfigError, match=r"leaf\.kind: None is not valid; one of 'a', 'bee'"):
        resolve(Root, cfg.override(config, {"leaf.width": "8", "leaf.kind": "none"}))


def test_argument_string():
    arg = cfg.parse_arg("variant=b7,long", variant="b0", long=False, lr=1e-3)
    assert (arg.variant, arg.long, arg.lr) == ("b7", True, 1e-3)
    with pytest.raises(
        ConfigError, match=re.escape("unknown argument; did you mean 'variant'? (valid: variant)")
    ):
        cfg.parse_arg("varaint=b7", variant="b0")
    arg = cfg.parse_arg(
        "data=/data/{a,b}/{00..99}.tar,long,val={c,d}/e,n=2", data="", val="", long=False, n=1
    )
    assert (arg.data, arg.val, arg.long, arg.n) == ("/data/{a,b}/{00..99}.tar", "{c,d}/e", True, 2)
    with pytest.raises(ConfigError, match="'x' is of type str; must be a number"):
        cfg.parse_arg("lr=x", lr=1e-3)


def test_missing_config_file_names_its_neighbours(tmp_path):
    (tmp_path / "align.py").write_text("def get_config():\n    return 3\n")
    with pytest.raises(ConfigError, match=r"did you mean '.*align.py'"):
        cfg.load_file(str(tmp_path / "algin.py"))
    with pytest.raises(ConfigError, match="returned int, must be a ConfigDict"):
        cfg.load_file(str(tmp_path / "align.py"))


def test_registry_refuses_a_second_owner_of_a_name():
    @dataclasses.dataclass(frozen=True)
    class Impostor:
        pass

    with pytest.raises(ValueError, match="pet 'dog' is already registered"):
        PETS.register("dog")(Impostor)


def test_options_of_a_call():
    def call(batch, *, train=False, key=None, drop: float = 0.0, heads: tuple[str, ...] = ()):
        """As a model's."""

    given = ("train", "key")
    assert resolve_call(call, {"drop": 1, "heads": ["image"]}, "encode", given) == {
        "drop": 1.0,
        "heads": ("image",),
    }
    with pytest.raises(
        ConfigError,
        match=r"encode\.dorp: is no option of .*call; did you mean 'drop'\? \(valid: drop, heads\)",
    ):
        resolve_call(call, {"dorp": 0.5}, "encode", given)
    for taken in ("train", "batch"):
        with pytest.raises(ConfigError, match=rf"encode\.{taken}: is no option"):
            resolve_call(call, {taken: True}, "encode", given)
    with pytest.raises(ConfigError, match=r"encode\.drop: 'much' is of type str; must be a number"):
        resolve_call(call, {"drop": "much"}, "encode", given)
