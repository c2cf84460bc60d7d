"""Clean image-text pairs as ALIGN did.

    python -m jaxvl.data.prepare --source=NAME --source.KEY=VALUE … --out=FOLDER

Reads any source of records, applies rules in order, and writes tar or ArrayRecord shards with a
report that shows what each rule took away. It runs on this machine, or on a cluster by Apache
Beam's own options. Called again after a kill, it goes on.

Options:
  --source=NAME --source.KEY=VALUE   the records, as in `data=dict(source=dict(name=NAME,
                                     KEY=VALUE))`
  --config=FILE[:ARG]                or a Python file whose get_config() returns these options; what
                                     is said here changes it
  --out=FOLDER                       that is made
  --texts=COLUMN --image=COLUMN      columns; texts may be several: "('alt', 'title')"
  --rules.KEY=VALUE                  a threshold, or None to leave the rule out: uid_subset,
                                     min_side, max_aspect, max_texts_per_image, test_distance,
                                     max_images_per_text, vocabulary, min_words, max_words,
                                     duplicates, min_score, top_share
  --rules.score=checkpoint --rules.score.workdir=RUN   a model that scores pairs, for min_score or
                                                       top_share
  --test_images.NAME=SOURCE --test_images.NAME.KEY=VALUE   pictures that nothing may look like
  --format=tar|array_record --shard_records=N
  --plugins=FILE                     your own sources and scorers
  any option of Apache Beam          where it runs; without one, in this process

Where it runs, with Beam's options of these names (apache_beam/options/pipeline_options.py, 2.77):
  this machine, N processes   --direct_num_workers=N --direct_running_mode=multi_processing
  Dataflow                    --runner=DataflowRunner --project=PROJECT --region=REGION
                              --temp_location=gs://BUCKET/tmp --sdk_container_image=IMAGE; needs
                              apache-beam[gcp]
  Flink                       --runner=FlinkRunner --flink_master=HOST:8081 --flink_version=1.20
                              --environment_type=DOCKER --environment_config=IMAGE
  Spark                       --runner=SparkRunner --spark_master_url=spark://HOST:7077
                              --environment_type=DOCKER --environment_config=IMAGE
  Spark, without job server   --runner=beam_pyspark_runner.pyspark_runner.PySparkRunner; the
                              workers' Python has jaxvl[prepare], pyspark 3.5 and
                              beam-pyspark-runner (by `pip install --no-deps`: it pins an old Beam)
IMAGE is a container image made from `apache/beam_python3.11_sdk` of the Beam version that is
installed here, with jaxvl[prepare] in it. The source, OUT and plugins have the same paths on every
worker: `gs://…`, `s3://…`, a shared folder, or in the image. Workers of Flink and Spark need
Docker; the command needs Java, and fetches Beam's job server from Maven, unless it is given as
--flink_job_server_jar=FILE, --spark_job_server_jar=FILE. For 10^9 records say
--range_records=100000: 10^4 files in the work folder. Tests run it on this machine, with and
without processes, and on Spark without job server.

See jaxvl/data/preparing/options.py for all options, and jaxvl/data/preparing/run.py for what is
written.

Exit status: 0 done, 1 unreadable data, 2 wrong option.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import ml_collections
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxvl import paths
from jaxvl.command import run_command, start
from jaxvl.config import check, load_file, nearest, override, resolve
from jaxvl.data.preparing.options import PrepareConfig
from jaxvl.data.preparing.run import Prepared, check_beam, prepare
from jaxvl.data.records import DataError

OWN = tuple(PrepareConfig.__dataclass_fields__)


def parse(argv: Sequence[str]) -> tuple[PrepareConfig, list[str]]:
    """(config, Beam's options). Raises ConfigError."""
    assignments: dict[str, str] = {}
    beam_options: list[str] = []
    file = None
    for word in argv:
        name, separator, value = word.removeprefix("--").partition("=")
        check(
            word.startswith("--"),
            "command line",
            f"{word!r} is not an option; must be --NAME=VALUE",
        )
        if name == "config":
            file = value
        elif name.partition(".")[0] in OWN:
            check(bool(separator), f"--{name}", "needs a value: --NAME=VALUE")
            assignments[name] = value
        else:
            beam_options.append(word)
    _check_beam_options(beam_options)
    node = ml_collections.ConfigDict() if file is None else load_file(file)
    # `--source=NAME` comes before `--source.KEY`, wherever it stands.
    ordered = dict(sorted(assignments.items(), key=lambda item: item[0].count(".")))
    return resolve(PrepareConfig, override(node, ordered)), beam_options


def _check_beam_options(options: Sequence[str]) -> None:
    """Raises ConfigError for an option that neither this command nor Beam has; Beam itself would
    ignore it."""
    if not options:
        return
    check_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    known: Mapping[str, object] = PipelineOptions([]).get_all_options()
    for option in options:
        name = option.removeprefix("--").partition("=")[0]
        fits = name in known or name.removeprefix("no_") in known
        check(
            fits,
            f"--{name}",
            f"is no option of this command or of Apache Beam{nearest(name, [*OWN, *known])}",
        )


def table(prepared: Prepared) -> Table:
    """Records and texts that each rule has left."""
    out = Table(
        "rule", "what is kept", title=f"{prepared.records:,} records, {prepared.kept:,} kept"
    )
    for title in ("records in", "out", "texts in", "out"):
        out.add_column(title, justify="right")
    bad = sum(prepared.bad.values())
    out.add_row(
        "bad records",
        "what can be read",
        f"{prepared.records:,}",
        f"{prepared.records - bad:,}",
        "",
        "",
    )
    for cause, number in prepared.bad.items():
        out.add_row("", f"  {escape(cause)}: {number:,}", "", "", "", "")
    for rule in prepared.rules:
        numbers = (rule.records_in, rule.records_out, rule.texts_in, rule.texts_out)
        out.add_row(rule.name, escape(rule.says), *(f"{number:,}" for number in numbers))
    return out


def main(argv: Sequence[str]) -> int:
    return run_command(_run, argv, (DataError, paths.PathError))


def _run(argv: Sequence[str], console: Console) -> int:
    logging.getLogger().setLevel(logging.ERROR)  # Beam tells of each bundle
    check_beam()
    config, beam_options = parse(argv)
    prepared = prepare(
        config, beam_options, log=lambda text: console.print(escape(text), soft_wrap=True)
    )
    Console().print(table(prepared))
    print(
        f"{prepared.out}: {prepared.kept:,} records in {len(prepared.shards):,} shards, "
        f"{prepared.seconds:.0f} s; see report.html"
    )
    return 0


if __name__ == "__main__":
    start(main, __doc__)
