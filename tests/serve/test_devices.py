"""A server that makes each video on two devices."""

import os
import signal

import pytest
import torch
from support.serving import running, wait_until

from consisid.engine.errors import EngineError
from consisid.engine.serve.local import open_workers
from consisid.engine.serve.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_a_video_on_two_devices_and_a_lost_one(shallow_folder, photo, tmp_path):
    """A video comes; when a device is lost the server says that it is not well, and what was under way waits for the
    next server."""
    with running(shallow_folder, tmp_path, per_video=2) as server:
        client = server.client()
        ask = {
            "prompt": "A person walks.",
            "input_reference": ("me.png", photo, "image/png"),
            "extra_body": {"num_frames": 9, "num_inference_steps": 2},
        }
        video = client.videos.create(**ask)
        wait_until(lambda: client.videos.retrieve(video.id).status == "completed")
        assert server.service.healthy()
        (process,) = server.worker.engine.team.crew.processes.values()
        ask["extra_body"] = {"num_frames": 9, "num_inference_steps": 500}
        lost = client.videos.create(**ask)
        wait_until(lambda: client.videos.retrieve(lost.id).progress > 0)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not server.service.healthy())
        wait_until(lambda: client.videos.retrieve(lost.id).status == "queued")
    assert not torch.distributed.is_initialized()


def test_devices_that_do_not_fit(shallow_folder, tmp_path):
    settings = Settings(shallow_folder, tmp_path, devices=("cpu",), per_video=2)
    with pytest.raises(EngineError, match="--per-video 2 takes so many --devices"):
        open_workers(settings)
