"""A source in batches as a model is trained with, for evaluators of a model's named outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from jaxvl.aliases import HostArrays
from jaxvl.config import ConfigError, check
from jaxvl.data.batches import Batches
from jaxvl.data.config import POSITION, DataConfig, Interleave, ReaderConfig
from jaxvl.data.fields.base import Field
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.picture import Picture
from jaxvl.data.records import DataError
from jaxvl.evals.encoders import Encoders
from jaxvl.evals.result import EvaluatorError
from jaxvl.evals.source_options import SourceOptions
from jaxvl.sharding.mesh import batch_shards

Fields = Mapping[str, Field]


def picture(column: str, encoders: Encoders) -> Picture:
    """A column of pictures, exactly as the model is tested with."""
    return Picture(column, size=encoders.preprocess.image_size, fast_decode=False)


def caption(column: str, encoders: Encoders) -> Caption:
    """A column of texts, of the model's length."""
    return Caption({column: 1.0}, length=encoders.text_length)


def rows_config(
    options: SourceOptions, encoders: Encoders, fields: Fields, interleave: Interleave | None = None
) -> DataConfig:
    """How `rows_of` reads a source: what of it is in a batch of `encoders.batch` rows. Raises
    ConfigError as `DataConfig` does."""
    return DataConfig(
        options.source,
        encoders.batch,
        dict(fields),
        interleave=interleave,
        reader=ReaderConfig(threads=encoders.threads, cache_mb=0),
        error_budget=options.error_budget,
        error_minimum=options.error_minimum,
    )


def check_rows(
    options: SourceOptions,
    encoders: Encoders,
    field: str,
    fields: Fields,
    interleave: Interleave | None = None,
) -> DataConfig:
    """How `rows_of` reads a source. Raises ConfigError at `field` where it has not one row of what
    is asked for."""
    source = options.open()
    config = rows_config(options, encoders, fields, interleave)
    try:
        records = len(config.select(source))
    except (ConfigError, DataError) as error:
        raise ConfigError(field, str(error)) from None
    check(records > 0, field, f"no record of {source.name} has all of {', '.join(fields)}")
    k = config.records_per_row
    check(records >= k, field, f"{source.name} has {records} records, too few for a row of {k}")
    return config


def rows_of(
    options: SourceOptions, encoders: Encoders, fields: Fields, interleave: Interleave | None = None
) -> Iterator[tuple[HostArrays, int]]:
    """A source in batches as a model is trained with, in an order that is random but always the
    same.

    Every process makes whole batches. Records that cannot be used are replaced by the ones after
    them.

    Args:
      fields: batch entry -> what it holds.
      interleave: rows of several records.

    Returns:
      Batches of at most `encoders.batch` rows without `position`, and how many of their rows count
      (the last batch is filled up).

    Raises:
      DataError: the source is smaller than one row, has no record with all fields, or too many bad
        ones.
      EvaluatorError: a record raised anything but BadRecord.
    """
    config = rows_config(options, encoders, fields, interleave)
    source = config.select(options.open())
    k = config.records_per_row
    rows = len(source) // k
    if not rows:
        raise DataError(f"{source.name} has {len(source)} records, too few for a row of {k}")
    shards = batch_shards(encoders.mesh)
    config = dataclasses.replace(config, batch=min(config.batch, -(-rows // shards) * shards))
    batches = Batches(config, source, encoders.tokenizer, seed=0, preprocess=encoders.preprocess)
    try:
        for i in range(-(-rows // config.batch)):
            batch = _read(batches, i)
            yield (
                {name: a for name, a in batch.items() if name != POSITION},
                min(config.batch, rows - i * config.batch),
            )
    finally:
        batches.close()


def _read(batches: Batches, i: int) -> Mapping[str, np.ndarray]:
    """Batch `i`."""
    try:
        batch = batches[i]
        batches.check_budget()
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise EvaluatorError(
            f"batch {i} of {batches.source.name}: {type(error).__name__}: {error}"
        ) from error
    return batch
