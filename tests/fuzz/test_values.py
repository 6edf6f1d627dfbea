"""Hostile values for everything that takes a caller's: an error of ours or a result, and nothing half-written.

The examples are the same in every run. What is slow about a valid value, a video, is replaced where values are checked
before it.
"""

import io
import json
import os
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from support.examples import examples
from support.loras import lora
from support.people import random_identity

from consisid.bench import cli as bench_cli
from consisid.engine import ConsisID, ConsisIDError, Identity, cli
from consisid.engine.face.photo import load_photo
from consisid.engine.face.selection import check_choice
from consisid.engine.lora.files import SETTINGS
from consisid.engine.memory.budget import parse
from consisid.engine.run.options import Options
from consisid.engine.run.person import person_of
from consisid.engine.run.request import Request
from consisid.engine.sampling import generators
from consisid.engine.shapes import VideoShape
from consisid.engine.util.cli import REFUSED
from consisid.engine.variants import TINY
from consisid.engine.video import Stats, Video
from consisid.export import cli as build_cli

pytestmark = pytest.mark.slow


def fuzz(count):
    """Settings of a test: the same examples every time, and fixtures that examples share."""
    return settings(
        max_examples=examples(count), derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


def refused_or(call):
    """What a call gives, or None where it raises an error of ours, in one line; nothing else may come out of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except ConsisIDError as error:
            message = str(error)
    assert message.isprintable()
    assert 0 < len(message) < 1100
    return None


TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", " ", "\0", "\udcff", "~", "..", "/", "a" * 300, "-1", "nan", "1e400", "²"]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.sampled_from([2**63, 2**64, -(2**70), 10**400]), st.floats(), st.booleans(),
    st.fractions(max_denominator=9), st.complex_numbers(),
)  # fmt: skip
TENSORS = st.sampled_from(
    [
        torch.ones(()), torch.ones(3), torch.ones(2, 2), torch.ones(1, 1280), torch.ones(1, 4, 64), torch.ones(4, 192),
        torch.ones(0, 3), torch.full((1, 1280), torch.nan), torch.ones(2, 2, dtype=torch.bfloat16),
        torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, device="meta"),
        torch.ones(2, 2).to_sparse(), torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2).requires_grad_(),
        torch.ones(3, 64, 64), torch.ones(64, 64, 4, dtype=torch.uint8),
    ]
)  # fmt: skip
ARRAYS = st.builds(
    lambda shape, kind: np.ones(shape).astype(kind),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 64]), max_size=4),
    st.sampled_from(["uint8", "uint16", "int64", "float16", "float64", "complex128", "bool", "object", "U3", "M8[s]"]),
)
THINGS = st.one_of(
    st.none(), TEXTS, NUMBERS, TENSORS, ARRAYS, st.binary(max_size=50), st.just(object()), st.just({}), st.just([]),
    st.dictionaries(TEXTS, NUMBERS, max_size=2), st.lists(NUMBERS, max_size=5), st.lists(TEXTS, max_size=3),
)  # fmt: skip


@cache
def files():
    """Pictures of every format that is read, by name."""
    pixels = np.arange(64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    found = {}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TGA", "PPM", "EPS"):
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(stream, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
        found[kind] = stream.getvalue()
    return found


@st.composite
def damaged(draw, contents):
    """Bytes of a file with some of them cut, replaced or repeated."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, min(len(content), 300) - 1)))
        how = draw(st.sampled_from(["cut", "set", "put", "twice"]))
        if how == "cut":
            del content[draw(st.integers(at, len(content))) :]
        elif how == "set":
            content[at : at + 4] = draw(st.binary(min_size=4, max_size=4))
        elif how == "put":
            content[at:at] = draw(st.binary(max_size=20))
        else:
            content[at:at] = content[at : at + 50]
    return bytes(content)


@fuzz(60)
@given(
    st.one_of(
        damaged(st.sampled_from(sorted(files().values()))),
        THINGS,
        st.builds(
            Image.new,
            st.sampled_from(["1", "L", "P", "RGBA", "CMYK", "I", "F", "La", "I;16", "LAB"]),
            st.tuples(st.integers(0, 90), st.integers(0, 90)),
        ),
    )
)
def test_photos(source):
    photo = refused_or(lambda: load_photo(source))
    if photo is not None:
        assert photo.dtype == np.uint8
        assert photo.ndim == 3
        assert photo.shape[2] == 3


@fuzz(30)
@given(st.fixed_dictionaries({}, optional={
    "id_cond": THINGS, "id_vit_hidden": st.one_of(THINGS, st.lists(TENSORS, max_size=6)), "image": THINGS,
    "key_points": THINGS,
}))  # fmt: skip
def test_embeddings(changes):
    person = random_identity(TINY)
    good = {"id_cond": person.id_cond, "id_vit_hidden": person.id_vit_hidden, "image": person.image}
    made = refused_or(lambda: Identity.from_embeddings(**{**good, **changes}))
    assert made is None or (made.image.mode == "RGB" and made.id_cond.isfinite().all())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    return random_identity(TINY).save(folder / "me.safetensors").read_bytes()


@fuzz(15)
@given(data=st.data())
def test_identity_files(data, saved, tmp_path):
    path = tmp_path / "me.safetensors"
    path.write_bytes(data.draw(damaged(st.just(saved))))
    person = refused_or(lambda: Identity.load(path))
    assert person is None or torch.equal(person.id_cond, random_identity(TINY).id_cond)


@pytest.fixture(scope="module")
def engine(tiny_folder):
    return ConsisID.open(tiny_folder)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=9), inner, max_size=2)),
    max_leaves=4,
)
STATED = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {}, optional={f"transformer.{key}": JSON for key in ("lora_alpha", "alpha_pattern", "use_rslora", "use_dora")}
    ),
)
NAMES = st.sampled_from(
    ["proj_out", "transformer.proj_out", "lora_unet_proj_out", "base_model.model.proj_out", "text_encoder.q", "x", "",
     "lora_te_q", "diffusion_model.transformer_blocks.0.attn1.to_q", "transformer." * 50]
)  # fmt: skip
PARTS = st.sampled_from(
    [".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha", ".lora_A.bias", "",
     ".lora_B.bias", ".lora.down.weight", ".lora_A.a.weight", ".processor.to_q_lora.up.weight", ".lokr_w1",
     ".dora_scale"]
)  # fmt: skip
KEYS = st.one_of(st.builds(lambda name, part: name + part, NAMES, PARTS), TEXTS, st.integers())


