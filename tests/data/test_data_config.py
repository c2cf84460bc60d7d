"""What a config says of a task's data, and what is refused before anything is read."""

import dataclasses

import ml_collections
import numpy as np
import pytest
from data_samples import COLUMNS, MOVING, FakeConfig, FakeSource, record, tokenizer

from jaxvl.config import ConfigError, resolve, to_dict
from jaxvl.data.augment import Augment
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig, ReaderConfig
from jaxvl.data.fields.boxes import PictureWithBoxes
from jaxvl.data.fields.caption import Caption
from jaxvl.data.fields.constant import Constant
from jaxvl.data.fields.frames import Frames
from jaxvl.data.fields.numbers import Array, Group, Label, Number
from jaxvl.data.fields.picture import Picture
from jaxvl.data.fields.waveform import Waveform
from jaxvl.data.records import DataError
from jaxvl.data.sources.base import Column
from jaxvl.data.sources.demo.shapes import Shapes

ALL = dict(
    image=Picture(size=10),
    text=Caption("name/en", length=12),
    video=Frames(size=8, frames=3),
    waveform=Waveform("speech/*", seconds=0.01),
    group_id=Group("class_label"),
)
CONFIG = DataConfig(FakeConfig(), batch=8, fields=ALL)


def config(**options):
    return dataclasses.replace(CONFIG, **options)


def node(**options):
    """As a config file has it."""
    fields = dict(image=dict(name="picture", size=10), text=dict(name="caption", columns="name/en"))
    return dict(source=dict(name="shapes", split="train_a"), batch=8, fields=fields) | options


# --------------------------------------------------------------------------------------------------
# What a batch holds


def test_entries_of_all_fields_with_their_shapes():
    rows = {name: (shape.shape, shape.dtype) for name, shape in CONFIG.shapes.items()}
    assert rows == {
        "image": ((8, 10, 10, 4), np.uint8),
        "text": ((8, 12), np.int32),
        "video": ((8, 3, 8, 8, 4), np.uint8),
        "waveform": ((8, 160), np.int16),
        "waveform_length": ((8,), np.int32),
        "group_id": ((8,), np.int32),
        "position": ((8,), np.int32),
    }
    assert CONFIG.inputs == {
        "image": "image",
        "text": "text",
        "video": "video",
        "waveform": "waveform",
    }
    assert (CONFIG.text_length, CONFIG.texts_per_row, CONFIG.records_per_batch) == (12, 1, 8)


def test_masks_are_of_what_the_model_reads():
    more = set(config(missing="mask").shapes) - set(CONFIG.shapes)
    assert more == {"has_image", "has_text", "has_video", "has_waveform"}
    assert all(config(missing="mask").shapes[name].dtype == np.bool_ for name in more)


def test_views_and_names_of_ones_own():
    fields = dict(
        photo=Picture(size=10),
        view=Picture(size=10),
        title=Caption("name/en", length=5),
        body=Caption("name/de", length=9, count=3),
    )
    own = config(fields=fields)
    assert own.inputs == {"photo": "image", "view": "image", "title": "text", "body": "text"}
    assert (own.text_length, own.texts_per_row) == (9, 3) and own.shapes["body"].shape == (8, 3, 9)
    without = config(fields=dict(image=Picture(size=10), width=Number("width")))
    assert (without.text_length, without.tokens) == (0, 0) and set(without.shapes) == {
        "image",
        "width",
        "position",
    }


def test_the_text_of_a_sound_is_a_text():
    paired = config(fields=dict(waveform=Waveform("speech/*", text="name/*", text_length=7)))
    assert paired.inputs == {"waveform": "waveform", "text": "text"} and paired.text_length == 7


def test_what_the_compiled_step_reads():
    """Augmentation, and nothing that the host does."""
    base = CONFIG.on_device
    assert set(base) == {"image", "video"}
    host = dict(
        image=Picture(size=10, crop=(0.1, 0.5), fast_decode=False),
        text=Caption(["name/en", "name/de"], length=12),
    )
    assert config(fields=ALL | host, reader=ReaderConfig(threads=9)).on_device == base
    for changed in (
        dict(image=Picture(size=10, augment=Augment(flip=0.5))),
        dict(video=Frames(size=8, frames=3, augment=Augment(hue=3.0))),
        dict(view=Picture(size=10)),
    ):
        assert config(fields=ALL | changed).on_device != base


# --------------------------------------------------------------------------------------------------
# As a config file


def test_a_config_file_names_source_sampler_and_fields():
    found = resolve(
        DataConfig, ml_collections.ConfigDict(node(sampler="in_order", reader=dict(threads=2)))
    )
    assert found.source == Shapes(split="train_a") and type(found.sampler).__name__ == "InOrder"
    assert found.fields == dict(
        image=Picture(size=10), text=Caption("name/en")
    ) and found.reader == ReaderConfig(threads=2)
    again = resolve(DataConfig, to_dict(found))
    assert again == found and to_dict(again) == to_dict(found)


