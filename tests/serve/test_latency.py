"""What the server adds between a request and the first step, over the engine alone."""

import time
from statistics import median

import httpx2 as httpx
import pytest
from support.serving import wait_until

from consisid.engine import Identity, VideoRequest
from consisid.engine.many.queue import VideoQueue

pytestmark = pytest.mark.full

VIDEOS = 30
OPTIONS = {"num_inference_steps": 2, "num_frames": 9, "seed": 1}


def test_from_the_request_to_the_first_step(server, character, capsys):
    """Of generate_many with a person that is there, and of POST /v1/videos: in turn, the medians."""
    engine = server.worker.engine
    file = server.service.files.path("character", character)
    alone, served, service = [], [], server.service.scheduler
    http = httpx.Client()  # one connection, as clients keep it
    for i in range(VIDEOS):
        queue, ended = VideoQueue(), []
        begin = time.perf_counter()
        job = queue.submit(VideoRequest(Identity.load(file), f"A woman {i}.", **OPTIONS))
        job.on_step = lambda job, step, latents, ended=ended: ended.append(time.perf_counter())
        queue.close()
        assert [job.state for job in engine.generate_many(queue)] == ["done"]
        alone.append(ended[0] - begin)

        heard = []
        stepped = service._stepped
        service._stepped = lambda id, report, heard=heard, stepped=stepped: (
            heard.append(time.perf_counter()), stepped(id, report),
        )  # fmt: skip
        begin = time.perf_counter()
        answer = http.post(
            f"{server.address}/v1/videos", json={"prompt": f"A woman {i}!", "character": character, **OPTIONS}
        )
        assert answer.status_code == 200
        wait_until(lambda heard=heard: len(heard) == 2)
        service._stepped = stepped
        wait_until(lambda: not service.running)
        served.append(heard[0] - begin)
    http.close()
    added = median(b - a for a, b in zip(alone, served, strict=True))
    with capsys.disabled():
        print(f"\nfirst step: {1e3 * median(alone):.1f} ms by the engine, {1e3 * median(served):.1f} ms by the server")
        print(f"added by the server: {1e3 * added:.1f} ms (median of {VIDEOS})")
    assert len(alone) == len(served) == VIDEOS
