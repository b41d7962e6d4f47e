"""Balanced captions as the images stage takes them, without the stages before."""

CAPTIONS = [
    ("dog", "A dog on the beach."),
    ("cat", "Two cats in the forest."),
    ("spirit", "The spirit of freedom."),  # names nothing drawable
    ("pizza", "A pizza beside a guitar."),
    ("car", "A blue car in the rain."),
]


def write_selected(workdir, captions=CAPTIONS):
    """Writes `selected.parquet` for (concept, caption) pairs; returns the workdir."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = workdir / "gen" / "balance" / "selected.parquet"
    path.parent.mkdir(parents=True)
    table = {
        "id": [f"{number:06d}-0000" for number in range(len(captions))],
        "concept_id": pa.array(range(len(captions)), pa.int32()),
        "concept": pa.array([concept for concept, _ in captions], pa.string()),
        "caption": pa.array([caption for _, caption in captions], pa.string()),
        "matches": pa.array([[number, number + 10] for number in range(len(captions))], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(table), path)
    return workdir
