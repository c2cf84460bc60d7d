"""One run of the preparation: its work folder, its restart, and the finished folder.

All is made in `OUT.unfinished` and renamed to OUT when it is whole, so that OUT is never a part.
(In an object store, which renames by copying, it is made in OUT, and `prepared.json` comes last.)
Then the folder `work` is deleted; what a kill at that moment leaves of it in OUT is of no use.

OUT/00000.tar, 00000_stats.json, …    shards, or 00000.array_record
OUT/sizes.json                        {"00000.tar": records}, as open_clip reads it
OUT/prepared.json                     options, counts, columns, checksum of every shard
OUT/report.html, report/, report.json what each rule took away
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock

from jaxvl import paths
from jaxvl.config import ConfigError, check, to_path
from jaxvl.data.preparing import pipeline, report, rows, shards
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.rules import rules_of
from jaxvl.data.preparing.subsets import check_subset
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Log, Source

EXTRA = "Apache Beam is not installed: pip install 'jaxvl[prepare]'"
FORMAT = 1  # of prepared.json
# Of this machine, in Python. Beam's default, `DirectRunner`, would first download a Go program and
# start it.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class RuleCounts:
    """What one rule did.

    Attributes:
      records_in, records_out, texts_in, texts_out: before and after it.
    """

    name: str
    says: str
    source: str
    records_in: int
    records_out: int
    texts_in: int
    texts_out: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A finished run.

    Attributes:
      out: its folder.
      records: of the source.
      bad: cause -> records that could not be used.
      rules: what each did, in their order.
      shards: statistics of each, in their order.
      seconds: that this run took.
    """

    out: paths.Path
    records: int
    bad: Mapping[str, int]
    rules: Sequence[RuleCounts]
    shards: Sequence[Mapping[str, Any]]
    seconds: float

    @property
    def kept(self) -> int:
        """Records in the shards."""
        return sum(shard["successes"] for shard in self.shards)


def check_beam() -> None:
    """Raises ConfigError where Beam or what hashes pictures is not installed."""
    try:
        import apache_beam  # noqa: F401
        import imagehash  # noqa: F401
    except ImportError as error:
        raise ConfigError("prepare", f"{EXTRA} ({error})") from None


def prepare(config: PrepareConfig, beam_options: Sequence[str] = (), log: Log = print) -> Prepared:
    """Runs the preparation, or what an earlier run of the same options has left to do.

    Args:
      beam_options: Beam's own, as `--runner=FlinkRunner`; without a runner: `LOCAL_RUNNER`.

    Raises:
      ConfigError: a wrong option, or a folder that holds something else.
      DataError: the source cannot be read, or is not what it was when the run began.
    """
    check_beam()
    began = time.monotonic()
    out = paths.absolute(to_path(config.out, "out"))
    check(
        not paths.exists(out / "prepared.json"),
        "out",
        f"{str(out)!r} is finished; choose another folder, or delete it",
    )
    remote = paths.is_remote(out)
    check(
        remote or not paths.exists(out),
        "out",
        f"{str(out)!r} is there already; choose another folder",
    )
    source = config.source.open(log)
    rows.check_columns(config, source)
    shards.check_format(config, source)
    if config.rules.uid_subset is not None:
        check_subset(config.rules.uid_subset)
    tests = _open_tests(config, log)
    folder = out if remote else out.with_name(f"{out.name}.unfinished")
    with _alone(folder):
        _begin(folder, config, source, log)
        log(
            f"{source.name}: {len(source):,} records; rules: "
            f"{', '.join(rule.name for rule in rules_of(config))}; works in {folder}"
        )
        _run(
            config,
            len(source),
            {name: len(test) for name, test in tests.items()},
            folder,
            beam_options,
        )
        prepared = _result(config, folder, len(source), time.monotonic() - began)
        _finish(prepared, config, source, folder, out)
    return dataclasses.replace(prepared, out=out)


def _open_tests(config: PrepareConfig, log: Log) -> dict[str, Source]:
    tests = {name: test.open(log) for name, test in config.test_images.items()}
    for name, test in tests.items():
        kind = test.columns["image"].kind if "image" in test.columns else None
        check(kind == "image", f"test_images.{name}", "has no column 'image' of pictures")
    return tests


@contextlib.contextmanager
def _alone(folder: paths.Path) -> Iterator[None]:
    """Keeps a second run of this machine out of the folder."""
    if paths.is_remote(folder):
        yield
        return
    paths.make_folder(folder.parent)
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            "out", f"another run is making {str(folder)!r}; wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            os.unlink(f"{folder}.lock")


