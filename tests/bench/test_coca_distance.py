"""The study of CoCa's distance: its runs resolve, change one thing, and are not repeated."""

import json
import pathlib
import runpy

import pytest

from jaxvl.bench import coca_distance
from jaxvl.command import STOPPED
from jaxvl.config import load_file, resolve, to_dict
from jaxvl.training.experiment import Experiment
from jaxvl.training.resume import changes

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def experiment(run, **options):
    arguments = dict(run=run, seed=0, size="small", steps=0) | options
    return resolve(Experiment, load_file(coca_distance.argument(**arguments)))


@pytest.mark.parametrize(
    "run, changed",
    [
        ("no_bias", {"model.projection_bias"}),
        ("scale_free", {"model.max_scale"}),
        ("half_rate", {"optim.lr"}),
        ("pooler", {"model.image"}),
        ("text_class", {"model.text"}),
        ("emoji_rows", {"tasks.pairs.data.source"}),
    ],
)
def test_one_change_at_a_time(run, changed):
    found = changes(to_dict(experiment(run)), experiment("align"))
    groups = {key for key in changed if any(k.startswith(key) for k in found)}
    assert groups == changed
    assert all(any(k.startswith(key) for key in changed) for k in found)


def test_coca_with_captions_and_parallel_poolers_is_the_demo_but_for_size_and_figures():
    demo = resolve(Experiment, load_file("configs/coca_emoji.py"))
    run = experiment("coca+captions_2+parallel", size="demo")
    found = changes(to_dict(demo), run)
    assert all(k.startswith(("evals.", "log.", "checkpoint.")) for k in found), sorted(found)


def test_every_run_has_its_changes():
    known = runpy.run_path(str(ROOT / "configs" / "coca_distance.py"))["CHANGES"]
    for run in coca_distance.RUNS:
        assert set(run.split("+")) <= set(known), run


def test_a_run_whose_result_is_there_is_not_repeated(tmp_path, monkeypatch, capsys):
    trained = []

    def train(config, workdir):
        trained.append(workdir.parent.name)
        share = 0.4 if "align" in workdir.parts else 0.25
        record = {"step": 20, "kind": "eval", "name": "unseen_style", "acc@1": share}
        recall = record | {"name": "retrieval", "mean_recall": share + 0.2}
        del recall["acc@1"]
        lines = [json.dumps(part) for part in (record, recall)]
        (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return 0

    monkeypatch.setattr(coca_distance, "train", train)
    monkeypatch.setenv("COLUMNS", "200")
    argv = ["--runs=align,coca", "--seeds=0,1", "--size=tiny", f"--out={tmp_path}"]
    coca_distance.main(argv)
    assert trained == ["align", "coca", "align", "coca"]
    found = coca_distance.main([*argv, f"--json={tmp_path / 'all.json'}"])
    assert len(trained) == 4
    row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ coca")][-1]
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[3:7] == ["25.0 ± 0.0", "15.0 ± 0.0", "45.0 ± 0.0", "15.0 ± 0.0"]
    figures = {"unseen_style/acc@1": 0.25, "retrieval/mean_recall": 0.45}
    assert found["runs"]["coca"][1]["figures"] == figures
    place = tmp_path / "tiny" / "coca" / "1.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"digest": "of another version"}))
    coca_distance.main(argv)
    assert trained[4:] == ["coca"]


def test_a_run_that_was_interrupted_is_not_taken_for_a_whole_one(tmp_path, monkeypatch, capsys):
    """One that is asked to end saves its state and says so by its status."""
    monkeypatch.setattr(coca_distance, "train", lambda config, workdir: STOPPED)
    coca_distance.main(["--runs=align", "--seeds=0", "--size=tiny", f"--out={tmp_path}"])
    assert "align, seed 0: was interrupted" in capsys.readouterr().out
    assert not (tmp_path / "tiny" / "align" / "0.json").exists()
