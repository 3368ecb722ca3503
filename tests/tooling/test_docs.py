"""The documentation is held to the code: tables to results files, names and commands to what is there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from convt import cli
from convt.bench import record, tables

ROOT = Path(__file__).resolve().parents[2]
WITH_TABLES = ("README.md", "docs/overhead.md", "docs/training.md", "docs/tuning.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def code_blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(name), flags=re.MULTILINE | re.DOTALL)


# tables in documents


@pytest.mark.parametrize("name", WITH_TABLES)
def test_tables_are_what_the_results_make(name):
    """`convt bench table --update README.md docs/*.md` writes them."""
    document = ROOT / name
    assert tables.filled(document) == document.read_text()


@pytest.mark.parametrize("name", WITH_TABLES)
def test_every_place_for_a_table_is_closed(name):
    text = text_of(name)
    assert text.count("<!-- convt bench table ") == len(tables._places(ROOT / name)) == text.count("<!-- end of table")


@pytest.mark.parametrize("name", WITH_TABLES)
def test_comments_ask_as_the_command_does(name):
    for asked in re.findall(r"<!-- (convt bench table .*?) -->", text_of(name)):
        options = cli._parser().parse_args(shlex.split(asked)[1:])
        assert options.results and not options.update


# commands and names


def test_explained_commands_run(capsys):
    """Those of docs/kernels.md and the README name configurations and problems that are there."""
    documents = [command for block in code_blocks("docs/kernels.md", "bash") for command in block.splitlines()]
    documents += re.findall(r"`(convt explain [^`]*)`", text_of("README.md") + text_of("CONTRIBUTING.md"))
    explained = [command for command in documents if command.startswith("convt explain")]
    assert len(explained) >= 4
    for command in explained:
        assert cli.main(shlex.split(command, comments=True)[1:]) == 0, command
        assert "predicted" in capsys.readouterr().out


def sources() -> str:
    """All text of the code."""
    files = [path for suffix in ("hpp", "cpp", "cu", "cuh", "def") for path in (ROOT / "cuda").rglob(f"*.{suffix}")]
    files += (ROOT / "python").rglob("*.py")
    return "\n".join(path.read_text() for path in sorted(files))


def test_names_in_kernels_exist():
    """Identifiers and files that docs/kernels.md mentions."""
    text, code = text_of("docs/kernels.md"), sources()
    mentioned = re.findall(r"`([^`\n]+)`", text)
    names = {name for name in mentioned if re.fullmatch(r"(_C\.)?\w*([a-z]_|[a-z][A-Z])\w+", name)}
    assert len(names) >= 20
    # Quantities of the cost model that the text defines for itself, indented.
    defined = set(re.findall(r"(?:^ {4}|, {1,2})(\w+) += ", text, flags=re.MULTILINE))
    gone = {name for name in names - defined if not re.search(rf"\b{re.escape(name.removeprefix('_C.'))}\b", code)}
    assert not gone
    files = [name for name in mentioned if re.fullmatch(r"(cuda|tests|python)/[\w/.]+", name)]
    files += [f"cuda/{folder}/{name}" for name in mentioned for folder in ("kernel", "launch") if is_file(name, folder)]
    assert len(files) >= 8
    assert not [name for name in files if not (ROOT / name).exists()]


def is_file(name: str, folder: str) -> bool:
    """Whether a name in the table of families is one of a file; its column says in which folder."""
    if not re.fullmatch(r"\w+\.(hpp|cpp|cu)", name):
        return False
    return (name.endswith(".hpp")) == (folder == "kernel")


def test_the_cost_model_is_the_codes():
    """The constants that docs/kernels.md quotes stand so in the code."""
    tables = re.split(r"^\| in `(\w+\.cpp)` \| what \|$", text_of("docs/kernels.md"), flags=re.MULTILINE)[1:]
    assert tables[::2] == ["gemm_cost.cpp", "weight_plan.cpp"]
    for name, text in zip(tables[::2], tables[1::2], strict=True):
        quoted = re.findall(r"^\| `([^`]+)` \|", text.split("\n\n")[0], flags=re.MULTILINE)
        assert len(quoted) >= 8
        code = " ".join((ROOT / "cuda" / "launch" / name).read_text().split())
        assert not [quote for quote in quoted if quote not in code], (
            f"docs/kernels.md: the cost model of {name} changed"
        )


# making tables


def line(problem: str, us: float | None, **facts) -> record.Line:
    told = {
        "suite": "kernelbench", "name": f"layer {problem}", "direction": "forward", "precision": "tf32",
        "layout": "contiguous", "device": "GPU", "driver": "1.2", "torch": "2.11", "cuda": "13.0", "cudnn": 91000,
        "commit": "abc", "backend": "native", "forced": None, "rivals": "all", "sizes": "full", "quick": False,
        "us": us, "us_p20": us, "us_p80": us, "eager_us": 200.0, "best_us": 90.0,
        "best_setting": "channels_last benchmark",
        "roofline_us": 50.0, "roofline_tflops": 400.0, "roofline_gbs": 4300.0, "config": "64x256p4w1x4",
        "benchmark_first_call_s": 1.5, "ok": us is not None,
        "candidates": [
            {"layout": "contiguous", "benchmark": False, "us": 95.0, "first_call_s": None, "error": None},
            {"layout": "channels_last", "benchmark": True, "us": 90.0, "first_call_s": 1.5, "error": None},
        ],
    } | facts  # fmt: skip
    return record.Line(problem=problem, **told)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results" / "lines.jsonl"
    path.parent.mkdir()
    for made in (
        line("57", 400.0),
        line("57", 100.0, commit="def"),
        line("64", None, ok=False, error="no"),
        line("57", 50.0, forced="simt"),
        line("57", 1.0, sizes="tiny"),
        line("57", 80.0, precision="bf16", candidates=None),
    ):
        record.append(path, made)
    return path


def test_the_plans_last_word_counts(results):
    found = tables.read([results], ["tf32"])
    assert [(made.problem, made.us) for made in found] == [("57", 100.0), ("64", None)]
    assert [made.us for made in tables.read([results], ["57", "forward"])] == [100.0, 80.0]
    with pytest.raises(ValueError, match="matches sideways"):
        tables.read([results], ["sideways"])
    with pytest.raises(ValueError, match="there is no file"):
        tables.read([results.with_name("absent")])


def cells_of(row: str) -> list[str]:
    return row.removeprefix("| ").removesuffix(" |").split(" | ")


def test_layers(results):
    made = tables.layers(tables.read([results], ["tf32"])).splitlines()
    assert made[0].startswith(
        "GPU; driver 1.2; CUDA 13.0; cuDNN 91000; torch 2.11; commit def, abc; roofline 400 TFLOP/s tf32"
    )
    head, rule, first, second = (cells_of(row) for row in made[2:6])
    assert len(head) == len(rule) == len(first)
    cells = dict(zip(head, first, strict=True))
    assert (cells["convt"], cells["convt / roofline"], cells["eager / convt"]) == ("100", "2.00", "2.00")
    assert cells["best / convt"] == "**0.90**", "bold where PyTorch is faster"
    assert second[-1] == "**failed**"


def test_means(results):
    rows = [cells_of(row) for row in tables.means(tables.read([results])).splitlines()[2:]]
    assert rows[0] == ["forward tf32 contiguous", "1 of 2", "2.00", "0.90", "2.00", "64", "57, 64"]
    assert rows[1] == ["forward bf16 contiguous", "1 of 1", "2.50", "1.12", "1.60", "none", "none"]


def test_training_shows_losses_first(tmp_path):
    path = tmp_path / "lines.jsonl"
    facts = {"direction": "forward_backward", "forward_us": 40.0, "backward_us": 60.0, "peak_bytes": 3_000_000}
    for made in (line("57", 100.0, **facts), line("64", 400.0, **facts), line("58", 90.0)):
        record.append(path, made)
    lines = tables.read([path])
    made = tables.training(lines).splitlines()[2:]
    head, first, second = (cells_of(made[row]) for row in (0, 2, 3))
    assert (first[0], second[0]) == ("64", "57") and made[4] == "", "the forward alone is in another table"
    cells = dict(zip(head, first, strict=False))
    assert cells["eager / convt"] == "**0.50**" and cells["forward"] == "40" and cells["backward"] == "60"
    assert cells["peak MB"] == "3"
    assert "| forward and backward tf32 contiguous | 2 of 2 | 1.00 |" in "\n".join(made)
    with pytest.raises(ValueError, match="no line here is of forward_backward"):
        tables.training(tables.read([path], ["58"]))


def test_settings_of_pytorch(results):
    made = tables.torch_settings(tables.read([results])).splitlines()[2:]
    assert made[0] == "| problem | precision | channels_last benchmark | contiguous | search, s |"
    assert made[2] == "| 57 | tf32 | 90 | 95 | 1.50 |"


def test_update_writes_and_is_content(results, capsys):
    document = results.parents[1] / "page.md"
    place = (
        "<!-- convt bench table results/{}.jsonl --kind means --filter bf16 -->\nold\n<!-- end of table -->\nafter\n"
    )
    document.write_text("before\n" + place.format("lines") + place.format("absent"))
    assert cli.main(["bench", "table", "--update", str(document)]) == 0
    assert cli.main(["bench", "table", "--update", str(document)]) == 0
    assert [said.split()[-1] for said in capsys.readouterr().out.splitlines()] == ["written", "unchanged"]
    text = document.read_text()
    assert "| forward bf16 contiguous | 1 of 1 |" in text and "old" not in text
    assert tables._MISSING in text and text.startswith("before\n") and text.endswith("-->\nafter\n")


def test_the_command_prints(results, capsys, tmp_path):
    assert cli.main(["bench", "table", str(results), "--kind", "facts"]) == 0
    assert capsys.readouterr().out.startswith("GPU; driver 1.2;")
    assert cli.main(["bench", "table"]) == 2
    plain = tmp_path / "plain.md"
    plain.write_text("nothing\n")
    assert cli.main(["bench", "table", "--update", str(plain)]) == 2
    assert "no place for a table" in capsys.readouterr().err


def test_kinds_are_the_commands():
    parsed = cli._parser().parse_args(["bench", "table", "x"])
    assert parsed.kind in tables.KINDS and json.dumps(asdict(line("57", 1.0)))
    for kind in (*tables.KINDS, "overhead"):
        cli._parser().parse_args(["bench", "table", "x", "--kind", kind])
