"""Packages of AOTInductor, compiled for sm_90 without a GPU: opened, launched where they should be, out of memory."""

import hashlib
import shutil
from dataclasses import replace

import pytest
import torch
from hollow.calls import LAUNCHES, Kind

from consisid.engine import ConsisID, ConsisIDError
from consisid.engine.backends import backend
from consisid.engine.manifest import Manifest

from .conftest import OPTIONS as SHORT
from .conftest import PROMPT, record_steps

# What a step consists of. All graphs of TINY would take minutes to compile.
COMPILED = ("block",)
OURS = ("qk_norm_rope_kernel", "modulated_norm_kernel")  # kernels that a block launches
OPTIONS = {**SHORT, "num_frames": 17}  # a package makes the video that it was built for


@pytest.fixture(scope="module")
def packages(folder, tmp_path_factory):
    """TINY, eager, but for its blocks."""
    copy = tmp_path_factory.mktemp("engines") / "packages"
    shutil.copytree(folder, copy)
    manifest, entries = Manifest.read(copy), {}
    (copy / "graphs").mkdir(exist_ok=True)
    for name in COMPILED:
        path = copy / "graphs" / f"{name}.pt2"
        backend("inductor").compile(manifest.spec.graphs()[name], path, torch.device("cuda", 0), torch.bfloat16)
        entries[name] = replace(
            manifest.graphs[name], backend="inductor", file=f"graphs/{name}.pt2", bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )  # fmt: skip
    replace(manifest, graphs={**manifest.graphs, **entries}).write(copy)
    return copy


@pytest.mark.parametrize("name", ["cuda:0", "cuda:1"])
def test_packages_launch_on_their_device(hollow, packages, person, name):
    engine = ConsisID.open(packages, device=name)
    with hollow.recorded() as record:
        engine.generate(person, PROMPT, **OPTIONS)
    assert set(OURS) <= {call.name for call in record.of(Kind.KERNEL)}
    assert {call.device for call in record.of(*LAUNCHES, Kind.MALLOC)} == {engine.device.index}


@pytest.mark.parametrize("memory", [None, "4GiB"])
def test_a_call_does_not_wait_for_the_one_before(hollow, packages, person, memory):
    """As a package with one runner does that is not told to be run by one thread at a time."""
    engine = ConsisID.open(packages, device="cuda", memory=memory)
    options = {**OPTIONS, "num_inference_steps": 4, "generator": torch.Generator("cuda"), "seed": None}
    engine.generate(person, PROMPT, **options)
    for step in record_steps(hollow, engine, person, **options).calls[2:]:
        assert [call for call in step.calls if call.waits or call.kind is Kind.EVENT_QUERY] == []


def allocations_in_blocks(record):
    """The numbers of those allocations that follow a launch of ours in a block, among all allocations."""
    number, inside, found = 0, False, []
    for call in record.calls:
        if call.kind is Kind.KERNEL:
            inside = call.name in OURS
        elif call.kind is Kind.MALLOC:
            if inside:
                found.append(number)
            number += 1
    return found


@pytest.mark.parametrize("on_oom", ["raise", "replan"])
def test_out_of_memory_inside_a_package(hollow, packages, person, on_oom):
    """It arrives as a RuntimeError that says nothing of memory; the engine asks the allocator."""
    options = {**OPTIONS, "on_oom": on_oom}
    prompts = [PROMPT] * 8

    def fresh():
        torch.cuda.empty_cache()
        return ConsisID.open(packages, device="cuda")

    engine = fresh()
    with hollow.recorded() as record:
        engine.generate(person, prompts, **options)
    numbers = allocations_in_blocks(record)
    assert numbers, "no allocation in a block: make the request larger"
    del engine
    engine = fresh()
    hollow.refuse_allocations(numbers[0])
    if on_oom == "raise":
        with pytest.raises(ConsisIDError, match=r"Out of device memory in the stage denoise, step \d"):
            engine.generate(person, prompts, **options)
    stats = engine.generate(person, prompts, **options)[0].stats
    assert stats.modes.get("restarts", "").startswith("1 ") == (on_oom == "replan")
