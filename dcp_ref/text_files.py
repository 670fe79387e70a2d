"""Text of files, read in the same way everywhere: what an editor adds must not change what a model reads."""


def decoded(data: bytes) -> str:
    """UTF-8 without a byte order mark, and with lines that end in a newline alone. Raises UnicodeDecodeError."""
    return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
