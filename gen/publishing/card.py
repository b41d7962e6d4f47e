"""The card of a published dataset: the header that the hub reads, what is in it, how it was made, how to load it."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from gen.publishing import parquet_shards
from gen.publishing.shards import FORMATS, Published
from synthclip_jax.config.registry import WITHOUT_MODEL
from synthclip_jax.workdir import generated

SHEET = "contact_sheet.jpg"
# Licences of the models that our configurations name, as the hub calls them.
LICENCES = {
    "smollm2": "apache-2.0",
    "mistralai/Mistral-7B-Instruct-v0.2": "apache-2.0",
    "Qwen/Qwen3-4B": "apache-2.0",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
}
OTHER = "other"
_ENGINES = {"sprites": "cc-by-4.0", "templates": ""}  # of those that run no model: their art's, and nobody's
_SIZES = ("K", 1000), ("M", 1000**2), ("B", 1000**3), ("T", 1000**4)
TAGS = ("synthetic", "image-text", "clip", "synthclip_jax")
TASKS = ("zero-shot-image-classification", "image-to-text", "text-to-image")


def licences(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Models and art that the dataset was made with, each with its licence as the hub calls it."""
    config, found = provenance["config"], {}
    for stage in ("captions", "images", "recaption"):
        settings = config.get(stage, {})
        if stage == "recaption" and not settings.get("model"):
            continue
        engine = settings.get("engine", "")
        if engine in WITHOUT_MODEL:
            if _ENGINES.get(engine, OTHER):
                found[WITHOUT_MODEL[engine]] = _ENGINES.get(engine, OTHER)
        else:
            model = str(settings.get("model", "?"))
            found[model] = LICENCES.get(model, OTHER)
    return found


def size_category(count: int) -> str:
    """As the hub has it: `n<1K`, `1K<n<10K`, ..., `n>1T`."""
    if count < 1000:
        return "n<1K"
    bounds = [f"{digits}{unit}" for unit, _ in _SIZES for digits in (1, 10, 100)]
    values = [digits * size for _, size in _SIZES for digits in (1, 10, 100)]
    number = max(index for index, value in enumerate(values) if count >= value)
    return f"{bounds[number]}<n<{bounds[number + 1]}" if number < 9 else "n>1T"


def header(published: Published, records: Mapping[int, Mapping[str, Any]], licence: str) -> str:
    """The YAML between the two lines of dashes."""
    source = published.source
    names = sorted(set(licences(source.provenance).values())) or [OTHER]
    chosen = [licence] if licence else names
    language = source.provenance["config"].get("captions", {}).get("language", "en")
    lines = ["---", f"pretty_name: {source.name} {source.version.dataset}"]
    lines += _list("language", [language])
    lines += [f"license: {chosen[0]}"] if len(chosen) == 1 else _list("license", chosen)
    lines += (
        _list("tags", TAGS) + _list("task_categories", TASKS) + _list("size_categories", [size_category(len(source))])
    )
    lines += [
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: data/{FORMATS[published.format].pattern(source.name)}",
    ]
    if published.format == "parquet":
        size = sum(meta["bytes"] for record in records.values() for meta in record["files"].values())
        images = sum(record["image_bytes"] for record in records.values())
        lines += ["dataset_info:", "  features:"]
        for name, feature in parquet_shards.features(published.many).items():
            lines += [f"  - name: {name}", *_yaml_feature(feature)]
        lines += ["  splits:", "  - name: train", f"    num_bytes: {images}", f"    num_examples: {len(source)}"]
        lines += [f"  download_size: {size}", f"  dataset_size: {images}"]
    return "\n".join([*lines, "---"])


def _list(name: str, values: Sequence[str]) -> list[str]:
    return [f"{name}:", *(f"- {value}" for value in values)]


def _yaml_feature(feature: Mapping[str, Any]) -> list[str]:
    if feature["_type"] == "Image":
        return ["    dtype: image"]
    if "feature" in feature:
        return [f"    sequence: {feature['feature']['dtype']}"]
    return [f"    dtype: {feature['dtype']}"]


def card(
    published: Published,
    records: Mapping[int, Mapping[str, Any]],
    licence: str = "",
    repository: str = "",
    sheet: Sequence[str] = (),
) -> str:
    """The card as Markdown.

    Args:
      records: commit records of the shards.
      licence: of the dataset; empty: those of the models.
      repository: on a hub; empty: the files are in a folder.
      sheet: the captions of the images on the contact sheet.
    """
    source = published.source
    parts = [
        header(published, records, licence),
        f"# {source.name} {source.version.dataset}",
        f"{len(source):,} synthetic image-caption pairs. No image and no caption was made by a person or taken from the"
        " web.",
        _numbers(published, records),
        "## Examples\n\n" + _sheet(sheet),
        "## Loading it\n\n" + _loading(published, repository),
        "## Licences\n\n" + _licences(source.provenance, licence),
        "## How it was made\n\n" + _made(published),
        "## Limits\n\nThe captions are a language model's (or templates) and can be wrong or biased; the images show"
        " what a text-to-image model (or a renderer) makes of them, and not what the world looks like.",
    ]
    return "\n\n".join(parts) + "\n"


