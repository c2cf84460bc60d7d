"""Weights and configurations as training programs leave them: shards, wrappers' names, nests,
numbers as rows, marks of byte order."""

import functools
import json
import pickle

import numpy as np
import pytest
from interop_cases import (
    LENGTH,
    SIDE,
    VOCAB,
    check_same,
    clip_files,
    images,
    library,
    ours_of,
    randomise,
    run_convert,
    texts,
)

from jaxvl.interop import hf, hf_dual, open_clip
from jaxvl.interop.bundle import Section
from jaxvl.interop.mapping import ConversionError

torch = library("torch")
transformers = library("transformers")
safetensors = library("safetensors.torch")


@pytest.fixture(scope="module")
def theirs():
    """transformers' CLIP with random weights."""
    from test_hf_models import clip

    return randomise(clip())


@pytest.fixture(scope="module")
def whole(theirs, tmp_path_factory):
    """Its arrays, of a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("whole")
    theirs.save_pretrained(folder)
    return hf.load(folder, "none").arrays


def write(folder, theirs, saved=None, name="pytorch_model.bin", **text):
    """A folder of the model's configuration, changed by `text`, and of the file `saved`."""
    folder.mkdir(exist_ok=True)
    config = json.loads(theirs.config.to_json_string())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))
    if saved is not None:
        torch.save(saved, folder / name)
    return folder


def check_equal(folder, whole):
    arrays = hf.load(folder, "none").arrays
    assert set(arrays) == set(whole)
    for path, array in whole.items():
        np.testing.assert_array_equal(arrays[path], array, err_msg=path)


# --------------------------------------------------------------------------------------------------
# Shards


def shards(folder, theirs, suffix="bin"):
    """As transformers 4 split a model: two files and an index."""
    state = theirs.state_dict()
    names = sorted(state)
    files = {f"pytorch_model-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    write(folder, theirs)
    for file, part in files.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return list(files)


def test_shards_of_torch_files(theirs, whole, tmp_path):
    shards(tmp_path, theirs)
    again = transformers.CLIPModel.from_pretrained(tmp_path)
    assert all(
        torch.equal(again.state_dict()[name], tensor)
        for name, tensor in theirs.state_dict().items()
    )
    check_equal(tmp_path, whole)


class Code:
    """Unpickled, it prints."""

    def __reduce__(self):
        return print, ("ran",)


def test_code_in_a_shard_is_not_run(theirs, tmp_path, capsys):
    first, _ = shards(tmp_path, theirs)
    (tmp_path / first).write_bytes(pickle.dumps({"x": Code()}))
    with pytest.raises(ConversionError, match=f"{first}: is damaged or holds more than tensors"):
        hf.load(tmp_path, "none")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "how, message",
    [("lost", "no such file"), ("empty", "lacks .*, which pytorch_model.bin.index.json says")],
)
def test_shards_that_do_not_have_all(how, message, theirs, tmp_path):
    first, _ = shards(tmp_path, theirs)
    if how == "lost":
        (tmp_path / first).unlink()
    else:
        torch.save({}, tmp_path / first)
    with pytest.raises(ConversionError, match=f"{first}: {message}"):
        hf.load(tmp_path, "none")


def test_open_clip_in_shards(tmp_path):
    """open_clip's largest models are published in this way."""
    from test_open_clip_models import CASES, build
    from test_open_clip_models import write as write_folder

    model_cfg = CASES["ViT-B-32"]
    state = build(model_cfg).state_dict()
    write_folder(tmp_path / "one", model_cfg, state)
    write_folder(tmp_path / "two", model_cfg, state, name="rest.bin")
    (tmp_path / "two" / "open_clip_pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(state, "rest.bin")})
    )
    arrays = [open_clip.load(tmp_path / name, "none").arrays for name in ("one", "two")]
    for path, array in arrays[0].items():
        np.testing.assert_array_equal(arrays[1][path], array, err_msg=path)


# --------------------------------------------------------------------------------------------------
# Names of wrappers, and nests


def compiled_tower(theirs):
    """The state dict where the text tower alone is compiled."""
    from test_hf_models import clip

    model = clip()
    model.load_state_dict(theirs.state_dict())
    model.text_model = torch.compile(model.text_model)
    return model.state_dict()


def prefixed(*prefixes):
    return lambda theirs: {
        "".join(prefixes) + name: tensor for name, tensor in theirs.state_dict().items()
    }


