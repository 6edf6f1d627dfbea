"""An engine folder with seeded random weights in a temporary place: for measuring, not for videos."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from consisid.engine.variants import Variant
from consisid.export import build


@contextmanager
def random_folder(
    variant: str | Variant, device: torch.device, dtype: torch.dtype | None = None, backend: str = "eager"
) -> Iterator[Path]:
    """What `consisid-build VARIANT --random-weights` makes, inside the block.

    Args:
        dtype: default float32 on a CPU, else bfloat16.
        backend: who compiles the graphs.
    """
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    with TemporaryDirectory(prefix="consisid-bench-") as place:
        folder = Path(place) / "engine"
        build(variant, folder, backend=backend, dtype=name, device=str(device), random_weights=True)
        yield folder
