"""What the program tells apart from its own faults."""


class InputError(ValueError):
    """An option, setting or file that cannot be used; its text is one line: which, what was expected, what came."""
