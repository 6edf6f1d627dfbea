"""More frames per second, and more pixels: steps behind the decoder, of which each takes frames and gives frames.

A step reads an iterator of frames, uint8 [H, W, 3], and gives one, so that a stream stays a stream. Names and files
choose between what libraries have; a function of one's own does as well.
"""

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BackendError, InputError, one_line, shown

Frames = Iterator[np.ndarray]
Between = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""(first, second, t) -> the frame at 0 < t < 1 between two; all uint8 [H, W, 3]."""
Enlarge = Callable[[np.ndarray], np.ndarray]
"""frame uint8 [H, W, 3] -> uint8 [s * H, s * W, 3]."""
Interpolate = str | PathLike[str] | Between
Upscale = float | str | PathLike[str] | Enlarge

MINTERPOLATE = "minterpolate"  # ffmpeg's filter: motion compensation, https://ffmpeg.org/ffmpeg-filters.html
FACTORS = 1.0, 8.0  # that a frame may be enlarged by
MOST_FRAMES = 16  # for one that there is
MODELS = (".pth", ".safetensors")  # weights as Real-ESRGAN publishes them


def interpolation(how: Interpolate) -> Callable[[Frames, Fraction, Fraction], Frames]:
    """(frames, their rate, another rate) -> frames at that rate. The call refuses rates that cannot be; frames are made
    as they are read.

    Args:
        how: "minterpolate", ffmpeg's; an .onnx file of RIFE (Huang et al., arXiv:2011.06294) that takes two frames
            float32 [1, 3, H, W] in [0, 1], and t as a third input; or a function.

    Raises:
        InputError: none of these.
    """
    if isinstance(how, str) and how == MINTERPOLATE:
        return lambda frames, rate, target: _minterpolate(frames, rate, _possible(rate, target))
    if callable(how):
        between, middle_only = how, False
    else:
        between, middle_only = _rife(_model(how, "interpolate", (".onnx",)))

    def run(frames: Frames, rate: Fraction, target: Fraction) -> Frames:
        if middle_only and target != 2 * rate:
            raise InputError(f"{how} makes the frame in the middle of two and no other; give fps={2 * rate}.")
        return _resampled(frames, rate, _possible(rate, target), between)

    return run


def _possible(rate: Fraction, target: Fraction) -> Fraction:
    if target > MOST_FRAMES * rate:
        raise InputError(f"fps={float(target):g} is more than {MOST_FRAMES} times the {float(rate):g} that there are.")
    return target


def enlarging(how: Upscale, device: str = "cpu") -> Enlarge:
    """A function that enlarges frames; the memory that it takes of a device is in no plan.

    Args:
        how: a factor, by Lanczos' filter; weights of Real-ESRGAN (Wang et al., arXiv:2107.10833), an .onnx file or with
            the package spandrel .pth and .safetensors; or a function.
        device: where these weights run.

    Raises:
        InputError: none of these; BackendError: spandrel is missing.
    """
    if callable(how):
        return lambda frame: _checked(how(frame), "upscale")
    if isinstance(how, int | float) and not isinstance(how, bool):
        if not FACTORS[0] <= how <= FACTORS[1]:
            raise InputError(f"upscale={shown(how)} is no factor from {FACTORS[0]:g} to {FACTORS[1]:g}.")
        return lambda frame: _lanczos(frame, float(how))
    file = _model(how, "upscale", (".onnx", *MODELS))
    return _onnx_enlarge(file) if file.suffix == ".onnx" else _spandrel(file, device)


def _model(how: Any, name: str, endings: tuple[str, ...]) -> Path:
    known = f'"{MINTERPOLATE}"' if name == "interpolate" else "a factor"
    if not isinstance(how, str | PathLike) or Path(how).suffix not in endings:
        raise InputError(
            f"{name}={shown(how)} is none of {known}, a file that ends in {', '.join(endings)}, a function."
        )
    if not os.path.isfile(how):  # unlike Path's, no error for any name
        raise InputError(f"{name}={shown(str(how))}: there is no such file.")
    return Path(how)


def _checked(frame: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or shape not in (None, frame.shape):
        raise InputError(
            f"The function of {name}= gave {frame.dtype} {list(frame.shape)}; it has to be uint8 [H, W, 3]."
        )
    return frame


def _minterpolate(frames: Frames, rate: Fraction, target: Fraction) -> Frames:
    """As many frames as fit between the first and the last one; ffmpeg's filter leaves out those at the end."""
    import av
    from av.error import BlockingIOError as NotYet
    from av.filter import Graph

    graph, first = Graph(), next(frames, None)
    if first is None:
        return
    height, width = first.shape[:2]
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    chain = source
    for name, arguments in (("format", "yuv444p"), (MINTERPOLATE, f"fps={target}:mi_mode=mci"), ("format", "rgb24")):
        step = graph.add(name, arguments)
        chain.link_to(step)
        chain = step
    sink = graph.add("buffersink")
    chain.link_to(sink)
    graph.configure()

    def ready() -> Frames:
        while True:
            try:
                yield graph.vpull().to_ndarray(format="rgb24")
            except (NotYet, EOFError):
                return

    count = 0
    last = first
    for index, frame in enumerate(_chained(first, frames)):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base, last = index, 1 / rate, frame
        graph.vpush(picture)
        for each in ready():
            count += 1
            yield each
    graph.vpush(None)
    for each in ready():
        count += 1
        yield each
    for _ in range(int(index * target / rate) + 1 - count):  # which the filter has no second frame for
        yield last


