"""The one exception of the data package."""


class DataError(ValueError):
    """Input data that cannot be used; its text is one line: the file, what was expected, what was got."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
