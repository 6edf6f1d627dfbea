"""The video API as the real client of OpenAI uses it."""

import io
import json

import av
import httpx2 as httpx
import openai
import pytest
from PIL import Image
from support.serving import wait_until

SHORT = {"num_inference_steps": 2, "num_frames": 9}
LONG = {"num_inference_steps": 500, "num_frames": 9}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def made(client, **options):
    video = client.videos.create_and_poll(prompt="She smiles.", poll_interval_ms=50, **options)
    assert video.status == "completed", video.error
    return video


def frames_of(content: bytes) -> int:
    with av.open(io.BytesIO(content)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_a_photo_becomes_a_video(client, photo):
    video = made(client, input_reference=("me.png", photo, "image/png"), extra_body={**SHORT, "seed": 7})
    assert (video.progress, video.size, video.error) == (100, "144x96", None)
    assert video.completed_at >= video.created_at
    content = client.videos.download_content(video.id)
    assert content.response.headers["content-type"] == "video/mp4"
    assert frames_of(content.read()) == 9
    picture = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
    assert picture.size == (144, 96)
    again = made(client, input_reference=("me.png", photo, "image/png"), extra_body={**SHORT, "seed": 7})
    assert client.videos.download_content(again.id).read() == client.videos.download_content(video.id).read()


def test_a_character_is_stored_and_used_by_its_id(client, server, character):
    assert client.videos.get_character(character).name == "Eileen"
    listed = httpx.get(f"{server.address}/v1/videos/characters").json()
    assert character in [each["id"] for each in listed["data"]]
    video = made(client, extra_body={**SHORT, "characters": [{"id": character}]})
    assert video.character == character
    assert frames_of(client.videos.download_content(video.id).read()) == 9


def test_a_character_of_several_photos_or_of_a_video_and_its_end(client, server, photo, tmp_path):
    pictures = [("image", ("a.png", photo, "image/png")), ("image", ("b.png", photo, "image/png"))]
    found = httpx.post(
        f"{server.address}/v1/videos/characters", data={"name": "Two photos"}, files=pictures, timeout=60
    )
    assert found.status_code == 200
    with av.open(tmp_path / "me.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.width = stream.height = 512
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_image(Image.open(io.BytesIO(photo)).convert("RGB"))))
        file.mux(stream.encode())
    person = client.videos.create_character(name="A video", video=tmp_path / "me.mp4")
    assert person.name == "A video"
    at = f"{server.address}/v1/videos/characters/{person.id}"
    assert httpx.delete(at).json() == {"id": person.id, "object": "character.deleted", "deleted": True}
    assert httpx.get(at).status_code == 404
    assert not list(server.service.files.folder.glob(f"*/{person.id}*"))


def test_lists_go_on_behind_the_last(client, character):
    ids = [client.videos.create(prompt=f"{i}", extra_body={**SHORT, "character": character}).id for i in range(3)]
    assert [video.id for video in client.videos.list(limit=3)][:3] == ids[::-1]
    first = client.videos.list(limit=2)
    assert (first.has_more, len(first.data)) == (True, 2)
    assert client.videos.list(limit=1, after=ids[1]).data[0].id == ids[0]
    for id in ids:
        client.videos.poll(id, poll_interval_ms=50)


def test_deleting_ends_a_video_at_its_next_step(client, server, character):
    """Measured in steps: none begins after the one in which it was deleted."""
    engine, steps, worker = server.worker.engine, [], server.worker
    video = client.videos.create(prompt="Long.", extra_body={**LONG, "character": character})
    wait_until(lambda: client.videos.retrieve(video.id).step >= 2)
    (job,) = [entry.job for entry in worker._entries.values()]
    watched = job.on_step
    job.on_step = lambda *given: (steps.append(given[1]), watched(*given))
    wait_until(lambda: steps)
    assert client.videos.delete(video.id).deleted
    after = len(steps)
    wait_until(lambda: not worker._entries)
    assert len(steps) - after <= 1
    assert engine.active is None
    with pytest.raises(openai.NotFoundError, match="There is no such video"):
        client.videos.retrieve(video.id)
    assert not list(server.service.files.folder.glob(f"*/{video.id}*"))


def test_deleting_a_video_that_waits(client, server, character):
    long = client.videos.create(prompt="Long.", extra_body={**LONG, "character": character})
    waiting = [client.videos.create(prompt="W.", extra_body={**LONG, "character": character}) for _ in range(6)]
    wait_until(lambda: client.videos.retrieve(long.id).status == "in_progress")
    assert client.videos.retrieve(waiting[-1].id).status == "queued"
    for video in (*reversed(waiting), long):
        assert client.videos.delete(video.id).deleted
    wait_until(lambda: not server.worker._entries and not server.service.scheduler.running)


