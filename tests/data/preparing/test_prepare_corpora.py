"""The preparation on the emoji and stamps corpora with planted faults, against the same rules
written with plain dicts."""

import collections
import hashlib
import json
import pathlib
import tarfile
import time

import msgpack
import numpy as np
import pytest

pytest.importorskip("apache_beam")
imagehash = pytest.importorskip("imagehash")

import planted as samples  # noqa: E402
from data_samples import encoded  # noqa: E402

from jaxvl.config import resolve  # noqa: E402
from jaxvl.data.folders import local_cache_folder  # noqa: E402
from jaxvl.data.pictures import open_picture  # noqa: E402
from jaxvl.data.preparing.options import PrepareConfig  # noqa: E402
from jaxvl.data.preparing.run import prepare  # noqa: E402
from jaxvl.data.preparing.words import grams, normalized, words  # noqa: E402
from jaxvl.data.records import BadRecord, DataError  # noqa: E402

HERE = pathlib.Path(__file__).parent
PLUGIN = str(HERE / "faults_plugin.py")
RULES = dict(
    min_side=95,
    max_aspect=3.0,
    max_texts_per_image=4,
    max_images_per_text=10,
    min_words=1,
    max_words=8,
    test_distance=4,
)


def fault(name, seed, text="smiling face", **options):
    return {
        "image": encoded(samples.picture(seed, 96, 96), **options),
        "text": text,
        "name": f"{name}/{seed}",
    }


def faults(test_picture):
    same = encoded(samples.picture(30, 96, 96))
    return [
        {**fault("bad", 1), "image": same[:200]},
        {**fault("no caption", 2), "text": "  "},
        {**fault("min_side", 3), "image": encoded(samples.picture(3, 95, 200))},
        {**fault("max_aspect", 4), "image": encoded(samples.picture(4, 96, 288))},
        *(
            {
                **fault("texts_per_image", 30 + k),
                "image": same,
                "text": f"smiling face {'with heart ' * k}",
            }
            for k in range(5)
        ),
        {
            **fault("near_test_images", 6),
            "image": encoded(
                np.asarray(test_picture.resize((120, 120)).convert("RGB")), "JPEG", quality=85
            ),
        },
        *(fault("images_per_text", 100 + k, "stock photo of a thing") for k in range(11)),
        fault("rare_words", 7, "smiling qwertz face"),
        fault("word_count", 8, "smiling face " * 5),
        fault("duplicates", 9, "grinning face"),
        fault("duplicates", 9, " Grinning FACE "),
    ]


def pictures_of(source):
    for i in range(len(source)):
        try:
            yield open_picture(source.read(i, ["image"])["image"], 64, background=(1.0, 1.0, 1.0))
        except BadRecord:  # one without a name in English
            continue


def vocabulary(source):
    """How many unigrams and bigrams of the texts occur at least twice."""
    counts = collections.Counter()
    for i in range(len(source)):
        try:
            counts.update(grams(source.read(i, ["text"])["text"]))
        except BadRecord:
            continue
    return sum(n >= 2 for n in counts.values())


def reference(source, test_looks, most):
    """Rule -> numbers of records that it takes, and keys of those that stay, in order: all in
    memory, one rule after the other."""
    rows = []
    gone = collections.defaultdict(list)
    for i in range(len(source)):
        try:
            record = source.read(i)
            picture = open_picture(record["image"], 64, background=(1.0, 1.0, 1.0))
        except Exception:  # noqa: BLE001 (whatever a bad record raises)
            gone["bad"].append(i)
            continue
        if not record["text"].strip():
            gone["bad"].append(i)
            continue
        rows.append((i, record, picture, imagehash.phash(picture)))
    raw = collections.Counter(gram for _, record, _, _ in rows for gram in grams(record["text"]))
    ranked = sorted(raw.values(), reverse=True)
    border = ranked[most] if len(ranked) > most else 0

    def keep(name, fits):
        nonlocal rows
        gone[name] += [row[0] for row in rows if not fits(row)]
        rows = [row for row in rows if fits(row)]

    def many(key, other, most):
        groups = collections.defaultdict(set)
        for row in rows:
            groups[key(row)].add(other(row))
        return lambda row: len(groups[key(row)]) <= most

    text = lambda row: normalized(row[1]["text"])
    image = lambda row: hashlib.sha256(row[1]["image"]).hexdigest()
    keep("min_side", lambda row: min(row[2].size) > RULES["min_side"])
    keep("max_aspect", lambda row: max(row[2].size) / min(row[2].size) < 3)
    keep("texts_per_image", many(image, text, RULES["max_texts_per_image"]))
    keep(
        "near_test_images",
        lambda row: min(row[3] - look for look in test_looks) > RULES["test_distance"],
    )
    keep("images_per_text", many(text, image, RULES["max_images_per_text"]))
    keep("rare_words", lambda row: all(raw[gram] > border for gram in grams(row[1]["text"])))
    keep("word_count", lambda row: 1 <= len(words(row[1]["text"])) <= 8)
    first = {}
    for row in rows:
        first.setdefault((image(row), text(row)), row[0])
    keep("duplicates", lambda row: first[image(row), text(row)] == row[0])
    return gone, [row[1]["name"] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute on a free core
@pytest.mark.parametrize(
    "corpus, test_step",
    [(dict(name="emoji"), 997), (dict(name="stamps", audio=False), 97)],
    ids=["emoji", "stamps"],
)
def test_planted_faults_in_a_corpus(corpus, test_step, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "JAXVL_CACHE", str(local_cache_folder())
    )  # corpora that the demo has built, or will use
    (tmp_path / "none").write_bytes(msgpack.packb([]))
    tests = dict(name="with_faults", source=corpus, faults=str(tmp_path / "none"), step=test_step)
    source = dict(name="with_faults", source=corpus, faults=str(tmp_path / "faults"))
    node = dict(
        source=source,
        test_images=dict(seen=tests),
        out=str(tmp_path / "out"),
        plugins=(PLUGIN,),
        range_records=2000,
    )
    config = resolve(PrepareConfig, {**node, "rules": RULES})
    try:
        seen = config.test_images["seen"].open()
    except DataError as error:
        pytest.skip(f"the corpus cannot be fetched here: {error}")
    test_pictures = list(pictures_of(seen))
    (tmp_path / "faults").write_bytes(msgpack.packb(faults(test_pictures[0])))
    source = config.source.open()
    most = vocabulary(source)
    config = resolve(PrepareConfig, {**node, "rules": {**RULES, "vocabulary": most}})
    began = time.perf_counter()
    done = prepare(config, log=lambda _: None)
    print(f"{done.records} records, {done.kept} kept, {time.perf_counter() - began:.0f} s")

    gone, stay = reference(source, [imagehash.phash(picture) for picture in test_pictures], most)
    for rule in done.rules:
        assert rule.records_in - rule.records_out == len(gone[rule.name]), rule
        planted = [
            i
            for i in range(source.own, len(source))
            if source.read(i)["name"].startswith(rule.name)
        ]
        taken = set(planted) & set(gone[rule.name])
        assert taken == set(planted[1:] if rule.name == "duplicates" else planted), rule.name
    assert sum(done.bad.values()) == len(gone["bad"]) and {source.own, source.own + 1} <= set(
        gone["bad"]
    )
    found = []
    for shard in sorted(done.out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found += [
                json.loads(tar.extractfile(member).read())["name"]
                for member in tar
                if member.name.endswith(".json")
            ]
    assert found == stay
