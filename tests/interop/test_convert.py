"""The command: round trips over several libraries, what a converted workdir is good for, refusals
with their exit status."""

import json
import pathlib
import pickle
import re

import jax
import numpy as np
import pytest
from interop_cases import SIDE, clip_files, library, piece_file, randomise, run_convert
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from jaxvl import train
from jaxvl.config import ConfigError, resolve
from jaxvl.models import presets
from jaxvl.training.experiment import Experiment
from jaxvl.training.restore import restore_encoders, restore_weights

pytestmark = pytest.mark.usefixtures("one_device")

torch = library("torch")
transformers = library("transformers")


def processor(folder, **values):
    kind = dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({**kind, **values}))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from test_hf_models import clip

    folder = tmp_path_factory.mktemp("clip")
    randomise(clip(act="gelu")).save_pretrained(folder)
    clip_files(folder)
    processor(folder)
    return folder


@pytest.fixture(scope="module")
def workdir(clip_folder, tmp_path_factory):
    """The CLIP of `clip_folder` as a workdir, with the parity check that the command made of it."""
    folder = tmp_path_factory.mktemp("converted") / "run"
    status, said = run_convert(f"--from=hf:{clip_folder}", f"--to=jaxvl:{folder}", "--check")
    assert status == 0, said
    for row in (
        "image embedding",
        "text embedding",
        "scale",
        "logits",
        "token ids",
        "arrays, read again",
    ):
        assert row in said
    return folder


def test_over_three_libraries_and_back(clip_folder, workdir, tmp_path):
    library("open_clip")
    places = [f"jaxvl:{workdir}", f"open_clip:{tmp_path / 'o'}", f"hf:{tmp_path / 'h'}"]
    for source, target in zip(places, places[1:]):
        status, said = run_convert(f"--from={source}", f"--to={target}", "--check")
        assert status == 0, said
        figures = [float(f) for f in re.findall(r"\d\.\d\de[+-]\d\d", said)]
        assert len(figures) >= 6 and max(figures) < 1e-4
    first = load_file(clip_folder / "model.safetensors")
    last = load_file(tmp_path / "h" / "model.safetensors")
    assert set(first) == set(last)
    for name, array in first.items():
        np.testing.assert_array_equal(array, last[name], err_msg=name)
    old, new = (
        transformers.AutoTokenizer.from_pretrained(f)(["two dogs"], padding="max_length").input_ids
        for f in (clip_folder, tmp_path / "h")
    )
    assert old == new


def test_siglip_to_npz_and_back(tmp_path):
    from test_hf_models import siglip

    for name in ("a", "b", "words"):
        (tmp_path / name).mkdir()
    randomise(siglip()).save_pretrained(tmp_path / "a")
    piece_file(tmp_path / "words" / "spiece.model")
    (tmp_path / "words" / "tokenizer_config.json").write_text(
        json.dumps(dict(tokenizer_class="SiglipTokenizer", pad_token="</s>"))
    )
    words = f"--tokenizer={tmp_path / 'words'}"
    assert (
        run_convert(
            f"--from=hf:{tmp_path / 'a'}", f"--to=big_vision:{tmp_path / 'x.npz'}", "--check", words
        )[0]
        == 0
    )
    status, said = run_convert(
        f"--from=big_vision:{tmp_path / 'x.npz'}", f"--to=hf:{tmp_path / 'b'}", "--check", words
    )
    assert status == 0 and "squashed" in said, said
    first, last = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert set(first) == set(last) and all((first[k] == last[k]).all() for k in first)


