"""What a command imports, and when."""

import gc
import sys

from consisid.engine.util.interrupts import import_interruptibly


def test_what_is_imported_is_not_looked_through_for_garbage(tmp_path, monkeypatch):
    """Nor is anything else meanwhile; a command that finds it imported leaves the collector alone."""
    (tmp_path / "imported_once.py").write_text(
        "import gc\ncollects = gc.isenabled()\nkept = [[] for _ in range(1000)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    gc.collect()
    before = gc.get_freeze_count()
    import_interruptibly("consisid-test", ["json", "imported_once"])
    assert not sys.modules["imported_once"].collects
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + 1000
    kept = [[] for _ in range(1000)]
    before = gc.get_freeze_count()
    import_interruptibly("consisid-test", ["json", "imported_once"])
    assert gc.get_freeze_count() <= before
    assert len(kept) == 1000
    del sys.modules["imported_once"]