def _numbers(published: Published, records: Mapping[int, Mapping[str, Any]]) -> str:
    source = published.source
    total = collections.Counter[str]()
    for record in records.values():
        total.update({key: record[key] for key in ("image_bytes", "captions", "words")})
    size = sum(meta["bytes"] for record in records.values() for meta in record["files"].values())
    images = source.provenance["config"].get("images", {})
    whose = {
        "own": "one an image",
        "instead": "one an image, by a vision-language model where it gave one",
        "both": "a list an image: the one that it was drawn from, and that of a vision-language model",
    }
    rows = [
        ("pairs", f"{len(source):,}"),
        ("shards", f"{len(records):,} {published.format} files, {size / 1e6:,.1f} MB"),
        ("image", f"JPEG, {images.get('size', '?')} x {images.get('size', '?')} pixels"),
        ("bytes of an image", f"{total['image_bytes'] / len(source):,.0f} on average"),
        ("captions", whose[source.captions]),
        (
            "words of a caption",
            f"{total['words'] / max(1, total['captions']):.1f} on average,"
            f" {max(record['most_words'] for record in records.values())} at most",
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _sheet(captions: Sequence[str]) -> str:
    """The contact sheet, and what the images were drawn from; captions are text of a model, and never markup."""
    lines = [f"{number}. {_plain(caption)}" for number, caption in enumerate(captions, 1)]
    return f"![The first images]({SHEET})\n\n<details><summary>their captions, row by row</summary>\n\n" + (
        "\n".join(lines) + "\n\n</details>"
    )


def _plain(text: str) -> str:
    """A text in Markdown in which nothing is markup."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+!|~$" else letter for letter in text)


def _loading(published: Published, repository: str) -> str:
    source, form = published.source, published.format
    here = repository or "FOLDER"
    files = f"data/{FORMATS[form].pattern(source.name)}"
    download = f"hf download {repository} --repo-type=dataset --local-dir=FOLDER"
    after = f", after `{download}`" if repository else ""
    count = len(published.shards)
    parts = [] if repository else ["`FOLDER` is where this file lies."]
    parts += [
        f'```python\n# datasets\nfrom datasets import load_dataset\nrows = load_dataset("{here}", split="train")\n```'
    ]
    if form == "webdataset":
        braces = f"FOLDER/data/{source.name}-train-{{00000..{count - 1:05d}}}.tar"
        parts.append(
            "```python\n# webdataset, with torch's DataLoader\nimport torch, webdataset\n"
            f'pairs = webdataset.WebDataset("{braces}", shardshuffle=100).shuffle(1000)\n'
            'pairs = pairs.decode("torchrgb").to_tuple("jpg", "txt")\n'
            "loader = torch.utils.data.DataLoader(pairs.batched(64), batch_size=None, num_workers=4)\n```"
        )
    else:
        parts.append(
            "```python\n# torch's DataLoader\nimport torch\n"
            'pairs = rows.select_columns(["image", "caption"]).with_format("torch")\n'
            "loader = torch.utils.data.DataLoader(pairs, batch_size=64, shuffle=True)\n```"
        )
        parts.append(
            '```python\n# TensorFlow\nfor row in rows.to_tf_dataset(columns=["image", "caption"]):\n    ...\n```'
        )
    parts.append(
        "TFDS reads the TFRecords that this was made from, in the workdir's `dataset/"
        f'{source.name}/{source.version.dataset}`: `tfds.builder_from_directory(...).as_dataset(split="train")`.'
    )
    kind = "parquet" if form == "parquet" else "wds"
    keys = " --config.data.caption_key=json.caption" if form == "webdataset" and published.many else ""
    parts.append(
        f"Training with synthclip_jax, which reads `{files}` in any order, without a copy{after}:\n\n"
        f"```\npython -m synthclip_jax.train --config=C --workdir=W --config.data.sources={kind}:FOLDER/data{keys}\n```"
    )
    return "\n\n".join(parts)


def _licences(provenance: Mapping[str, Any], licence: str) -> str:
    rows = [f"| {_plain(name)} | {named} |" for name, named in licences(provenance).items()]
    table = "\n".join(["| made with | its licence |", "|---|---|", *rows])
    own = f"This dataset: {licence}. " if licence else ""
    others = " `other`: see the model's own page." if OTHER in licences(provenance).values() else ""
    return f"{own}The licences of what made it apply.{others}\n\n{table}"


def _made(published: Published) -> str:
    source = published.source
    provenance = source.provenance
    rows = [(what, _plain(whose)) for what, whose in generated.read_credits(source.folder / generated.CARD)]
    rows += [("images per caption", str(provenance["config"].get("images", {}).get("per_caption", "?")))]
    rows += [("seed", str(provenance["seed"])), ("made", provenance["created"])]
    if "min_score" in provenance.get("agreement", {}):
        agreement = provenance["agreement"]
        rows.append(("kept", f"pairs with an agreement of at least {agreement['min_score']:g}"))
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in provenance["rejects"].items()]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    columns = ", ".join(f"`{name}`" for name in parquet_shards.features(published.many))
    if published.format == "webdataset":
        what = f"Each pair is `ID.jpg`, `ID.txt` and `ID.json`, which holds {columns.replace('`image`, ', '')}."
    else:
        what = f"Columns: {columns}."
    return (
        f"{table}\n\n{what} `concept` is the one the caption was asked for, `concepts` are the ids of all"
        " that it names. `provenance.json` holds the configuration and the plans of all stages; `croissant.json`"
        " describes the files."
    )
