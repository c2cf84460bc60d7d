"""Two processes with four devices each give what one process with eight gives, and each reads only
its own records."""

import json
import pathlib
import subprocess

import processes
import pytest

HERE = pathlib.Path(__file__).parent
SCRIPT = """
import json, sys
import jax
from jaxvl.sharding import hosts
hosts.initialise(dict(option.removeprefix("--").split("=") for option in sys.argv[1:]))
from known_answers import bigram_logits, encoders, pair, scorer, toy, unit
from jaxvl.evals.attentional_probe import AttentionalProbe
from jaxvl.evals.columns import all_texts
from jaxvl.evals.likelihood import Likelihood
from jaxvl.evals.linear_probe import LinearProbe
from jaxvl.evals.result import EvaluatorError
from jaxvl.evals.retrieval import Retrieval
from jaxvl.evals.zero_shot import ZeroShot
from jaxvl.sharding.mesh import MeshConfig, make_mesh

assert jax.device_count() == 8
source = toy([k % 30 for k in range(40)], broken=(3, 33), unreadable=(20,))
both = encoders(make_mesh(MeshConfig(data=4, fsdp=2)), unit(64, 8), unit(64, 8, seed=1), batch=8)
encoded = both.images(source.records)
reads = source.records.reads
compared = Retrieval(source, text="name/en", gallery=2), ZeroShot(source, gallery=2)
metrics = [evaluator.run(both).metrics for evaluator in compared]
options = dict(**pair([k % 7 for k in range(42)], range(7)), gallery=0)
probes = LinearProbe(**options), AttentionalProbe(epochs=2, batch=8, heads=2, **options)
summed = [probe.run(both).metrics for probe in probes]
summed.append(Likelihood(source, text=("name/en", "keywords/en")).run(scorer(both.mesh, bigram_logits("random"), batch=8)).metrics)

# What one process cannot read is left out by all; an error of one process that is no bad record ends the evaluator in all.
own = jax.process_index()
flaky = toy(range(40), unreadable=(own + 1,))
texts = all_texts(flaky.records, ("name/en",))
empty = [i for i, of in enumerate(texts) if not of]
failures = []
for run in (
    lambda: both.images(toy(range(40), bugs=(33,)).records),
    lambda: all_texts(toy(range(40), bugs=(own * 5,) if own else ()).records, ("name/en",)),
):
    try:
        run()
        failures.append("none")
    except EvaluatorError as error:
        failures.append(str(error))
print(json.dumps({"empty": empty, "failures": failures, "metrics": metrics, "summed": summed, "index": encoded.index.tolist(), "reads": reads}))
"""


def run(number):
    """What each of so many processes has printed last."""
    started = processes.start(["-c", SCRIPT], number, stdout=subprocess.PIPE, cwd=HERE)
    return [json.loads(out.splitlines()[-1]) for out, _ in processes.finish(started)]


@pytest.mark.slow
def test_two_processes_equal_one():
    first, second = run(2)
    (alone,) = run(1)
    assert first["metrics"] == second["metrics"] == alone["metrics"]
    assert first["summed"] == second["summed"]
    for got, expected in zip(
        first["summed"], alone["summed"]
    ):  # sums over processes are taken in another order
        assert {k: pytest.approx(v, rel=1e-5) for k, v in expected.items()} == {
            **got,
            **{k: expected[k] for k in ("iterations",) if k in got},
        }
    assert first["empty"] == second["empty"] == [1, 2]
    for failures, at in zip(zip(first["failures"], second["failures"]), (33, 5)):
        told = sorted(failures, key=lambda text: "another" in text)
        assert told[0].startswith(f"record {at}: KeyError: 'no such column'")
        assert told[1] == f"record {at}: another process met an error at it and names it"
    assert first["index"] == second["index"] == alone["index"]
    assert (
        first["reads"] + second["reads"] == alone["reads"] == 39
    )  # 40 records, of which one cannot be read
