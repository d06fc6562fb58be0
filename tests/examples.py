"""How much a test tries: the one place that reads ASEGNET_TEST_EXAMPLES and ASEGNET_TEST_SAMPLES."""

import os

_VARIABLE = "ASEGNET_TEST_EXAMPLES"
_SAMPLES = "ASEGNET_TEST_SAMPLES"


def examples(normal: int, extended: int) -> int:
    """The number of examples of one test: `normal`, or what ASEGNET_TEST_EXAMPLES asks for.

    The variable is unset or "normal", "extended" (as `make test-extended` sets it), or a number for every test.
    """
    value = os.environ.get(_VARIABLE) or "normal"
    if value in ("normal", "extended"):
        return normal if value == "normal" else extended
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"{_VARIABLE}: expected 'normal', 'extended' or a number above 0, got {value!r}")
    return int(value)


def few_samples() -> bool:
    """Whether the contract is to take only the few samples an op names, as in Triton's slow interpreter.

    The variable is unset or "all", or "few".
    """
    value = os.environ.get(_SAMPLES) or "all"
    if value not in ("all", "few"):
        raise ValueError(f"{_SAMPLES}: expected 'all' or 'few', got {value!r}")
    return value == "few"
