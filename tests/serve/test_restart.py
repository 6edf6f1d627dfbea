"""A server that is killed and started again: every video that was accepted ends."""

import io
import signal
import time

import av
import pytest
from support.serving import Process, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.full)])
def test_a_killed_server_goes_on_with_its_videos(shallow_folder, photo, tmp_path, how):
    """The one in work from its checkpoint, and not from its first step; those that wait in their order."""
    first = Process(shallow_folder, tmp_path / "data")
    client = first.client()
    person = client.videos.create_character(name="Eileen", video=("me.png", photo, "image/png"))
    body = {"num_frames": 9, "character": person.id, "seed": 5}
    long = client.videos.create(prompt="A.", extra_body={**body, "num_inference_steps": 100})
    others = [client.videos.create(prompt="B.", extra_body={**body, "num_inference_steps": 2}) for _ in range(3)]
    wait_until(lambda: client.videos.retrieve(long.id).step >= 20)
    reached = client.videos.retrieve(long.id).step
    first.end(how)
    second = Process(shallow_folder, tmp_path / "data")
    client = second.client()
    assert client.videos.get_character(person.id).name == "Eileen"
    wait_until(lambda: (video := client.videos.retrieve(long.id)).step or video.status == "completed")
    begun = client.videos.retrieve(long.id)
    assert begun.status == "completed" or begun.step >= reached
    contents = []
    for video in (long, *others):
        ended = client.videos.poll(video.id, poll_interval_ms=50)
        assert ended.status == "completed", ended.error
        contents.append(client.videos.download_content(video.id).read())
        with av.open(io.BytesIO(contents[-1])) as file:
            assert sum(1 for _ in file.decode(video=0)) == 9
    whole = client.videos.create_and_poll(
        prompt="A.", extra_body={**body, "num_inference_steps": 100}, poll_interval_ms=50
    )
    assert client.videos.download_content(whole.id).read() == contents[0]
    assert second.end(signal.SIGTERM) == -signal.SIGTERM
    assert not list((tmp_path / "data" / "people").iterdir())
    assert not list((tmp_path / "data" / "checkpoints").iterdir())


@pytest.mark.full
def test_an_interrupt_ends_it_in_one_line(shallow_folder, tmp_path):
    server = Process(shallow_folder, tmp_path / "data")
    time.sleep(0.2)
    assert server.end(signal.SIGINT) == 130
    assert server.lines[-1] == "consisid-serve: interrupted; what was accepted goes on with the next start.\n"
    assert "Traceback" not in "".join(server.lines)
