"""What the commands' parser takes, and what it says of the rest."""

import pytest

from jaxvl import caption, plan
from jaxvl.config import ConfigError
from jaxvl.training.experiment import parse_command

OPTIONS = {"topology": None, "budget": "1800", "search": None, "quick": None}
FLAGS = ("search", "quick")


def test_an_option_has_its_value_behind_a_sign_or_as_the_next_word():
    words = ["--config", "c.py", "--topology=v4", "--config.optim.lr", "-1", "--search"]
    command = parse_command(words, OPTIONS, flags=FLAGS)
    assert command.config == "c.py" and command.assignments == {"optim.lr": "-1"}
    assert command.options == {"topology": "v4", "budget": "1800", "search": "true"}


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["--serch"],
            "--serch: unknown option; did you mean 'search'? (options: --config, --topol",
        ),
        (["--serch", "--quick"], "--serch: unknown option; did you mean 'search'?"),
        (["--serch", "x"], "--serch: unknown option; did you mean 'search'?"),
        (["--budgte=3"], "--budgte: unknown option; did you mean 'budget'?"),
        (["--topology"], "--topology: needs a value"),
        (["--topology", "--quick"], "--topology: needs a value"),
        (["--config.optim.lr", "--quick"], "--config.optim.lr: needs a value"),
        (
            ["--quick=false"],
            "--quick: takes no value, but has 'false'; without the option it is of",
        ),
        (["--search=no"], "--search: takes no value, but has 'no'"),
        (["--search=true"], "--search: takes no value, but has 'true'"),
        (["--search="], "--search: takes no value, but has ''"),
        (["search"], "command line: 'search' is not an option"),
    ],
)
def test_what_the_parser_refuses(words, said):
    with pytest.raises(ConfigError) as refused:
        parse_command(words, OPTIONS, flags=FLAGS)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "command, words, said",
    [
        (plan, ["--serch"], "--serch: unknown option; did you mean 'search'?"),
        (plan, ["--search=no"], "--search: takes no value, but has 'no'"),
        (plan, ["--config=c.py", "--topology=v4:2x2"], "topology: 'v4:2x2' must be v4:NxNxN"),
        (caption, ["--jsno", "a.png"], "--jsno: unknown option; did you mean 'json'?"),
        (caption, ["--json=no", "a.png"], "--json: takes no value, but has 'no'"),
    ],
)
def test_commands_end_with_status_2_and_a_line(command, words, said, capsys):
    assert command.main(words) == 2
    assert f"config error {said}" in capsys.readouterr().err.replace("\n", " ")
