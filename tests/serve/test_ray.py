"""The same service under Ray Serve, with two replicas on this machine.

Nothing here depends on how fast the machine is: what has to come is waited for, and that two replicas work is seen by
what both have computed, not by how long that took.
"""

import asyncio
import contextlib
import io
import os
import signal
import sqlite3
from pathlib import Path

import av
import openai
import pytest
from support.serving import Process, StandIn, free_port, wait_until

from consisid.engine.serve.settings import Settings
from consisid.engine.serve.worker import Made, Task

pytest.importorskip("ray", reason="ray is not installed; it comes with consisid[serve]")

pytestmark = [pytest.mark.order(-3), pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
REPLICA = b"ray::ServeReplica:consisid:Replica"
SECONDS = 240.0  # for what takes a few; two workers of the tests and a cluster may share two cores
LONG = 80  # steps


class Cluster(Process):
    """consisid-serve --ray, with two replicas."""

    def __init__(self, folder: Path, data: Path):
        self.data = data
        super().__init__(folder, data, "--ray", "--replicas", "2", "--ahead", "1", port=free_port())

    def replicas(self) -> dict[int, int]:
        """Their processes, and the ticks of the clock that each has computed."""
        parents, found = {}, {}
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                if not folder.name.isdecimal():
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(fields[1])
                if (folder / "cmdline").read_bytes().startswith(REPLICA):
                    found[int(folder.name)] = int(fields[11]) + int(fields[12])
        return {pid: ticks for pid, ticks in found.items() if self._is_ours(pid, parents)}

    def _is_ours(self, pid: int, parents: dict[int, int]) -> bool:
        while pid in parents and pid != self.process.pid:
            pid = parents[pid]
        return pid == self.process.pid

    def computed(self, before: dict[int, int]) -> dict[int, int]:
        """Ticks of each replica since then."""
        return {pid: ticks - before[pid] for pid, ticks in self.replicas().items() if pid in before}

    def attempts(self, id: str) -> int:
        """How often a video was begun."""
        with contextlib.closing(sqlite3.connect(f"file:{self.data / 'jobs.sqlite'}?mode=ro", uri=True)) as store:
            ((count,),) = store.execute("SELECT attempts FROM videos WHERE id = ?", (id,))
        return int(count)


@pytest.fixture(scope="module")
def cluster(shallow_folder, tmp_path_factory):
    server = Cluster(shallow_folder, tmp_path_factory.mktemp("ray") / "data")
    yield server
    left = list(server.replicas())
    server.end(signal.SIGTERM)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), SECONDS)


@pytest.fixture(scope="module")
def client(cluster):
    return openai.OpenAI(base_url=f"{cluster.address}/v1", api_key="x", max_retries=0)


@pytest.fixture(scope="module")
def person(client, photo):
    return client.videos.create_character(name="Eileen", video=("me.png", photo, "image/png")).id


def body(person, steps):
    return {"num_inference_steps": steps, "num_frames": 9, "character": person, "seed": 3}


def step_of(client, video):
    return client.videos.retrieve(video.id).step


def playable(client, id):
    content = client.videos.download_content(id).read()
    with av.open(io.BytesIO(content)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 9
    return content


def test_a_replica_without_room_hands_a_video_back(tmp_path, monkeypatch):
    """A video that waits in a full replica would not see another one become free."""
    from consisid.engine.serve import replicas

    monkeypatch.setattr(replicas, "open_workers", lambda settings: [StandIn()])
    monkeypatch.setattr(replicas, "PATIENCE", 0.05)
    tasks = [Task(f"video_{i}", "", True, "largest", "", {}, "", "", "") for i in range(3)]

    async def check():
        replica = replicas.Replica(Settings(tmp_path, tmp_path, ahead=1))
        worker, made = replica.worker, Made({}, {})
        for count, task in enumerate(tasks[:2], 1):
            stream = replica.make(task)
            begun = asyncio.ensure_future(anext(stream))
            while len(worker.started) < count:
                await asyncio.sleep(0.01)
            assert [report async for report in replica.make(tasks[2])] == [replicas.Busy()]
            worker.report(task.id, made)
            assert await begun == made
            assert [report async for report in stream] == []  # and there is room again
        assert worker.started == ["video_0", "video_1"]

    asyncio.run(asyncio.wait_for(check(), SECONDS))


def test_the_client_of_openai(client, person, photo):
    made = client.videos.create_and_poll(
        prompt="A.", input_reference=("me.png", photo, "image/png"), poll_interval_ms=50,
        extra_body={"num_inference_steps": 2, "num_frames": 9},
    )  # fmt: skip
    assert made.status == "completed"
    playable(client, made.id)
    assert made.id in [video.id for video in client.videos.list()]
    assert client.videos.get_character(person).name == "Eileen"
    with pytest.raises(openai.BadRequestError, match="num_frames=10 is not of the form"):
        client.videos.create(prompt="A.", extra_body={**body(person, 2), "num_frames": 10})
    with pytest.raises(openai.BadRequestError, match="The photo: is not an image"):
        client.videos.create(prompt="A.", input_reference=("me.png", b"nothing"))


def test_two_videos_are_made_at_once_and_end_when_they_are_deleted(client, cluster, person):
    before = cluster.replicas()
    assert len(before) == 2
    videos = [client.videos.create(prompt="A.", extra_body=body(person, 1000)) for _ in range(2)]
    wait_until(lambda: all(step_of(client, video) > 0 for video in videos), SECONDS)
    wait_until(lambda: min(cluster.computed(before).values()) > 30, SECONDS)  # each makes one
    for video in videos:
        assert client.videos.delete(video.id).deleted
    ended = client.videos.create_and_poll(prompt="B.", extra_body=body(person, 2), poll_interval_ms=50)
    assert ended.status == "completed"  # a replica is free, long before a thousand steps
    with pytest.raises(openai.NotFoundError, match="There is no such video"):
        client.videos.retrieve(videos[0].id)


def test_videos_of_a_replica_that_is_killed_end_on_the_other(client, cluster, person):
    """A video in each replica, and one replica is killed: its video goes on from its checkpoint, and has the bytes of
    the other, which was asked for in the same words."""
    videos = [client.videos.create(prompt="A.", extra_body=body(person, LONG)) for _ in range(2)]
    others = [client.videos.create(prompt="B.", extra_body=body(person, 2)) for _ in range(3)]
    wait_until(lambda: all(step_of(client, video) >= 5 for video in videos), SECONDS)
    killed = max(cluster.replicas())
    os.kill(killed, signal.SIGKILL)
    reached = {video.id: client.videos.retrieve(video.id).step for video in videos}
    seen = {video.id: [] for video in videos}

    def ended() -> bool:
        found = [client.videos.retrieve(video.id) for video in videos]
        for video in found:
            if video.status == "in_progress" and video.step:
                seen[video.id].append(video.step)
        return all(video.status in ("completed", "failed") for video in found)

    wait_until(ended, SECONDS)
    assert [client.videos.retrieve(video.id).status for video in videos] == ["completed", "completed"]
    assert sorted(cluster.attempts(video.id) for video in videos) == [1, 2]  # one of them was begun again
    for video in videos:
        assert all(step >= reached[video.id] for step in seen[video.id])
    first, second = (playable(client, video.id) for video in videos)
    assert first == second
    for other in others:
        assert client.videos.poll(other.id, poll_interval_ms=50).status == "completed"
        assert cluster.attempts(other.id) == 1
    assert killed not in cluster.replicas()
