"""How many examples a test tries: the one place that reads ASEGNET_TEST_EXAMPLES."""

import os

_VARIABLE = "ASEGNET_TEST_EXAMPLES"


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
