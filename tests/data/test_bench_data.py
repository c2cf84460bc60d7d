import json

import pytest

from jaxvl.bench import data


def test_the_benchmark_measures_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path))
    file = tmp_path / "out.json"
    out = data.main(
        [
            "--source",
            "shapes",
            "--split",
            "test_b_new",
            "--batch",
            "16",
            "--image-size",
            "16",
            "--records",
            "8",
            "--repeats",
            "1",
            "--json",
            str(file),
        ]
    )
    assert json.loads(file.read_text()) == out and out["machine"]["cores"] >= 1
    parts = [f["part"] for f in out["figures"]]
    for part in (
        "read and unpack",
        "decode and scale to 16 px",
        "tokenise",
        "batch, cold",
        "batch, warm",
        "feed onto the mesh",
        "augment on the device",
    ):
        assert any(p.startswith(part) for p in parts), part
    for f in out["figures"]:
        assert f["images_per_second_per_core"] * f["core_us_per_image"] == pytest.approx(1e6)
    assert "images/s per core" in capsys.readouterr().out
