"""ViT-B-32 and ViT-B-16-SigLIP at full size with random weights: there, back and over, within 1e-4
(slow; no download)."""

import json

import pytest
from interop_cases import library, randomise, run_convert, same_tensors

pytestmark = pytest.mark.slow
torch = library("torch")
transformers = library("transformers")
open_clip = library("open_clip")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_open_clip(name, tmp_path):
    theirs = randomise(open_clip.create_model(name))
    (tmp_path / "from").mkdir()
    config = dict(model_cfg=open_clip.get_model_config(name), preprocess_cfg={})
    (tmp_path / "from" / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(theirs.state_dict(), tmp_path / "from" / "open_clip_pytorch_model.bin")
    without = [] if name == "ViT-B-32" else ["--tokenizer=none"]
    for source, target in (
        ("open_clip:{}/from", "jaxvl:{}/run"),
        ("jaxvl:{}/run", "open_clip:{}/to"),
    ):
        status, said = run_convert(
            f"--from={source.format(tmp_path)}",
            f"--to={target.format(tmp_path)}",
            "--check",
            *without,
        )
        print(said)
        assert status == 0, said
    again = open_clip.create_model(f"local-dir:{tmp_path / 'to'}")
    same_tensors(theirs.state_dict(), again.state_dict())


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_transformers(kind, tmp_path):
    cls = getattr(transformers, f"{kind}Model")
    theirs = randomise(cls(getattr(transformers, f"{kind}Config")()))
    theirs.save_pretrained(tmp_path / "from")
    places = (
        ["hf:{}/from", "jaxvl:{}/run", "hf:{}/to"]
        if kind == "CLIP"
        else ["hf:{}/from", "big_vision:{}/x.npz", "hf:{}/to"]
    )
    for source, target in zip(places, places[1:]):
        status, said = run_convert(
            f"--from={source.format(tmp_path)}",
            f"--to={target.format(tmp_path)}",
            "--check",
            "--tokenizer=none",
        )
        print(said)
        assert status == 0, said
    same_tensors(theirs.state_dict(), cls.from_pretrained(tmp_path / "to").state_dict())
