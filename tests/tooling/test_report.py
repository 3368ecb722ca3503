"""`convt report`: one page that needs nothing else, pictures, and what became slower since an older file."""

import dataclasses
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convt import cli
from convt.bench import record, roofline
from convt.report import page, pictures
from convt.report.compare import compare
from convt.report.results import Roof, groups, interval, read, roofs, verdict

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def line(problem, us, eager_us=200.0, spread=0.01, **facts):
    told = {
        "suite": "kernelbench", "name": f"layer <{problem}>", "direction": "forward", "precision": "tf32",
        "layout": "contiguous", "device": "GPU", "driver": "1.2", "torch": "2.11", "cuda": "13.0", "cudnn": 91000,
        "commit": "abc", "backend": "native", "forced": None, "rivals": "all", "sizes": "full", "quick": False,
        "us": us, "us_p20": us and us * (1 - spread), "us_p80": us and us * (1 + spread),
        "eager_us": eager_us, "eager_us_p20": eager_us and eager_us * (1 - spread),
        "eager_us_p80": eager_us and eager_us * (1 + spread), "best_us": 90.0, "roofline_us": 50.0,
        "roofline_tflops": 400.0, "roofline_gbs": 4000.0, "tflops": us and 1e4 / us, "gbs": us and 1e5 / us,
        "config": "64x256p4w1x4", "ok": us is not None,
    } | facts  # fmt: skip
    return record.Line(problem=problem, **told)


def write(path, *lines):
    for made in lines:
        record.append(path, made)
    return path


