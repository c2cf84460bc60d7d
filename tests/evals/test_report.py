"""The report page: complete in one file, whatever the run went through, and safe with any
caption."""

import html.parser
import io
import json
import pathlib
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from jaxvl.evals import charts, report, sheet
from jaxvl.evals.result import GalleryRow, Item
from jaxvl.evals.thumbnails import png
from jaxvl.training.writer import Writer

EVIL = "<script>alert('x')</script> & \"quotes\" </style>"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not close in order."""

    VOID = {"meta", "link", "img", "input", "line", "path"}

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.text = []
        self._open = []
        self.feed(text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())


def picture(colour):
    return png(np.full((16, 16, 3), colour, np.uint8), 16)


def gallery(text="red square"):
    items = (
        Item("blue square", 0.75, False, picture(10)),
        Item(text, 0.5, True, None),
        Item("none", float("nan"), False),
    )
    return [
        GalleryRow("Image to text", text, picture(200), items, 2.0, "a note"),
        GalleryRow("Text to image", text, None, items[:1], 17.5),
    ]


def write_run(workdir, records, **files):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for name, content in files.items():
        (workdir / f"{name}.json").write_text(json.dumps(content))


def records(steps=(10, 20, 30), loss=lambda s: 100 / s):
    out = [
        {"step": 0, "time": 1.0, "kind": "event", "name": "compile/pairs", "compile_seconds": 4.25}
    ]
    for s in steps:
        speed = {
            "examples_per_second": 640.0,
            "data_wait": 0.0125,
            "skipped": 0.0,
            "skipped_records": 0.0,
        }
        out.append(
            {
                "step": s,
                "time": 1.0 + s,
                "kind": "train",
                "name": "pairs",
                "loss": loss(s),
                "lr": s / 1000,
                **speed,
            }
        )
        figures = {
            "acc@1": s / 100,
            "acc@5": s / 50,
            "acc@1_chance": 0.01,
            "classes": 100.0,
            "skipped/image cannot be decoded": 3.0,
        }
        out.append({"step": s, "time": 1.5 + s, "kind": "eval", "name": "unseen", **figures})
    return out


def page(workdir):
    path = report.write_report(workdir)
    assert path == workdir / "report.html"
    return path.read_text(encoding="utf-8"), Page(path.read_text(encoding="utf-8"))


def test_everything_is_inside_one_file(tmp_path):
    write_run(
        tmp_path,
        records(),
        config={"steps": 30, "model": {"name": "align"}},
        machine={"command": "python -m jaxvl.train"},
    )
    report.save_gallery(tmp_path, "unseen", 30, gallery())
    text, parsed = page(tmp_path)
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "srcset", "action", "poster", "data"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]!r}>"
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    assert not (tmp_path / "report.part").exists()


def test_shows_figures_speed_config_machine_and_skips(tmp_path):
    write_run(
        tmp_path,
        records(),
        config={"steps": 30, "model": {"name": "align"}, "seed": 7},
        machine={"cpu": "a cpu", "cores": 2},
    )
    words = page(tmp_path)[1].words
    for expected in (
        "30 steps",
        "30.0 %",
        "60.0 %",
        "chance 1.0 %",
        "× 30",
        "640",
        "1.2 %",
        "image cannot be decoded",
    ):
        assert expected in words, expected
    for expected in ("cpu a cpu", "cores 2", '"name": "align"', "seed 7"):
        assert expected in words, expected


def test_gallery_marks_right_and_wrong_by_more_than_colour(tmp_path):
    write_run(tmp_path, records())
    report.save_gallery(tmp_path, "unseen", 30, gallery())
    text, parsed = page(tmp_path)
    assert "✓ right, score 0.500 red square" in parsed.words
    assert "✗ wrong, score 0.750 blue square" in parsed.words
    assert "✗ wrong, score not finite none" in parsed.words
    assert (
        "right answer at rank 2 a note" in parsed.words
        and "right answer at rank 18" in parsed.words
    )
    assert text.count("data:image/png;base64,") == 3


BROKEN = {
    "metrics.jsonl": '{"step": 1, "ti',
    "config.json": "{",
    "gallery.json": "{}",
    "machine.json": "",
}


@pytest.mark.parametrize(
    "files", [{}, {"metrics.jsonl": ""}, BROKEN], ids=["nothing", "no records", "broken files"]
)
def test_an_empty_or_broken_run_is_still_a_page(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert "This run has not recorded anything yet" in page(tmp_path)[1].words


def test_values_that_are_not_finite(tmp_path):
    nan = float("nan")
    run = records(loss=lambda s: None if s == 20 else nan if s == 30 else 5.0)
    run += [
        {
            "step": 40,
            "time": 50.0,
            "kind": "eval",
            "name": "broken",
            "acc@1": nan,
            "acc@1_chance": float("inf"),
        }
    ]
    write_run(tmp_path, run)
    text, parsed = page(tmp_path)
    assert "Loss not finite in 2 of the records" in parsed.words
    assert "not finite" in parsed.words
    assert not re.search(r"\b(NaN|Infinity|None|nan|inf)\b", text)


def test_captions_and_names_are_escaped(tmp_path):
    run = [{**r, "name": EVIL} if r["kind"] != "event" else r for r in records()]
    write_run(
        tmp_path,
        run,
        config={"steps": 30, "note": EVIL, "model": {"name": EVIL}},
        machine={"command": EVIL},
    )
    report.save_gallery(tmp_path, EVIL, 30, gallery(EVIL))
    text, parsed = page(tmp_path)
    assert "alert('x')</script>" not in text
    assert parsed.tags.count("script") == page_scripts(parsed)
    assert EVIL in "".join(parsed.text)


def page_scripts(parsed):
    """One script of data per chart, and the page's own."""
    return parsed.tags.count("figure") + 1


