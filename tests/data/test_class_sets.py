"""Class sets by name, from files and inline."""

import importlib.util
import json
import pathlib

import pytest

from jaxvl.config import ConfigError
from jaxvl.data import class_sets
from jaxvl.data.class_sets import (
    CLASS_SETS,
    ClassFile,
    ImageNetClasses,
    NamedClasses,
    imagenet_classes,
    imagenet_templates,
    read_templates,
)
from jaxvl.evals.prompts import TEMPLATES, class_vectors, templates_of


def open_clip_metadata():
    """open_clip's lists, without the package, which imports torch."""
    folder = pathlib.Path(importlib.util.find_spec("open_clip").origin).parent
    spec = importlib.util.spec_from_file_location("metadata", folder / "zero_shot_metadata.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imagenet_is_that_of_open_clip():
    theirs = open_clip_metadata()
    assert [name for _, name in imagenet_classes()] == list(theirs.IMAGENET_CLASSNAMES)
    assert list(imagenet_templates()) == [
        template("{}") for template in theirs.OPENAI_IMAGENET_TEMPLATES
    ]
    assert ImageNetClasses().load().names["en"] == tuple(theirs.IMAGENET_CLASSNAMES)
    assert templates_of("imagenet80") == TEMPLATES["imagenet80"] == imagenet_templates()


def test_imagenet_with_some_classes_keeps_their_order():
    some = ImageNetClasses(("n02979186", "n01440764")).load()
    assert some.names["en"] == ("tench", "cassette player") and len(some.templates) == 80
    with pytest.raises(ConfigError, match=r"wnids\[1\]: 'n1' is not the WordNet id"):
        ImageNetClasses(("n01440764", "n1"))


def test_lists_name_where_they_come_from():
    notice = (class_sets.LISTS / "NOTICE.txt").read_text()
    assert "MIT licence" in notice and "Permission is hereby granted" in notice
    assert all(
        path.name in notice for path in class_sets.LISTS.iterdir() if path.name != "NOTICE.txt"
    )


def test_names_inline():
    got = NamedClasses(("Katze", "Hund"), "de", ("ein Foto von {c}, {c}",)).load()
    assert got.names == {"de": ("Katze", "Hund")} and got.templates == ("ein Foto von {}, {}",)
    with pytest.raises(ConfigError, match=r"names: must hold at least one"):
        NamedClasses(())
    with pytest.raises(ConfigError, match=r"templates\[0\]: 'a photo' must hold"):
        NamedClasses(("a",), templates=("a photo",))


def write(path, content):
    path.write_bytes(
        content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    )
    return str(path)


def test_files(tmp_path):
    text = write(tmp_path / "names.txt", "\ufeffcat\r\n dog \n\n".encode())
    templates = write(tmp_path / "t.txt", b"a {c} and a {c}\n\n{}\n")
    got = ClassFile(text, language="fr", templates=templates).load()
    assert got.names == {"fr": ("cat", "dog")} and got.templates == ("a {} and a {}", "{}")
    languages = write(tmp_path / "languages.json", {"en": ["cat", "dog"], "de": ["Katze", None]})
    assert ClassFile(languages).load().names == {"en": ("cat", "dog"), "de": ("Katze", None)}
    assert ClassFile(write(tmp_path / "list.json", ["a", "b"])).load().names == {"en": ("a", "b")}
    sets = write(tmp_path / "en_classnames.json", {"pets": ["cat", "dog"], "dtd": ["braided"]})
    prompts = write(tmp_path / "prompts.json", {"pets": ["a {c}."], "dtd": ["{c} texture"]})
    got = ClassFile(sets, key="pets", templates=prompts).load()
    assert got.names == {"en": ("cat", "dog")} and got.templates == ("a {}.",)


@pytest.mark.parametrize(
    "name, content, options, says",
    [
        ("a.json", b"{", {}, r"path: .*a.json: is no JSON"),
        ("a.json", [], {}, r"path: .* must hold lists of names"),
        ("a.json", {}, {}, r"path: .* must hold a list of names, or lists by key"),
        (
            "a.json",
            {"en": ["a"], "de": ["b", "c"]},
            {},
            r"path: .*different lengths \(\{'en': 1, 'de': 2\}\).*choose one by key",
        ),
        (
            "a.json",
            {"pets": ["a"]},
            {"key": "pet"},
            r"key: 'pet' is not in the file; did you mean 'pets'\?",
        ),
        ("a.json", ["a", 3], {}, r"path: .*name 1 is 3; must be a text"),
        ("a.json", ["a", ""], {}, r"path: .*name 1 is ''; must be a text"),
        ("a.txt", b"\n\n", {}, r"path: .*a.txt: holds no class name"),
        ("a.txt", b"a\n\nb\n", {}, r"path: .*line 2 is blank"),
        ("a.txt", b"\xff\xfe", {}, r"path: .*is no UTF-8 text"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, options, says):
    with pytest.raises(ConfigError, match=says):
        ClassFile(write(tmp_path / name, content), **options).load()


def test_missing_files_and_templates_without_a_place(tmp_path):
    with pytest.raises(ConfigError, match="path: .*No such file"):
        ClassFile(str(tmp_path / "missing.txt")).load()
    names = write(tmp_path / "names.txt", b"a\n")
    with pytest.raises(ConfigError, match="templates: .*'a photo' must hold"):
        ClassFile(names, templates=write(tmp_path / "t.txt", b"a photo\n")).load()
    with pytest.raises(ValueError, match="holds no template"):
        read_templates(tmp_path / "t.txt" if (tmp_path / "t.txt").write_text("\n") else None)


def test_registry():
    assert sorted(CLASS_SETS) == ["file", "imagenet", "names"]


def test_prompts_are_made_a_part_at_a_time(monkeypatch):
    """80 templates of 1,000 names are never one list, and the parts give what the whole would."""
    import numpy as np

    table = np.random.default_rng(0).normal(size=(101, 4)).astype(np.float32)
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return table[[sum(map(ord, text)) % 101 for text in texts]]

    names = [f"class {k}" for k in range(50)]
    whole = class_vectors(encode, names, ("a {}", "{} and {}"))
    monkeypatch.setattr("jaxvl.evals.prompts.PROMPTS", 7)
    parts = class_vectors(encode, names, ("a {}", "{} and {}"))
    assert sizes[0] == 100 and max(sizes[1:]) == 6 and sum(sizes[1:]) == 100
    np.testing.assert_array_equal(whole, parts)
