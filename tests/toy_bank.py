"""A concept bank in a workdir, without the packages that real banks are made from."""

import json
import pathlib
from collections.abc import Sequence

from gen.shards.store import sha256, to_json


def write_bank(workdir: pathlib.Path, texts: Sequence[str]) -> None:
    """Writes the bank's two files."""
    folder = workdir / "gen" / "concepts"
    folder.mkdir(parents=True)
    rows = [
        {"id": index, "text": text, "source": "lists", "category": "", "frequency": 0.0}
        for index, text in enumerate(texts)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "bank.jsonl").write_bytes(lines)
    meta = {"digest": sha256(lines)[:16], "count": len(rows), "bank.jsonl": {"sha256": sha256(lines)}}
    (folder / "bank.json").write_bytes(to_json(meta))
