"""The same service under Ray Serve, with two replicas on this machine."""

import contextlib
import io
import os
import signal
import time
from pathlib import Path

import av
import openai
import pytest
from support.serving import Process, free_port, wait_until

pytest.importorskip("ray", reason="ray is not installed; it comes with consisid[serve]")

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
REPLICA = b"ray::ServeReplica:consisid:Replica"


def replicas() -> dict[int, int]:
    """Their processes, and the ticks of a clock that each has computed."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(REPLICA):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[int(folder.name)] = int(fields[11]) + int(fields[12])
    return found


def busiest() -> int:
    """The process of the replica that computes."""
    before = replicas()
    time.sleep(1.0)
    after = replicas()
    return max(before, key=lambda pid: after.get(pid, 0) - before[pid])


@pytest.fixture(scope="module")
def cluster(shallow_folder, tmp_path_factory):
    if replicas():
        pytest.skip("another cluster runs on this machine")
    data = tmp_path_factory.mktemp("ray") / "data"
    server = Process(shallow_folder, data, "--ray", "--replicas", "2", "--ahead", "1", port=free_port())
    yield server
    server.end(signal.SIGTERM)
    wait_until(lambda: not replicas(), 60)


@pytest.fixture(scope="module")
def client(cluster):
    return openai.OpenAI(base_url=f"{cluster.address}/v1", api_key="x", max_retries=0)


@pytest.fixture(scope="module")
def person(client, photo):
    return client.videos.create_character(name="Eileen", video=("me.png", photo, "image/png")).id


def body(person, steps):
    return {"num_inference_steps": steps, "num_frames": 9, "character": person, "seed": 3}


def playable(client, id):
    content = client.videos.download_content(id).read()
    with av.open(io.BytesIO(content)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 9
    return content


def test_the_client_of_openai(client, person, photo):
    made = client.videos.create_and_poll(
        prompt="A.", input_reference=("me.png", photo, "image/png"),
        extra_body={"num_inference_steps": 2, "num_frames": 9},
    )  # fmt: skip
    assert made.status == "completed"
    playable(client, made.id)
    assert made.id in [video.id for video in client.videos.list()]
    with pytest.raises(openai.BadRequestError, match="num_frames=10 is not of the form"):
        client.videos.create(prompt="A.", extra_body={**body(person, 2), "num_frames": 10})
    with pytest.raises(openai.BadRequestError, match="The photo: is not an image"):
        client.videos.create(prompt="A.", input_reference=("me.png", b"nothing"))


def test_two_videos_are_made_at_once_and_end_when_they_are_deleted(client, person):
    videos = [client.videos.create(prompt="A.", extra_body=body(person, 900)) for _ in range(2)]
    wait_until(lambda: all(client.videos.retrieve(video.id).step > 0 for video in videos))
    before = replicas()
    time.sleep(1.0)
    after = replicas()
    assert all(after[pid] - before[pid] > 10 for pid in before)
    for video in videos:
        assert client.videos.delete(video.id).deleted
    end = client.videos.create_and_poll(prompt="B.", extra_body=body(person, 2))
    assert end.status == "completed"

    def idle() -> bool:
        first = replicas()
        time.sleep(0.5)
        return all(ticks - first[pid] < 10 for pid, ticks in replicas().items())

    wait_until(idle)


def test_a_video_whose_replica_is_killed_ends_on_the_other(client, person):
    """From its checkpoint, with the bytes that it would have had."""
    video = client.videos.create(prompt="A.", extra_body=body(person, 200))
    others = [client.videos.create(prompt="B.", extra_body=body(person, 2)) for _ in range(3)]
    for other in others:
        client.videos.poll(other.id, poll_interval_ms=50)
    wait_until(lambda: client.videos.retrieve(video.id).step > 30)
    reached = client.videos.retrieve(video.id).step
    os.kill(busiest(), signal.SIGKILL)
    seen = []
    while (found := client.videos.retrieve(video.id)).status in ("queued", "in_progress"):
        seen.append(found.step)
        time.sleep(0.02)
    assert found.status == "completed", found.error
    assert all(step == 0 or step >= reached for step in seen)
    whole = client.videos.create_and_poll(prompt="A.", extra_body=body(person, 200), poll_interval_ms=50)
    assert playable(client, whole.id) == playable(client, video.id)
    for other in others:
        assert client.videos.retrieve(other.id).status == "completed"