@fuzz(40)
@given(changes=st.dictionaries(KEYS, st.one_of(TENSORS, ARRAYS, NUMBERS, st.none()), max_size=3), whole=st.booleans())
def test_loras_of_tensors(engine, changes, whole):
    state = lora(engine.checkpoint, modules=["proj_out"]) if whole else {}
    taken(engine, {**state, **changes})


@fuzz(25)
@given(data=st.data())
def test_lora_files(engine, data, tmp_path):
    state = lora(engine.checkpoint, modules=["proj_out"])
    content = save(state, {SETTINGS: json.dumps(data.draw(STATED))})
    (tmp_path / "x.safetensors").write_bytes(data.draw(damaged(st.just(content))))
    taken(engine, tmp_path / "x.safetensors")


@fuzz(15)
@given(source=THINGS, where=st.dictionaries(st.sampled_from(["weight_name", "subfolder", "revision", "x"]), THINGS))
def test_sources_of_loras(engine, source, where, monkeypatch):
    """What looks like an id of the hub ends where there is no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    taken(engine, source, **{"local_files_only": True, **where})


def taken(engine, source, **where):
    """Load a LoRA; what is refused leaves nothing, what is taken can be used and forgotten."""
    refused_or(lambda: engine.load_lora_weights(source, **where))
    for read, weight in engine.loras:
        assert all(change.delta(weight).isfinite().all() for change in read.changes.values())
    engine.unload_lora_weights()
    assert engine.loras == ()


@fuzz(25)
@given(
    method=st.sampled_from(["set_adapters", "fuse_lora", "load_lora_weights", "delete_adapters", "unfuse_lora"]),
    arguments=st.lists(
        st.one_of(THINGS, st.just("a"), st.just({"transformer": 0.5}), st.dictionaries(st.just("transformer"), THINGS)),
        min_size=1, max_size=2,
    ),
)  # fmt: skip
def test_methods_of_loras(engine, method, arguments):
    engine.load_lora_weights(lora(engine.checkpoint, modules=["proj_out"]), "a")
    try:
        takes = 1 if method in ("delete_adapters", "unfuse_lora") else 2
        refused_or(lambda: getattr(engine, method)(*arguments[:takes]))
        assert all(np.isfinite(weight) for _, weight in engine.loras)
    finally:
        engine.unload_lora_weights()
        engine.unfuse_lora()


PATHS = st.one_of(THINGS, st.builds(lambda text: text + ".mp4", TEXTS))


@fuzz(30)
@given(path=PATHS, fps=st.one_of(st.just(None), THINGS, st.integers(1, 60)))
def test_saving(path, fps, tmp_path):
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        video = Video(np.zeros((2, 32, 32, 3), np.uint8), 8, Stats())
        made = refused_or(lambda: video.save(path, fps))
        found = [each for each in tmp_path.rglob("*") if each.is_file()]
        assert len(found) == (0 if made is None else 1)
        for each in found:
            assert each.stat().st_size > 500
            each.unlink()
    finally:
        os.chdir(here)


@fuzz(30)
@given(THINGS, THINGS, THINGS)
def test_numbers(first, second, third):
    budget = refused_or(lambda: parse(first, 2**34))
    assert budget is None or 0 < budget < 2**63
    shape = refused_or(lambda: VideoShape.of(TINY, first, second, third))
    assert shape is None or shape.video_tokens <= 2**19
    refused_or(lambda: generators(first, second, 1))
    refused_or(lambda: check_choice(third))


OPTIONS = st.fixed_dictionaries({}, optional={field.name: THINGS for field in fields(Options)})


@fuzz(60)
@given(options=OPTIONS, changed=st.sampled_from([field.name for field in fields(Options)]), thing=THINGS)
def test_arguments_of_generate(options, changed, thing, engine):
    """One that is strange among good ones, and any number of strange ones: checked, or refused before a run begins."""
    good = {"prompt": "A person walks.", "num_inference_steps": 2}
    for given_options in ({**good, changed: thing}, {**good, **options}):
        request = refused_or(lambda: Request.check(engine, Options(**given_options)))  # noqa: B023
        assert request is None or 0 < request.batch <= 64 * 5


@fuzz(30)
@given(st.lists(THINGS, min_size=5, max_size=5))
def test_people(things):
    refused_or(lambda: person_of(*things))


WORDS = st.one_of(
    st.sampled_from(
        ["0", "1", "-1", "nan", "inf", "1e999", "8GiB", "auto", "/", "/dev/null", "me.png", "me.mp4", "me.safetensors",
         "~", "a:b", "http://127.0.0.1:1/x", "²", "1,2,3,4", "cpu", "cuda", "meta", "mkldnn", "tiny", "report.json",
         ".", "..", "tiled", "batched", "sequential", "exact", "", " ", "9" * 30, "x" * 300, "\udcff"]
    ),
    st.text(st.characters(blacklist_characters="\0"), max_size=12),
)  # fmt: skip


def command_line(parser):
    """Flags of a parser with words behind them, as many as they take or others, and words by themselves."""
    flags = sorted({flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"})
    return st.lists(st.one_of(st.sampled_from(flags), WORDS), max_size=8)


@contextmanager
def folder(path):
    """A folder to be in; afterwards nothing may have been written there."""
    here = os.getcwd()
    os.chdir(path)
    try:
        yield
        assert list(path.rglob("*")) == []
    finally:
        os.chdir(here)


def runs(main, arguments, path):
    """A command in an empty folder: its exit code is one for users, and what it says of errors is a line."""
    out, err = io.StringIO(), io.StringIO()
    with folder(path), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse's own
            code = ended.code
    said = err.getvalue()
    assert code in (0, REFUSED), said
    assert "Traceback" not in said
    if code == REFUSED:
        assert len([line for line in said.splitlines() if "error:" in line]) >= 1


@fuzz(40)
@given(extra=command_line(cli.parser()), image=WORDS, prompt=WORDS)
def test_consisid_generate(extra, image, prompt, tiny, tmp_path, monkeypatch):
    """With an engine that checks what it is asked, and makes no video."""
    monkeypatch.setattr(ConsisID, "open", lambda *_, **__: tiny)
    monkeypatch.setattr("consisid.engine.api.run_with_oom_retry", refuse)
    runs(cli.main, ["engine", "--image", image, "--prompt", prompt, "--output", "out.mp4", *extra], tmp_path)


def refuse(*arguments, **options):
    raise ConsisIDError("this is as far as the test goes")


@fuzz(25)
@given(extra=command_line(build_cli.parser()))
def test_consisid_build(extra, tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["consisid.export.build"], "build", refuse)
    monkeypatch.setattr("consisid.export.describe.plan_build", refuse)
    runs(build_cli.main, extra, tmp_path)


@fuzz(25)
@given(extra=command_line(bench_cli.parser()))
def test_consisid_bench(extra, tmp_path, monkeypatch):
    monkeypatch.setattr("consisid.bench.report.measure.measure_engine", refuse)
    runs(bench_cli.main, ["engine", "--output", "report", *extra], tmp_path)


def test_frame_rates_are_exact():
    """The one value above that a fuzz would not find: what is taken is what was meant."""
    from consisid.engine.util.mp4 import frame_rate

    assert frame_rate(Fraction(24000, 1001)) == Fraction(24000, 1001)
