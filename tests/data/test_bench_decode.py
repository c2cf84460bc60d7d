"""The benchmark of decoding, on a few pictures."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxvl.bench import decode


def test_figures_of_made_pictures(tmp_path):
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cykooz_resizer")
    result = decode.main(
        ["--pictures", "4", "--rounds", "1", "--size", "64", "--json", str(tmp_path / "out.json")]
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["figures"] == result["figures"] and written["arguments"]["pictures"] == 4
    figures = result["figures"]
    assert not {
        "training (jaxvl)",
        "evaluation (jaxvl, Pillow)",
        "Pillow, in two steps",
        "simplejpeg, Pillow",
    } - set(figures)
    assert set(figures) | set(result["missing"]) == set(decode.WAYS)
    assert all(value > 0 for row in figures.values() for key, value in row.items() if key != "off")
    assert (
        figures["evaluation (jaxvl, Pillow)"]["off"] == 0
        and figures["simplejpeg, Pillow"]["off"] == 0
    )
    assert 50 < result["kilobytes"] < 200


def test_ways_decode_to_the_same_pixels():
    data = decode.made(3, 120, 90)
    found, _ = decode.installed(data)
    wanted = np.asarray(Image.open(io.BytesIO(data)))
    for name, (read, crop) in found.items():
        assert np.abs(read(data).astype(int) - wanted).mean() < 1, name
        assert crop(data, (10.0, 5.0, 90.0, 80.0), 32).shape == (32, 32, 3), name


def test_a_folder_of_ones_own(tmp_path):
    for name in ("b.JPG", "sub/a.jpeg", "c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    assert list(decode.pictures(tmp_path, 10)) == [b"b.JPG", b"sub/a.jpeg"]
    with pytest.raises(SystemExit, match="has no .jpg or .jpeg"):
        list(decode.pictures(tmp_path / "nowhere", 10))