def test_a_cancelled_video_stays_in_the_list(client, server, character):
    video = client.videos.create(prompt="Long.", extra_body={**LONG, "character": character})
    wait_until(lambda: client.videos.retrieve(video.id).status == "in_progress")
    assert httpx.post(f"{server.address}/v1/videos/{video.id}/cancel").status_code == 200
    ended = client.videos.poll(video.id, poll_interval_ms=20)
    assert (ended.status, ended.error.code) == ("failed", "cancelled")
    with pytest.raises(openai.ConflictError, match="The video is failed; The video was cancelled"):
        client.videos.download_content(video.id)


def test_events_tell_every_step_with_previews(server, client, character):
    video = client.videos.create(
        prompt="Events.", extra_body={"num_inference_steps": 8, "num_frames": 9, "character": character}
    )
    seen = []
    with httpx.stream("GET", f"{server.address}/v1/videos/{video.id}/events", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = None
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                seen.append((name, json.loads(line.removeprefix("data: "))))
    assert [name for name, _ in seen][-1] == "completed"
    progress = [data for name, data in seen if name == "progress"]
    steps = [data["step"] for data in progress]
    assert steps == sorted(steps)
    assert all(data["progress"] == (99 * data["step"] // 8 if data["step"] else 0) for data in progress)
    previews = [data["preview"] for data in progress if data["preview"]]
    assert previews
    assert all(preview.startswith("data:image/jpeg;base64,/9j/") for preview in previews)
    assert seen[-1][1]["status"] == "completed"


def test_idempotency(client, character):
    options = {"prompt": "Once.", "extra_body": {**SHORT, "character": character}}
    first = client.videos.create(**options, extra_headers={"Idempotency-Key": "one"})
    assert client.videos.create(**options, extra_headers={"Idempotency-Key": "one"}).id == first.id
    assert client.videos.create(**options, extra_headers={"Idempotency-Key": "two"}).id != first.id


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"size": "1280x720"}, None, None),
        ({"size": "100x100"}, "height=100 is not a positive multiple of 16", None),
        ({"size": "big"}, "size: String should match pattern", "size"),
        ({"seconds": "4", "num_frames": 9}, "Give seconds or num_frames", "seconds"),
        ({"num_frames": 10}, "num_frames=10 is not of the form 8k + 1", None),
        (
            {"num_inference_steps": "many"},
            "num_inference_steps: Input should be a valid integer",
            "num_inference_steps",
        ),
        ({"num_inference_steps": 1001}, "less than or equal to 1000", "num_inference_steps"),
        ({"guidance_scale": "nan"}, "guidance_scale", "guidance_scale"),
        ({"lora": "nowhere"}, "There is no LoRA called 'nowhere' here; there are: none.", None),
        ({"cache": "fast"}, "cache", "cache"),
        ({"face": "nose"}, "give 'largest'", None),
        ({"prompt": ""}, "prompt: String should have at least 1 character", "prompt"),
        ({"colour": "red"}, "There is no field called 'colour'.", "colour"),
        ({"model": "sora-2"}, "The model here is called consisid-tiny.", "model"),
        ({"character": "char_00"}, "There is no such character.", "character"),
        ({"characters": [{"id": "a"}, {"id": "b"}]}, "A video shows one person", "characters"),
        ({"character": None}, "Give one person", "input_reference"),
    ],
)
def test_what_cannot_be_made_is_refused_in_openais_form(client, server, character, fields, message, param):
    body = {"prompt": "A woman.", "character": character, **SHORT, **fields}
    if "characters" in fields or body["character"] is None:
        del body["character"]
    if message is None:
        video = client.videos.create(prompt="Wide.", extra_body=body)
        assert video.size == fields["size"]
        client.videos.delete(video.id)
        return
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.videos.create(prompt=body.pop("prompt"), extra_body=body)
    assert message in refused.value.body["message"]
    assert refused.value.body["param"] == param
    assert refused.value.body["type"] == "invalid_request_error"
    assert httpx.post(f"{server.address}/v1/videos", json=body).status_code in (400, 404)


def test_photos_that_cannot_be_used(client, server):
    with pytest.raises(openai.BadRequestError, match="The photo: is not an image that can be read"):
        client.videos.create(prompt="x", input_reference=("me.png", b"no picture", "image/png"))
    blue = io.BytesIO()
    Image.new("RGB", (200, 200), "blue").save(blue, "PNG")
    with pytest.raises(openai.BadRequestError, match="The photo: no face found in the photo"):
        client.videos.create_character(name="Nobody", video=("me.png", blue.getvalue(), "image/png"))
    video = client.videos.create_and_poll(
        prompt="x", input_reference=("me.png", blue.getvalue()), extra_body=SHORT, poll_interval_ms=50
    )
    assert (video.status, video.error.code) == ("failed", "no_face")
    assert video.error.message.startswith("The photo: no face found in the photo")


def test_what_the_server_says_of_itself(client, server, character):
    made(client, extra_body={**SHORT, "character": character})
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("consisid-tiny").id == "consisid-tiny"
    text = httpx.get(f"{server.address}/metrics").text
    for name in ("consisid_videos_waiting", "consisid_stage_seconds_sum", "consisid_first_step_seconds_count",
                 "process_resident_memory_bytes", 'consisid_videos_total{outcome="completed"}'):  # fmt: skip
        assert name in text
