"""How a kernel is compared with its reference."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

Outputs = Tensor | Sequence[Tensor]


def _list(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


@pytest.fixture
def assert_close() -> Callable[[Outputs, Callable[..., Outputs], tuple[Any, ...]], None]:
    """assert_close(outputs, reference, arguments): no more than twice as wrong as plain PyTorch.

    The truth is the reference in float64. The measure is the reference in the dtype of the arguments: what a user had
    before the kernel. Twice its largest error leaves room for another order of summation; half a unit in the last
    place of the largest value is added, because every output is rounded and the plain one may be right by luck.
    """

    def check(outputs: Outputs, reference: Callable[..., Outputs], arguments: tuple[Any, ...]) -> None:
        plain = _list(reference(*arguments))
        truth = _list(reference(*(_double(argument) for argument in arguments)))
        for i, (ours, theirs, right) in enumerate(zip(_list(outputs), plain, truth, strict=True)):
            assert ours.shape == theirs.shape
            assert ours.dtype == theirs.dtype
            assert torch.isfinite(ours).all(), f"output {i} is not finite"
            rounding = torch.finfo(ours.dtype).eps / 2 * float(right.abs().max())
            allowed = 2 * float((theirs.double() - right).abs().max()) + rounding
            error = float((ours.double() - right).abs().max())
            assert error <= allowed, f"output {i}: error {error:.3g}, allowed {allowed:.3g}"

    return check


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unwritten() -> Iterator[None]:
    """What a kernel does not write is NaN, and not what an earlier test has left in that memory: the right values."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Callable[[str, str, str], ModuleType]]:
    """broken("joint_attention", right, wrong): the file of a kernel again, with a fault put into its source."""
    made: list[str] = []

    def load(name: str, right: str, wrong: str) -> ModuleType:
        source = Path(importlib.util.find_spec(f"consisid.kernels.{name}").origin).read_text()
        assert source.count(right) == 1, f"{right!r} is in {name} {source.count(right)} times"
        file = tmp_path / f"{name}.py"  # a file, because Triton reads the source of a kernel
        file.write_text(source.replace(right, wrong))
        made.append(f"consisid.kernels.broken_{name}")
        spec = importlib.util.spec_from_file_location(made[-1], file)
        module = sys.modules[made[-1]] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in made:
        del sys.modules[name]
