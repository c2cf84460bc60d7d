"""Two processes with four devices each give what one process with eight gives, and each reads only its own records."""

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
from known_answers import bigram_logits, corpus, encoders, scorer, two_splits, unit
from jaxvl.evals.attentional_probe import AttentionalProbe
from jaxvl.evals.likelihood import Likelihood
from jaxvl.evals.linear_probe import LinearProbe
from jaxvl.evals.result import EvaluatorError
from jaxvl.evals.retrieval import Retrieval
from jaxvl.evals.split import captions
from jaxvl.evals.zero_shot import ZeroShot
from jaxvl.sharding.mesh import MeshConfig, make_mesh

assert jax.device_count() == 8
toy = corpus([k % 30 for k in range(40)], broken=(3, 33), unreadable=(20,))
both = encoders(make_mesh(MeshConfig(data=4, fsdp=2)), unit(64, 8), unit(64, 8, seed=1), batch=8)
encoded = both.images(toy.split("test"))
reads = toy.split("test").reads
metrics = [kind(toy, "test", gallery=2).run(both).metrics for kind in (Retrieval, ZeroShot)]
probed, options = two_splits([k % 7 for k in range(42)], range(7)), dict(train_split="train", gallery=0)
probes = LinearProbe(probed, "test", **options), AttentionalProbe(probed, "test", epochs=2, batch=8, heads=2, **options)
summed = [probe.run(both).metrics for probe in probes]
summed.append(Likelihood(toy, "test", captions="all").run(scorer(both.mesh, bigram_logits("random"), batch=8)).metrics)

# What one process cannot read is left out by all; an error of one process that is no bad record ends the evaluator in all.
own = jax.process_index()
flaky = corpus(range(40), unreadable=(own + 1,))
texts = captions(flaky, "test", "en", "name")
empty = [i for i, of in enumerate(texts) if not of]
failures = []
for run in (
    lambda: both.images(corpus(range(40), bugs=(33,)).split("test")),
    lambda: captions(corpus(range(40), bugs=(own * 5,) if own else ()), "test", "en", "name"),
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
    for got, expected in zip(first["summed"], alone["summed"]):  # sums over processes are taken in another order
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
    assert first["reads"] + second["reads"] == alone["reads"] == 39  # 40 records, of which one cannot be read
