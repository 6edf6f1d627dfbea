"""What approximations cost and save, and how many videos an hour there are: the figures are of what was run."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from consisid.bench import cli
from consisid.bench.tools import quality, throughput
from consisid.engine import ConsisID

pytestmark = pytest.mark.slow


def test_quality(mini_folder, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(astronaut()).save(photo)
    given = [str(mini_folder), "--quality", "--output", str(tmp_path), "--steps", "6", "--runs", "1", "-q"]
    assert cli.main([*given, "--image", str(photo)]) == 0
    said = json.loads((tmp_path / "quality.json").read_text())
    rows = {row["name"]: row for row in said["rows"]}
    assert list(rows) == list(quality.approximations(6))
    exact, cached, halves = rows["exact"], rows["cache 2x"], rows["guidance every 2"]
    assert (exact["psnr_db"], exact["ssim"], exact["approximations"]) == (None, 1.0, [])
    assert (exact["passes"], halves["passes"]) == (6, 6)
    assert 2 <= cached["passes"] <= 3
    first_block = rows.pop("first block 0.1")  # with these weights it may compute every step
    assert (first_block["psnr_db"] is None) == (first_block["passes"] == 6)
    assert all(0 < row["psnr_db"] < 100 and row["ssim"] < 1 for row in rows.values() if row is not exact)
    assert cached["approximations"] == [f"step cache 2x: {cached['passes']} of 6 steps computed"]
    assert all(row["identity"] is None for row in rows.values())  # random weights show nobody
    text = (tmp_path / "quality.md").read_text()
    assert "| exact |" in text
    assert "identical" in text
    assert Image.open(tmp_path / "quality.png").size[0] > 500


def test_quality_is_measured_on_the_frames(mini_folder):
    """By hand, of one approximation."""
    engine = ConsisID.open(mini_folder)
    from consisid.bench.core.inputs import PROMPT, identity

    rows = {row["name"]: row for row in quality.measure(engine, identity(engine.variant), PROMPT, 4, 1, seen=False)}
    made = [
        engine.generate(identity(engine.variant), PROMPT, seed=1, num_inference_steps=4, **given).frames.astype(float)
        for given in ({}, {"shortcuts": {"cache": "2x"}})
    ]
    error = np.square(made[0] - made[1]).mean()
    assert rows["cache 2x"]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error))


def test_throughput(mini_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(throughput, "PREDICTED", [("h100", None), ("rtx4090", 5)])
    given = ["--steps", "2", "--videos", "2", "--budget", "140MiB"]
    assert throughput.main([str(mini_folder), "--output", str(tmp_path), *given]) == 0
    said = json.loads((tmp_path / "throughput.json").read_text())
    rows = said["measured"]
    assert {(row["budget"], row["together"], row["cache"]) for row in rows} == {
        (budget, count, cache) for budget in ("none", "140MiB") for count in (1, 2, 4) for cache in ("exact", "2x")
    }
    assert all(row["per_hour"] == pytest.approx(3600 * 2 / row["seconds"]) for row in rows)
    found = {(r["machine"], r["budget"], r["together"], r["cache"]): r["per_hour"] for r in said["predicted"]}
    # Where weights stream, something is gained by several at once; where none do, nothing.
    assert found["rtx4090", "5.00GiB", 2, "2x"] > found["rtx4090", "5.00GiB", 1, "2x"]
    assert found["h100", "none", 4, "exact"] == pytest.approx(found["h100", "none", 1, "exact"], rel=0.02)
    text = (tmp_path / "throughput.md").read_text()
    assert "no measurement" in text
    assert text.count("| 1 at once, exact |") == 2


@pytest.mark.parametrize("flags", [["--steps", "1"], ["--runs", "0"]])
def test_what_cannot_be_measured(mini_folder, tmp_path, capsys, flags):
    assert cli.main([str(mini_folder), "--quality", "--output", str(tmp_path), *flags]) == 2
    assert f"{' '.join(flags)}" in (said := capsys.readouterr().err)
    assert "at least" in said