WRAPPED = {
    "compiled": lambda theirs: torch.compile(theirs).state_dict(),
    "compiled tower": compiled_tower,
    "data parallel": lambda theirs: torch.nn.DataParallel(theirs).state_dict(),
    "compiled, then data parallel": lambda theirs: torch.nn.DataParallel(
        torch.compile(theirs)
    ).state_dict(),
    "data parallel, then compiled": lambda theirs: torch.compile(
        torch.nn.DataParallel(theirs)
    ).state_dict(),
    "sharded with checkpointing": prefixed("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."),
    "a module of Lightning": prefixed("model."),
    "a compiled module of Lightning": prefixed("model.", "_orig_mod."),
}
NESTS = {
    "open_clip": lambda state: dict(
        epoch=3, name="run", state_dict=state, optimizer=dict(state={0: dict(step=torch.ones(()))})
    ),
    "plain torch": lambda state: dict(epoch=3, model_state_dict=state, loss=0.5),
    "lavis": lambda state: dict(model=state, optimizer={}, epoch=1),
    "deepspeed": lambda state: dict(module=state, global_steps=7, dp_world_size=8),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_of_wrappers(how, theirs, whole, tmp_path):
    state = WRAPPED[how](theirs)
    assert set(state) != set(theirs.state_dict())
    check_equal(write(tmp_path, theirs, dict(state)), whole)
    (tmp_path / "pytorch_model.bin").unlink()
    safetensors.save_file(
        {name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors"
    )
    check_equal(tmp_path, whole)


@pytest.mark.parametrize("how", NESTS)
def test_checkpoints_of_training_programs(how, theirs, whole, tmp_path):
    state = torch.nn.DataParallel(torch.compile(theirs)).state_dict()
    check_equal(write(tmp_path, theirs, NESTS[how](dict(state))), whole)


def test_one_tensor_under_two_names(theirs, tmp_path):
    state = theirs.state_dict()
    saved = {**state, "_orig_mod.logit_scale": state["logit_scale"] + 1}
    with pytest.raises(
        ConversionError, match="logit_scale: is there a second time under another wrapper's name"
    ):
        hf.load(write(tmp_path, theirs, saved), "none")


def test_a_file_of_before_torch_1_6(theirs, whole, tmp_path):
    write(tmp_path, theirs)
    torch.save(
        theirs.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    check_equal(tmp_path, whole)


def test_weights_do_not_change_with_their_file(theirs, tmp_path):
    """They are mapped into memory while they are read, and no longer."""
    write(
        tmp_path,
        theirs,
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()},
    )
    arrays = hf.load(tmp_path, "none").arrays
    before = {path: array.copy() for path, array in arrays.items()}
    file = tmp_path / "pytorch_model.bin"
    with open(file, "r+b") as out:
        out.write(b"\0" * file.stat().st_size)
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)


# --------------------------------------------------------------------------------------------------
# Numbers as rows, lists of tokens, marks of byte order


def number_cases():
    from test_hf_models import align, clip, siglip

    return {
        "clip": (clip, (1,)),
        "align": (functools.partial(align, 50, (2,)), (1,)),
        "siglip": (siglip, ()),
    }


@pytest.mark.parametrize("kind", ["clip", "align", "siglip"])
def test_a_number_is_read_in_either_shape(kind, tmp_path):
    """As training over shards keeps it ([1]), and as other programs do ([])."""
    build, shape = number_cases()[kind]
    model = randomise(build())
    numbers = ("logit_scale", "logit_bias", "temperature")
    saved = {
        name: t.reshape(shape) if name in numbers else t for name, t in model.state_dict().items()
    }
    assert any(t.shape != model.state_dict()[name].shape for name, t in saved.items())
    arrays = hf.load(write(tmp_path, model, saved), "none").arrays
    wanted = -np.log(np.float32(0.7)) if kind == "align" else np.float32(0.7)
    assert arrays["log_scale"].shape == ()
    np.testing.assert_allclose(arrays["log_scale"], wanted, rtol=1e-6)


@pytest.mark.parametrize("eos", [[VOCAB - 1, 2], [VOCAB - 1], (2, VOCAB - 1)])
@pytest.mark.parametrize("tokenizer", [None, "none"])
def test_a_list_of_tokens_that_end_a_text(eos, tokenizer, theirs, tmp_path):
    """The one that the tokenizer writes, else the first; the text's embedding is theirs with that
    one alone."""
    folder = write(tmp_path / "from", theirs, theirs.state_dict(), eos_token_id=list(eos))
    clip_files(folder)
    bundle = hf.load(folder, tokenizer)
    if tokenizer == "none" and eos[0] == 2:
        assert bundle.model.text.pool == "argmax"  # what 2 means to CLIPModel, alone or first
    else:
        assert (bundle.model.text.pool, bundle.inputs.eos_id) == ("eos", VOCAB - 1)
    image = images()
    tokens = texts(1, VOCAB - 1)
    tokens[:, 3] = 2  # an ordinary word of CLIP's vocabulary
    with torch.no_grad():
        out = theirs(
            pixel_values=torch.from_numpy(image.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(tokens).long(),
        )
    check_same(ours_of(bundle, image, tokens), out.image_embeds, out.text_embeds)

    hf.save(bundle, tmp_path / "to")
    written = transformers.CLIPModel.from_pretrained(tmp_path / "to")
    assert written.config.text_config.eos_token_id in (
        VOCAB - 1,
        2,
    )  # no list, with which their model cannot run


@pytest.mark.parametrize("eos", [[], ["a"], [True], [-1], "a", 2.5])
def test_no_list_of_tokens(eos):
    with pytest.raises(
        ConversionError,
        match="text_config.eos_token_id: .*must be the id of a token, or a list of such ids",
    ):
        hf_dual.read_clip(Section(dict(model_type="clip", text_config=dict(eos_token_id=eos))))


def test_towers_that_do_not_look_for_an_end_take_any_list():
    """transformers' SiglipModel and AlignModel do not read it."""
    for kind in ("siglip", "align"):
        node = dict(model_type=kind, text_config=dict(eos_token_id=[49, 2]))
        plain = dict(model_type=kind, text_config={})
        assert hf.FAMILIES[kind].read(Section(node)) == hf.FAMILIES[kind].read(Section(plain))


@pytest.mark.parametrize(
    "value", ["1e400", "-1e400", "NaN", "1" + "0" * 400], ids=["inf", "-inf", "nan", "10**400"]
)
def test_numbers_that_no_float_holds_are_refused(value):
    node = dict(model_type="clip", text_config=dict(layer_norm_eps=json.loads(value)))
    with pytest.raises(ConversionError, match="text_config.layer_norm_eps: .*must be a number"):
        hf_dual.read_clip(Section(node))


def marked(folder):
    """A mark of byte order before every text file, as editors on Windows write it."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".txt"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def test_marks_of_byte_order(theirs, tmp_path):
    """A folder with and without them is the same model, tokenizer and preprocessing."""
    shards(tmp_path, theirs)
    clip_files(tmp_path)
    values = dict(
        image_processor_type="CLIPImageProcessor",
        size=dict(shortest_edge=SIDE),
        crop_size=dict(height=SIDE, width=SIDE),
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    plain = hf.load(tmp_path)
    marked(tmp_path)
    bundle = hf.load(tmp_path)
    assert (bundle.model, bundle.inputs, bundle.preprocess) == (
        plain.model,
        plain.inputs,
        plain.preprocess,
    )
    assert bundle.tokenizer.to_json() == plain.tokenizer.to_json()
    for path, array in plain.arrays.items():
        np.testing.assert_array_equal(bundle.arrays[path], array, err_msg=path)


def test_check_of_folders_that_their_library_cannot_run(theirs, tmp_path):
    """A list of ends is compared with the one that is read; weights under a wrapper's name are told
    in one line."""
    folder = write(tmp_path / "list", theirs, theirs.state_dict(), eos_token_id=[VOCAB - 1, 2])
    clip_files(folder)
    status, said = run_convert(f"--from=hf:{folder}", f"--to=jaxvl:{tmp_path / 'a'}", "--check")
    assert status == 0 and "text embedding" in said, said

    state = {
        name: t.reshape(1) if name == "logit_scale" else t
        for name, t in theirs.state_dict().items()
    }
    folder = write(tmp_path / "row", theirs, state)
    status, said = run_convert(
        f"--from=hf:{folder}", f"--to=jaxvl:{tmp_path / 'b'}", "--tokenizer=none", "--check"
    )
    assert status == 1 and "transformers itself cannot run it" in said, said
    assert hf.load(folder, "none").inputs.text_length == LENGTH
