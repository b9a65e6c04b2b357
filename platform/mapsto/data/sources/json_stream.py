"""A JSON object's lists, element by element: of a file of gigabytes no more than a part is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

READ = 2**20
"""Characters that are read at a time, at first."""
LARGEST = 2**28
"""Characters of one element at most."""
_DECODER = json.JSONDecoder()


def elements(file: TextIO) -> Iterator[tuple[str, Any, bool]]:
    """(key, value, whether it is an element of the key's list) of an object: a list's elements one by one, other values whole; nothing of
    what is no object. Raises ValueError for what is no JSON, RecursionError for one that is too deep."""
    text = _Text(file)
    if text.peek() != "{":
        text.value()
    elif text.expect("{") and text.peek() == "}":
        text.expect("}")
    else:
        while True:
            if text.peek() != '"':
                raise ValueError(f"a name in double quotes is missing{text.where()}")
            key = text.value()
            text.expect(":")
            if text.peek() == "[":
                yield key, [], False
                yield from ((key, value, True) for value in _list(text))
            else:
                yield key, text.value(), False
            if text.expect(",}") == "}":
                break
    if text.peek():
        raise ValueError(f"more than one value{text.where()}")


def _list(text: _Text) -> Iterator[Any]:
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return
    while True:
        yield text.value()
        if text.expect(",]") == "]":
            return


class _Text:
    """A window that moves over the file."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.held, self.at, self.before, self.ended = file, "", 0, 0, False

    def more(self, count: int) -> None:
        """Let go of what has been read, and read on."""
        new = self.file.read(count)
        self.ended = not new
        self.before += self.at
        self.held, self.at = self.held[self.at :] + new, 0

    def where(self) -> str:
        return f": char {self.before + self.at}"

    def peek(self) -> str:
        """The next character that is no blank; none at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.held) or self.ended:
                return self.held[self.at : self.at + 1]
            self.more(READ)

    def expect(self, those: str) -> str:
        """Pass one of these characters. Raises ValueError for any other."""
        found = self.peek()
        if not found or found not in those:
            raise ValueError(f"expecting {' or '.join(those)}{self.where()}")
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        count = READ
        while True:
            try:
                value, end = _DECODER.raw_decode(self.held, self.at)
                if self.ended or len(self.held) - end > (
                    3 if isinstance(value, int | float) else 0
                ):  # it may go on: 1|e+5
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended or len(self.held) - self.at > LARGEST:
                    raise ValueError(f"{error.msg}: char {self.before + error.pos}") from error
            self.more(count)
            count *= 2
