"""The command from end to end: weights in a workdir, sets in a folder, results in files."""

import contextlib
import io
import json
import pathlib
import subprocess

import clip_benchmark_oracle as oracle
import numpy as np
import processes
import pytest
import tokenizers
from tiny_sets import class_folders, coco, png, put, sugar_crepe

from jaxvl import benchmark
from jaxvl.config import choose
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.records import DataError
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.evals.benchmark_folder import BenchmarkFolder
from jaxvl.evals.benchmarks.base import Found
from jaxvl.evals.benchmarks.files import ImageFiles
from jaxvl.evals.benchmarks.opening import agreed_open
from jaxvl.evals.prompts import class_vectors
from jaxvl.interop.bundle import Bundle, built, shapes_of
from jaxvl.models import MODELS, InputSpec
from jaxvl.training.restore import restore_encoders
from jaxvl.training.weights import save_weights

pytestmark = pytest.mark.usefixtures("one_device")
NAMES = ["cat", "dog", "horse"]
TEMPLATES = ["a photo of a {c}.", "{c} and {c}"]
TOWER = dict(width=16, depth=1, heads=2, pool="mean")
MODEL = dict(
    name="dual_encoder",
    embed_dim=16,
    image=dict(name="vit", variant="Ti/8", **TOWER),
    text=dict(name="text_transformer", variant="Ti", **TOWER),
)


