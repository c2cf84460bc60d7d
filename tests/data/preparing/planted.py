"""Clean pairs with one fault of every kind among them."""

import collections
import dataclasses
import io

import numpy as np
from data_samples import encoded
from PIL import Image

COMMON = "a very common alt text"
OPTIONS = dict(image="image", texts=("alt", "title"), shard_records=16, examples=3)


def picture(seed, height=216, width=216, brightest=256):
    """Large blocks of noise: perceptual hashes of two differ in about half of their bits."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(brightest // 4, brightest, (8, 8, 3)).astype(np.uint8)
    rows = np.arange(height) * 8 // height
    columns = np.arange(width) * 8 // width
    return blocks[rows][:, columns]


def brightness(data):
    """What the plugin's scorer says of a picture."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("L")).mean() / 255


def uid(i):
    return f"{i * 7919 % 2**63:016x}{i * 104729:016x}"


def clean(i):
    return {
        "image": encoded(picture(i)),
        "alt": [f"a clean photo number {i % 6}"],
        "uid": uid(i),
        "class_label": i,
        "boxes": [[0, 0, i, 1]],
    }


def with_(i, **changes):
    return {**clean(i), **changes}


@dataclasses.dataclass
class Planted:
    """Records; rule or cause -> positions of those that it takes; position -> texts that are left
    where some go; positions of the rest."""

    records: list
    faults: dict
    kept_texts: dict
    clean: list
    subset: np.ndarray
    test_pictures: list
    vocabulary: int


def planted():
    good = [clean(i) for i in range(36)]
    whole = encoded(picture(900))
    seen = [with_(200, image=encoded(picture(200)))]
    faults = {
        "image cannot be decoded": [
            with_(100, image=whole[: len(whole) // 2]),
            with_(101, image=b"<html>404</html>"),
        ],
        "no caption": [with_(102, alt=[]), with_(103, alt=["", " \n"])],
        "record cannot be read": [{"cause": "record cannot be read"}],
        "uid_subset": [with_(110), with_(111)],
        "min_side": [with_(120, image=encoded(picture(120, 200, 300)))],
        "max_aspect": [with_(130, image=encoded(picture(130, 210, 630)))],
        "texts_per_image": [
            with_(140 + k, image=encoded(picture(140)), alt=[text])
            for k, text in enumerate(
                [
                    "a clean photo number 0",
                    "a clean photo number 1",
                    "clean photo number 2",
                    "clean photo number 3",
                    "photo number 0",
                ]
            )
        ],
        "near_test_images": [with_(150, image=encoded(picture(200), "JPEG", quality=60))],
        "images_per_text": [
            with_(160 + k, alt=[COMMON if k % 2 else COMMON.upper()]) for k in range(11)
        ],
        "rare_words": [with_(180, alt=["a clean zyzzyva photo number 1"])],
        "word_count": [
            with_(190, alt=["photo number"]),
            with_(191, alt=["photo number " * 10 + "photo"]),
        ],
        "duplicates": [with_(5, alt=[" A clean  photo NUMBER 5"])],
        "score": [with_(210, image=encoded(picture(210, brightest=60)))],
    }
    partly = {
        "one of two texts is rare": with_(220, alt=["a clean photo number 2", "qwertz of the day"]),
        "the title is too long": with_(
            221, alt=["a clean photo number 3"], title="photo number " * 11
        ),
    }
    records = list(good)
    places = {}
    for name, found in faults.items():
        places[name] = list(range(len(records), len(records) + len(found)))
        records += found
    left = {
        len(records): {"alt": ["a clean photo number 2"]},
        len(records) + 1: {"alt": ["a clean photo number 3"]},
    }
    records += partly.values()
    # The order of the source is not that of the faults.
    order = np.random.default_rng(0).permutation(len(records))
    order = np.concatenate([[5], order[order != 5]])  # what is kept of two is the first
    new = {int(old): position for position, old in enumerate(order)}
    places = {name: sorted(new[old] for old in found) for name, found in places.items()}
    in_subset = [
        record["uid"]
        for old, record in enumerate(records)
        if "uid" in record and new[old] not in places["uid_subset"]
    ]
    numbers = sorted({(int(text[:16], 16), int(text[16:], 16)) for text in in_subset})
    kept_texts = {new[old]: texts for old, texts in left.items()}
    records = [records[old] for old in order]
    return Planted(
        records,
        places,
        kept_texts,
        sorted([new[old] for old in range(len(good))] + list(kept_texts)),
        np.array(numbers, "u8,u8"),
        seen,
        vocabulary(records),
    )


def vocabulary(records):
    """How many unigrams and bigrams occur at least three times, counted plainly."""
    counts = collections.Counter()
    for record in records:
        for text in (
            [*record.get("alt", ()), record.get("title", "")] if "cause" not in record else ()
        ):
            split = text.lower().split()
            if "image" in record and record["image"][:4] == b"<htm":
                continue
            counts.update([*split, *zip(split, split[1:])])
    return sum(n >= 3 for n in counts.values())
