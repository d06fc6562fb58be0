"""A few hundred malformed calls in every run; `make fuzz` makes ten thousand."""

from tests import fuzz_ops
from tests.examples import examples


def test_malformed_calls_raise_or_give_a_right_result():
    calls = examples(400, 10000)
    counts, complaints = fuzz_ops.run(calls, seed=20)
    assert not complaints, "\n".join(complaints)
    assert sum(counts.values()) == calls
    refused, right = (
        sum(n for (_, v), n in counts.items() if v == verdict) for verdict in ("refused", "right")
    )
    assert refused > calls / 5 and right > calls / 5, counts
