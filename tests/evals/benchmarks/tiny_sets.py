"""Tiny benchmarks in the layouts that they are published in. Pictures are those of `known_answers`:
one tells its number."""

import io
import json

import numpy as np
from known_answers import encoded, picture
from PIL import Image


def png(k):
    return encoded(picture(k))


def number_of(content):
    """The number of a picture of `known_answers`, whatever format it was saved in without loss."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return int(pixels[..., 0].reshape(-1).argmax())


def numbers_of(source, column="image"):
    return [number_of(source[i][column]) for i in range(len(source))]


def put(folder, name, k):
    """A picture file; its suffix says nothing about its format."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(k))
    return path


def write_json(path, node):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node, ensure_ascii=False), encoding="utf-8")
    return path


def class_folders(folder, names, each=2, suffix=".JPEG"):
    """`each` pictures in a folder of each name; pictures of the i-th tell i (modulo 64)."""
    for i, name in enumerate(names):
        for j in range(each):
            put(folder, f"{name}/{name}_{j}{suffix}", i % 64)
    return folder


def karpathy(folder, name="dataset_coco.json", filepath="val2014", images=6):
    """Karpathy's JSON: every third image is of another split, and has captions too."""
    rows = []
    for i in range(images):
        split = ("test", "test", "restval")[i % 3]
        sentences = [
            {
                "tokens": ["word"],
                "raw": f"word {i}, number {j} of {i}",
                "imgid": i,
                "sentid": 5 * i + j,
            }
            for j in range(5)
        ]
        row = {
            "filename": f"COCO_{i:03d}.jpg",
            "imgid": i,
            "split": split,
            "sentids": [5 * i + j for j in range(5)],
            "sentences": sentences,
        }
        rows.append(row | ({"filepath": filepath, "cocoid": 100 + i} if filepath else {}))
        put(folder, f"{filepath}/COCO_{i:03d}.jpg" if filepath else f"images/COCO_{i:03d}.jpg", i)
    return write_json(folder / name, {"images": rows, "dataset": "coco"})


def coco(folder, images=4):
    """CLIP_benchmark's `coco_test_karpathy.json`; neither ids nor annotations are in order."""
    rows = [{"id": 900 - 7 * i, "file_name": f"{i}.jpg"} for i in range(images)]
    annotations = [
        {"image_id": 900 - 7 * (k % images), "id": 50 - k, "caption": f"caption {k}"}
        for k in range(5 * images)
    ]
    for i in range(images):
        put(folder, f"val2014/{i}.jpg", i)
    return write_json(
        folder / "coco_test_karpathy.json",
        {"images": rows, "annotations": annotations, "info": {}, "type": "captions"},
    )


def flickr(folder, name="flickr30k_test_karpathy.txt", images=4):
    lines = ["image,caption"]
    lines += [f"{i}.jpg,a man, number {j}, of {i}" for i in range(images) for j in range(5)]
    for i in range(images):
        put(folder, f"{i}.jpg", i)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def crossmodal(folder, languages=("de", "en", "quz"), images=3):
    rows = []
    for i in range(images):
        rows.append(
            {
                "image/key": f"key{i}",
                **{lang: {"caption": [f"{lang} {i}", f"{lang} {i} again"]} for lang in languages},
            }
        )
        put(folder, f"images/key{i}.jpg", i)
    (folder / "captions.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def xtd(folder, images=3):
    """XTD10's repository: German is in MIC, Japanese in STAIR."""
    place = folder / "XTD10"
    for i in range(images):
        put(place, f"images/COCO_{i}.jpg", i)
    (place / "test_image_names.txt").write_text("".join(f"COCO_{i}.jpg\n" for i in range(images)))
    for where, language in (("XTD10", "es"), ("MIC", "de"), ("STAIR", "jp")):
        (folder / where).mkdir(exist_ok=True)
        text = "".join(f"{language} {i}\n" for i in range(images))
        (folder / where / f"test_1kcaptions_{language}.txt").write_text(text, encoding="utf-8")
    return folder


def sugar_crepe(folder, kind="add_att", instances=4):
    rows = {}
    for i in range(instances):
        put(folder, f"val2017/{i}.jpg", i)
        rows[str(3 * i)] = {
            "filename": f"{i}.jpg",
            "caption": f"right {i}",
            "negative_caption": f"wrong {i + 20}",
        }
    return write_json(folder / f"{kind}.json", rows)


def mmvp(folder, pairs=3):
    lines = ["Question ID,Type,Statement"]
    for i in range(2 * pairs):
        kind = ("Orientation and Direction", "Text")[i // 2 % 2]
        put(folder, f"MLLM_VLM Images/{kind}/{i + 1}.jpg", i)
        lines.append(f'{i + 1},{kind},"statement, {i}"')
    (folder / "Questions.csv").write_text("\n".join(lines) + "\n")
    return folder


def objectnet(folder):
    """Three classes, one of which is not in ImageNet; the order of folders is not that of names."""
    labels = {"air_freshener": "Air freshener", "z_alarm": "Alarm clock", "backpack": "Backpack"}
    for i, name in enumerate(labels):
        put(folder, f"objectnet-1.0/images/{name}/a.png", i)
        put(folder, f"objectnet-1.0/images/{name}/b.png", i)
    mappings = folder / "objectnet-1.0" / "mappings"
    write_json(mappings / "folder_to_objectnet_label.json", labels)
    write_json(
        mappings / "objectnet_to_imagenet_1k.json",
        {"Backpack": "backpack, knapsack; bag", "Alarm clock": "analog clock"},
    )
    return folder