def test_a_workdir_encodes_and_a_run_starts_from_it(clip_folder, workdir, tmp_path, monkeypatch):
    """Evaluation's encoders give the peer's text embeddings; a run has the converted weights before
    its first step."""
    _, step, encoders = restore_encoders(workdir)
    texts = ["a photo of cat", "two dogs"]
    theirs = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(clip_folder)(
        texts, padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        wanted = theirs.get_text_features(**ids)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.pooler_output
    np.testing.assert_allclose(
        encoders.texts(texts), torch.nn.functional.normalize(wanted, dim=-1).numpy(), atol=1e-4
    )
    assert step == 0 and encoders.images(np.zeros((3, SIDE, SIDE, 3), np.uint8)).rows.shape == (
        3,
        20,
    )

    fields = dict(
        image=dict(name="picture", size=SIDE),
        text=dict(name="caption", columns="name/en", length=16),
    )
    source = dict(name="shapes", size=SIDE, variants=1, split="train_a")
    data = dict(source=source, batch=16, fields=fields, reader=dict(threads=2))
    node = dict(
        model=presets.saved(workdir),
        tasks=dict(pairs=dict(data=data, objectives=dict(clip=1.0))),
        steps=1,
        start=str(workdir),
        preprocess=json.loads((workdir / "config.json").read_text())["preprocess"],
        optim=dict(warmup=0, ema=0.5),
        log=dict(tensorboard=False, report=False),
    )
    begun = []
    monkeypatch.setattr("jaxvl.training.setup.compile_turns", lambda *args: [])
    monkeypatch.setattr(train, "loop", lambda run, *_: begun.append(run))
    train.train(resolve(Experiment, ConfigDict(node)), tmp_path / "run")
    before = restore_weights(workdir)
    (run,) = begun
    assert run.start == 0 and run.tokenizer.to_json() == before.tokenizer.to_json()
    for weights in (run.state.params, run.state.weights("")[0]):
        jax.tree.map(np.testing.assert_array_equal, before.params, dict(weights))

    with pytest.raises(
        ConfigError,
        match=r"start\[0\]: image/encoder/patches/kernel is .12, 12, 3, 32.* with its image_size",
    ):
        node["model"]["image"]["variant"] = "B/12"
        train.train(resolve(Experiment, ConfigDict(node)), tmp_path / "other")
    with pytest.raises(ConfigError, match="preprocess.mean: .*0.5.* must be"):
        train.train(
            resolve(Experiment, ConfigDict({**node, "preprocess": dict(image_size=SIDE)})),
            tmp_path / "other",
        )
    with pytest.raises(ConfigError, match="--workdir: holds converted weights.*config.start"):
        node["model"]["image"]["variant"] = "B/8"
        train.train(resolve(Experiment, ConfigDict(node)), workdir)


class Code:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def damaged(folder, how):
    """`folder`, a copy of a whole model, made unfit."""
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "code":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Code(folder / "ran")}))
    elif how == "no weights":
        weights.unlink()
    elif how == "another model":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    elif how == "not json":
        (folder / "config.json").write_text("{")
    elif how == "missing and extra":
        state = load_file(weights)
        state["extra"] = state.pop("logit_scale")
        save_file(state, weights)
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif how == "another eos":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 7
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "another size":
        processor(folder, crop_size=32)
    elif how in ("numbers for names", "sparse"):
        torch = pytest.importorskip("torch")
        weights.unlink()
        tensor = torch.eye(2)
        torch.save(
            {0: tensor} if how == "numbers for names" else {"a": tensor.to_sparse()},
            folder / "pytorch_model.bin",
        )
    elif how == "eight bits":
        torch = pytest.importorskip("torch")
        state = {k: torch.from_numpy(v) for k, v in load_file(weights).items()}
        state["logit_scale"] = state["logit_scale"].to(torch.float8_e4m3fn)
        pytest.importorskip("safetensors.torch").save_file(state, weights)
    elif how in ("other merges", "one-word merges", "binary merges"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        words = ["<|startoftext|>", "<|endoftext|>", "a", "b</w>", "ab</w>"]
        (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        lines = {
            "other merges": b"x y</w>",
            "one-word merges": b"ab",
            "binary merges": b"\xff\xfe\x00",
        }
        (folder / "merges.txt").write_bytes(b"#version: 0.2\n" + lines[how])
    elif how == "rectangle":
        processor(folder, size={"height": 24, "width": 32}, do_center_crop=False)


REFUSED = {
    "cut": "is not a whole safetensors file",
    "code": "pytorch_model.bin: is damaged or holds more than tensors",
    "no weights": "no weights .looked for model.safetensors",
    "another model": "model_type: 'bert'; can be taken over as clip, siglip, siglip2, align only",
    "not json": "config.json: is not JSON",
    "missing and extra": "tensors missing: logit_scale; without a place in the model: extra",
    "no tokenizer": "has no tokenizer .*--tokenizer=none to go on without",
    "another eos": "ends a text with 59, but the model looks for 7",
    "another size": "crop_size: 32; gives pictures of 32 pixels a side, but the model's are 24",
    "rectangle": "size: .*only square pictures",
    "numbers for names": "pytorch_model.bin: must hold a state dict: names and dense tensors",
    "sparse": "pytorch_model.bin: must hold a state dict: names and dense tensors",
    "eight bits": "tensor logit_scale cannot be read",
    "other merges": "vocab.json and merges.txt do not fit together",
    "one-word merges": "vocab.json and merges.txt do not fit together",
    "binary merges": "merges.txt: is not a text file",
}


@pytest.mark.parametrize("how", REFUSED)
def test_unfit_folders_are_refused_in_one_line(how, clip_folder, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in clip_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damaged(folder, how)
    status, said = run_convert(f"--from=hf:{folder}", f"--to=jaxvl:{tmp_path / 'out'}")
    assert status == 1 and re.search(REFUSED[how], said) and said.count("\n") == 1, said
    assert not (folder / "ran").exists() and not (tmp_path / "out").exists()


def test_without_a_tokenizer_on_request_only(clip_folder, tmp_path):
    status, said = run_convert(
        f"--from=hf:{clip_folder}", f"--to=jaxvl:{tmp_path / 'w'}", "--tokenizer=none"
    )
    assert status == 0 and "without the tokenizer" in said
    with pytest.raises(ConfigError, match="left behind"):
        restore_encoders(tmp_path / "w")[2].texts(["a"])


@pytest.mark.parametrize(
    "argv, status, message",
    [
        (["--to=jaxvl:x"], 2, "--from: is required"),
        (["--from=hug:x", "--to=jaxvl:x"], 2, "'hug:x' must be one of hf:PATH"),
        (["--form=hf:x", "--to=jaxvl:x"], 2, "--form: unknown option; did you mean 'from'"),
        (["--from=hf:/nowhere", "--to=jaxvl:x"], 1, "/nowhere: no such file or folder"),
        (["--from=jaxvl:{folder}", "--to=hf:x"], 1, "no readable checkpoint"),
        (["--from=jaxvl:{workdir}", "--to=jaxvl:{workdir}"], 1, "has checkpoints already"),
        (["--from=jaxvl:{workdir}", "--to=hf:{workdir}/config.json"], 1, "FileExistsError"),
        (
            ["--from=jaxvl:{workdir}", "--to=big_vision:x.npz"],
            1,
            "model.image.pool: 'cls' has no counterpart in big_vision's SigLIP",
        ),
    ],
)
def test_wrong_options_and_targets(argv, status, message, workdir, tmp_path):
    got, said = run_convert(*(word.format(workdir=workdir, folder=tmp_path) for word in argv))
    assert got == status and message in said and said.count("\n") == 1, said


def test_a_difference_in_check_is_exit_status_1(clip_folder, tmp_path, monkeypatch):
    from jaxvl import convert
    from jaxvl.interop import hf

    monkeypatch.setattr(convert, "save", lambda bundle, target: spoil(bundle, target))
    save = hf.save

    def spoil(bundle, target):
        save(bundle, target[1])
        state = load_file(target[1] / "model.safetensors")
        state["text_model.final_layer_norm.bias"] += 0.01
        save_file(state, target[1] / "model.safetensors", metadata={"format": "pt"})
        return ()

    status, said = run_convert(f"--from=hf:{clip_folder}", f"--to=hf:{tmp_path / 'to'}", "--check")
    assert status == 1 and "1.00e-02" in said