def test_a_resumed_run_counts_repeated_steps_once(tmp_path):
    write_run(tmp_path, records() + records(steps=(20, 30), loss=lambda s: 1.0))
    loss = [
        r["loss"] for r in report.read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"
    ]
    assert loss == [10.0, 1.0, 1.0]


def test_skips_by_cause_come_from_events(tmp_path):
    run = records() + [
        {
            "step": 30,
            "time": 40.0,
            "kind": "event",
            "name": "skipped/pairs",
            "truncated record": 2.0,
            "other": 0.0,
        }
    ]
    write_run(tmp_path, run)
    words = page(tmp_path)[1].words
    assert "task pairs truncated record 2" in words and "other" not in words


def test_what_the_data_left_out_is_shown_once(tmp_path):
    event = {"time": 40.0, "kind": "event", "name": "left_out/pairs", "damaged header": 4.0}
    write_run(
        tmp_path, records() + [{"step": 0, **event}, {"step": 20, **event}]
    )  # of the start, and of a resume
    words = page(tmp_path)[1].words
    assert words.count("damaged header") == 1 and "data of task pairs damaged header 4" in words


def test_save_gallery_keeps_the_latest_of_every_evaluator(tmp_path):
    report.save_gallery(tmp_path, "a", 1, gallery("old"))
    report.save_gallery(tmp_path, "b", 1, gallery("b"))
    sheet = report.save_gallery(tmp_path, "a", 2, gallery("new"))
    saved = json.loads((tmp_path / "gallery.json").read_text())
    assert {k: (v["step"], v["rows"][0]["text"]) for k, v in saved.items()} == {
        "a": (2, "new"),
        "b": (1, "b"),
    }
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    assert report.save_gallery(tmp_path, "none", 1, []).ndim == 3


def test_gallery_rows_survive_json():
    row = gallery()[0]
    again = GalleryRow.from_json(json.loads(json.dumps(row.to_json())))
    assert again.image == row.image and again.items[:2] == row.items[:2] and again.note == "a note"
    with Image.open(__import__("io").BytesIO(again.image)) as opened:
        assert opened.size == (16, 16)


def test_summary_table():
    console = Console(record=True, width=100)
    unseen = {"unseen/acc@1": 0.342, "unseen/acc@1_chance": 1 / 1594, "unseen/classes": 1594.0}
    console.print(report.summary_table({**unseen, "new/mean_recall": None}))
    lines = [line.replace("\u00a0", " ") for line in console.export_text().splitlines()]
    assert any(re.search(r"unseen.*acc@1.*34\.2 %.*0\.06 %", line) for line in lines)
    assert any(re.search(r"classes.*1 594", line) for line in lines)
    assert any(re.search(r"new.*mean_recall.*not finite", line) for line in lines)


