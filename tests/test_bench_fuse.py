"""The benchmark of fused networks: it checks before it measures, and writes what it measured."""

import json

import torch

from benchmarks import fuse


def test_a_small_run_writes_results(tmp_path, capsys):
    threads = str(torch.get_num_threads())
    options = ["--nets", "ENet", "--batch", "1", "--size", "32", "--seconds", "0.001", "--threads", threads]
    assert fuse.main([*options, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("fuse--*--cpu.json")
    report = json.loads(path.read_text())
    assert [r["side"] for r in report["rows"]] == ["stock", "fused"] and not report["failures"]
    stock, fused = report["rows"]
    assert fused["saved_megabytes"] < stock["saved_megabytes"] and stock["peak_megabytes"] > 0
    assert "2 results in" in capsys.readouterr().out


def test_an_unknown_network_is_refused(capsys):
    assert fuse.main(["--nets", "VGG"]) == 2
    assert "--nets: expected some of" in capsys.readouterr().err