def _chained(first: np.ndarray, rest: Frames) -> Frames:
    yield first
    yield from rest


def _resampled(frames: Frames, rate: Fraction, target: Fraction, between: Between) -> Frames:
    """Frames at the times k / target: those that were there, and what `between` makes of their neighbours."""
    previous, place, number = None, 0, 0  # place: of the latest frame that was read; number: k
    for frame in frames:
        if previous is not None:
            place += 1
        while (time := number * rate / target) <= place:
            t = float(time - (place - 1))
            if previous is None or t == 1:
                yield frame
            else:
                yield _checked(between(previous, frame, t), "interpolate", frame.shape)
            number += 1
        previous = frame


def _lanczos(frame: np.ndarray, factor: float) -> np.ndarray:
    from PIL import Image

    height, width = (2 * round(side * factor / 2) for side in frame.shape[:2])  # even, as H.264 takes them
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def _session(file: Path) -> Any:
    import onnxruntime

    providers = [name for name in onnxruntime.get_available_providers() if name[:3] in ("CUD", "CPU")]
    try:
        return onnxruntime.InferenceSession(str(file), providers=providers)
    except Exception as error:  # of many kinds, all of them of what is in the file
        raise InputError(f"{file} is no model that onnxruntime can read ({one_line(error, 120)}).") from None


def _run(session: Any, file: Path, *inputs: np.ndarray) -> np.ndarray:
    """The first output of a model for images float32 [1, 3, H, W] in [0, 1], as a frame."""
    names = [each.name for each in session.get_inputs()][: len(inputs)]
    try:
        return _as_frame(session.run(None, dict(zip(names, inputs, strict=False)))[0])
    except Exception as error:  # of many kinds, all of them of what is in the file
        raise InputError(
            f"{file} does not make frames of frames float32 [1, 3, H, W] ({one_line(error, 120)})."
        ) from None


def _as_image(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame.transpose(2, 0, 1)[None].astype(np.float32) / 255)


def _as_frame(image: np.ndarray) -> np.ndarray:
    """Raises ValueError for what is no picture."""
    if image.ndim != 4 or image.shape[:2] != (1, 3) or not np.isfinite(image).all():
        raise ValueError(f"it gives {image.dtype} {list(image.shape)}, or numbers that are not finite")
    return (image[0].transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)


def _rife(file: Path) -> tuple[Between, bool]:
    """A model of two frames, and whether it makes the one in the middle only."""
    session = _session(file)
    timed = len(session.get_inputs()) > 2

    def between(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
        # RIFE halves its maps five times.
        height, width = first.shape[:2]
        edges = ((0, 0), (0, 0), (0, -height % 32), (0, -width % 32))
        images = [np.pad(_as_image(frame), edges, mode="edge") for frame in (first, second)]
        times = [np.array([t], np.float32).reshape([1] * len(session.get_inputs()[2].shape))] if timed else []
        return _run(session, file, *images, *times)[:height, :width]

    return between, not timed


def _onnx_enlarge(file: Path) -> Enlarge:
    session = _session(file)
    return lambda frame: _run(session, file, _as_image(frame))


def _spandrel(file: Path, device: str) -> Enlarge:
    import torch

    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError:
        raise BackendError(
            f"To read {file} the package spandrel is needed; pip install 'consisid[upscale]', or give an .onnx file."
        ) from None
    try:
        model = ModelLoader(device=device).load_from_file(file)
    except Exception as error:  # of many kinds, all of them of what is in the file
        raise InputError(f"{file} holds no model that enlarges pictures ({one_line(error, 120)}).") from None
    if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3:
        raise InputError(f"{file} holds no model that enlarges pictures.")
    model.eval()

    def enlarge(frame: np.ndarray) -> np.ndarray:
        try:
            with torch.inference_mode():
                return _as_frame(model(torch.from_numpy(_as_image(frame)).to(device)).float().cpu().numpy())
        except (RuntimeError, ValueError) as error:  # out of memory among them
            raise InputError(f"{file} cannot enlarge a frame ({one_line(error, 120)}).") from None

    return enlarge
