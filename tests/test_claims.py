"""Claims: one holder at a time, the dead replaced, the living left alone."""

import json
import os
import subprocess
import threading
import time

import pytest

from asegnet_fast.files import create_text
from asegnet_fast.training.claims import Holder, Watch, holder_of


def at_once(count, function):
    """What `count` threads got from a function that all called at the same moment."""
    barrier, results = threading.Barrier(count), []

    def call(k):
        barrier.wait()
        results.append(function(k))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(count)]
    [t.start() for t in threads], [t.join() for t in threads]
    return results


@pytest.mark.parametrize("links", [True, False])
def test_of_many_at_once_one_makes_a_file(tmp_path, monkeypatch, links):
    if not links:  # as on a file system without hard links

        def refuse(*_):
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    for n in range(20):
        path = tmp_path / f"{n}.json"
        made = at_once(8, lambda k, path=path: (create_text(path, str(k) * 100), k))
        (winner,) = [k for won, k in made if won]
        assert path.read_text() == str(winner) * 100
    assert len(list(tmp_path.iterdir())) == 20


def test_of_many_at_once_one_takes_a_claim(tmp_path):
    for n in range(10):
        folder = tmp_path / str(n)
        claims = [c for c in at_once(8, lambda k, folder=folder: Watch().take(folder)) if c]
        assert len(claims) == 1
        assert holder_of(folder).pid == os.getpid()
        claims[0].release()
        assert list(folder.iterdir()) == []


def test_of_many_at_once_one_replaces_the_dead(tmp_path):
    for n in range(10):
        folder = tmp_path / str(n)
        write_claim(folder, 3, pid=dead_process())
        claims = [c for c in at_once(8, lambda k, folder=folder: Watch().take(folder)) if c]
        assert len(claims) == 1
        claims[0].release()
        assert list(folder.iterdir()) == []


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_claim(folder, number, **changes):
    folder.mkdir(exist_ok=True)
    path = folder / f"claim-{number}.json"
    path.write_text(json.dumps(vars(Holder.this_process()) | changes))
    return path


def test_the_dead_of_another_machine_are_replaced_after_their_silence(tmp_path):
    path = write_claim(tmp_path, 1, host="elsewhere", pid=1)
    watch = Watch(stale_seconds=0.3)
    assert watch.take(tmp_path) is None
    for _ in range(4):  # a holder that gives signs of life keeps its claim
        time.sleep(0.1)
        os.utime(path)
        assert watch.take(tmp_path) is None
    time.sleep(0.35)
    claim = watch.take(tmp_path)
    assert claim is not None and holder_of(tmp_path).host != "elsewhere"
    claim.release()


def test_a_living_holder_touches_its_claim(tmp_path):
    claim = Watch(stale_seconds=0.3).take(tmp_path)
    other = write_claim(tmp_path, 1, token=json.loads((tmp_path / "claim-1.json").read_text())["token"])
    other.write_text(other.read_text().replace(os.uname().nodename, "elsewhere"))
    watch = Watch(stale_seconds=0.3)
    for _ in range(6):
        assert watch.take(tmp_path) is None
        time.sleep(0.1)
    claim.release()
    assert Watch().take(tmp_path) is not None


def test_a_holder_taken_for_dead_notices_and_leaves_the_other_alone(tmp_path):
    claim = Watch(stale_seconds=0.3).take(tmp_path)
    newer = write_claim(tmp_path, 2, token="other")
    deadline = time.monotonic() + 10
    while not claim.lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert claim.lost
    claim.release()
    assert newer.exists()


def test_a_number_given_out_again_is_not_the_same_process(tmp_path):
    assert not Holder.this_process().is_gone()
    write_claim(tmp_path, 1, began="12345")
    assert holder_of(tmp_path).is_gone()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_damaged_claim_is_nobodys_until_it_is_stale(tmp_path, text):
    (tmp_path / "claim-1.json").write_text(text)
    watch = Watch(stale_seconds=0.1)
    assert watch.take(tmp_path) is None and holder_of(tmp_path) is None
    time.sleep(0.15)
    claim = watch.take(tmp_path)
    assert claim is not None
    claim.release()