@pytest.mark.parametrize(
    "given, columns",
    [
        ("name/en", {"name/en": 1.0}),
        (["name/en", "name/*"], {"name/en": 1.0, "name/*": 1.0}),
        (("name/en",), {"name/en": 1.0}),
        ({"name/en": 3, "keywords/en": 0.5}, {"name/en": 3.0, "keywords/en": 0.5}),
    ],
)
def test_columns_of_a_caption_with_and_without_weights(given, columns):
    fields = dict(text=dict(name="caption", columns=given))
    assert resolve(DataConfig, node(fields=fields)).fields["text"].columns == columns
    assert Caption(given).columns == columns


REFUSED = [
    (dict(source="shape"), r"^source.name: 'shape' .*did you mean 'shapes'"),
    (dict(sampler="shufled"), r"^sampler.name: 'shufled' .*did you mean 'shuffled'"),
    (dict(fields=dict(image="pictur")), r"^fields.image.name: 'pictur' .*did you mean 'picture'"),
    (dict(fields=dict(image=dict(size=10))), r"^fields.image.name: is required \(known: .*picture"),
    (
        dict(fields=dict(image=dict(name="picture", sise=10))),
        r"^fields.image.sise: .*did you mean 'size'",
    ),
    (dict(fields=dict(image=dict(name="picture", size=0))), r"^fields.image.size: "),
    (dict(fields=dict(image=dict(name="picture", crop=(0.0, 1.0)))), r"^fields.image.crop: "),
    (dict(fields=dict(image=dict(name="picture", crop=(0.9, 0.1)))), r"^fields.image.crop: "),
    (
        dict(fields=dict(image=dict(name="picture", crop_ratio=(2.0, 1.0)))),
        r"^fields.image.crop_ratio: ",
    ),
    (dict(fields=dict(video=dict(name="frames", frames=0))), r"^fields.video.frames: 0 must be"),
    (dict(fields=dict(video=dict(name="frames", stride=0))), r"^fields.video.stride: 0 must be"),
    (dict(fields=dict(waveform=dict(name="waveform", seconds=0.0))), r"^fields.waveform.seconds: "),
    (
        dict(fields=dict(waveform=dict(name="waveform", seconds=0.01, parts=7))),
        r"^fields.waveform.parts: 7 must divide the 160 samples of 0.01 s",
    ),
    (
        dict(fields=dict(waveform=dict(name="waveform", seconds=1e-6))),
        r"^fields.waveform.seconds: .*at least one sample",
    ),
    (dict(fields=dict(text=dict(name="caption", columns=3))), r"^fields.text.columns: "),
    (
        dict(fields=dict(text=dict(name="caption", columns={"name/en": "1"}))),
        r"^fields.text.columns",
    ),
    (
        dict(fields=dict(text=dict(name="caption", length=2))),
        r"^fields.text.length: 2 must be >= 3 and",
    ),
    (dict(fields=dict(text=dict(name="caption", count=0))), r"^fields.text.count: 0 must be"),
    (dict(fields=dict(width=dict(name="number"))), r"^fields.width.column: is required"),
    (
        dict(fields=dict(width=dict(name="array", column="width", shape=()))),
        r"^fields.width.shape: ",
    ),
    (dict(fields={}), r"^fields: must name at least one field \(known: .*caption"),
    (dict(batch=0), r"^batch: 0 must be >= 1"),
    (dict(error_budget=2.0), r"^error_budget: 2.0 is a share"),
    (dict(error_minimum=0), r"^error_minimum: 0 must be >= 1"),
    (dict(missing="zero"), r"^missing: 'zero' is not valid; one of 'skip', 'mask'"),
    (dict(reader=dict(threads=0)), r"^reader.threads: 0 must be >= 1"),
    (dict(reader=dict(prefetch_mb=0)), r"^reader.prefetch_mb: 0 must be >= 1"),
    (dict(reader=dict(cache_mb=-1)), r"^reader.cache_mb: -1 must be >= 0"),
    (dict(interleave=dict(records=1)), r"^interleave.records: 1 must be"),
    (
        dict(interleave=dict(records=4, length=9)),
        r"^interleave.length: 9 must be >= 3 tokens for each of 4 texts",
    ),
    (dict(corpus="shapes"), r"^corpus: .*unknown|^corpus: .*valid"),
    (dict(source=dict(name="shapes", split="train_a", size=3)), r"^source.size: 3 must be in 8"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_what_a_config_cannot_say(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve(DataConfig, node(**options))


def test_the_source_is_required():
    without = node()
    del without["source"]
    with pytest.raises(ConfigError, match="^source: is required"):
        resolve(DataConfig, without)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(text=Caption("name/en"), sound=Waveform("speech/*", text="name/*")),
            "^fields.sound: fills the batch entry 'text', which fields.text fills",
        ),
        (
            dict(position=Number("width")),
            "^fields.position: fills the batch entry 'position', which the loader fills",
        ),
        (
            dict(signal=Number("width")),
            "^fields.signal: fills the batch entry 'signal', which the loader fills",
        ),
        (
            dict(waveform=Waveform("speech/*"), waveform_length=Number("n")),
            "^fields.waveform_length: .*'waveform_length', which fields.waveform",
        ),
        (
            dict(image=PictureWithBoxes(), image_boxes=Array("b", (3,))),
            "^fields.image_boxes: .*'image_boxes', which fields.image fills",
        ),
    ],
)
def test_two_fields_cannot_fill_one_entry(fields, message):
    with pytest.raises(ConfigError, match=message):
        config(fields=fields)


