"""docs/methods.md from two made-up entries."""

import json

import pytest

from jaxvl.bench import methods
from jaxvl.config import ConfigError

QUEUE = dict(
    row=67,
    method="Queue|s",
    family="stateful and staged",
    paper="A paper, 2021",
    arxiv="2107.07651",
    files=["queue.py"],
    config="c.py",
    claim="a queue helps small batches",
    seeds=[0, 1, 2],
    figures=[
        {"name": "acc@1", "unit": "%", "values": [61, 60, 62], "baseline": [58, 60.5, 59]},
        {"name": "gap", "digits": 3, "values": [0.5, 0.25, 0.75]},
    ],
    machine="a box",
    not_shown="a wider gap",
    command="launch/local.sh c.py",
)
TARGETS = dict(
    row=8,
    method="1-to-K",
    family="targets and losses",
    paper="Another, 2024",
    files=["queue.py"],
    config="c.py",
    claim="the rank varies less",
    seeds=[0, 1, 2],
    figures=[{"name": "MRV", "values": [1, 2, 3], "baseline": [2, 3, 4], "better": "lower"}],
    machine="a box",
    command="launch/local.sh c.py:k=4",
)


def write(folder, **changes):
    (folder / "queue.py").write_text("x = 1\n")
    (folder / "c.py").write_text("y = 2\n")
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "a.json").write_text(json.dumps({**QUEUE, **changes}))
    (runs / "b.json").write_text(json.dumps(TARGETS))
    return runs


def test_the_page(tmp_path):
    entries = methods.read_entries(write(tmp_path), tmp_path)
    text = methods.page(entries, "the command")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| row", "| ---", "| 8", "| row", "| ---", "| 67"]
    assert text.index("## Targets and losses") < text.index("## Stateful and staged")
    assert rows[2][2] == "Another, 2024"
    assert rows[2][5] == (
        "the rank varies less. Measured: MRV 2.0 ± 1.0 (without: 3.0 ± 1.0; 3 of 3 seeds)."
    )
    assert rows[5][1:5] == [
        "Queue\\|s",
        "[A paper, 2021](https://arxiv.org/abs/2107.07651)",
        "[queue.py](../queue.py)",
        "[c.py](../c.py)",
    ]
    assert rows[5][5] == (
        "a queue helps small batches. Measured: acc@1 61.0 ± 1.0 % (without: 59.2 ± 1.2 %; 2 of 3 "
        "seeds); gap 0.500 ± 0.250. **Not shown**: a wider gap."
    )
    assert rows[5][6] == "`launch/local.sh c.py` (a box) |"


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(arxiv="ALBEF"), "a.json.arxiv: 'ALBEF' must be a number"),
        (dict(seeds=[0, 1]), r"a.json.figures\[0\].values: has 3 numbers; must have 2"),
        (dict(files=["gone.py"]), "files: 'gone.py' is not a file"),
        (dict(config="gone.py"), "config: 'gone.py' is not there"),
        (dict(row=8), "row: 8: more than one entry"),
        (dict(claims="x"), "a.json.claims: unknown key"),
        (
            dict(seeds=[0], figures=[{"name": "a", "values": [1], "baseline": [2]}]),
            r"a.json.figures\[0\].baseline: a comparison over 1 seeds; must be over 3",
        ),
        (
            dict(figures=[{"name": "a", "values": [1, 2, 3], "baseline": [2]}]),
            "baseline: has 1 numbers; must have 3",
        ),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        methods.read_entries(write(tmp_path, **changes), tmp_path)


def test_the_example_is_a_diff_of_both_files(tmp_path):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "toy.py"
    file.write_text("a = 1\n\nb = 2\n")
    (tmp_path / "configs" / "toy.py").write_text("c = 3\n")
    text = methods.example(file, tmp_path)
    assert text.startswith("## Adding a method: 4 lines\n\n```diff\n--- /dev/null\n+++ b/toy.py\n")
    assert "@@ -0,0 +1,3 @@\n+a = 1\n+\n+b = 2\n" in text
    assert text.endswith("+++ b/configs/toy.py\n@@ -0,0 +1,1 @@\n+c = 3\n```")
    file.write_text("a = 1\n" * 60)
    with pytest.raises(ConfigError, match="61 lines with its config; must be at most 60"):
        methods.example(file, tmp_path)
