"""What a client is told when something does not go: OpenAI's form, our sentence."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConsisIDError, DeviceMemoryError, FaceError, InputError, MemoryBudgetError, NumericalError

# The kind of an error that OpenAI's clients know, by the status of the answer.
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES: dict[type[ConsisIDError], str] = {
    FaceError: "no_face",
    MemoryBudgetError: "memory_budget",
    DeviceMemoryError: "out_of_memory",
    NumericalError: "not_finite",
    InputError: "invalid_value",
}


class Refusal(ConsisIDError):
    """An answer that is an error.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: a sentence for people.
        param: the field of the request that is meant.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return body(self.status, self.code, str(self), self.param)


def body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def code_of(error: ConsisIDError) -> str:
    """A word for an error of the engine."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), "engine_error")


def refusal_of(error: ConsisIDError, param: str | None = None) -> Refusal:
    """An error of the engine as an answer: what a client can mend is 400."""
    if isinstance(error, Refusal):
        return error
    mendable = isinstance(error, InputError | MemoryBudgetError) or type(error).__name__ == "EngineError"
    return Refusal(400 if mendable else 500, code_of(error), sentence(error), param)


def sentence(error: Exception) -> str:
    """An error of the engine for somebody who gave no name of a file, and did not call it."""
    text = str(error)
    return f"The photo{text[9:]}" if text.startswith("the bytes: ") else text


def not_found(what: str) -> Refusal:
    """Also for what belongs to another key: nobody learns that it exists."""
    return Refusal(404, "not_found", f"There is no such {what}; it may have been deleted or have expired.")
