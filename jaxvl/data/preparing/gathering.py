"""Small PCollections as one value. What needs Beam imports it where it is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.pvalue import PCollection
else:
    Pipeline = PCollection = Any


def gathered(values: PCollection, name: str) -> PCollection:
    """PCollection of one list of all values; empty where there are none."""
    import apache_beam as beam

    keyed = values | f"{name}: no key" >> beam.Map(_without_key)
    return keyed | f"{name}: together" >> beam.GroupByKey() | f"{name}: values" >> beam.Map(_values)


def _without_key(value: Any) -> tuple[None, Any]:
    return None, value


def _values(group: tuple[None, Iterable[Any]]) -> list[Any]:
    return list(group[1])