def letters():
    """A tokenizer that knows letters and digits alone."""
    known = ["[PAD]", "[EOS]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({c: i for i, c in enumerate(known)}, "[UNK]")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return Tokenizer("json", model.to_str().encode(), pad_id=0, eos_id=1)


def save_model(workdir, seed):
    model = choose(MODELS, MODEL, "model")
    tokenizer = letters()
    inputs = InputSpec(16, 24, tokenizer.vocab_size, 0, 1)
    rng = np.random.default_rng(seed)
    arrays = {
        path: rng.normal(size=shape).astype(np.float32) * 0.5
        for path, shape in shapes_of(built(model, inputs)).items()
    }
    save_weights(Bundle(model, inputs, arrays, tokenizer, Preprocess(image_size=16)), workdir)
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights") / "run", 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two sets that can be measured, one with a bad picture, one that is damaged, and a folder of
    nothing."""
    folder = tmp_path_factory.mktemp("sets")
    oracle.write_classification(
        folder / "wds_vtab-tiny",
        [(png(k), k % 3) for k in range(14)],
        NAMES,
        TEMPLATES,
        max_count=5,
    )
    coco(folder / "coco")
    sugar_crepe(folder / "sugar_crepe")
    (folder / "sugar_crepe" / "val2017" / "2.jpg").write_bytes(b"<html>not found</html>")
    class_folders(folder / "dtd", ["a", "b"])
    (folder / "dtd" / "classnames.txt").write_text("only one\n")
    (folder / "papers").mkdir()
    (folder / "papers" / "clip.pdf").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def first_run(workdir, root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setenv("COLUMNS", "160")
        status = benchmark.main([f"--workdir={workdir}", f"--root={root}", f"--out={out}"])
    return status, out, said.getvalue().splitlines()


def image_rows(encoders, n, folder):
    """Rows of the pictures of `known_answers` 0 … n - 1."""
    for k in range(n):
        put(folder, f"{k}.png", k)
    source = ImageFiles("all", folder, [f"{k}.png" for k in range(n)])
    return encoders.images(source, column="image").rows


def result_of(out, key):
    return json.loads((out / f"{key}.json").read_text())


def test_results_are_in_clip_benchmarks_fields(first_run, workdir):
    status, out, _ = first_run
    assert status == 1, "one set could not be measured"
    everything = json.loads((out / "benchmarks.json").read_text())
    assert {node["dataset"] for node in everything["results"]} == {
        "wds/vtab/tiny",
        "mscoco_captions",
        "sugar_crepe/add_att",
    }
    for node in everything["results"]:
        assert {"dataset", "model", "pretrained", "task", "metrics", "language"} < set(node)
        assert (node["model"], node["pretrained"], node["language"]) == (
            "dual_encoder",
            f"{workdir}@0",
            "en",
        )
        assert node["jaxvl"]["main_metric"] in node["metrics"]
    assert "names 1 classes" in everything["not_measured"]["dtd"]
    assert any(folder.endswith("papers") for folder in everything["not_recognised"])


def test_what_is_said_meanwhile(first_run, root):
    said = first_run[2]
    assert (
        f"not recognised: {root / 'papers'}: no known layout in 0 folders and 1 files (clip.pdf)"
        in said
    )
    assert "sugar_crepe_add_att: 4 pictures …" in said
    assert (
        "sugar_crepe_add_att: left out of it: image cannot be decoded: 1, instance is not whole: 1"
        in said
    )
    assert "WARNING" not in "".join(said), "what libraries say is of no use to who reads this"


def test_the_evaluator_gives_the_same_figures(first_run, workdir, root):
    """A set that cannot be measured is counted."""
    _, _, encoders = restore_encoders(workdir)
    evaluator = BenchmarkFolder(str(root))
    evaluator.check(encoders)
    got = evaluator.run(encoders).metrics
    nodes = json.loads((first_run[1] / "benchmarks.json").read_text())["results"]
    figure = lambda node: f"{node['dataset'].replace('/', '_')}/{node['jaxvl']['main_metric']}"
    expected = {figure(node): node["metrics"][node["jaxvl"]["main_metric"]] for node in nodes}
    assert got == pytest.approx(
        expected
        | {"not_measured": 1.0, "images": float(sum(node["jaxvl"]["images"] for node in nodes))}
    )
    with pytest.raises(DataError, match="dtd: .*names 1 classes"):
        BenchmarkFolder(str(root), only=("dtd",)).run(encoders)


def test_figures_are_clip_benchmarks_for_the_same_embeddings(first_run, workdir, root, tmp_path):
    _, out, _ = first_run
    _, _, encoders = restore_encoders(workdir)
    images = image_rows(encoders, 14, tmp_path)
    names = class_vectors(encoders.texts, NAMES, [t.replace("{c}", "{}") for t in TEMPLATES])
    texts = np.zeros((64, 16), np.float32)
    texts[:3] = names
    theirs = oracle.classification(
        oracle.Model(images, texts),
        list(range(14)),
        [k % 3 for k in range(14)],
        ["0", "1", "2"],
        ["{c}"],
    )
    node = result_of(out, "wds_vtab_tiny")
    assert node["task"] == "zeroshot_classification" and node["metrics"]["acc5"] is None
    for name in ("acc1", "mean_per_class_recall"):
        assert node["metrics"][name] == pytest.approx(theirs[name], abs=1e-6)
    annotations = json.loads((root / "coco" / "coco_test_karpathy.json").read_text())["annotations"]
    captions = [
        [a["caption"] for a in annotations if a["image_id"] == 900 - 7 * i] for i in (3, 2, 1, 0)
    ]
    rows = encoders.texts([f"caption {k}" for k in range(20)])
    model = oracle.Model(images, rows)
    theirs = oracle.retrieval(model, [3, 2, 1, 0], captions, (1,))
    node = result_of(out, "mscoco_captions")
    assert node["task"] == "zeroshot_retrieval"
    assert {name: node["metrics"][name] for name in theirs} == pytest.approx(theirs, abs=1e-6)


def test_bad_pictures_are_counted(first_run):
    node = result_of(first_run[1], "sugar_crepe_add_att")
    assert (
        node["jaxvl"]["skipped"] == {"image cannot be decoded": 1, "instance is not whole": 1}
        and node["jaxvl"]["images"] == 3
    )


def test_a_second_run_measures_nothing_again(first_run, workdir, root, monkeypatch, capsys):
    _, out, _ = first_run
    before = {path.name: path.read_bytes() for path in out.glob("*.json")}
    with monkeypatch.context() as patch:
        patch.setattr("jaxvl.benchmark.score", lambda *args: pytest.fail("measured again"))
        assert benchmark.main([f"--workdir={workdir}", f"--root={root}", f"--out={out}"]) == 1
    assert {path.name: path.read_bytes() for path in out.glob("*.json")} == before
    said = capsys.readouterr()
    assert said.err.count("measured before") == 3
    assert (
        "wds/vtab/tiny" in said.out and "Not measured" in said.out and "mean_recall@1" in said.out
    )


@pytest.mark.parametrize("change", ["again", "templates", "weights", "data"])
def test_what_is_measured_again(first_run, workdir, root, tmp_path, change, monkeypatch):
    """Only what differs: other prompts, weights or data, or on request."""
    out = tmp_path / "out"
    out.mkdir()
    for path in first_run[1].glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    argv = [f"--root={root}", f"--out={out}", "--only=wds/*"]
    if change == "again":
        argv.append("--again")
    if change == "templates":
        argv.append("--templates=plain")
    if change == "data":
        node = json.loads((out / "wds_vtab_tiny.json").read_text())
        node["jaxvl"]["identity"]["data"] = "another"
        (out / "wds_vtab_tiny.json").write_text(json.dumps(node))
    folder = save_model(tmp_path / "other", 1) if change == "weights" else workdir
    asked = []
    real = benchmark.score
    monkeypatch.setattr(
        "jaxvl.benchmark.score", lambda found, *args: asked.append(found.name) or real(found, *args)
    )
    assert benchmark.main([f"--workdir={folder}", *argv]) == 0
    assert asked == ["wds/vtab/tiny"]


def test_the_listing_needs_no_weights(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert benchmark.main([f"--root={root}", "--list"]) == 0
    said = capsys.readouterr().out
    for text in ("wds/vtab/tiny", "mscoco_captions", "sugar_crepe/add_att", "no known layout"):
        assert text in said


@pytest.mark.slow
def test_two_processes_measure_as_one(first_run, workdir, root, tmp_path):
    """All figures are those of one process; the first one writes and prints, and keeps what was
    measured before."""
    argv = [
        "-m",
        "jaxvl.benchmark",
        f"--workdir={workdir}",
        f"--root={root}",
        f"--out={tmp_path}",
        "--only=wds/*,mscoco*,sugar*",
    ]
    outs = [processes.finish(processes.start(argv, 2, stdout=subprocess.PIPE)) for _ in range(2)]
    for key in ("wds_vtab_tiny", "mscoco_captions", "sugar_crepe_add_att"):
        one = result_of(first_run[1], key)
        two = result_of(tmp_path, key)
        defined = {name for name, value in one["metrics"].items() if value is not None}
        assert {name for name, value in two["metrics"].items() if value is not None} == defined
        assert {name: two["metrics"][name] for name in defined} == pytest.approx(
            {name: one["metrics"][name] for name in defined}, rel=1e-6
        )
        assert two["jaxvl"]["identity"] == one["jaxvl"]["identity"]
    (first, _), (second, _) = outs[1]
    assert (
        "wds/vtab/tiny" in first
        and "measured before" in outs[1][0][1]
        and "wds/vtab/tiny" not in second
    )


@pytest.mark.parametrize(
    "argv, status, says",
    [
        ([], 2, "--root: is required"),
        (["--root=ROOT"], 2, "--workdir: is required"),
        (["--root=/no/such/folder", "--workdir=W"], 2, "--root: '/no/such/folder' is no folder"),
        (["--root=s3://bucket", "--workdir=W"], 2, "--root: 's3://bucket' must be a local folder"),
        (
            ["--root=ROOT", "--workdir=W", "--only=cifar"],
            1,
            "no benchmark was chosen (there are: dtd, mscoco_captions,",
        ),
        (
            ["--root=ROOT", "--workdir=W", "--templates=foto"],
            2,
            "--templates: 'foto' is not a known set of templates; did you mean 'photos'?",
        ),
        (
            ["--root=ROOT", "--workdir=W", "--rot=3"],
            2,
            "--rot: unknown option; did you mean 'root'?",
        ),
        (["--root=ROOT", "--workdir=/no/such/run"], 1, "/no/such/run"),
    ],
)
def test_wrong_options(root, workdir, argv, status, says, capsys):
    argv = [
        word.replace("ROOT", str(root)) if word != "--workdir=W" else f"--workdir={workdir}"
        for word in argv
    ]
    assert benchmark.main(argv) == status
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "error, says",
    [
        (DataError("sets/a: label 3 has no name"), "sets/a: label 3 has no name"),
        (KeyError("a bug"), "sets/a: cannot be read as toy layout (KeyError: 'a bug')"),
    ],
)
def test_a_set_that_cannot_be_opened_is_told(error, says):
    def fail():
        raise error

    opened, why = agreed_open(Found("a", "toy layout", pathlib.Path("sets/a"), fail))
    assert opened is None and why == says
