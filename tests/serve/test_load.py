"""Three hundred requests of twenty clients against a server on this machine, good ones and bad ones together."""

import io
import random
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles

import av
import httpx2 as httpx
import pytest
from support.serving import Process, free_port, wait_until

pytestmark = pytest.mark.full

CLIENTS, REQUESTS, PARTS = 20, 300, 3  # of which the first warms up
KEYS = [f"the-key-of-person-{i:02}" for i in range(4)]
QUEUE = 12
WARM = 40  # videos before the load
UPLOAD = 2_000_000
SECONDS = 240.0  # for all, with what is retried
KINDS = ("watch", "watch", "watch", "delete", "cancel", "disconnect", "garbage", "oversized", "wrong key", "slow")


class Client:
    """One of the clients: a few requests, drawn from KINDS.

    Attributes:
        accepted: ids that the server answered with. gone: those of them that were deleted.
        told: what became of the requests.
        accept, progress: seconds of answers.
    """

    def __init__(self, number: int, address: str, people: dict[str, str], photo: bytes, deadline: float):
        self.random = random.Random(number)
        self.address, self.photo, self.deadline = address, photo, deadline
        self.key = KEYS[number % len(KEYS)]
        self.person = people[self.key]
        self.http = httpx.Client(headers={"authorization": f"Bearer {self.key}"}, timeout=30)
        self.accepted: list[str] = []
        self.gone: set[str] = set()
        self.told: Counter[str] = Counter()
        self.accept: list[float] = []
        self.progress: list[float] = []

    def run(self, count: int) -> "Client":
        for _ in range(count):
            kind = self.random.choice(KINDS)
            getattr(self, kind.replace(" ", "_"))()
            self.told[kind] += 1
        return self

    def ask(self, path: str, **options) -> httpx.Response:
        """A request, again while the server is away."""
        while True:
            try:
                return self.http.request(url=f"{self.address}{path}", **options)
            except httpx.TransportError:
                assert time.monotonic() < self.deadline
                self.told["away"] += 1
                time.sleep(0.2)

    def create(self) -> str:
        """The id of a video; again while the queue is full."""
        body = {"prompt": "x", "character": self.person, "num_inference_steps": 2, "num_frames": 9}
        repeat = f"{self.random.random()}"
        while True:
            begin = time.monotonic()
            answer = self.ask(
                method="POST", path="/v1/videos", json=body, headers={"idempotency-key": repeat}
            )  # fmt: skip
            if answer.status_code != 429:
                break
            self.told["429"] += 1
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() < self.deadline
            time.sleep(self.random.random())
        self.accept.append(time.monotonic() - begin)
        assert answer.status_code == 200, answer.text
        self.accepted.append(answer.json()["id"])
        return self.accepted[-1]

    def watch(self) -> None:
        id = self.create()
        while True:
            begin = time.monotonic()
            video = self.ask(method="GET", path=f"/v1/videos/{id}").json()
            self.progress.append(time.monotonic() - begin)
            if video["status"] in ("completed", "failed"):
                break
            assert time.monotonic() < self.deadline, video
            time.sleep(0.1)
        assert video["status"] == "completed", video
        content = self.ask(method="GET", path=f"/v1/videos/{id}/content").content
        with av.open(io.BytesIO(content)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 9

    def delete(self) -> None:
        id = self.create()
        self.gone.add(id)
        assert self.ask(method="DELETE", path=f"/v1/videos/{id}").status_code in (200, 404)

    def cancel(self) -> None:
        assert self.ask(method="POST", path=f"/v1/videos/{self.create()}/cancel").status_code == 200

    def disconnect(self) -> None:
        """In the middle of an upload, and of an answer."""
        host, port = self.address.removeprefix("http://").split(":")
        head = f"POST /v1/videos HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {self.key}\r\n"
        for rest in ("Content-Length: 1000\r\nContent-Type: application/json\r\n\r\n{", "Content-Length: 2\r\n\r\n{}"):
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    connection.sendall((head + rest).encode())
            except OSError:
                self.told["away"] += 1

    def garbage(self) -> None:
        files = {"input_reference": ("x.png", self.random.randbytes(1000))}
        answer = self.ask(method="POST", path="/v1/videos", data={"prompt": "x"}, files=files)
        assert answer.status_code in (400, 429), answer.text

    def oversized(self) -> None:
        try:
            answer = self.http.post(f"{self.address}/v1/videos", content=bytes(UPLOAD + 1))
            assert answer.status_code in (413, 429), answer.text
        except httpx.TransportError:  # it was cut while it was sent
            self.told["away"] += 1

    def wrong_key(self) -> None:
        answer = self.ask(method="GET", path="/v1/videos", headers={"authorization": "Bearer nobody-knows-this-key"})
        assert answer.status_code == 401

    def slow(self) -> None:
        """Reads its events a byte at a time, and leaves."""
        id = self.create()
        host, port = self.address.removeprefix("http://").split(":")
        request = (
            f"GET /v1/videos/{id}/events HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {self.key}\r\n\r\n"
        )
        try:
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(request.encode())
                for _ in range(20):
                    connection.recv(1)
                    time.sleep(0.01)
        except OSError:
            self.told["away"] += 1


def held(process) -> tuple[int, int]:
    """Bytes and file descriptors of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    return resident, len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def settled(address: str) -> bool:
    """Whether nothing is made, and nobody watches."""
    text = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {KEYS[0]}"}).text
    return all(f"\nconsisid_videos_{what} 0.0\n" in text for what in ("waiting", "running", "watching"))


def listed(http, address) -> list[dict]:
    """All videos of a key, the oldest first."""
    found: list[dict] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = http.get(f"{address}/v1/videos", params={"limit": 100, "order": "asc", **after}).json()
        found += page["data"]
        if not page["has_more"]:
            return found


def percentiles(seconds) -> str:
    ranks = quantiles(seconds, n=20)
    return f"p50 {1e3 * ranks[9]:.1f} ms, p95 {1e3 * ranks[18]:.1f} ms of {len(seconds)}"


@pytest.mark.parametrize("killed", [False, True], ids=["in peace", "killed in the middle"])
def test_no_video_is_lost_or_made_twice(shallow_folder, photo, tmp_path, killed, capsys):
    (tmp_path / "keys").write_text("\n".join(KEYS))
    port = free_port()
    arguments = ("--api-key-file", str(tmp_path / "keys"), "--queue", str(QUEUE), "--max-upload", str(UPLOAD))
    server = Process(shallow_folder, tmp_path / "data", *arguments, port=port)
    people, deadline = {}, time.monotonic() + SECONDS
    for key in KEYS:
        answer = httpx.post(
            f"{server.address}/v1/videos/characters", data={"name": "E"}, files={"video": ("p.png", photo)},
            headers={"authorization": f"Bearer {key}"}, timeout=60,
        )  # fmt: skip
        people[key] = answer.json()["id"]
    for _ in range(WARM):  # what is loaded late is loaded now, and what is kept is full
        Client(99, server.address, people, photo, deadline).watch()
    clients = [Client(i, server.address, people, photo, deadline) for i in range(CLIENTS)]
    servers = [server]

    def kill() -> None:
        wait_until(lambda: sum(len(client.accepted) for client in clients) >= CLIENTS * 2, SECONDS)
        servers[0].end(signal.SIGKILL)
        servers.append(Process(shallow_folder, tmp_path / "data", *arguments, port=port))

    killer = threading.Thread(target=kill)
    if killed:
        killer.start()
    sizes = []
    for _ in range(PARTS):  # what grows in the last two parts would grow for ever
        with ThreadPoolExecutor(CLIENTS) as pool:
            done = list(pool.map(lambda client: client.run(REQUESTS // CLIENTS // PARTS), clients))
        if not killed:
            wait_until(lambda: settled(server.address), 120)
            if sizes:  # connections that are kept alive end after seconds
                wait_until(lambda: held(server.process)[1] <= sizes[0][1], 20)
            sizes.append(held(server.process))
    if killed:
        killer.join()
    told = sum((client.told for client in done), Counter())
    assert sum(told[kind] for kind in set(KINDS)) == REQUESTS
    states: Counter[str] = Counter()
    for key in KEYS:
        own = [client for client in done if client.key == key]
        accepted = [id for client in own for id in client.accepted]
        gone = {id for client in own for id in client.gone}
        assert len(set(accepted)) == len(accepted)
        with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=30) as http:
            wait_until(
                lambda http=http: all(v["status"] in ("completed", "failed") for v in listed(http, server.address)), 120
            )
            found = {video["id"]: video for video in listed(http, server.address)}
        assert set(accepted) - gone == set(found) - {each for each in found if each not in accepted}
        assert len(set(found) - set(accepted)) <= WARM * (key == KEYS[99 % len(KEYS)])
        assert not gone & set(found)
        for video in found.values():
            states[video["status"] if video["status"] == "completed" else video["error"]["code"]] += 1
    assert set(states) == {"completed", "cancelled"}
    text = httpx.get(f"{server.address}/metrics", headers={"authorization": f"Bearer {KEYS[0]}"}).text
    made = float(text.partition('consisid_videos_total{outcome="completed"} ')[2].split()[0])
    if not killed:
        assert made >= states["completed"]
        assert made <= states["completed"] + told["delete"]  # deleted when they were ready
        assert sizes[-1][0] <= sizes[0][0] + 75e6
    with capsys.disabled():
        print(f"\n{REQUESTS} requests of {CLIENTS} clients{', SIGKILL in the middle' if killed else ''}: {dict(told)}")
        print(f"videos: {dict(states)}")
        if not killed:
            (bytes_before, files_before), (bytes_after, files_after) = sizes[0], sizes[-1]
            growth = (bytes_after - bytes_before) / 1e6
            print(f"the last two parts: {growth:+.0f} MB, {files_after - files_before:+} descriptors")
        print(f"accept: {percentiles([x for client in done for x in client.accept])}")
        print(f"progress: {percentiles([x for client in done for x in client.progress])}")
    servers[-1].end(signal.SIGTERM)
