"""Before anything is compiled: everything that a video needs of a checkpoint is opened, and fits together."""

import warnings

import numpy as np
import onnx
import torch

from consisid.engine.checkpoint.face_files import FACE_FILES, FACE_STATES
from consisid.engine.checkpoint.random_weights import RandomTensors
from consisid.engine.checkpoint.reading import PARTS, Checkpoint
from consisid.engine.configs import FACE_EMBEDDING
from consisid.engine.errors import CheckpointError, InputError
from consisid.engine.face.detection import Scrfd
from consisid.engine.face.recognition import ArcFace
from consisid.engine.graphs.graph import Graph
from consisid.engine.graphs.table import graph_table
from consisid.engine.sampling import load_scheduler
from consisid.engine.shapes import VideoShape
from consisid.engine.text import Tokenizer
from consisid.engine.util.parsing import Unreadable, refuse_pointer, shorten

SIZES = {"B": 2, "N": 2, "H": 64, "W": 64}  # of the trial runs, where a graph leaves sizes open


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Open tokenizer, scheduler and face models, compare every tensor's shape with what the configurations say, and run
    every network without data.

    Raises:
        CheckpointError: the first file that is missing, damaged or does not fit.
    """
    check_tokenizer(checkpoint)
    load_scheduler(checkpoint.file("scheduler/scheduler_config.json").parent)
    check_tensors(checkpoint)
    check_graphs(checkpoint)
    if checkpoint.variant.transformer.is_train_face:
        check_detectors(checkpoint)


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Open the tokenizer; its ids have to be rows of the text encoder's embedding."""
    variant = checkpoint.variant
    found = Tokenizer(checkpoint.tokenizer, variant.transformer.max_text_seq_length).size
    if found > variant.text.vocab_size:
        raise CheckpointError(
            f"The tokenizer {checkpoint.tokenizer} has {found} pieces and the text encoder {variant.text.vocab_size}; "
            "they are of different models."
        )


def check_tensors(checkpoint: Checkpoint) -> None:
    """Compare the shapes of all tensors that the graphs read; say which tensors of the three parts none reads."""
    wanted = {key: tuple(size) for key, (size, _) in RandomTensors(checkpoint.variant).shapes.items()}
    for (part, name), size in wanted.items():
        found = checkpoint.shape(part, name)
        if found != size:
            raise CheckpointError(
                f"{name} in {checkpoint.path / part} is {list(found)}, and its config.json makes it {list(size)}; "
                "download both again."
            )
    for part in PARTS:
        layers = ("transformer_blocks.", "encoder.block.", "decoder.", "perceiver_cross_attention.")
        unread = sorted(
            name for name in checkpoint.names(part) if (part, name) not in wanted and name.startswith(layers)
        )
        if unread:
            warnings.warn(
                f"{checkpoint.path / part} has {len(unread)} tensors that its config.json leaves out, among them "
                f"{shorten(unread[0], 80)}.",
                stacklevel=2,
            )


def check_graphs(checkpoint: Checkpoint) -> None:
    """Run every network on the meta device, where numbers that do not go together show."""
    variant = checkpoint.variant
    for graph in graph_table(variant, VideoShape.of(variant, None, None, None)).values():
        try:
            run_without_data(graph)
        except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError, AssertionError) as error:
            raise CheckpointError(
                f"The configuration of {checkpoint.path} makes no network called {graph.name} ({shorten(error)}); "
                "download it again."
            ) from None


def run_without_data(graph: Graph) -> None:
    """One call of a graph's network on the meta device."""
    with torch.no_grad():
        graph.module()(*(spec.example(SIZES, torch.float32, "meta") for spec in graph.specs().values()))


def check_detectors(checkpoint: Checkpoint) -> None:
    """Open the two face models of ONNX Runtime and run each on a black picture."""
    for part in sorted(FACE_FILES.keys() - FACE_STATES.keys()):
        file = checkpoint.face_path(part)
        try:
            with file.open("rb") as beginning:
                refuse_pointer(beginning.read(64))
            model = onnx.load(str(file), load_external_data=False)
            if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
                raise Unreadable("its weights are in other files, which the engine would not know")
            if part == "arcface":
                found = ArcFace(file).embed(np.zeros((112, 112, 3), np.uint8)).shape
                if found != (1, FACE_EMBEDDING):
                    raise Unreadable(f"it gives {list(found)} instead of [1, {FACE_EMBEDDING}]")
            else:
                Scrfd(file).detect(np.zeros((64, 64, 3), np.uint8))
        except InputError as error:
            raise CheckpointError(str(error)) from None
        except Exception as error:  # onnxruntime's own classes differ between its versions
            raise CheckpointError(f"{file} is no {part} model ({shorten(error)}); download it again.") from None
