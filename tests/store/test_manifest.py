"""Files are exchanged whole, and what they were links to stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

from msao_compile.store.manifest import drop_signature, exchange


def test_a_link_into_the_store_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(b"kept")
    os.link(tmp_path / "object", tmp_path / "file")
    exchange(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and (tmp_path / "object").read_bytes() == b"kept"
    exchange(tmp_path / "deep" / "er" / "file", b"first")
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == b"first"


def test_without_a_signature_there_is_nothing_to_drop(tmp_path: Path) -> None:
    drop_signature(tmp_path)
    assert list(tmp_path.iterdir()) == []
