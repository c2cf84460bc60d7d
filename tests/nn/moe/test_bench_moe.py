import json

from jaxvl.bench import moe


def test_every_layer_beside_the_dense_one(tmp_path):
    sizes = [
        "--tokens",
        "64",
        "--rows",
        "4",
        "--experts",
        "4",
        "--width",
        "8",
        "--hidden",
        "16",
        "--rounds",
        "1",
    ]
    rows = moe.main(
        [*sizes, "--only", "choice/gather,2/ragged", "--json", str(tmp_path / "out.json")]
    )
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    assert [r["layer"] for r in rows] == ["dense", "expert_choice/gather", "token_choice 2/ragged"]
    assert rows[0]["overhead"] == 1 and all(
        r["seconds"] > 0 and r["lowest"] <= r["overhead"] <= r["highest"] for r in rows
    )
