"""Checks the records of versions in W/gen/versions: none is missing that folders, datasets or provenance speak of."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen.checks.datasets import datasets_of
from gen.checks.evidence import read_provenance
from gen.checks.shards import Fault
from synthclip_jax.files.locations import Location, location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import Version, record_path


def version_faults(
    versions: Sequence[Version], version: Version, provenance: Mapping[str, Any] | None
) -> Iterator[Fault]:
    """What is wrong with the records of versions.

    Args:
      versions: all that are recorded.
      version: the one that is looked at.
      provenance: of its dataset.
    """
    workdir, numbers = version.workdir, {known.number for known in versions}
    generation = (provenance or {}).get("generation", {})
    missing = set()
    if generation.get("recorded") and not record_path(workdir, generation["number"]).exists():
        missing.add(generation["number"])
    elif generation and generation["number"] != version.number:
        yield _fault(f"{version.record_path}: not the version that provenance.json names")
    gen = workdir / "gen"
    for path in sorted(gen.iterdir()) if gen.is_dir() else ():
        found = re.fullmatch(r"[a-z]+@(\d{1,9})", path.name)
        if found and path.is_dir() and int(found[1]) not in numbers:
            missing.add(int(found[1]))
    missing |= set(range(1, max(numbers))) - numbers
    missing |= {number for number, _ in unlisted(workdir, versions) if number not in numbers}
    for number in sorted(missing):
        yield _fault(f"{record_path(workdir, number)}: missing, though a version of this number was made")


def unlisted(workdir: Location, versions: Sequence[Version]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers and provenances of finished datasets whose versions no record names."""
    folder = location(workdir) / "dataset"
    known = {version.dataset for version in versions}
    names = {path.name for path in folder.glob("*/*")} if folder.is_dir() else set()
    for name in sorted(names - known):
        if not re.fullmatch(r"\d{1,9}\.\d{1,9}\.\d{1,9}", name):
            continue
        for dataset in datasets_of(workdir, name):
            try:
                provenance = read_provenance(folder / dataset / name / generated.PROVENANCE)
            except StoreError:
                continue
            if "generation" in provenance:
                yield provenance["generation"]["number"], provenance


def _fault(text: str) -> Fault:
    return Fault("versions", None, text)
