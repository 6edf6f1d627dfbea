"""Who is next, who is refused, and what ends: with a worker that computes nothing."""

import time

import pytest
from support.serving import StandIn, ask, scheduled, wait_until

from consisid.engine.serve.refusals import Refusal
from consisid.engine.serve.settings import Limits, Retention
from consisid.engine.serve.store import COMPLETED, FAILED, QUEUED, RUNNING
from consisid.engine.serve.waiting import Waiting
from consisid.engine.serve.worker import Begun, Lost, Stepped


def status(service, id):
    return service.store.video(id).status


def test_keys_take_turns():
    """Ten videos of one key, then one each of two others."""
    waiting = Waiting()
    for i in range(10):
        waiting.add(f"a{i}", "a")
    waiting.add("b0", "b")
    waiting.add("c0", "c")
    order = []
    for _ in range(12):
        order.append(waiting.next())
        waiting.done(order[-1])
    assert order[:4] == ["a0", "b0", "c0", "a1"]
    assert order[4:] == [f"a{i}" for i in range(2, 10)]
    assert waiting.next() is None


def test_who_asks_for_one_video_at_a_time_gets_every_second_one():
    waiting = Waiting()
    for i in range(4):
        waiting.add(f"a{i}", "a")
    order = []
    for i in range(3):
        waiting.add(f"b{i}", "b")
        for _ in range(2):
            order.append(waiting.next())
            waiting.done(order[-1])
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_key_with_fewer_videos_in_work_goes_first():
    waiting = Waiting()
    for i in range(3):
        waiting.add(f"a{i}", "a")
    assert [waiting.next(), waiting.next()] == ["a0", "a1"]
    waiting.add("b0", "b")
    waiting.add("b1", "b")
    assert [waiting.next(), waiting.next()] == ["b0", "b1"]
    assert waiting.in_work == ["a0", "a1", "b0", "b1"]


def test_a_service_is_fair(tmp_path):
    worker = StandIn(slots=1)
    with scheduled(tmp_path, worker, people=2) as service:
        many = [ask(service, "person 0") for _ in range(5)]
        wait_until(lambda: worker.started)
        one = ask(service, "person 1")
        for count in range(1, 7):
            wait_until(lambda count=count: len(worker.started) == count)
            worker.finish(worker.started[-1])
        assert worker.started == [many[0], one, *many[1:]]
        assert all(status(service, id) == COMPLETED for id in worker.started)


def test_a_full_queue_is_429_and_says_for_how_long(tmp_path):
    worker = StandIn(slots=1)
    with scheduled(tmp_path, worker, people=2, limits=Limits(waiting=4)) as service:
        first = ask(service)
        wait_until(lambda: worker.started == [first])
        own = [ask(service) for _ in range(2)]
        with pytest.raises(Refusal, match="2 videos of your API key wait already; try again in") as refused:
            ask(service)
        assert refused.value.status == 429
        assert int(refused.value.headers["retry-after"]) >= 1
        for _ in range(2):
            ask(service, "person 1")
        with pytest.raises(Refusal, match="4 videos wait already; try again in"):
            ask(service, "person 1")
        service.delete("person 0", own[0])
        ask(service)


def test_a_deadline(tmp_path):
    """One that waits and one that is made; and what a client asks for is no more than what the server allows."""
    worker = StandIn(slots=1)
    with scheduled(tmp_path, worker, limits=Limits(seconds=1000.0)) as service:
        running = ask(service, deadline=0.3)
        wait_until(lambda: worker.started == [running])
        worker.report(running, Begun(10), Stepped(1, 10))
        waiting = ask(service, deadline=0.2)
        wait_until(lambda: status(service, running) == status(service, waiting) == FAILED)
        assert worker.cancelled == [running]
        row = service.store.video(waiting)
        assert (row.code, row.message) == (
            "deadline_exceeded", "The video was not ready within 0.2 seconds of being asked for.",
        )  # fmt: skip
        long = service.store.video(ask(service, deadline=5000))
        assert long.deadline - long.created == pytest.approx(1000, abs=1)


