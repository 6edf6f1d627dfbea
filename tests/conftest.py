"""Shared by all tests: one TINY checkpoint and one eager engine per session, and a reference pipeline beside it."""

import fcntl
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consisid.engine import ConsisID, Identity
from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.variants import Variant
from consisid.export import build

# Two workers take file after file. The one that compiles the engine starts with it; what else needs it comes last, so
# that nobody waits; long files come early, so that none is left alone at the end.
FIRST = (
    "test_inductor.py", "test_onnx.py", "test_engines.py", "test_pipeline.py", "test_recovery.py", "test_parity.py"
)  # fmt: skip
LAST = ("test_refusals.py", "test_identity.py", "test_lora.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        name = item.path.name
        return FIRST.index(name) if name in FIRST else len(FIRST) + (name in LAST)

    items.sort(key=rank)


def once(factory: pytest.TempPathFactory, worker: str, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made once per session, whichever of the parallel workers asks first."""
    root = factory.getbasetemp() if worker == "master" else factory.getbasetemp().parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            make(root / name)
    return root / name


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    return once(tmp_path_factory, worker_id, "tiny-checkpoint", lambda path: write_checkpoint("tiny", path))


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    return once(tmp_path_factory, worker_id, "tiny", lambda path: build(tiny_checkpoint, path, backend="eager"))


@pytest.fixture(scope="session")
def compiled_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """TINY compiled by AOTInductor, every graph once per session: minutes."""

    def make(path: Path) -> None:
        build(tiny_checkpoint, path, backend="inductor", bundle=True)

    return once(tmp_path_factory, worker_id, "compiled", make)


@pytest.fixture(scope="session")
def compiled(compiled_folder: Path) -> ConsisID:
    return ConsisID.open(compiled_folder)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> ConsisID:
    return ConsisID.open(tiny_folder)


@pytest.fixture(scope="session")
def tiny_reference(tiny_checkpoint: Path):
    return reference_pipeline(tiny_checkpoint)


@pytest.fixture
def face() -> Image.Image:
    return random_face()


def random_face(seed: int = 0) -> Image.Image:
    """A 128 px picture with low and high frequencies; what it shows does not matter for parity."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (128, 128), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-20, 20, (128, 128, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def random_identity(variant: Variant, seed: int = 0) -> Identity:
    """Embeddings of the right shapes, as diffusers' process_face_embeddings_infer returns them."""
    generator = torch.Generator().manual_seed(seed)
    config, eva = variant.transformer, variant.eva
    tokens = (eva.image_size // eva.patch_size) ** 2 + 1
    return Identity.from_embeddings(
        torch.randn(1, config.LFE_id_dim, generator=generator),
        [torch.randn(1, tokens, config.LFE_vit_dim, generator=generator) for _ in range(config.LFE_num_scale)],
        random_face(seed),
    )


def reference_pipeline(checkpoint: Path, dtype: torch.dtype = torch.float32):
    """diffusers' own pipeline, opened from the same folder."""
    from diffusers import ConsisIDPipeline

    pipeline = ConsisIDPipeline.from_pretrained(checkpoint, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_reference(pipeline, identity: Identity, prompt=None, *, seed: int | None = 7, decode: bool = True, **options):
    """Latents and frames (float [F, H, W, 3] in [0, 1]) of diffusers' pipeline for our arguments."""
    config = pipeline.transformer.config
    options = {"num_inference_steps": 3, **options}
    ratio = pipeline.vae_scale_factor_spatial
    options.setdefault("height", config.sample_height * ratio)
    options.setdefault("width", config.sample_width * ratio)
    options.setdefault("num_frames", config.sample_frames)
    latents = pipeline(
        image=identity.image,
        prompt=prompt,
        id_cond=identity.id_cond,
        id_vit_hidden=list(identity.id_vit_hidden),
        generator=None if seed is None else torch.Generator().manual_seed(seed),
        max_sequence_length=config.max_text_seq_length,
        output_type="latent",
        **options,
    ).frames
    if not decode:
        return latents[0], None
    with torch.no_grad():
        video = pipeline.decode_latents(latents)
    frames = pipeline.video_processor.postprocess_video(video=video, output_type="np")
    return latents[0], frames[0]


def bomb() -> bytes:
    """A PNG that says it is 60,000 pixels a side."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(b""), b"IEND")
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def png(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
