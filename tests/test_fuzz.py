"""A few hundred malformed calls in every run; `make fuzz` makes ten thousand. And that the judge is no rubber stamp."""

import pytest
import torch

from tests import fuzz_ops
from tests.examples import examples
from tests.ops import contract


def test_malformed_calls_raise_or_give_a_right_result():
    calls = examples(400, 10000)
    counts, complaints = fuzz_ops.run(calls, seed=20)
    assert not complaints, "\n".join(complaints)
    assert sum(counts.values()) == calls
    refused, right = (
        sum(n for (_, v), n in counts.items() if v == verdict) for verdict in ("refused", "right")
    )
    assert refused > calls / 5 and right > calls / 5, counts


#: The child, of whose three functions one hangs and another crashes.
BROKEN = """
import os, signal, time, torch
from tests import fuzz_ops

functions = {
    "hanging": lambda x: time.sleep(9),
    "harmless": lambda x: x,
    "crashing": lambda x: os.kill(os.getpid(), signal.SIGSEGV),
}
fuzz_ops.PATIENCE = 1
fuzz_ops.spoiled = lambda args, r: (args, True)
fuzz_ops.targets = lambda: [
    fuzz_ops.Target(name, function, function, (torch.ones(3),), True, None) for name, function in functions.items()
]
fuzz_ops.main()
"""


def test_a_crash_and_a_hang_name_their_calls():
    counts, complaints = fuzz_ops.run(3, seed=0, program=("-c", BROKEN))
    assert counts == {("harmless", "right"): 1}
    assert len(complaints) == 2, complaints
    assert complaints[0].startswith("0: hanging(float32[3]): hangs")
    assert complaints[1].startswith("2: crashing(float32[3]): ends the process (-11)")


@pytest.fixture(scope="module")
def one_call_of_each():
    return {t.name: t for t in reversed(fuzz_ops.targets())}


def test_every_op_and_public_function_is_called(one_call_of_each):
    names = (n.split("::") for n in torch._C._dispatch_get_all_op_names())
    # Triton's overloads have no kernel on this device; tests/ops/test_triton_limits.py has their limits.
    defined = {n for space, n in names if space == "asegnet_fast" and not n.endswith(".triton")}
    assert defined <= set(one_call_of_each)
    assert {f"{op} (public)" for op in contract.OPS} <= set(one_call_of_each)


def test_the_judge_knows_right_from_wrong(one_call_of_each):
    for name, target in one_call_of_each.items():
        assert fuzz_ops.judge(target, target.args, True) == ("right", ""), name

        def off(*args, function=target.function):
            results = contract.as_tuple(function(*args))
            return tuple(r + 1 if r.dtype.is_floating_point else r ^ 1 for r in results)

        assert fuzz_ops.judge(target._replace(function=off), target.args, True)[0] == "wrong", name

        def lost(*args):
            raise KeyError("lost")

        assert fuzz_ops.judge(target._replace(function=lost), target.args, True)[0] == "wrong", name
