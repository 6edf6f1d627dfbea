"""Rows of the store as the objects of OpenAI's API."""

import base64
from collections.abc import Sequence
from typing import Any

from .progress import Board
from .settings import Retention
from .store import COMPLETED, FAILED, CharacterRow, VideoRow


def whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def video(row: VideoRow, board: Board, model: str, fps: int, keep: Retention) -> dict[str, Any]:
    """OpenAI's video object, and beside it what it was made with."""
    wanted, progress = row.request, board.get(row.id)
    rate = wanted["fps"] or fps
    return {
        "id": row.id,
        "object": "video",
        "model": model,
        "status": row.status,
        "progress": 100 if row.status == COMPLETED else progress.percent,
        "created_at": int(row.created),
        "completed_at": whole(row.ended) if row.status == COMPLETED else None,
        "expires_at": whole(row.ended + keep.seconds) if row.status == COMPLETED and row.ended else None,
        "prompt": wanted["prompt"],
        "seconds": f"{wanted['frames'] / rate:g}",
        "size": f"{wanted['width']}x{wanted['height']}",
        "remixed_from_video_id": None,
        "error": {"code": row.code, "message": row.message} if row.status == FAILED else None,
        "step": progress.step,
        "steps": progress.steps,
        "character": wanted["character"],
        "settings": {
            **wanted["options"], "num_frames": wanted["frames"], "fps": rate, "loras": wanted["loras"],
        },
        "stages": row.facts.get("stages"),
    }  # fmt: skip


def progress(row: VideoRow, board: Board) -> dict[str, Any]:
    """What an event says while a video is made."""
    found = board.get(row.id)
    preview = None
    if found.preview is not None:
        preview = "data:image/jpeg;base64," + base64.b64encode(found.preview).decode()
    return {
        "id": row.id, "object": "video.progress", "status": row.status, "progress": found.percent,
        "step": found.step, "steps": found.steps, "preview": preview, "preview_step": found.preview_step,
    }  # fmt: skip


def character(row: CharacterRow) -> dict[str, Any]:
    return {"id": row.id, "object": "character", "created_at": int(row.created), "name": row.name}


def page(items: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A list, of which one more than `limit` was asked for."""
    shown = list(items[:limit])
    return {
        "object": "list", "data": shown, "has_more": len(items) > limit,
        "first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None,
    }  # fmt: skip
