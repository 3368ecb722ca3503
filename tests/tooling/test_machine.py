"""What the benches say about the machine: its roofline, PyTorch's switch for it, driver and commit."""

import json

import pytest
import torch

from convt import cli
from convt.bench import machine, roofline


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_roofline_command(tmp_path, capsys):
    out = tmp_path / "roofline.jsonl"
    assert cli.main(["bench", "roofline", "--device", "cpu", "--seconds", "0.01", "--out", str(out)]) == 0
    lines = lines_of(out)
    assert [line["what"] for line in lines] == ["copy", "bf16", "fp16", "ieee", "fp64"]
    assert lines[0]["gbs"] > 0 and lines[0]["tflops"] is None
    assert lines[3]["tflops"] > lines[4]["tflops"] * 0.5 and lines[3]["gbs"] is None
    assert all(line["suite"] == "roofline" and line["us"] > 0 and line["torch"] for line in lines)
    assert "TFLOP/s" in capsys.readouterr().out


def test_matmul_precision_is_taken_back():
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        pytest.skip("this PyTorch has the older switch")
    before = torch._C._get_fp32_precision_getter("cuda", "matmul")
    with roofline.matmul_precision("tf32"):
        assert torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"
    assert torch._C._get_fp32_precision_getter("cuda", "matmul") == before


@pytest.mark.parametrize("said", ["580.159.03\n580.159.03\n", "NVIDIA UNIX x86_64 Kernel Module  580.159.03  Tue\n"])
def test_driver_is_read_from_nvidia_smi(said, tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.driver.__wrapped__() == "580.159.03"


def test_commit_can_be_told(monkeypatch):
    monkeypatch.setenv("CONVT_COMMIT", "0123abc")
    assert machine.commit() == "0123abc"
