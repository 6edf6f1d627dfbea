"""What the OpenAPI document says of bodies and errors that the handlers read by themselves."""

from typing import Any

from .wanted import VideoFields

TEXT = {"type": "string"}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": TEXT, "type": TEXT, "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "code", "param"],
        }
    },
    "required": ["error"],
}  # fmt: skip


def failure(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": ERROR}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: failure("A field that cannot be used."),
    401: failure("No API key, or an unknown one."),
    403: failure("A page of another site, or a name that is not this server's."),
    404: failure("There is no such thing, or it is not yours."),
    405: failure("There is no such method."),
    408: failure("The request took too long to arrive."),
    409: failure("The video is not ready."),
    413: failure("The request is too large."),
    415: failure("Neither a form nor JSON."),
    422: failure("Never: what does not fit is 400."),
    429: failure("The queue is full; Retry-After says for how long."),
    500: failure("A fault of the server."),
}


def video_schema(file: bool) -> dict[str, Any]:
    """The fields of a video; in a form the photo may be a file."""
    schema = VideoFields.model_json_schema()
    definitions = schema.pop("$defs")

    def resolved(value: Any) -> Any:
        if isinstance(value, dict) and "$ref" in value:
            return resolved(definitions[value["$ref"].rpartition("/")[2]])
        if isinstance(value, dict):
            return {name: resolved(each) for name, each in value.items()}
        return [resolved(each) for each in value] if isinstance(value, list) else value

    found: dict[str, Any] = resolved(schema)
    if file:
        found["properties"]["input_reference"] = {"type": "string", "format": "binary"}
    return found


VIDEO_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": video_schema(file=True)},
            "application/json": {"schema": video_schema(file=False)},
        },
    }
}
PICTURE = {"type": "string", "format": "binary"}
CHARACTER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 200},
                        "face": TEXT,
                        "video": PICTURE,
                        "image": {"type": "array", "items": PICTURE},
                    },
                }
            }
        },
    }
}
REMIX_BODY = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": {"prompt": TEXT}}}}}
}