def test_summary_table_shows_intervals_and_of_the_parts_only_recall():
    console = Console(record=True, width=100)
    figures = {
        "heard/r@10": 0.2,
        "heard/r@10_low": 0.1,
        "heard/r@10_high": 0.3,
        "heard/fr/r@1": 0.01,
        "heard/fr/r@10": 0.25,
    }
    console.print(report.summary_table(figures))
    text = console.export_text().replace("\u00a0", " ")
    assert re.search(r"heard.*r@10.*20\.0 % \(10\.0 % … 30\.0 %\)", text) and re.search(
        r"fr/r@10.*25\.0 %", text
    )
    assert "fr/r@1 " not in text and "_low" not in text


@pytest.mark.parametrize(
    "name, kind",
    [
        ("acc@1", "percent"),
        ("fr/text2image_r@10", "percent"),
        ("exact", "percent"),
        ("meteor_exact_stem", "number"),
    ],
)
def test_shares_are_percents(name, kind):
    assert report.kind_of(name) == kind


def test_a_gallery_row_that_ranks_nothing_shows_no_rank(tmp_path):
    write_run(tmp_path, records())
    row = GalleryRow("Image to caption", "red square", None, (Item("a red square", 0.8, False),))
    report.save_gallery(tmp_path, "written", 30, [row])
    words = page(tmp_path)[1].words
    assert "a red square" in words and "right answer at rank" not in words


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0.3, 97), (-5, 5), (1e-7, 3e-7), (999, 1001), (0, 6000)]
)
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = charts._ticks(low, high, 5)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * step and ticks[-1] >= high - 1e-9 * step and len(ticks) <= 6
    assert float(f"{step:.0e}") == pytest.approx(step)
    np.testing.assert_allclose(np.diff(ticks), step)


def test_chart_breaks_at_gaps_and_draws_a_lone_point():
    c = charts.chart("x", [charts.Series("a", ((0, 1.0), (1, None), (2, 3.0), (3, 2.0)))])
    assert c.paths[0].count("M") == 2 and "h0" in c.paths[0]
    assert [p[2] for p in c.scaled[0]] == [0, 2, 3]
    assert charts.chart("x", [charts.Series("a", ((1, None),))]) is None


def test_chart_places_values_where_they_belong():
    c = charts.chart("acc", [charts.Series("a", ((50, 0.0), (100, 0.4)))], "percent")
    assert [p[:2] for p in c.scaled[0]] == [(50.0, 100.0), (100.0, 0.0)]
    log = charts.chart("loss", [charts.Series("a", ((0, 1.0), (50, 10.0), (100, 100.0)))])
    assert log.log and [p[:2] for p in log.scaled[0]] == [(0.0, 100.0), (50.0, 50.0), (100.0, 0.0)]


def test_long_runs_are_thinned_without_moving_the_mean():
    points = tuple((i, float(i % 7)) for i in range(10_000))
    thin = charts._thin(points)
    assert len(thin) <= charts.MOST_POINTS and thin[-1][0] == 9999
    assert np.mean([y for _, y in thin]) == pytest.approx(np.mean([y for _, y in points]), abs=1e-9)


# --------------------------------------------------------------------------------------------------
# Files that were cut, edited, or are something else

