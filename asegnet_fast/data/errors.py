"""The one exception of the data package."""

from asegnet_fast.errors import InputError


class DataError(InputError):
    """Input data that cannot be used; its text is one line: the file, what was expected, what was got."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
