"""The report page: complete in one file, whatever the run went through, and safe with any caption."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxvl.evals import charts, report
from jaxvl.evals.result import GalleryRow, Item
from jaxvl.evals.split import png

EVIL = "<script>alert('x')</script> & \"quotes\" </style>"


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not close in order."""

    VOID = {"meta", "link", "img", "input", "line", "path"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], [], []
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
    items = (Item("blue square", 0.75, False, picture(10)), Item(text, 0.5, True, None), Item("none", float("nan"), False))
    return [
        GalleryRow("Image to text", text, picture(200), items, 2.0, "a note"),
        GalleryRow("Text to image", text, None, items[:1], 17.5),
    ]


def write_run(workdir, records, **files):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for name, content in files.items():
        (workdir / f"{name}.json").write_text(json.dumps(content))


def records(steps=(10, 20, 30), loss=lambda s: 100 / s):
    out = [{"step": 0, "time": 1.0, "kind": "event", "name": "compile/pairs", "compile_seconds": 4.25}]
    for s in steps:
        speed = {"examples_per_second": 640.0, "data_wait": 0.0125, "skipped": 0.0, "skipped_records": 0.0}
        out.append({"step": s, "time": 1.0 + s, "kind": "train", "name": "pairs", "loss": loss(s), "lr": s / 1000, **speed})
        figures = {"acc@1": s / 100, "acc@5": s / 50, "acc@1_chance": 0.01, "classes": 100.0, "skipped/image cannot be decoded": 3.0}
        out.append({"step": s, "time": 1.5 + s, "kind": "eval", "name": "unseen", **figures})
    return out


def page(workdir):
    path = report.write_report(workdir)
    assert path == workdir / "report.html"
    return path.read_text(encoding="utf-8"), Page(path.read_text(encoding="utf-8"))


def test_everything_is_inside_one_file(tmp_path):
    write_run(tmp_path, records(), config={"steps": 30, "model": {"name": "align"}}, machine={"command": "python -m jaxvl.train"})
    report.save_gallery(tmp_path, "unseen", 30, gallery())
    text, parsed = page(tmp_path)
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "srcset", "action", "poster", "data"):
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]!r}>"
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    assert not (tmp_path / "report.part").exists()


def test_shows_figures_speed_config_machine_and_skips(tmp_path):
    write_run(tmp_path, records(), config={"steps": 30, "model": {"name": "align"}, "seed": 7}, machine={"cpu": "a cpu", "cores": 2})
    words = page(tmp_path)[1].words
    for expected in ("30 steps", "30.0 %", "60.0 %", "chance 1.0 %", "× 30", "640", "1.2 %", "image cannot be decoded"):
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
    assert "right answer at rank 2 a note" in parsed.words and "right answer at rank 18" in parsed.words
    assert text.count("data:image/png;base64,") == 3


BROKEN = {"metrics.jsonl": '{"step": 1, "ti', "config.json": "{", "gallery.json": "{}", "machine.json": ""}


@pytest.mark.parametrize("files", [{}, {"metrics.jsonl": ""}, BROKEN], ids=["nothing", "no records", "broken files"])
def test_an_empty_or_broken_run_is_still_a_page(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert "This run has not recorded anything yet" in page(tmp_path)[1].words


def test_values_that_are_not_finite(tmp_path):
    nan = float("nan")
    run = records(loss=lambda s: None if s == 20 else nan if s == 30 else 5.0)
    run += [{"step": 40, "time": 50.0, "kind": "eval", "name": "broken", "acc@1": nan, "acc@1_chance": float("inf")}]
    write_run(tmp_path, run)
    text, parsed = page(tmp_path)
    assert "Loss not finite in 2 of the records" in parsed.words
    assert "not finite" in parsed.words
    assert not re.search(r"\b(NaN|Infinity|None|nan|inf)\b", text)


def test_captions_and_names_are_escaped(tmp_path):
    run = [{**r, "name": EVIL} if r["kind"] != "event" else r for r in records()]
    write_run(tmp_path, run, config={"steps": 30, "note": EVIL, "model": {"name": EVIL}}, machine={"command": EVIL})
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
    loss = [r["loss"] for r in report.read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert loss == [10.0, 1.0, 1.0]


def test_skips_by_cause_come_from_events(tmp_path):
    run = records() + [{"step": 30, "time": 40.0, "kind": "event", "name": "skipped/pairs", "truncated record": 2.0, "other": 0.0}]
    write_run(tmp_path, run)
    words = page(tmp_path)[1].words
    assert "task pairs truncated record 2" in words and "other" not in words


def test_save_gallery_keeps_the_latest_of_every_evaluator(tmp_path):
    report.save_gallery(tmp_path, "a", 1, gallery("old"))
    report.save_gallery(tmp_path, "b", 1, gallery("b"))
    sheet = report.save_gallery(tmp_path, "a", 2, gallery("new"))
    saved = json.loads((tmp_path / "gallery.json").read_text())
    assert {k: (v["step"], v["rows"][0]["text"]) for k, v in saved.items()} == {"a": (2, "new"), "b": (1, "b")}
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
    figures = {"heard/r@10": 0.2, "heard/r@10_low": 0.1, "heard/r@10_high": 0.3, "heard/fr/r@1": 0.01, "heard/fr/r@10": 0.25}
    console.print(report.summary_table(figures))
    text = console.export_text().replace("\u00a0", " ")
    assert re.search(r"heard.*r@10.*20\.0 % \(10\.0 % … 30\.0 %\)", text) and re.search(r"fr/r@10.*25\.0 %", text)
    assert "fr/r@1 " not in text and "_low" not in text


@pytest.mark.parametrize(
    "name, kind", [("acc@1", "percent"), ("fr/text2image_r@10", "percent"), ("exact", "percent"), ("meteor_exact_stem", "number")]
)
def test_shares_are_percents(name, kind):
    assert report.kind_of(name) == kind


def test_a_gallery_row_that_ranks_nothing_shows_no_rank(tmp_path):
    write_run(tmp_path, records())
    row = GalleryRow("Image to caption", "red square", None, (Item("a red square", 0.8, False),))
    report.save_gallery(tmp_path, "written", 30, [row])
    words = page(tmp_path)[1].words
    assert "a red square" in words and "right answer at rank" not in words


@pytest.mark.parametrize("low, high", [(0, 1), (0.3, 97), (-5, 5), (1e-7, 3e-7), (999, 1001), (0, 6000)])
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
