"""The one error that speaks to the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: its text is one clear line (what, where, what would be right).

    The command line prints that line without a traceback and exits with 2; every other exception is a bug and exits
    with 1. A page of several problems (a recipe's) is one UserError with a line each.
    """

    code = 2
    """The command's exit code."""
    outside = False
    """Whether the reason lies outside what was asked for (a store that is away, no room on the cluster): the same may do later."""

    def __init__(self, text: str = "", *, outside: bool = False) -> None:
        super().__init__(text)
        if outside:
            self.outside = True


class BrokenModel(UserError):
    """A model that answers with what is no finite number: the fault is the model's, whatever it was asked."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the nearest known name, or `; known: a, b, c` when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f", did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
