def rows_config(options: SplitOptions, encoders: Encoders, **data: Any) -> DataConfig:
    """How `rows_of` reads a split; `data`: more of `DataConfig` (`images_per_row`). Raises ConfigError as that does."""
    return DataConfig(
        options.corpus,
        options.split,
        encoders.batch,
        image_size=encoders.preprocess.image_size,
        text_length=encoders.text_length,
        captions=CaptionConfig(locale=options.locale),
        cache_mb=0,
        fast_decode=False,
        error_budget=options.error_budget,
        error_minimum=options.error_minimum,
        **data,
    )


def check_rows(options: SplitOptions, encoders: Encoders, field: str, **data: Any) -> DataConfig:
    """How `rows_of` reads a split. Raises ConfigError at `field` where it has no row of what `data` asks for."""
    open_split(options.corpus, options.split)
    config = rows_config(options, encoders, **data)
    try:
        records = len(config.open(prepared(options.corpus)))
    except DataError as error:
        raise ConfigError(field, str(error)) from None
    check(records > 0, field, f"split {options.split!r} has no record with all of {', '.join(config.modalities)}")
    k = config.images_per_row
    check(records >= k, field, f"split {options.split!r} has {records} records, too few for a row of {k}")
    return config


def rows_of(options: SplitOptions, encoders: Encoders, **data: Any) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """A split in batches as a model is trained with, names as texts, in an order that is random but always the same.

    Pictures and frames are exactly as `encoders.preprocess` makes them. Every process makes whole batches. Records that cannot be
    used are replaced by the ones after them.

    Args:
      data: more of `DataConfig` (`images_per_row`).

    Returns:
      Batches of at most `encoders.batch` rows without `index`, and how many of their rows count (the last batch is filled up).

    Raises:
      DataError: the split is smaller than one row, has no record of the modalities that are asked for, or too many bad ones.
      EvaluatorError: a record raised anything but BadRecord.
    """
    open_split(options.corpus, options.split)
    config = rows_config(options, encoders, **data)
    source = config.open(prepared(options.corpus))
    rows, shards = len(source) // config.images_per_row, batch_shards(encoders.mesh)
    if not rows:
        raise DataError(f"split {options.split!r} has {len(source)} records, too few for a row of {config.images_per_row}")
    config = dataclasses.replace(config, batch=min(config.batch, -(-rows // shards) * shards))
    batches = Batches(config, source, encoders.tokenizer, seed=0, preprocess=encoders.preprocess)
    for i in range(-(-rows // config.batch)):
        try:
            batch = batches[i]
            batches.check_budget()
        except (ConfigError, DataError):
            raise
        except Exception as error:
            raise EvaluatorError(f"batch {i} of split {options.split!r}: {type(error).__name__}: {error}") from error
        yield {k: v for k, v in batch.items() if k != "index"}, min(config.batch, rows - i * config.batch)


def skipped_figures(*counts: Mapping[str, int]) -> dict[str, float]:
