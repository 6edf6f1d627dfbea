"""People and pictures of the right shapes; what they show does not matter."""

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image

from consisid.engine import Identity
from consisid.engine.variants import Variant


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
