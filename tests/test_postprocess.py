"""Frames in between and larger frames, and the files that videos are written to."""

import sys
from fractions import Fraction
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from consisid.engine.errors import BackendError, InputError
from consisid.engine.postprocess import enlarging, interpolation
from consisid.engine.video import Stats, Video


def moving(count, height=32, width=48):
    """A white square that goes to the right, two pixels a frame."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[8:24, 2 * i : 2 * i + 12] = 255
    return frames


def save_model(path, inputs, nodes, output="out"):
    graph = helper.make_graph(
        nodes, "model",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


IMAGE = [1, 3, "h", "w"]


@pytest.fixture
def rife(tmp_path):
    """first + t * (second - first)"""
    nodes = [
        helper.make_node("Sub", ["b", "a"], ["d"]), helper.make_node("Mul", ["d", "t"], ["s"]),
        helper.make_node("Add", ["a", "s"], ["out"]),
    ]  # fmt: skip
    return save_model(tmp_path / "rife.onnx", {"a": IMAGE, "b": IMAGE, "t": [1, 1, 1, 1]}, nodes)


@pytest.fixture
def middle(tmp_path):
    """The mean of two, which knows no time, of sides that 32 divides."""
    nodes = [helper.make_node("Mean", ["a", "b"], ["out"])]
    return save_model(tmp_path / "middle.onnx", {"a": [1, 3, 64, 64], "b": [1, 3, 64, 64]}, nodes)


@pytest.mark.parametrize(
    ("rate", "target", "count"), [(8, 16, 17), (8, 24, 25), (8, Fraction(2997, 100), 30), (8, 4, 5), (8, 8, 9)]
)
def test_minterpolate_keeps_the_time(rate, target, count):
    frames = moving(9)
    found = list(interpolation("minterpolate")(iter(frames), Fraction(rate), Fraction(target)))
    assert len(found) == int(8 * Fraction(target) / rate) + 1 == count
    assert all(frame.shape == (32, 48, 3) and frame.dtype == np.uint8 for frame in found)


def test_minterpolate_moves_what_moves():
    """The middle of the square is between those of its neighbours."""
    found = list(interpolation("minterpolate")(iter(moving(9, 64, 96)), Fraction(8), Fraction(16)))
    centres = [float((frame[16, :, 1].astype(float) @ np.arange(96)) / frame[16, :, 1].sum()) for frame in found[:15]]
    assert all(0.3 < b - a < 1.7 for a, b in pairwise(centres))


@pytest.mark.parametrize("frames", [0, 1])
def test_hardly_any_frames(frames):
    for how in ("minterpolate", lambda a, b, t: a):
        assert len(list(interpolation(how)(iter(moving(frames)), Fraction(8), Fraction(16)))) == frames


def blend(first, second, t):
    return (first + t * (second.astype(float) - first)).round().astype(np.uint8)


@pytest.mark.parametrize("target", [16, 24, 12, 4, 8, 5])
def test_a_function_is_asked_for_the_times_between(target, rife):
    frames = moving(5)
    asked = []

    def between(first, second, t):
        asked.append(t)
        return blend(first, second, t)

    found = list(interpolation(between)(iter(frames), Fraction(8), Fraction(target)))
    times = [Fraction(8 * k, target) for k in range(int(Fraction(4 * target, 8)) + 1)]
    assert len(found) == len(times)
    for time, frame in zip(times, found, strict=True):
        low = min(int(time), 3)
        np.testing.assert_array_equal(frame, blend(frames[low], frames[low + 1], float(time - low)))
    assert asked == [float(time % 1) for time in times if time.denominator > 1]
    by_model = list(interpolation(rife)(iter(frames), Fraction(8), Fraction(target)))
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(found, by_model, strict=True)) <= 1


def test_a_model_without_a_time_makes_the_middle(middle):
    frames = moving(3, 40, 48)  # padded to 64 x 64
    found = list(interpolation(str(middle))(iter(frames), Fraction(8), Fraction(16)))
    np.testing.assert_array_equal(found[1], blend(frames[0], frames[1], 0.5))
    with pytest.raises(InputError, match="makes the frame in the middle of two and no other; give fps=16"):
        interpolation(middle)(iter(frames), Fraction(8), Fraction(24))


def test_larger_frames(tmp_path):
    frames = moving(2)
    node = helper.make_node("Resize", ["x", "", "scales"], ["out"], mode="nearest")
    scales = helper.make_node(
        "Constant", [], ["scales"], value=helper.make_tensor("s", TensorProto.FLOAT, [4], [1, 1, 2, 2])
    )
    model = save_model(tmp_path / "x2.onnx", {"x": IMAGE}, [scales, node])
    for larger in enlarging(model), enlarging(lambda x: x.repeat(2, 0).repeat(2, 1)):
        found = map(larger, frames)
        np.testing.assert_array_equal(list(found), frames.repeat(2, 1).repeat(2, 2))
    assert [enlarging(2)(frame).shape for frame in frames] == [(64, 96, 3)] * 2
    assert [enlarging(1.03)(frame).shape for frame in frames] == [(32, 50, 3)] * 2  # sides stay even


@pytest.mark.parametrize(
    ("step", "how", "said"),
    [
        (interpolation, "rife", 'none of "minterpolate"'), (interpolation, 2, "none of"),
        (interpolation, True, "none of"), (interpolation, "nowhere.onnx", "there is no such file"),
        (interpolation, "x.pth", "none of"), (enlarging, "esrgan", "none of a factor"),
        (enlarging, 0.5, "no factor from 1 to 8"), (enlarging, 9, "no factor"), (enlarging, float("nan"), "no factor"),
        (enlarging, True, "none of"), (enlarging, "nowhere.pth", "no such file"), (enlarging, None, "none of"),
    ],
)  # fmt: skip
def test_what_is_no_step(step, how, said):
    with pytest.raises(InputError, match=said):
        step(how)


def test_files_that_are_no_models(tmp_path, monkeypatch, rife):
    (tmp_path / "x.onnx").write_bytes(b"no model")
    (tmp_path / "x.pth").write_bytes(b"no model")
    for step in (interpolation, enlarging):
        with pytest.raises(InputError, match="no model that onnxruntime can read"):
            step(tmp_path / "x.onnx")
    with pytest.raises(InputError, match="does not make frames"):
        enlarging(rife)(moving(1)[0])
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BackendError, match=r"spandrel is needed; pip install 'consisid\[upscale\]', or give an .onnx"):
        enlarging(tmp_path / "x.pth")


def test_the_weights_of_real_esrgan(tmp_path):
    """As its authors publish them, at a small width."""
    pytest.importorskip("spandrel")
    import torch
    from spandrel.architectures.ESRGAN import RRDBNet

    torch.manual_seed(0)
    network = RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4).eval()
    torch.save({"params_ema": network.state_dict()}, tmp_path / "x4.pth")
    frame = moving(1)[0]
    found = enlarging(tmp_path / "x4.pth")(frame)
    with torch.no_grad():
        expected = network(torch.from_numpy(frame.transpose(2, 0, 1)[None] / 255).float())[0].permute(1, 2, 0)
    assert found.shape == (128, 192, 3)
    assert np.abs(found - (expected.clamp(0, 1) * 255).numpy()).max() <= 1
    (tmp_path / "no.pth").write_bytes(b"no model")
    with pytest.raises(InputError, match="holds no model that enlarges pictures"):
        enlarging(tmp_path / "no.pth")


def test_a_model_that_gives_no_picture(tmp_path):
    grey = save_model(tmp_path / "grey.onnx", {"x": IMAGE}, [helper.make_node("ReduceMean", ["x"], ["out"], axes=[1])])
    nan = save_model(tmp_path / "nan.onnx", {"x": IMAGE}, [
        helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("Div", ["zero", "zero"], ["out"])
    ])  # fmt: skip
    for model in (grey, nan):
        with pytest.raises(InputError, match="does not make frames"):
            enlarging(model)(moving(1)[0])


def test_no_more_frames_than_somebody_can_wait_for():
    for how in ("minterpolate", blend):
        with pytest.raises(InputError, match="fps=1000 is more than 16 times the 8 that there are"):
            interpolation(how)(iter(moving(2)), Fraction(8), Fraction(1000))


def test_interpolation_wants_another_rate(tmp_path):
    with pytest.raises(InputError, match="give fps too"):
        video().save(tmp_path / "a.mp4", interpolate=True)
    assert list(tmp_path.iterdir()) == []


def test_a_frame_in_between_is_as_large_as_the_others():
    with pytest.raises(InputError, match="it has to be uint8"):
        list(interpolation(lambda a, b, t: a[:16])(iter(moving(2)), Fraction(8), Fraction(16)))


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), None])
def test_functions_that_give_something_else(frame):
    with pytest.raises(InputError, match="it has to be uint8"):
        enlarging(lambda _: frame)(moving(1)[0])
    with pytest.raises(InputError, match="it has to be uint8"):
        list(interpolation(lambda *_: frame)(iter(moving(2)), Fraction(8), Fraction(16)))


# --- files


def video(count=9, **options):
    return Video(moving(count), 8, Stats(), **options)


def frames_of(path):
    import av

    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


def test_twice_the_frames_per_second(tmp_path):
    frames, rate = frames_of(video().save(tmp_path / "a.mp4", fps=16, interpolate=True, upscale=2))
    assert (len(frames), rate, frames[0].shape) == (17, 16, (64, 96, 3))
    frames, rate = frames_of(video().save(tmp_path / "b.mp4", fps=16))
    assert (len(frames), rate) == (9, 16)  # faster
    stream = Video(iter(moving(9)), 8, Stats())
    frames, rate = frames_of(stream.save(tmp_path / "c.mp4", fps=16, interpolate=blend))
    assert (len(frames), rate) == (17, 16)


@pytest.mark.parametrize(
    ("name", "fps", "length"), [("a.gif", None, 1120), ("a.GIF", 16, 560), ("a.webp", None, 1125), ("a.gif", 30, 300)]
)
def test_animations(name, fps, length, tmp_path):
    """Their pictures last as long as the video; a GIF counts hundredths of a second."""
    with Image.open(video().save(tmp_path / name, fps=fps)) as found:
        assert found.n_frames == 9
        durations = []
        for number in range(9):
            found.seek(number)
            found.load()
            durations.append(found.info["duration"])
            pixels = np.asarray(found.convert("RGB")).astype(int)
            assert np.abs(pixels - moving(9)[number]).mean() < 8
    assert sum(durations) == length


def test_a_gif_is_not_faster_than_browsers_show_it(tmp_path):
    with pytest.raises(InputError, match="a GIF shows 50 frames per second at most, not 60"):
        video().save(tmp_path / "a.gif", fps=60)
    assert list(tmp_path.iterdir()) == []


def test_pictures(tmp_path):
    with Image.open(video().save(tmp_path / "thumb.png")) as found:
        np.testing.assert_array_equal(np.asarray(found), moving(9)[4])
    with Image.open(video().save(tmp_path / "thumb.jpeg")) as found:
        assert found.format == "JPEG"
    video().save(tmp_path / "all" / "frame_%03d.png")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"frame_{i:03d}.png" for i in range(9)]
    with Image.open(tmp_path / "all" / "frame_007.png") as found:
        np.testing.assert_array_equal(np.asarray(found), moving(9)[7])


def test_a_stream_that_breaks_leaves_no_pictures(tmp_path):
    def broken():
        yield moving(1)[0]
        raise RuntimeError("broken")

    for name in ("x_%d.png", "x.png", "x.gif", "x.webp", "x.mp4"):
        with pytest.raises(RuntimeError, match="broken"):
            Video(broken(), 8, Stats()).save(tmp_path / name)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "a.avi", "a.mp4.", "a.txt"])
def test_other_endings(name, tmp_path):
    with pytest.raises(InputError, match=r"ends in none of \.mp4, \.gif, \.webp, \.png, \.jpg, \.jpeg"):
        video().save(tmp_path / name)


def test_a_factor_is_lanczos():
    frame = moving(1)[0]
    height, width = frame.shape[:2]
    expected = Image.fromarray(frame).resize((2 * width, 2 * height), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(enlarging(2)(frame), np.asarray(expected))
