"""Bodies of requests: a form with files, or JSON."""

import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from .refusals import Refusal

MOST_FIELDS, MOST_FILES = 50, 32
LONGEST_FIELD = 2**20


@dataclass
class Form:
    """values: what is no file, in order. files: the bytes of each, in order."""

    values: list[tuple[str, Any]] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)


async def read_form(request: Request) -> Form:
    """The body of a request; raises Refusal for one that is neither a form nor a JSON object."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return Form(values=list(parse_object(await request.body()).items()))
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Refusal(
            415, "content_type", "Send multipart/form-data, as OpenAI's clients do, or application/json.",
        )  # fmt: skip
    found = Form()
    try:
        async with request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    found.files.append((name, await value.read()))
                else:
                    found.values.append((name, value))
    except HTTPException as error:  # a form that cannot be read
        raise Refusal(400, "invalid_form", f"The form cannot be read ({error.detail}).") from None
    except UnicodeDecodeError:
        raise Refusal(400, "invalid_form", "The form cannot be read: it is not in UTF-8.") from None
    return found


def parse_object(content: bytes) -> dict[str, Any]:
    """Raises Refusal for what is no JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise Refusal(400, "invalid_json", "The body cannot be read as JSON.") from None
    if not isinstance(found, dict):
        raise Refusal(400, "invalid_json", "The body has to be a JSON object.")
    return found