def test_a_field_cannot_take_the_name_of_a_mask():
    fields = dict(image=Picture(size=10), has_image=Number("n"))
    assert "has_image" in config(fields=fields).shapes
    with pytest.raises(
        ConfigError,
        match="^fields.has_image: fills the batch entry 'has_image', which the loader fills",
    ):
        config(fields=fields, missing="mask")


@pytest.mark.parametrize("name", ["segment", "lengths", "weight"])
def test_a_field_cannot_take_the_name_of_what_packing_adds(name):
    fields = dict(image=Picture(size=10), text=Caption("name/en"))
    rows = resolve(DataConfig, node(interleave=dict(records=3))).interleave
    assert name in config(fields=fields, interleave=rows).shapes
    with pytest.raises(
        ConfigError, match=f"^fields.{name}: fills the batch entry '{name}', which the loader fills"
    ):
        config(fields=fields | {name: Number("n")}, interleave=rows)


def test_a_mask_needs_something_that_the_model_reads():
    with pytest.raises(ConfigError, match="^missing: 'mask' needs a field that the model reads"):
        config(fields=dict(class_label=Label(), one=Constant(1.0)), missing="mask")


# --------------------------------------------------------------------------------------------------
# Records that a task can use


def lacking():
    """Records without frames, without any sound, without a class: 0 has all."""
    whole = {**record(0), "frames": [record(0)["image"]], "speech/fr": b"x", "speech/de": b"y"}
    drop = lambda *names: {name: value for name, value in whole.items() if name not in names}
    columns = MOVING | {"class_label": Column("class", optional=True)}
    replace = {
        0: whole,
        1: drop("frames"),
        2: drop("speech/fr"),
        3: drop("speech/fr", "speech/de"),
        4: drop("class_label"),
    }
    return FakeSource(
        5, replace, columns, known=("frames", "speech/fr", "speech/de", "speech/ja", "class_label")
    )


def kept(fields, missing="skip"):
    source = lacking()
    found = config(fields=fields, missing=missing).select(source)
    index = getattr(found, "_index", np.arange(len(source)))
    return index.tolist()


@pytest.mark.parametrize(
    "fields, numbers",
    [
        (dict(image=Picture()), [0, 1, 2, 3, 4]),
        (dict(video=Frames()), [0, 2, 3, 4]),
        (dict(sound=Waveform("speech/*")), [0, 1, 2, 4]),
        (dict(sound=Waveform("speech/*", languages=("fr",))), [0, 1, 4]),
        (dict(sound=Waveform("speech/fr"), video=Frames()), [0, 4]),
        (dict(image=Picture(), class_label=Label()), [0, 1, 2, 3]),
    ],
)
def test_records_that_a_source_knows_to_lack_something_are_left_out(fields, numbers):
    assert kept(fields) == numbers


def test_under_masks_those_are_kept_that_lack_what_the_model_reads():
    fields = dict(image=Picture(), video=Frames(), sound=Waveform("speech/*"))
    assert kept(fields, "mask") == [0, 1, 2, 3, 4]
    # There is no mask of a class: a row without one would be one of class 0.
    assert kept(fields | dict(class_label=Label()), "mask") == [0, 1, 2, 3]


def test_a_source_without_any_such_record():
    with pytest.raises(DataError, match="fake: no record has speech/ja"):
        config(fields=dict(sound=Waveform("speech/ja"))).select(lacking())
    with pytest.raises(DataError, match="fake: no record has all of frames, speech/fr"):
        source = FakeSource(
            2,
            {0: {**record(0), "frames": [b"x"]}, 1: {**record(1), "speech/fr": b"x"}},
            MOVING,
            ("frames", "speech/fr"),
        )
        config(fields=dict(video=Frames(), sound=Waveform("speech/fr"))).select(source)


def test_patterns_that_no_column_has_are_named():
    with pytest.raises(
        ConfigError,
        match=r"^fields.text.columns: 'nmae/\*' is no column of fake.*\(columns: key \(text\), ",
    ):
        config(fields=dict(text=Caption("nmae/*"))).select(FakeSource(1))
    with pytest.raises(
        ConfigError, match=r"^fields.sound.columns: 'speech/\*' is no column of fake"
    ):
        config(fields=dict(sound=Waveform("speech/*"))).select(FakeSource(1, columns=COLUMNS))


def test_batches_are_shaped_as_the_config_says():
    fields = dict(
        image=Picture(size=10),
        text=Caption("name/en", length=12),
        title=Caption("name/de", length=5, count=2),
        n=Constant(2.0),
    )
    own = config(fields=fields)
    batches = Batches(own, FakeSource(9), tokenizer(), seed=0)
    batch = batches[0]
    batches.close()
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        name: (shape.shape, shape.dtype) for name, shape in own.shapes.items()
    }
