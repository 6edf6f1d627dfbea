"""A bar on a terminal, lines of the log elsewhere."""

import io
import logging

import pytest

from consisid.engine.util.progress import EVERY, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_lines_come_now_and_then_with_the_time_that_is_left(caplog):
    caplog.set_level(logging.INFO, "consisid")
    clock = Clock()
    with Progress("denoising", 50, "step", io.StringIO(), clock) as progress:
        for _ in range(50):
            clock.now += EVERY / 5
            progress.advance()
    found = lines(caplog)
    assert found[0] == "denoising: step 5 of 50, 10 s, about 90 s left"
    assert found[-1] == "denoising: step 50 of 50, 100 s"
    assert len(found) == 10


def test_a_note_is_always_said(caplog):
    caplog.set_level(logging.INFO, "consisid")
    with Progress("building", None, "graph", io.StringIO(), Clock()) as progress:
        progress.advance("block took 1.00 s with eager", total=3)
    assert lines(caplog) == ["building: graph 1 of 3, 0 s, about 0 s left; block took 1.00 s with eager"]


@pytest.mark.parametrize("note", ["", "block took 1.00 s"])
def test_a_terminal_has_a_bar(caplog, note):
    terminal = Terminal()
    with Progress("denoising", 2, "step", terminal) as progress:
        progress.advance(note)
        progress.advance()
    assert "denoising: 100%" in terminal.getvalue()
    assert note in terminal.getvalue()
    assert lines(caplog) == []
