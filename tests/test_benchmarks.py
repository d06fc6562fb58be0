"""The benchmarks' own rules: every op has one, results are complete, a wrong result has no time."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import asegnet_fast
from benchmarks import common, results, run, summary, timing

OPS = Path(asegnet_fast.__file__).parent / "ops"
SETTINGS = common.Settings(torch.device("cpu"), threads=1, seconds=0.001, with_compile=False)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny maps: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(case: common.Case) -> common.Case:
    """The case with a map small enough for a test: the quick pool's, cut."""
    inputs = case.inputs
    return dataclasses.replace(case, inputs=lambda device: tuple(t[:1, :2, :4, :6] for t in inputs(device)))


@pytest.fixture
def pool() -> common.Case:
    return tiny(next(c for c in common.cases_of("max_pool2x2", 1) if c.quick and c.name.startswith("pool")))


def test_every_op_folder_has_a_benchmark():
    folders = sorted(p.parent.name for p in OPS.glob("*/op.py"))
    assert common.op_names() == folders


@pytest.mark.parametrize("op", common.op_names())
def test_cases_are_complete(op):
    cases = common.cases_of(op, 2)
    ids = [c.id for c in cases]
    assert len(set(ids)) == len(ids)
    assert {c.dtype for c in cases} == set(common.DTYPES)
    assert any(c.quick for c in cases) and any(c.compiled for c in cases)
    assert all(c.op == op and set(c.bytes_moved) <= set(common.PASSES) for c in cases)
    assert all(n > 0 for c in cases for n in c.bytes_moved.values())


def test_levels_are_the_networks():
    shapes = {(level.index, level.shape) for level in common.levels(4)}
    assert (
        (1, (4, 64, 256, 256)) in shapes
        and (5, (4, 512, 16, 16)) in shapes
        and (5, (4, 64, 16, 16)) in shapes
        and (0, (1, 64, 16, 16)) in shapes
    )
    assert len(shapes) == 10


def test_a_case_gives_a_row_for_each_pass_and_layout(pool):
    rows, failures = common.run_case(pool, SETTINGS)
    assert failures == []
    assert {(r["pass"], r["layout"]) for r in rows} == {(p, l) for p in common.PASSES for l in common.LAYOUTS}
    for row in rows:
        assert set(row["peers"]) == {"eager nchw", "eager channels_last"}
        fastest = min(row["peers"].values(), key=lambda t: t["median_ms"])
        assert row["peers"][row["best_peer"]] == fastest
        assert row["speedup"] == pytest.approx(fastest["median_ms"] / row["ours"]["median_ms"])
        assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / row["ours"]["median_ms"] / 1e6)
        assert row["share_of_copy"] > 0


def wrong_output(x):
    y, code = asegnet_fast.max_pool2x2(x)
    return y + 0.001, code


def wrong_gradient(x):
    y, code = asegnet_fast.max_pool2x2(x)
    return y.detach() + 0 * x[..., ::2, ::2] + (y - y.detach()) * 1.01, code


def wrong_code(x):
    y, code = asegnet_fast.max_pool2x2(x)
    return y, code ^ 1


@pytest.mark.parametrize("broken", [wrong_output, wrong_gradient, wrong_code])
def test_a_wrong_result_of_ours_has_no_time(pool, broken, monkeypatch):
    monkeypatch.setattr(timing, "interleaved", lambda *_: pytest.fail("timed before it was right"))
    rows, failures = common.run_case(dataclasses.replace(pool, ours=broken), SETTINGS)
    assert rows == []
    assert len(failures) == 2 and all("ours" in f for f in failures)


@pytest.mark.parametrize("broken", [wrong_output, wrong_gradient])
def test_a_wrong_peer_is_no_peer(pool, broken):
    rows, failures = common.run_case(dataclasses.replace(pool, peer=broken), SETTINGS)
    assert rows and all(r["best_peer"] is None and r["speedup"] is None for r in rows)
    assert all("eager" in f for f in failures)


def test_a_peer_that_raises_is_named(pool):
    def refuses(x):
        raise RuntimeError("no such kernel")

    rows, failures = common.run_case(dataclasses.replace(pool, peer=refuses), SETTINGS)
    assert rows and any("no such kernel" in f for f in failures)


def test_comparison_in_norm_sees_a_wrong_gradient(pool):
    rows, _ = common.run_case(dataclasses.replace(pool, ours=wrong_gradient, in_norm=True), SETTINGS)
    assert rows == []


def test_a_run_writes_one_whole_results_file(pool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "cases_of", lambda op, batch: [pool])
    words = "--ops max_pool2x2 --quick --no-compile --seconds 0.001 --threads 1".split()
    status = run.main([*words, "--out", str(tmp_path)])
    assert status == 0
    (file,) = tmp_path.iterdir()
    machine = results.machine(torch.device("cpu"))
    assert file.name == f"ops-eager-peers-quick--{machine}--cpu.json"
    report = json.loads(file.read_text())
    assert report["conditions"]["threads"] == 1 and report["conditions"]["version"] == results.version()
    assert len(report["rows"]) == 4 and report["failures"] == []
    assert "speedup" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ops", "nothing"], "--ops: expected"),
        (["--threads", "0"], "--threads: expected"),
        (["--seconds", "-1"], "--seconds: expected"),
    ],
)
def test_wrong_options_are_one_line(options, words, tmp_path, capsys):
    assert run.main([*options, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and "got" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_summary_lists_every_row_and_failure(pool, tmp_path, monkeypatch):
    broken = dataclasses.replace(pool, name="broken", ours=wrong_output)
    monkeypatch.setattr(common, "cases_of", lambda op, batch: [pool, broken])
    assert summary.main(["--out", str(tmp_path)]) == 2
    words = "--ops max_pool2x2 --quick --no-compile --seconds 0.001 --threads 1".split()
    assert run.main([*words, "--out", str(tmp_path)]) == 1
    assert summary.main(["--out", str(tmp_path)]) == 0
    text = (tmp_path / "summary.md").read_text()
    assert text.count(f"| {pool.name} | float32 |") == 2
    assert "broken float32: ours nchw: result 0" in text
    assert "2.4 / 3.5" in text