def _begin(folder: paths.Path, config: PrepareConfig, source: Source, log: Log) -> None:
    """Makes the folder, or takes over what a run of the same options and data has left there."""
    work = folder / shards.WORK
    paths.make_folder(work)
    about = {
        "config": json.loads(rows.as_json(config)),
        "fingerprint": source.fingerprint,
        "records": len(source),
    }
    file = work / "run.json"
    if paths.exists(file):
        there = json.loads(paths.read_text(file))
        other = [key for key in about if there.get(key) != about[key]]
        what = {"config": "other options", "fingerprint": "other data", "records": "other data"}
        check(
            not other,
            "out",
            f"{str(folder)!r} holds an unfinished run of {what[other[0]] if other else ''}; "
            f"delete it to begin anew",
        )
        log(f"{folder}: what an earlier run has finished is used again")
    else:
        paths.write_text(file, json.dumps(about, indent=1, sort_keys=True))
    for name in ("counts", "examples", "written"):
        stale = work / f"{name}.json"
        if paths.exists(stale):
            stale.unlink()


def _run(
    config: PrepareConfig,
    records: int,
    tests: dict[str, int],
    folder: paths.Path,
    beam_options: Sequence[str],
) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    built = beam.Pipeline(
        options=PipelineOptions([f"--runner={LOCAL_RUNNER}", *beam_options])
    )  # the last one given counts
    pipeline.build(built, config, records, tests, str(folder))
    try:
        built.run().wait_until_finish()
    except Exception as error:
        # Runners wrap what a step raised in types of their own, and keep its text.
        lines = [line for line in str(error).splitlines() if "DataError" in line]
        if isinstance(error, DataError) or lines:
            raise DataError(
                (lines or [str(error)])[-1].partition("DataError: ")[2] or str(error)
            ) from error
        raise


def _read_json(file: paths.Path) -> list[Any]:
    return json.loads(paths.read_text(file)) if paths.exists(file) else []


def _result(config: PrepareConfig, folder: paths.Path, records: int, seconds: float) -> Prepared:
    work = folder / shards.WORK
    counts = dict(_read_json(work / "counts.json"))
    written = sorted(_read_json(work / "written.json"), key=lambda shard: shard["shard"])
    records_left, texts_left = counts.get("rows", (0, 0))
    rules = []
    for rule in rules_of(config):
        records_gone, texts_gone = counts.get(rule.name, (0, 0))
        after = records_left - records_gone, texts_left - texts_gone
        rules.append(
            RuleCounts(
                rule.name, rule.says, rule.source, records_left, after[0], texts_left, after[1]
            )
        )
        records_left, texts_left = after
    prefix = f"{pipeline.BAD}/"
    bad = {
        name.removeprefix(prefix): n
        for name, (n, _) in sorted(counts.items())
        if name.startswith(prefix)
    }
    if (
        sum(bad.values()) + counts.get("rows", (0, 0))[0] != records
        or sum(shard["successes"] for shard in written) != records_left
    ):
        raise DataError(
            f"{folder}: the counts of the runner do not add up; delete its folder "
            f"{shards.WORK!r} and run again"
        )
    return Prepared(folder, records, bad, rules, written, seconds)


def _finish(
    prepared: Prepared, config: PrepareConfig, source: Source, folder: paths.Path, out: paths.Path
) -> None:
    """Writes report and manifest, puts the folder in its place, and removes what only the run
    needed."""
    work = folder / shards.WORK
    examples = dict(_read_json(work / "examples.json"))
    report.write(folder, report.summary(prepared, config), examples, source, config)
    sizes = {
        f"{shards.shard_name(s['shard'])}{shards.SUFFIXES[config.format]}": s["successes"]
        for s in prepared.shards
    }
    paths.write_text(folder / "sizes.json", json.dumps(sizes, indent=1))
    manifest = {
        "format": FORMAT,
        "records": prepared.kept,
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "records": prepared.records,
        },
        "columns": {
            name: {"kind": column.kind, "optional": column.optional}
            for name, column in source.columns.items()
        },
        "shards": {name: dict(stats) for name, stats in zip(sizes, prepared.shards)},
        "config": json.loads(rows.as_json(config)),
    }
    paths.write_text(folder / "prepared.json", json.dumps(manifest, indent=1, sort_keys=True))
    if paths.is_remote(folder):
        for file in paths.files_below(work):
            file.unlink()
        return
    paths.move(folder, out)
    shutil.rmtree(out / shards.WORK)
