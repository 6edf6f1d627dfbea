"""How far something is, for people: a bar on a terminal, lines of the log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

LOG = logging.getLogger("consisid")
EVERY = 10.0  # seconds between two lines


class Progress:
    """Counts calls of `advance`, within a `with`.

    Args:
        what: is done, such as "denoising".
        total: how often; None where that is known later.
        unit: of the count, in the singular.
        stream: the terminal, if it is one.
    """

    def __init__(
        self, what: str, total: int | None, unit: str, stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.what, self.total, self.unit, self.clock = what, total, unit, clock
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self.count = 0

    def __enter__(self) -> Self:
        self._began = self._said = self.clock()
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.what, unit=self.unit, file=self._stream)
        return self

    def advance(self, note: str = "", total: int | None = None) -> None:
        """One more is done.

        Args:
            note: what there is to say of it; kept above a bar.
            total: where it is known by now.
        """
        self.count += 1
        self.total = self.total if total is None else total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update()
            if note:
                self._bar.write(f"  {note}", file=self._stream)
            return
        now = self.clock()
        if note or now - self._said >= EVERY or self.count == self.total:
            self._said = now
            LOG.info("%s: %s%s", self.what, self._place(now - self._began), f"; {note}" if note else "")

    def _place(self, spent: float) -> str:
        of = "" if self.total is None else f" of {self.total}"
        words = f"{self.unit} {self.count}{of}, {spent:.0f} s"
        if self.total is not None and self.count < self.total:
            words += f", about {spent / self.count * (self.total - self.count):.0f} s left"
        return words

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of diffusers and transformers, which draw them on a terminal and elsewhere alike."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    shown = [library for library in (diffusers, transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
