"""Tars that img2dataset itself writes from a web server on this machine, read by us, by open_clip
and by webdataset."""

import csv
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tar_cases
import web_server
import webdataset
from PIL import Image

from jaxvl.data.sources.webdataset import WebDataset


def pictures(n: int) -> dict[str, bytes]:
    """Path -> a picture, in three formats and many shapes."""
    files = {}
    for i in range(n):
        out = io.BytesIO()
        draws = np.random.default_rng(i)
        pixels = draws.integers(0, 255, (8 + i % 13, 8 + i % 7, 3), np.uint8)
        kind = ("JPEG", "PNG", "WEBP")[i % 3]
        Image.fromarray(pixels).resize((40 + i % 50, 64)).save(out, kind)
        files[f"/{i}.{kind.lower()}"] = out.getvalue()
    return files


def download(folder: pathlib.Path, n: int, per_shard: int) -> dict[str, str]:
    """Runs img2dataset on `n` pictures and 20 addresses that are no pictures; returns address ->
    caption."""
    files = pictures(n)
    files |= {f"/page{i}.jpg": b"<html>moved</html>" for i in range(10)}
    with web_server.serve(files) as server:
        addresses = [server.url + path for path in files] + [
            f"{server.url}/missing{i}.jpg" for i in range(10)
        ]
        captions = {address: f'Bild {i}: "Öl, 油" x{i % 7}' for i, address in enumerate(addresses)}
        order = np.random.default_rng(0).permutation(len(addresses))
        with open(folder / "list.csv", "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["url", "caption", "similarity"])
            writer.writerows([addresses[i], captions[addresses[i]], i / 1000] for i in order)
        command = [
            sys.executable,
            "-c",
            "import img2dataset, sys, json; img2dataset.download(**json.loads(sys.argv[1]))",
            json.dumps(
                dict(
                    url_list=str(folder / "list.csv"),
                    input_format="csv",
                    url_col="url",
                    caption_col="caption",
                    save_additional_columns=["similarity"],
                    output_folder=str(folder / "tars"),
                    output_format="webdataset",
                    image_size=48,
                    resize_mode="keep_ratio",
                    number_sample_per_shard=per_shard,
                    processes_count=1,
                    thread_count=8,
                    timeout=20,
                )
            ),
        ]
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    return captions


def check(folder: pathlib.Path, captions: dict[str, str], n: int) -> None:
    log = []
    columns = {
        "image": "jpg;png;jpeg;webp",
        "text": "txt;caption",
        "from_json": "json:caption",
        "url": "json:url",
        "similarity": "json:similarity",
    }
    source = WebDataset(str(folder / "tars"), columns).open(log.append)
    assert len(source) == n and source.columns["similarity"].kind == "float"
    assert [line for line in log if not line.startswith("indexed")] == []  # its own counts agree
    shards = sorted(str(path) for path in (folder / "tars").glob("*.tar"))
    stats = [
        json.loads(pathlib.Path(shard.replace(".tar", "_stats.json")).read_text())
        for shard in shards
    ]
    np.testing.assert_array_equal(source.shards(), [about["successes"] for about in stats])
    assert sum(about["failed_to_download"] + about["failed_to_resize"] for about in stats) == 20

    by_open_clip = list(
        tar_cases.open_clip_data().tarfile_to_samples_nothrow({"url": shard} for shard in shards)
    )
    by_webdataset = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(by_open_clip) == len(by_webdataset) == n
    seen = set()
    for i, (one, two) in enumerate(zip(by_open_clip, by_webdataset)):
        record = source[i]
        assert record["image"] == one["jpg"] == two["jpg"]
        assert (
            record["text"]
            == one["txt"].decode()
            == two["txt"].decode()
            == captions[record["url"]]
            == record["from_json"]
        )
        assert record["key"] == one["__key__"] == two["__key__"]
        Image.open(io.BytesIO(record["image"])).load()
        seen.add(record["url"])
    assert len(seen) == n


@pytest.mark.slow  # tars of its layout are made by `tar_cases.py`
def test_300_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    captions = download(tmp_path, 300, 100)
    check(tmp_path, captions, 300)


@pytest.mark.slow
def test_5000_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_CACHE", str(tmp_path / "cache"))
    captions = download(tmp_path, 5000, 1000)
    check(tmp_path, captions, 5000)