class Page(HTMLParser):
    """What a page refers to, its ids, and the rows of its tables by their ids."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.tables, self.titles = [], [], {}, []
        self.open, self.table, self.cell, self.title = [], None, None, None
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        if tag not in ("meta", "input", "link", "br", "path", "use", "rect", "circle"):
            self.open.append(tag)
        self.references += [facts[name] for name in ("src", "href", "xlink:href") if name in facts]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for value in facts.values()))
        self.ids += [facts["id"]] if "id" in facts else []
        if tag == "table":
            self.table = self.tables.setdefault(facts["id"], [])
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.cell = []
        if tag == "title":
            self.title = []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        if tag in ("td", "th"):
            self.table[-1].append("".join(self.cell).strip())
            self.cell = None
        if tag == "title" and self.title is not None:
            self.titles.append("".join(self.title))
            self.title = None

    def handle_data(self, data):
        for place in (self.cell, self.title):
            if place is not None:
                place.append(data)


@pytest.fixture
def results(tmp_path):
    return write(
        tmp_path / "new.jsonl", line("57", 100.0), line("64", 400.0), line("65", 201.0, spread=0.05),
        line("58", None, ok=False, error="no"), line("57", 150.0, precision="bf16"),
    )  # fmt: skip


def test_the_page_needs_nothing_else(results, tmp_path):
    out = tmp_path / "report"
    assert cli.main(["report", str(results), "--out", str(out)]) == 0
    text = (out / "index.html").read_text()
    made = Page(text)
    assert all(reference.startswith("#") for reference in made.references), "no network, no other file"
    assert "@import" not in text and "<link" not in text and "<script src" not in text
    assert {reference[1:] for reference in made.references} <= set(made.ids)
    assert len(made.ids) == len(set(made.ids)), "figures must not share ids"
    head, *rows = made.tables["all"]
    assert [row[0] for row in rows] == ["58", "64", "65", "57", "57"], "losses first, in each group"
    first = dict(zip(head, rows[1], strict=True))
    assert (first["convt, µs"], first["eager / convt"], first["best / convt"]) == ("400", "0.50×", "0.23×")
    assert first["verdict"] == "right" and dict(zip(head, rows[0], strict=True))["verdict"] == "failed"
    assert first["layer"] == "layer <64>", "names are escaped"
    assert "compiled / convt" not in head and "Not recorded in any line: setting, compiled / convt" in text
    summary = {row[0]: row for row in made.tables["summary"][1:]}
    tf32 = summary["kernelbench · forward · TF32 · contiguous"]
    assert tf32[1:4] == ["3 of 4", "1.00×", "0.45×"] and tf32[-2:] == ["1", "1"]


def test_pictures_are_written_and_have_texts(results, tmp_path):
    out = tmp_path / "report"
    page.write([results], out)
    names = sorted(path.name for path in out.glob("*.png"))
    assert names == [
        f"kernelbench-forward-{precision}-contiguous-{kind}.png"
        for precision in ("bf16", "tf32")
        for kind in ("roofline", "speedups")
    ]
    for path in out.glob("*.png"):
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and min(struct.unpack(">II", data[16:24])) > 200
    titles = Page((out / "index.html").read_text()).titles
    assert any(title.startswith("64: layer <64>\nconvt 400 µs\neager 200 µs (0.50×)") for title in titles)


def test_themed_pictures_hold_no_color_of_their_own(results):
    (group, _) = groups(read([results]))
    for draw in (pictures.roofline, pictures.speedups):
        figure, titles = draw(group, pictures.THEMED)
        text = pictures.svg(figure, titles, "x")
        assert not set(re.findall(r"#[0-9a-f]{6}\b", text)) - {"#000000"} and "var(--loss)" in text


def test_bars_are_sorted_with_losses_first(results):
    (group, _) = groups(read([results]))
    figure, titles = pictures.speedups(group, pictures.LIGHT)
    assert [text.split(":")[0] for text in titles.values()] == ["64", "65", "57"]
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["64", "65", "57"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first one on top"
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert len(set(colors)) == 3, "a loss, a tie and a win look different"


def test_verdicts_know_noise():
    assert [verdict(made) for made in (line("a", 100.0), line("b", 400.0), line("c", 201.0, spread=0.05))] == [
        "win", "loss", "tie",
    ]  # fmt: skip
    assert verdict(line("d", 100.0, eager_us=None)) == "tie"
    assert (
        interval(line("e", 100.0, eager_us_p20=None)) is None and verdict(line("e", 100.0, eager_us_p20=None)) == "win"
    )


def test_lines_without_rates_or_rivals_make_a_page(tmp_path):
    path = write(
        tmp_path / "bare.jsonl", line("57", 100.0, eager_us=None, best_us=None, tflops=None, roofline_gbs=None)
    )
    page.write([path], tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "were not recorded" in text and not list((tmp_path / "report").glob("*.png"))


@pytest.mark.parametrize(
    ("names", "lines", "absent"),
    [
        (["h200_kernelbench"], 79, "compiled / convt"),
        (["h200_operators", "h200_roofline"], None, "p20"),
        (["cpu_bench"], 48, "best / convt"),
    ],
)
def test_results_of_the_repository_are_read_whatever_they_lack(names, lines, absent, tmp_path):
    paths = [RESULTS / f"{name}.jsonl" for name in names]
    found = read(paths)
    expected = lines or 3 * len((RESULTS / f"{names[0]}.jsonl").read_text().splitlines())
    assert len(found) == expected and all(made.ok and made.us and made.eager_us for made in found)
    table = page._table(found)
    assert any(name.startswith(absent) for name in table["absent"]) and len(table["rows"]) == expected
    text = page.html(found[:3], paths)
    assert Page(text).tables["all"]


def test_measured_roofs_stand_in_where_lines_have_none(tmp_path):
    paths = [RESULTS / "h200_operators.jsonl", RESULTS / "h200_roofline.jsonl"]
    measured = roofs(paths)
    assert measured["NVIDIA H200", "bf16"].tflops > 700 and measured["NVIDIA H200", "bf16"].gbs > 4000
    made = groups(read(paths[:1]), measured)
    assert all(group.roof == measured["NVIDIA H200", group.precision] for group in made)
    assert all(group.roof == Roof(None, None) for group in groups(read(paths[:1])))


# comparison


def test_changes_beyond_noise_come_first():
    old = [line(name, 100.0, commit="old") for name in ("a", "b", "c", "d", "e")]
    new = [
        line("a", 101.0), line("b", 130.0, spread=0.4), line("c", 110.0), line("d", 80.0), line("f", 50.0),
        line("e", 150.0, ok=False),
    ]  # fmt: skip
    changes = compare(new, old)
    assert [(change.line.problem, change.kind) for change in changes] == [
        ("e", "wrong"), ("c", "slower"), ("b", "same"), ("a", "same"), ("d", "faster"),
    ]  # fmt: skip
    assert changes[1].ratio == pytest.approx(1.1) and changes[1].noise == pytest.approx(0.02)


def test_a_line_that_fails_now_is_a_regression():
    (change,) = compare([line("a", None, ok=False)], [line("a", 100.0)])
    assert change.kind == "wrong"
    (change,) = compare([line("a", 100.0)], [line("a", None, ok=False)])
    assert change.kind == "right"


def test_percentiles_that_were_not_recorded_count_as_noise():
    lost = {"us_p20": None, "us_p80": None}
    changes = compare(
        [line("a", 115.0, **lost), line("b", 125.0, **lost)], [line("a", 100.0, **lost), line("b", 100.0, **lost)]
    )
    assert [(change.line.problem, change.kind) for change in changes] == [("b", "slower"), ("a", "same")]


def test_against_an_older_file(results, tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", line("57", 50.0, commit="old"), line("64", 800.0), line("99", 1.0))
    out = tmp_path / "report"
    command = ["report", str(results), "--against", str(old), "--out", str(out)]
    assert cli.main(command) == 0 and cli.main([*command, "--check"]) == 1
    assert "1 slower or wrong, 1 faster, of 2 in both files" in capsys.readouterr().out
    head, first, second = Page((out / "index.html").read_text()).tables["changes"]
    cells = dict(zip(head, first, strict=True))
    assert (first[0], cells["before, µs"], cells["now, µs"], cells["now / before"]) == ("57", "50", "100", "2.000")
    assert second[0] == "64" and "faster" in second
    same = [*command[:2], "--against", str(results), "--out", str(out), "--check"]
    assert cli.main(same) == 0


def test_what_cannot_be_reported_is_explained(tmp_path, results, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"suite": "roofline", "what": "copy"}) + "\nnot json\n")
    strange = write(tmp_path / "strange.jsonl", dataclasses.replace(line("1", 1.0), device="another"))
    for arguments, words in (
        ([str(tmp_path / "absent")], "there is no file"),
        ([str(other)], "no line of a layer"),
        ([str(results), "--against", str(strange)], "no problem in common"),
    ):
        assert cli.main(["report", *arguments, "--out", str(tmp_path / "none")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_from_a_bench_to_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "ceilings", lambda device, precisions: roofline.Ceilings(1e10, {"ieee": 1e11}))
    lines, out = tmp_path / "lines.jsonl", tmp_path / "report"
    bench = ["bench", "kernelbench", "--quick", "--device", "cpu", "--sizes", "tiny", "--filter", "79", "58"]
    assert cli.main([*bench, "--direction", "both", "--out", str(lines)]) == 0
    assert cli.main(["report", str(lines), "--against", str(lines), "--check", "--out", str(out)]) == 0
    text = (out / "index.html").read_text()
    made = Page(text)
    assert len(made.tables["all"]) == 5 and len(made.tables["summary"]) == 3 and len(list(out.glob("*.png"))) == 4
    assert "three per line: numbers are rough" in text and "tiny" in text