DAMAGED = {
    "metrics.jsonl": [
        b'[1, 2]\n3\nnull\n"text"\n',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"step": true, "kind": "train", "name": "a"}\n',
        b'{"step": -1, "kind": "train", "name": "a"}\n{"step": 1, "kind": ["train"], "name": {}}\n',
        b'{"step": 1e99, "kind": "eval", "name": "a"}',
        b'{"step": 5, "time": "now", "kind": "eval", "name": "a", "acc@1": "much", "rank": [1], "acc@5": {"x": 1}}',
        b'{"step": 5, "time": NaN, "kind": "train", "name": "a", "loss": Infinity, "lr": -Infinity}',
        b'{"step": 5, "kind": "eval", "name": "a", "acc@1": '
        + b"9" * 400
        + b', "acc@5": 1e308, "acc@9": -1e308}',
        b'{"step": 5, "kind": "train", "name": "a", "loss": 5e-324}\n{"step": 6, "kind": "train", "name": "a", "loss": 1e308}',
        b'{"step": 5, "kind": "event", "name": "skipped/a", "cause": "a text"}\n{"step": 5, "kind": "train", "name": "a"}',
    ],
    "config.json": [
        b"[1, 2, 3]",
        b"7",
        b'"text"',
        b"null",
        b'{"steps": "many", "evals": [1]}',
        b'{"steps": NaN, "evals": {"unseen": 3}}',
        b'{"evals": {"unseen": {"source": [1], "language": 5, "name": null}}, "steps": -3}',
        b'{"steps": 30, "model":',
        b'{"a": ' * 400 + b"1" + b"}" * 400,
        b'{"tasks": {"' + b"k" * 100_000 + b'": 1}, "x": [' + b"1, " * 5000 + b"1]}",
    ],
    "machine.json": [
        b"[]",
        b"1.5",
        b'{"command": ["a"], "cpu": {"name": null}, "cores": NaN}',
        b"{",
        b'{"cores": 1e999}',
    ],
    "gallery.json": [
        b"[1]",
        b"3",
        b'{"unseen": 1}',
        b'{"unseen": {"step": 1}}',
        b'{"unseen": {"step": "x", "rows": []}}',
        b'{"unseen": {"step": 1, "rows": [1, "a", null]}}',
        b'{"unseen": {"step": 1, "rows": [{"group": 1, "text": "a", "image": null, "items": []}]}}',
        b'{"unseen": {"step": 1, "rows": [{"grou',
        b'{"unseen": {"step": 1, "rows": [{"group": "g", "text": "a", "image": "not base64", "items": []}]}}',
        b'{"unseen": {"step": 1, "rows": [{"group": "g", "text": "a", "image": null, "items": [3], "rank": 1}]}}',
        b'{"unseen": {"step": 1, "rows": [{"group": "g", "text": "a", "image": null, "items": [{"text": "b", "score": "x", "right": true}]}]}}',
        b'{"unseen": {"step": 1, "rows": [{"group": "g", "text": "a", "image": null, "items": [], "rank": NaN}]}}',
    ],
}
# What is no damage: a figure that is not finite, a config that is only strange, a task without
# records.
UNHARMED = (
    b"Infinity",
    b"5e-324",
    b"1e308",
    b"NaN}]",
    b'{"a": ',
    b'"evals"',
    b'"tasks"',
    b'"cores"',
    b"skipped/a",
)
CASES = [
    pytest.param(name, content, id=f"{name}-{i}")
    for name, contents in DAMAGED.items()
    for i, content in enumerate(contents)
]


@pytest.mark.parametrize("name, content", CASES)
def test_a_file_that_holds_something_else_leaves_the_rest_of_the_page(tmp_path, name, content):
    write_run(tmp_path, records(), config={"steps": 30, "seed": 7}, machine={"cpu": "a cpu"})
    report.save_gallery(tmp_path, "other", 30, gallery("red square"))
    whole = (tmp_path / name).read_bytes() if name == "metrics.jsonl" else b""
    (tmp_path / name).write_bytes(whole + content)
    text, parsed = page(tmp_path)
    told = [
        word
        for word in ("metrics.jsonl", "config.json", "machine.json", "gallery.json")
        if f"{word}: " in parsed.words
    ]
    assert told == ([] if any(part in content for part in UNHARMED) else [name])
    assert "30.0 %" in parsed.words
    for other, expected in (
        ("config.json", "seed 7"),
        ("machine.json", "cpu a cpu"),
        ("gallery.json", "red square"),
    ):
        assert name == other or expected in parsed.words
    assert not re.search(r"\b(NaN|Infinity|inf)\b", text)


def test_all_files_damaged_at_once(tmp_path):
    for name in DAMAGED:
        (tmp_path / name).mkdir()  # not even files
    words = page(tmp_path)[1].words
    assert words.count("cannot be read (Is a directory)") == 4


def test_a_last_line_that_was_cut_is_counted_and_nothing_else_is_lost(tmp_path):
    lines = [json.dumps(record) for record in records()]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, lines[-1][:40]]))
    assert len(report.read_metrics(tmp_path / "metrics.jsonl")) == len(lines)
    assert f"metrics.jsonl: line {len(lines) + 1} is no record" in page(tmp_path)[1].words


@pytest.mark.parametrize("content", DAMAGED["gallery.json"] + [b"", b"\xff", b'{"a": ' * 5000])
def test_a_damaged_gallery_is_set_aside_and_replaced(tmp_path, content, caplog):
    path = tmp_path / "gallery.json"
    for n in (1, 2):
        path.write_bytes(content)
        report.save_gallery(tmp_path, "new", 2, gallery("a"))
        saved = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert saved["new"]["step"] == 2 and saved["new"]["rows"][0]["text"] == "a"
        if b"NaN" not in content:  # the rank of a row that is not finite is no damage
            assert (tmp_path / f"gallery.json.damaged-{n}").read_bytes() == content
            assert f"it is now gallery.json.damaged-{n}" in caplog.text


