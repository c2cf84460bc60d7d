"""A run is evaluated, and its pictures captioned, by two or four processes as by one; only the first writes
and prints."""

import json
import subprocess

import processes
import pytest
import tiny
from PIL import Image
from test_writing import MODEL

from jaxvl import caption, evaluate
from jaxvl.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a captioner on eight devices, its parameters sharded over two of them."""
    workdir = tmp_path_factory.mktemp("finished")
    pairs = tiny.config().to_dict()["tasks"]["pairs"] | dict(
        objectives=dict(align=1.0, captioning=1.0)
    )
    evals = {
        "style": dict(name="zero_shot", source=tiny.TEST),
        "texts": dict(name="retrieval", source=tiny.TEST, text="name/en"),
    }
    mesh = dict(data=4, fsdp=2)
    train(
        tiny.experiment(model=MODEL, tasks=dict(pairs=pairs), evals=evals, mesh=mesh, steps=2),
        workdir,
    )
    return workdir


def on_processes(number, module, *argv):
    """(standard output, standard error) of each process."""
    said = processes.finish(processes.start(["-m", module, *argv], number, stdout=subprocess.PIPE))
    return [(without_gloo(out), err) for out, err in said]


def without_gloo(out):
    """The CPU's collectives say on standard output that they are connected."""
    # Its threads may interrupt each other in the middle of a line.
    own = [line for line in out.splitlines(keepends=True) if "peer ranks" not in line]
    return "".join(line for line in own if not line.startswith("[Gloo]"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_evaluate_as_one(finished, tmp_path, number):
    assert evaluate.main([f"--workdir={finished}", f"--out={tmp_path / 'one'}"]) == 0
    (out, err), *_, (second_out, second_err) = on_processes(
        number, "jaxvl.evaluate", f"--workdir={finished}", f"--out={tmp_path / 'two'}"
    )
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")
    )
    assert two == pytest.approx(one, rel=1e-6) and two["style/images"] > 0
    assert (tmp_path / "two" / "gallery.json").exists()
    assert "Final results" in out and "style …" in err
    assert second_out == "" and "style …" not in second_err


@pytest.mark.slow
def test_two_processes_caption_as_one(finished, tmp_path, capsys):
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 40, 200 - 60 * i)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert caption.main([f"--workdir={finished}", str(tmp_path)]) == 0
    alone = capsys.readouterr().out
    (out, err), (second_out, second_err) = on_processes(
        2, "jaxvl.caption", f"--workdir={finished}", str(tmp_path)
    )
    assert out == alone and alone.count("\n") == 3
    assert err.count("left out") == 2  # the broken picture, and their number
    assert second_out == "" and "left out" not in second_err
