"""What the page shows of videos, as HTML. The browser fetches videos and pictures from the API."""

import base64
from collections.abc import Sequence
from html import escape

from .progress import Board, Progress
from .store import COMPLETED, FAILED, QUEUED, VideoRow

STYLE = """
.consisid-bar { height: .6em; border-radius: .3em; background: var(--neutral-200); overflow: hidden; }
.consisid-bar div { height: 100%; background: var(--primary-500); transition: width .2s; }
.consisid-fault { padding: .6em .8em; border-radius: .4em; background: #fde8e8; color: #8a1c1c; }
.consisid-seen { width: 100%; max-height: 60vh; object-fit: contain; border-radius: .4em; background: #000; }
.consisid-list { display: grid; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); gap: .6em; }
.consisid-list img, .consisid-none { width: 100%; aspect-ratio: 3/2; object-fit: cover; border-radius: .3em; }
.consisid-none { background: var(--neutral-200); display: grid; place-items: center; }
.consisid-list small { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
"""


def said(sentence: str) -> str:
    return f"<p role='status'>{escape(sentence)}</p>"


def fault(sentence: str) -> str:
    return f"<p role='alert' class='consisid-fault'>{escape(sentence)}</p>"


def working(row: VideoRow, progress: Progress) -> str:
    """A video that waits or is made."""
    if row.status == QUEUED:
        return said("It waits for its turn.")
    text = f"step {progress.step} of {progress.steps}"
    if progress.step == progress.steps and progress.steps:
        text = "The steps are done; the frames are decoded."
    percent = progress.percent
    bar = f"<div class='consisid-bar' role='progressbar' aria-valuenow='{percent}'><div style='width:{percent}%'>"
    return f"<p role='status'>{percent} %: {text}</p>{bar}</div></div>"


def preview(progress: Progress) -> str:
    """How it looks by now."""
    if progress.preview is None:
        return ""
    content = base64.b64encode(progress.preview).decode()
    return f"<img class='consisid-seen' alt='preview' src='data:image/jpeg;base64,{content}'>"


def ended(row: VideoRow) -> tuple[str, str]:
    """A sentence, and the video."""
    if row.status == FAILED:
        return fault(row.message or "The video failed."), ""
    seconds = sum(row.facts.get("stages", {}).values())
    at = f"/v1/videos/{escape(row.id)}/content"
    text = f"Ready in {seconds:.0f} s, seed {row.request['options']['seed']}."
    link = f"<a href='{at}' download='{escape(row.id)}.mp4'>Download</a>"
    video = f"<video class='consisid-seen' id='video' src='{at}' controls autoplay loop muted playsinline></video>"
    return f"<p role='status'>{escape(text)} {link}</p>", video


def history(rows: Sequence[VideoRow], board: Board) -> str:
    """Pictures of the last videos, each a link to it."""
    return "<div class='consisid-list'>" + "".join(_entry(row, board) for row in rows) + "</div>"


def _entry(row: VideoRow, board: Board) -> str:
    prompt, at = escape(row.request["prompt"], quote=True), f"/v1/videos/{escape(row.id)}/content"
    if row.status == COMPLETED:
        picture = f"<img loading='lazy' src='{at}?variant=thumbnail' alt='{prompt}'>"
        return f"<a href='{at}' target='_blank' title='{prompt}'>{picture}<small>{prompt}</small></a>"
    state = {QUEUED: "waits", FAILED: row.code or "failed"}.get(row.status, f"{board.get(row.id).percent} %")
    why = escape(row.message or "", quote=True)
    return f"<div title='{why}'><div class='consisid-none'>{escape(state)}</div><small>{prompt}</small></div>"
