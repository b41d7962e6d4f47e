"""Publishes a finished dataset in the formats that others read: Parquet as the hub has it, or webdataset tars.

    python -m gen.publish --workdir=W --format=parquet --out=FOLDER
    python -m gen.publish --workdir=W --format=webdataset --out=s3://bucket/name
    python -m gen.publish --workdir=W --format=parquet --out=hf://datasets/USER/NAME [--yes]

OUT then holds data/ (shards of --shard-mb), README.md (a card with the header that the hub reads, statistics, a contact
sheet, how to load it), croissant.json and provenance.json; with tars data/sizes.json. --dataset=NAME_filtered takes
the dataset without the pairs of low agreement, --captions=instead or both what a vision-language model wrote.

It is resumable, and any number of processes may share the work (--part=0/8; set automatically in a SLURM array): a
shard is done if and only if its commit record in W/publish is there. At the end every shard is read again by other
libraries and compared with what was put in. Each process holds one shard in memory, twice while it is committed.

For a hub the files are made in W/publish first. Nothing is sent without --yes; what was sent is not sent again.
"""

import re
from collections.abc import Mapping
from typing import Any

from gen.publishing import hub
from gen.publishing.card import SHEET, card
from gen.publishing.croissant import croissant
from gen.publishing.shards import FORMATS, SIZES, Published, write_shards
from gen.publishing.sheet import COLUMNS, ROWS, contact_sheet
from gen.publishing.source import CAPTIONS, PublishError, Source
from gen.shards.local import Executor, LocalExecutor, run_local
from synthclip_jax.errors import command
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location, is_url, local_path, location, place
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.wording import array_part, make_parser, part, storage_size
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import check_inside

SHARD_MB = 500
CROISSANT = "croissant.json"
_LICENCE = re.compile(r"[a-z0-9+.-]+")


def publish(
    workdir: Location,
    format: str,
    out: str,
    version: str = "",
    dataset: str = "",
    captions: str = "own",
    shard_bytes: int = SHARD_MB * 10**6,
    licence: str = "",
    executor: Executor = run_local,
) -> tuple[Published, dict[str, Any]]:
    """Writes what is not there yet, and checks it.

    Args:
      out: a folder, a URL, or hf://datasets/USER/NAME, whose files are left in the workdir.
      version: of the dataset; empty: the newest.
      dataset: its name; empty: that of the only one that is not filtered.
      captions: whose, see `gen.publishing.source`.
      licence: for the card; empty: those of the models.

    Returns:
      What was published, and a summary.

    Raises:
      PublishError: there is no such dataset, or something else is in `out`.
    """
    if licence and not _LICENCE.fullmatch(licence):
        raise PublishError(f"--license={licence}: expected a licence as the hub calls it, such as cc-by-4.0")
    source = Source(workdir, version, dataset, captions)
    repository = hub.repository_of(out)
    key = f"{source.name}-{source.version.dataset}-{format}" + ("" if captions == "own" else f"-{captions}")
    check_inside(workdir, [f"publish/{key}"])
    records_folder = location(workdir) / "publish" / key
    folder = local_path(records_folder / "files") if repository else location(out)
    published = Published(source, format, folder, records_folder, shard_bytes)
    records = write_shards(published, executor)
    written = _write_rest(published, records, licence, repository)
    size = sum(meta["bytes"] for record in records.values() for meta in record["files"].values())
    kept = [name for name, whose in written.items() if whose == "theirs"]
    return published, {
        "pairs": sum(record["count"] for record in records.values()),
        "shards": len(records),
        "size": storage_size(size),
        **({"changed by hand since, and kept": ", ".join(kept)} if kept else {}),
    }


def _write_rest(
    published: Published, records: Mapping[int, Mapping[str, Any]], licence: str, repository: str
) -> dict[str, str]:
    """Writes card, contact sheet and metadata; a card that was changed by hand since stays. Says whose each one is."""
    source, folder = published.source, published.folder
    first = list(source.examples(0, min(len(source), COLUMNS * ROWS)))
    url = hub.url_of(repository) if repository else str(folder) if is_url(folder) else ""
    text = card(published, records, licence, repository, [example.captions[0] for example in first])
    sizes = {name: record["count"] for name, record in zip(published.names(), records.values(), strict=True)}
    files = {
        SHEET: contact_sheet([example.image for example in first]),
        CROISSANT: state_files.to_json(croissant(published, records, licence, url)),
        generated.PROVENANCE: (source.folder / generated.PROVENANCE).read_bytes(),
        **({f"data/{SIZES}": state_files.to_json(sizes)} if published.format == "webdataset" else {}),
        generated.CARD: text.encode(),
    }
    note, whose = published.records / "card.md", {}
    for name, data in files.items():
        path = folder.joinpath(*name.split("/"))
        there = path.read_bytes() if path.exists() else None
        if name == generated.CARD and there not in (None, data, note.read_bytes() if note.exists() else None):
            whose[name] = "theirs"
            continue
        if there != data:
            write_atomic(path, data)
        whose[name] = "ours"
    if whose[generated.CARD] == "ours":
        write_atomic(note, files[generated.CARD])
    return whose


@command("publish")
def main(argv: list[str] | None = None) -> None:
    """Parses the command line and publishes; exits with status 1 and a reason if it cannot."""
    parser = make_parser("gen.publish", __doc__)
    parser.add_argument("--workdir", required=True, type=place, help="folder or URL of the run")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, help="folder, URL of a bucket, or hf://datasets/USER/NAME")
    parser.add_argument("--version", default="", help="version of the dataset; default: the newest")
    parser.add_argument(
        "--dataset", default="", help="name of the dataset, such as NAME_filtered; default: the whole one"
    )
    parser.add_argument(
        "--captions", default="own", choices=CAPTIONS, help="a vision-language model's instead of the own ones, or both"
    )
    parser.add_argument("--shard-mb", type=float, default=SHARD_MB, help="size of a shard, about; default: 500")
    parser.add_argument("--license", default="", help="licence by the hub's name; default: those of the models")
    parser.add_argument("--part", type=part, help="number of this process and of all, such as 0/8; default: SLURM's")
    parser.add_argument("--yes", action="store_true", help="with hf://: really upload")
    parser.add_argument("--public", action="store_true", help="with hf://: make a new repository public")
    given = parser.parse_args(argv)
    if not given.shard_mb > 0:
        parser.error(f"--shard-mb={given.shard_mb}: expected more than 0")
    published, summary = publish(
        given.workdir,
        given.format,
        given.out,
        given.version,
        given.dataset,
        given.captions,
        round(given.shard_mb * 10**6),
        given.license,
        LocalExecutor(given.part or array_part()),
    )
    print("publish: done  " + "  ".join(f"{key} {value}" for key, value in summary.items()), flush=True)
    if repository := hub.repository_of(given.out):
        hub.upload(published.folder, repository, given.yes, not given.public)


if __name__ == "__main__":
    main()
