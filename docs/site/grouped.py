"""Docstrings whose arguments share a line (`height, width: of the video`), as mkdocstrings wants them: a line each."""

import re
from typing import Any

import griffe

LINE = re.compile(r"^( {4})(\w+(?:, \w+)+): ", re.MULTILINE)


def ungrouped(text: str) -> str:
    """The text with each group of arguments repeated for every name in it."""
    found = re.split(
        r"(?m)^(?=    \w)", text
    )  # an argument with its own lines of continuation, or whatever stands there
    for i, part in enumerate(found):
        group = LINE.match(part)
        if group:
            body, blank, after = part[group.end() :].partition("\n\n")
            body = body.rstrip("\n")
            found[i] = "".join(f"    {name}: {body}\n" for name in group[2].split(", ")) + (blank and "\n" + after)
    return "".join(found)


class Grouped(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ungrouped(obj.docstring.value)
