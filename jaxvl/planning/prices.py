"""What an hour of a chip costs, from a file that people edit."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping

import yaml

from jaxvl import paths
from jaxvl.config import ConfigError, check, to_path

OWN = "prices.yaml"


@dataclasses.dataclass(frozen=True)
class Price:
    """Of one chip and hour.

    Attributes:
      price: US dollars; None: not known.
      kind: on demand, reserved …, and where.
      source, date: who says so, and when it was read.
    """

    price: float | None
    kind: str = ""
    source: str = ""
    date: str = ""


def own_prices() -> str:
    """The text of the package's own table, to copy and edit."""
    return importlib.resources.files("jaxvl.planning").joinpath(OWN).read_text()


def read_prices(file: str | None) -> dict[str, Price]:
    """Chip -> price, of a file like `prices.yaml`, which is the one without `file`.

    Raises:
      ConfigError: the file cannot be read, or is not of this form.
    """
    try:
        text = own_prices() if file is None else paths.read_text(to_path(file, "--prices"))
        table = yaml.safe_load(text)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--prices", f"{file}: {str(error).splitlines()[0]}") from None
    check(isinstance(table, Mapping), "--prices", f"{file} must map chips to their prices")
    return {str(chip): _price(str(chip), entry) for chip, entry in table.items()}


def _price(chip: str, entry: object) -> Price:
    key = f"--prices: {chip}"
    check(isinstance(entry, Mapping), key, f"{entry!r} must have a price, as {{price: 1.2}}")
    known = {field.name for field in dataclasses.fields(Price)}
    check(set(entry) <= known, key, f"{sorted(entry)} must be among {sorted(known)}")
    price = entry.get("price")
    number = isinstance(price, (int, float)) and not isinstance(price, bool) and price > 0
    check(price is None or number, key, f"{price!r} must be US dollars an hour, or null")
    return Price(**{"price": None, **{k: str(v) if k != "price" else v for k, v in entry.items()}})


def of_examples(price: float, devices: int, per_second: float) -> float:
    """US dollars for 10^9 examples."""
    return price * devices / 3600 * 1e9 / per_second