def test_what_was_in_work_goes_on_with_the_next_server(tmp_path):
    worker = StandIn(slots=2)
    with scheduled(tmp_path, worker) as service:
        ids = [ask(service) for _ in range(4)]
        wait_until(lambda: len(worker.started) == 2)
        worker.report(ids[0], Begun(10), Stepped(3, 10))
        assert status(service, ids[0]) == RUNNING
        assert service.board.get(ids[0]).percent == 29
    worker = StandIn(slots=4)
    with scheduled(tmp_path, worker) as service:
        wait_until(lambda: len(worker.started) == 4)
        assert worker.started == ids
        assert all(service.store.video(id).attempts == 1 for id in ids)
        for id in ids:
            worker.finish(id)
            assert status(service, id) == COMPLETED


def test_a_server_that_died_several_times_in_a_video_gives_it_up(tmp_path):
    """As after SIGKILL: nothing is handed back."""
    for attempt in range(3):
        worker = StandIn()
        with scheduled(tmp_path, worker) as service:
            id = ask(service) if attempt == 0 else service.store.unfinished()[0].id
            wait_until(lambda worker=worker, id=id: worker.started == [id])
            service.store.requeue = lambda id, counted=True: None
    worker = StandIn()
    with scheduled(tmp_path, worker) as service:
        row = service.store.video(id)
        assert (row.status, row.code) == (FAILED, "gave_up")
        assert row.message == "The server stopped 3 times in this video."
        assert worker.started == []


def test_a_lost_video_is_begun_again_before_others_of_its_key(tmp_path):
    worker = StandIn()
    with scheduled(tmp_path, worker) as service:
        first, second = ask(service), ask(service)
        wait_until(lambda: worker.started == [first])
        worker.report(first, Begun(10), Lost("The replica is gone."))
        wait_until(lambda: worker.started == [first, first])
        assert status(service, first) == QUEUED
        worker.finish(first)
        wait_until(lambda: worker.started[-1] == second)
        assert status(service, first) == COMPLETED


def test_no_video_is_handed_to_a_worker_that_is_broken(tmp_path):
    worker = StandIn()
    worker.well = False
    with scheduled(tmp_path, worker) as service:
        id = ask(service)
        assert not service.healthy()
        worker.well = True
        wait_until(lambda: worker.started == [id])
        assert service.healthy()


def test_old_videos_go_and_the_oldest_of_too_many(tmp_path):
    worker = StandIn()
    keep = Retention(seconds=1000, bytes=3500, every=0.05)
    with scheduled(tmp_path, worker, retention=keep) as service:
        ids = []
        for _ in range(5):
            ids.append(ask(service))
            wait_until(lambda: worker.started == ids)
            worker.finish(ids[-1])
        wait_until(lambda: len(service.store.ended()) == 3)
        assert [row.id for row in service.store.ended()] == ids[2:]
        assert sorted(path.stem for path in (tmp_path / "videos").iterdir()) == sorted(ids[2:])
        service.store._rows("UPDATE videos SET ended = ? WHERE id = ?", time.time() - 1001, ids[2])
        wait_until(lambda: [row.id for row in service.store.ended()] == ids[3:])
    (tmp_path / "people" / "video_00.photo").write_bytes(b"left by a server that was killed")
    with scheduled(tmp_path, StandIn(), retention=keep):
        assert list((tmp_path / "people").iterdir()) == []
        assert len(list((tmp_path / "videos").iterdir())) == 2


@pytest.mark.parametrize("part", ["store", "worker"])
def test_a_video_that_could_not_be_begun_is_begun_again(tmp_path, part):
    """A disk that is full for a moment takes no worker's place for good."""
    worker, refused = StandIn(slots=1), []
    with scheduled(tmp_path, worker) as service:
        owner, name = (service.store, "attempt") if part == "store" else (worker, "start")
        whole = getattr(owner, name)

        def once(*given):
            if not refused:
                refused.append(given)
                raise OSError("no space left on device")
            return whole(*given)

        setattr(owner, name, once)
        id = ask(service)
        wait_until(lambda: worker.started)
        assert worker.started == [id]
        worker.finish(id)
        wait_until(lambda: status(service, id) == COMPLETED)
