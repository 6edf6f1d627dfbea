"""What a pipeline shows of its runs: the present one of the calling thread, else the latest."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..run.callbacks import RunPipeline
from ..run.run import Run
from ..video import Stats


class RunState:
    """The attributes that diffusers' pipelines have while they run, and afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._of_thread = threading.local()
        self._latest: Run | None = None
        self.stats: Stats | None = None  # times and peaks of the latest call

    @contextmanager
    def _shows(self, run: Run) -> Iterator[None]:
        """Inside the block this thread sees this run; a call inside a callback has its own."""
        outer: Run | None = getattr(self._of_thread, "run", None)
        self._of_thread.run = self._latest = run
        try:
            yield
        finally:
            self._of_thread.run = outer

    @property
    def _view(self) -> RunPipeline:
        run = getattr(self._of_thread, "run", None) or self._latest
        if run is None:
            raise AttributeError("The pipeline was not called yet.")
        return RunPipeline(run)

    @property
    def guidance_scale(self) -> float:
        """The weight of the prompt at the present step."""
        return self._view.guidance_scale

    @property
    def _guidance_scale(self) -> float:
        return self._view.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: float) -> None:
        self._view._guidance_scale = value

    @property
    def num_timesteps(self) -> int:
        """Steps of the schedule."""
        return self._view.num_timesteps

    @property
    def _num_timesteps(self) -> int:
        return self._view.num_timesteps

    @_num_timesteps.setter
    def _num_timesteps(self, value: int) -> None:
        self._view._num_timesteps = value

    @property
    def attention_kwargs(self) -> Mapping[str, Any] | None:
        """As they were given."""
        return self._view.attention_kwargs

    @property
    def _attention_kwargs(self) -> Mapping[str, Any] | None:
        return self._view.attention_kwargs

    @_attention_kwargs.setter
    def _attention_kwargs(self, value: Mapping[str, Any] | None) -> None:
        self._view._attention_kwargs = value

    @property
    def interrupt(self) -> bool:
        """Whether the loop ends after the present step."""
        return self._view.interrupt

    @property
    def _interrupt(self) -> bool:
        return self._view.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self._view._interrupt = bool(value)
