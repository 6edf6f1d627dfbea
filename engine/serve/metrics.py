"""What Prometheus reads at /metrics."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """The figures of one service.

    Args:
        waiting, running, watching: are asked when Prometheus asks.
    """

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int], watching: Callable[[], int]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory and file descriptors of the process
        PlatformCollector(registry=self.registry)
        for name, meaning, ask in (
            ("waiting", "Videos that wait.", waiting),
            ("running", "Videos that workers have.", running),
            ("watching", "Streams of progress that are open.", watching),
        ):
            Gauge(f"consisid_videos_{name}", meaning, registry=self.registry).set_function(ask)
        self.ended = Counter("consisid_videos", "Videos that ended.", ["outcome"], registry=self.registry)
        self.refused = Counter("consisid_refused", "Requests that were refused.", ["code"], registry=self.registry)
        self.stage = self._seconds("stage", "Seconds of each stage of a video.", ["stage"])
        self.waited = self._seconds("first_step", "Seconds from accepting a video to the end of its first step.")
        self.took = self._seconds("video", "Seconds from accepting a video to its end.")
        self.peak = Gauge("consisid_peak_bytes", "Most memory of the device in a video.", registry=self.registry)

    def _seconds(self, name: str, meaning: str, labels: tuple[str, ...] | list[str] = ()) -> Any:
        return Histogram(f"consisid_{name}_seconds", meaning, labels, buckets=SECONDS, registry=self.registry)

    def made(self, seconds: Any, peak: int, took: float) -> None:
        self.ended.labels("completed").inc()
        for stage, spent in seconds.items():
            self.stage.labels(stage).observe(spent)
        self.took.observe(took)
        self.peak.set(max(peak, self.peak._value.get()))

    def text(self) -> bytes:
        return generate_latest(self.registry)
