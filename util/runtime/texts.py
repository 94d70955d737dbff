"""Reading text files as people have them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from util.runtime.errors import UserError


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the content of a text file in UTF-8 or UTF-16, with or without a byte order mark.

    Lines end with a line feed. Bytes that are not UTF-8 become surrogates (`surrogateescape`), because
    a file name may be any bytes.

    Raises:
        UserError: The file cannot be read or is no text.
    """
    try:
        data = Path(path).read_bytes()
        # json tells the encoding by the mark, or by the zeros among the first bytes.
        text = data.decode(json.detect_encoding(data), "surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path} is no text in UTF-8 or UTF-16: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_comment(line: str, is_name: Callable[[str], object]) -> bool:
    """Return whether a line of a list begins with # and not with a name, of which `is_name` is true."""
    return line.startswith("#") and not any(map(is_name, (line, line.split()[0])))