def test_what_is_good_of_a_damaged_gallery_is_kept(tmp_path):
    report.save_gallery(tmp_path, "good", 1, gallery("kept"))
    saved = json.loads((tmp_path / "gallery.json").read_text())
    saved["bad"] = 3
    saved["good"]["rows"].append("no row")
    (tmp_path / "gallery.json").write_text(json.dumps(saved))
    report.save_gallery(tmp_path, "new", 2, gallery("a"))
    again = json.loads((tmp_path / "gallery.json").read_text())
    assert set(again) == {"good", "new"} and [row["text"] for row in again["good"]["rows"]] == [
        "kept",
        "kept",
    ]
    assert json.loads((tmp_path / "gallery.json.damaged-1").read_text())["bad"] == 3


# --------------------------------------------------------------------------------------------------
# Texts that are long, and texts that would do something

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "end of script": "</script><script>alert(1)</script>",
    "end of style": "</style></title></textarea><h1>x</h1>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "single quotes": "' onclick='alert(1)' data-x='",
    "image": "<img src=x onerror=alert(1)>",
    "svg": "<svg/onload=alert(1)>",
    "comment": "<!--",
    "cdata": "]]><![CDATA[ &lt; &#60;script&#62;",
    "template": "{{ 7 * 7 }}{% for x in y %}{# #}${7*7}",
    "address": "javascript:alert(1)",
    "rich": "[bold red]x[/] [link=http://x]y[/link] [/nothing]",
    "ansi": "\x1b[31mred\x1b]8;;http://x\x07link\x1b\\",
    "controls": "a\x00b\x08c\x0bd\x1fe\x7ff\x85g\r\nh",
    "direction": "\u202eabc\u202d\u200f\u0627\u0644\u2067x",
    "half a character": "a\ud800b\udc00",
}
assert len(HOSTILE) == 16


def hostile_run(workdir, text):
    """A run with `text` in every place that a file has for one."""
    name = f"n{text}"
    train = {"loss": 2.0, "lr": 0.1, name: 1.0, f"{name}acc": 0.5}
    run = [{"step": 0, "time": 1.0, "kind": "event", "name": name, name: name, "other": text}]
    run += [{"step": 1, "time": 1.0, "kind": "event", "name": f"skipped/{name}", name: 3.0}]
    for step in (1, 2):
        run += [
            {
                "step": step,
                "time": 2.0 + step,
                "kind": "train",
                "name": name,
                **train,
                "loss": 3.0 - step,
                name: 1.0 * step,
            }
        ]
        figures = {
            f"{name}acc": 0.5 * step,
            "acc@1": 0.1 * step,
            "acc@1_chance": 0.01,
            f"skipped/{name}": 1.0,
            "classes": 3.0,
        }
        run += [{"step": step, "time": 2.5 + step, "kind": "eval", "name": name, **figures}]
        run += [{"step": step, "time": 2.5 + step, "kind": text, "name": text}]
    options = {"name": name, "source": {"name": name, "split": name}, "language": name}
    config = {
        "steps": 2,
        name: name,
        "model": {"name": name, name: [name, {name: name}]},
        "evals": {name: options},
    }
    write_run(
        workdir,
        run,
        config=config,
        machine={"command": name, "cpu": text, name: name, "more": [name]},
    )
    items = (Item(name, 0.5, True, picture(3)), Item(text, 0.4, False, None))
    rows = [
        GalleryRow(name, name, picture(9), items, 1.0, name),
        GalleryRow(text, text, None, items, 17.5, text),
    ]
    report.save_gallery(workdir, name, 2, rows)


