"""Budgets of memory as people write them."""

import sys

import numpy as np
import pytest

from consisid.engine.errors import InputError
from consisid.engine.memory.budget import MARGIN, parse, show
from consisid.engine.video import Stats

FREE = 80 * 2**30


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None), (1, 1), (np.int64(2**30), 2**30), ("6000000000", 6 * 10**9), ("0.5GiB", 2**29), ("8GiB", 2**33),
        ("8 gib", 2**33), (" 8GIB ", 2**33), ("8G", 2**33), ("8g", 2**33), ("8Gi", 2**33), ("8GB", 8 * 10**9),
        ("6000MB", 6 * 10**9), ("6000M", 6000 * 2**20), ("2k", 2048), ("2kB", 2000), ("100b", 100), ("8TiB", 2**43),
        ("1T", 2**40), ("1.5TB", 15 * 10**11), ("auto", FREE - MARGIN), ("AUTO", FREE - MARGIN),
        (" Auto ", FREE - MARGIN),
    ],
)  # fmt: skip
def test_budgets(given, expected):
    assert parse(given, FREE) == expected


@pytest.mark.parametrize(
    "given",
    [
        "", " ", "GiB", "8GiBB", "8 8", "-8GiB", "1e9", "8,5GiB", "inf", "nan", "٨GiB", "8PiB", "8GiB\n8", "auto!",
        "9" * 400, "1" * 20 + "TiB", "0", "0GiB", "0.0000001b", 0, -1, True, pytest.param(10**5000, id="5001 digits"),
        float("nan"), [8], b"8GiB", {}, "8\udcff",
    ],
)  # fmt: skip
def test_what_is_no_budget(given):
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(4300)
    try:
        with pytest.raises(InputError, match=r"memory=.*( is not a budget; give bytes|has to be more than)") as found:
            parse(given, FREE)
    finally:
        sys.set_int_max_str_digits(before)
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 400


def test_auto_where_nothing_is_free():
    with pytest.raises(InputError, match="a budget has to be more than none"):
        parse("auto", MARGIN)


def test_what_is_shown_is_read():
    for count in (1, 10**6, 2**30 + 1, 3 * 2**33 + 7):
        assert count <= parse(show(count), FREE) <= count * 1.01 + 2**20


def test_the_peak_of_a_cpu_is_said_to_be_the_whole_process():
    """What a budget is of there are weights and tensors, and the system counts everything."""
    sizes = {"peak_bytes": 2**30, "predicted_bytes": 2**29}
    on_cpu = Stats({"decode": 1.0}, modes={"device": "cpu"}, **sizes).summary()
    assert "peak 1.00 GiB of the whole process (for weights and tensors alone predicted 0.50 GiB)" in on_cpu
    assert "peak 1.00 GiB (predicted 0.50 GiB)" in Stats({"decode": 1.0}, modes={"device": "cuda:0"}, **sizes).summary()
