"""A concept bank in a workdir, without the packages that real banks are made from."""

import pathlib
from collections.abc import Sequence

from gen.concepts import Concept, write_bank_files
from gen.shards.store import sha256


def write_bank(workdir: pathlib.Path, texts: Sequence[str], source: str = "lists", digest: str = "") -> None:
    """Writes the bank's two files."""
    concepts = [Concept(index, text, source, "", 0.0) for index, text in enumerate(texts)]
    digest = digest or sha256("\n".join(texts).encode())[:16]
    counts = {source: {"new": len(texts), "repeated": 0}}
    write_bank_files(workdir / "gen" / "concepts", concepts, digest, {"sources": counts})