def structure(parsed):
    """What a page is made of, apart from its texts: tags in order, and names of their
    attributes."""
    free = {"d", "class", "style", "x1", "x2", "y1", "y2", "aria-label", "alt", "dir"}
    return parsed.tags, [
        (tag, name, value if name not in free else "") for tag, name, value in parsed.attributes
    ]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_inert_wherever_a_page_shows_a_text(tmp_path, text):
    (tmp_path / "run").mkdir()
    # Figures with "/" are of parts and are not drawn; so the harmless text has one wherever the
    # hostile one does.
    harmless = "".join("/" if c == "/" else "@" if c == "@" else "x" for c in text)
    pages = []
    for content in (harmless, text):
        hostile_run(tmp_path / "run", content)
        path = report.write_report(tmp_path / "run")
        raw = path.read_bytes()
        assert not set(raw) & (set(range(32)) - {9, 10}), "control characters"
        html_text = raw.decode("utf-8")
        assert not {"\x7f", "\x85", "\u202e", "\u202d"} & set(html_text)
        pages.append((html_text, Page(html_text)))
        (tmp_path / "run" / "gallery.json").unlink()
    (_, expected), (html_text, found) = pages
    assert structure(found) == structure(expected)
    for tag, name, value in found.attributes:
        assert not name.startswith("on") and not (value or "").startswith("javascript:"), (
            tag,
            name,
        )
    for data in re.findall(r'<script type="application/json">(.*?)</script>', html_text, re.S):
        assert isinstance(json.loads(data), list)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_inert_at_the_terminal_and_in_a_picture(tmp_path, text):
    console = Console(record=True, width=400, force_terminal=True, file=io.StringIO())
    console.print(
        report.summary_table(
            {f"n{text.replace('/', '')}/acc@1": 0.5, "a/" + text.replace("/", "") + "x": 1.0}
        )
    )
    shown = console.file.getvalue()
    assert not re.search(r"\x1b\]|\x1b\[3[1]m|[\x00-\x08\x0e-\x1a\x7f]", shown)
    if "[bold" in text:
        assert "[bold red]" in shown and "[link=http:x]" in shown
    row = GalleryRow(text, text, picture(9), (Item(text, 0.5, True, picture(3)),), 1.0, text)
    assert sheet.sheet([row]).ndim == 3
    with Writer(tmp_path, 3, tensorboard=True, console=console) as writer:
        writer.record(1, "eval", f"n{text}", {f"x{text}": 1.0})
        writer.record(1, "event", text, {"message": text})
        writer.image(1, f"gallery/{text}", np.zeros((8, 8, 3), np.uint8))
    assert "\x1b]" not in console.file.getvalue()


LONG = {
    "word": "w" * 10**6,
    "thin": "i" * 10**6,
    "words": "long " * 200_000,
    "wide": "\u4e00" * 10**6,
    "marks": "e" + "\u0301" * 10**6,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_text_of_a_megabyte_is_cut_before_it_is_measured(tmp_path, text, monkeypatch):
    """Once each character that was taken off was a measurement of all the others: half an hour for
    a tenth of this."""
    measured = []
    getlength = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont,
        "getlength",
        lambda self, part, *a, **k: (measured.append(len(part)), getlength(self, part, *a, **k))[1],
    )
    row = GalleryRow(
        text,
        text,
        picture(9),
        tuple(Item(text, 0.5, False, picture(3)) for _ in range(5)),
        1.0,
        text,
    )
    report.save_gallery(tmp_path, text, 1, [row])
    cells = 6
    assert len(measured) <= 80 * cells and max(measured) <= sheet.MOST + 1
    assert (tmp_path / "gallery.json").stat().st_size < 40_000
    run = [
        *records(),
        {"step": 1, "kind": "train", "name": text, text: 1.0},
        {"step": 1, "kind": "event", "name": "log", "message": text},
    ]
    write_run(tmp_path, run, config={"note": text, text: [text]}, machine={text: text})
    page_text, parsed = page(tmp_path)
    assert len(page_text) < 200_000 and max(map(len, parsed.text)) < 3000
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(report.summary_table({f"{text}/{text}": 0.5}))
    assert len(console.export_text()) < 5000


def test_a_picture_of_a_long_text_shows_its_beginning():
    """As much of the words as two lines hold, by measuring every length there is."""
    font = ImageFont.truetype(
        str(pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 11
    )
    word = "abcdefghij" * 100
    longest = max(n for n in range(100) if font.getlength(word[:n] + "…") <= 128)
    assert sheet._wrap(word, font, 128) == word[:longest] + "…"
    assert (
        sheet._wrap("a red square", font, 128) == "a red square"
        and sheet._wrap("", font, 128) == ""
    )
    two = sheet._wrap("several words that are too long for one line and for two", font, 128).split(
        "\n"
    )
    assert len(two) == 2 and all(font.getlength(line) <= 128 for line in two)
