"""The README of an export: what the model is, what made its data, how it was trained, how good it is.

Everything in it comes from files of the run: the config in the checkpoint, the provenance of the dataset it was trained
on, the results of its evaluations. What they do not say is said to be unknown.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from synthclip_jax import config as config_lib
from synthclip_jax import wording
from synthclip_jax.config.registry import WITHOUT_MODEL
from synthclip_jax.config.schema import Config
from synthclip_jax.config.sources import parse_sources
from synthclip_jax.evals import origin, results
from synthclip_jax.formats.check import Check
from synthclip_jax.formats.tokenizer_files import UNCLEANED
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.loading import LoadedModel
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import dataset_folder, dataset_name

# Licences of the models that the configs name.
LICENCES = {
    "smollm2": "SmolLM2-135M-Instruct, Apache-2.0",
    "mistralai/Mistral-7B-Instruct-v0.2": "Mistral-7B-Instruct-v0.2, Apache-2.0",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "Stable Diffusion 1.5, CreativeML OpenRAIL-M (it restricts uses)",
}

MIXED = "See the two runs that it lies between; nothing was trained here."


def model_card(
    workdir: pathlib.Path,
    model: LoadedModel,
    name: str,
    formats: Sequence[str],
    checks: Sequence[Check],
    licence: str,
) -> str:
    """The card as Markdown, with the header that hubs read."""
    library = "open_clip" if "open_clip" in formats else "transformers"
    provenance = None if model.info.get("interpolated") else _provenance(workdir, model.config)
    imported = model.info.get("imported")
    mixed = bool(model.info.get("interpolated"))
    synthetic = provenance is not None
    tags = ["clip", *(["synthetic-data"] if synthetic else []), "synthclip_jax"]
    header = ["---", f"library_name: {library}", "pipeline_tag: zero-shot-image-classification", f"license: {licence}"]
    header += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    sections = [
        "\n".join(header),
        f"# {name}",
        _summary(model, imported, provenance),
        "## Use\n\n" + _usage(name, formats),
        "## Evaluation\n\n" + _evaluation(workdir, model.step),
        "## Data\n\n" + (MIXED if mixed else _data(model, provenance, imported)),
        "## Training\n\n" + (MIXED if mixed else _training(model, imported)),
        "## Limits\n\n" + _limits(synthetic),
        "## Checks\n\n" + "\n".join(f"- {_check(check)}" for check in checks),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(model: LoadedModel, imported: Mapping[str, Any] | None, provenance: Mapping[str, Any] | None) -> str:
    config = model.config.model
    tower = "timm's ViT (SLIP's and SynthCLIP's tower)" if config.tower == "slip" else "OpenAI CLIP's ViT"
    if mixed := model.info.get("interpolated"):
        origin = (
            f"Its weights are {1 - mixed['alpha']:g} times those of {_end(mixed['first'])} and {mixed['alpha']:g} times"
            f" those of {_end(mixed['second'])}."
        )
    elif imported:
        origin = f"Imported from `{imported['file']}` ({imported['kind']}, sha256 `{imported['sha256']}`)."
    elif provenance:
        origin = f"Trained on {provenance['records']:,} generated images and captions."
    else:
        origin = "Trained with synthclip_jax."
    vision, text = config.vision, config.text
    return (
        f"A CLIP model. {origin} Step {model.step:,}"
        f"{', averaged parameters' if model.config.train.ema and not (imported or mixed) else ''}.\n\n"
        f"| | |\n|---|---|\n"
        f"| image tower | {tower}, width {vision.width}, {vision.layers} layers, {vision.heads} heads, patches of"
        f" {vision.patch_size}, images of {model.config.data.image_size} pixels |\n"
        f"| text tower | width {text.width}, {text.layers} layers, {text.heads} heads, {text.context_length} tokens,"
        f" {'QuickGELU' if config.quick_gelu else 'GELU'} |\n"
        f"| embedding | {config.embed_dim} |\n"
        f"| images | short side resized ({model.config.data.interpolation}), centre crop, mean"
        f" {tuple(model.config.data.mean)}, std {tuple(model.config.data.std)} |"
    )


def _end(record: Mapping[str, Any]) -> str:
    """One of the two runs of a mixture, in words; a path of someone's machine is of no use to others."""
    return f"`{pathlib.PurePath(record['place']).name}` (step {record['step']:,}, digest `{record['checkpoint']}`)"


def _usage(name: str, formats: Sequence[str]) -> str:
    parts = []
    if "open_clip" in formats:
        parts.append(
            "```python\nimport open_clip\n"
            f'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")\n'
            f'tokenizer = open_clip.get_tokenizer("local-dir:{name}")\n```'
        )
    if "transformers" in formats:
        parts.append(
            "```python\nfrom transformers import pipeline\n"
            f'classify = pipeline("zero-shot-image-classification", model="{name}")\n'
            'classify("image.jpg", candidate_labels=["a dog", "a cat"])\n```\n\n' + UNCLEANED
        )
    return "\n\n".join(parts)


def _evaluation(workdir: pathlib.Path, step: int) -> str:
    """The numbers of the weights that are exported, and of no others; how many are left out, and why."""
    rows, left_out = [], LeftOut("results")
    for path in results.result_files(workdir):
        if not path.name.startswith(f"{step}-"):
            continue
        try:
            result = results.read_result(path)
        except results.ResultError:
            left_out.add("the file is damaged", path.name)
            continue
        foreign = {
            name: note
            for name in results.group(result["metrics"], result["suite"])
            if (note := origin.weights_note(workdir, result, name))
        }
        for name, note in foreign.items():
            left_out.add(note, f"{result['suite']} of {name}")
        for key, value in result["metrics"].items():
            if key.partition("/")[2].rpartition("/")[0] in foreign:
                continue
            low, high = (result["metrics"].get(f"{key}_{bound}") for bound in ("low", "high"))
            if low is None or high is None:
                continue
            suite, _, rest = key.partition("/")
            dataset, _, metric = rest.rpartition("/")
            templates = result["datasets"].get(dataset, {}).get("templates", "")
            chance = result["metrics"].get(f"{suite}/{dataset}/chance{'5' if metric == 'acc5' else ''}")
            count = result["metrics"].get(f"{suite}/{dataset}/n")
            rows.append(
                f"| {suite} | {dataset} | {metric} | {100 * value:.1f} | {100 * low:.1f} to {100 * high:.1f} |"
                f" {'' if chance is None else f'{100 * chance:.2f}'} | {'' if count is None else f'{count:,.0f}'} |"
                f" {templates} |"
            )
    said = [f"{line}. Evaluate again to have them here." for line in left_out.lines()]
    if not rows:
        return "\n\n".join([f"Step {step:,} was not evaluated.", *said])
    head = "| suite | test set | metric | % | 95% interval | chance % | examples | prompts |\n|" + "---|" * 8
    return "\n\n".join(["\n".join([head, *rows]), *said])


def _data(model: LoadedModel, provenance: Mapping[str, Any] | None, imported: Mapping[str, Any] | None) -> str:
    if imported:
        return "See the origin of the imported weights; this run trained nothing."
    dataset = model.info.get("dataset", {})
    lines = [f"- {dataset.get('examples', 0):,} pairs, digest `{dataset.get('digest', 'unknown')}`"]
    for source in parse_sources(model.config.data):
        share = "" if source.weight is None else f", weight {source.weight:g}"
        lines.append(f"- {source.kind}: `{pathlib.PurePath(source.place).name}`{share}")
    if provenance is None:
        unknown = "- no `provenance.json` beside the data: who made it, and under which licence, is not known here"
        return "\n".join([*lines, unknown])
    captions, images = provenance["config"]["captions"], provenance["config"]["images"]
    sources = ", ".join(provenance["config"]["concepts"]["sources"])
    plans = provenance["plans"]
    bank = plans.get("captions", {}).get("bank")
    artist = WITHOUT_MODEL.get(images["engine"])
    if not artist:
        artist = f"{_licensed(images['model'])}, {_sampler(images, plans.get('images', {}).get('source', {}))}"
    author = f"{_licensed(captions['model'])} (engine {captions['engine']})"
    if words := WITHOUT_MODEL.get(captions["engine"]):
        author = f"{len(captions['templates'])} {words}"
    lines += [
        f"- dataset {provenance['name']} {provenance['version']}, {provenance['records']:,} pairs, made"
        f" {provenance['created']}, seed {provenance['seed']}",
        f"- concepts: {sources}" + (f", digest `{bank}`" if bank else ""),
        f"- captions by {author}",
        f"- images by {artist}",
        *_left_out(provenance),
        "- no image and no caption was made by a person or taken from the web; the licences of what made them apply",
    ]
    return "\n".join(lines)


def _sampler(images: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """How a diffusion model drew, by the plan; a configuration may name a preset alone."""
    if {"scheduler", "steps", "guidance"} <= source.keys():
        share = source.get("guidance_until", 1.0)
        return wording.sampler(source["scheduler"], source["steps"], source["guidance"], share)
    return f"preset `{images.get('preset', 'unknown')}`"


def _left_out(provenance: Mapping[str, Any]) -> list[str]:
    """A line about the pairs of low agreement that the dataset lacks."""
    agreement = provenance.get("agreement", {})
    if "min_score" not in agreement:
        return []
    return [
        f"- {agreement['dropped']:,} pairs with an agreement below {agreement['min_score']:g} were left out, by"
        f" checkpoint `{agreement['checkpoint']}` at step {agreement['step']}"
    ]


def _licensed(model: str) -> str:
    return LICENCES.get(model, f"`{pathlib.PurePath(model).name}` (see its licence)")


def _training(model: LoadedModel, imported: Mapping[str, Any] | None) -> str:
    if imported:
        notes = [f"- {note}" for note in imported.get("notes", [])]
        return "\n".join(["Weights of another format, rearranged.", *notes])
    train, data = model.config.train, model.config.data
    progress = model.info.get("progress", {})
    seen = progress.get("examples_seen", 0)
    optimizer = {"adamw": "AdamW", "lion": "Lion", "muon": "Muon"}.get(train.optimizer, train.optimizer)
    schedule = f"then cosine to {train.lr_end:g}"
    if train.schedule == "constant":
        schedule = "then constant" + (f", the last {train.cooldown:.0%} to {train.lr_end:g}" if train.cooldown else "")
    lines = [
        f"- {model.step:,} steps of {train.batch_size:,} pairs ({seen:,} examples seen), {train.loss} loss",
        f"- {optimizer}, peak learning rate {train.learning_rate:g}, {train.warmup_epochs:g} of {train.epochs:g} epochs"
        f" warm-up, {schedule}, weight decay {train.weight_decay:g}, betas"
        f" ({train.beta1:g}, {train.beta2:g})",
        f"- random crop of {data.crop_scale[0]:g} to {data.crop_scale[1]:g} of the area, activations in"
        f" {model.config.model.compute_dtype}, seed {model.config.seed}",
    ]
    if train.init_from:
        lines.append(f"- started from the parameters of `{pathlib.PurePath(train.init_from).name}`")
    versions = ", ".join(f"{name} {version}" for name, version in model.info.get("versions", {}).items())
    lines += [f"- config digest `{config_lib.digest(model.config)}`", f"- {versions}"]
    lines.append("- `python -m synthclip_jax.train` with this config:\n\n" + _folded(config_lib.plain(model.config)))
    return "\n".join(lines)


def _folded(config: Mapping[str, Any]) -> str:
    config = {key: config[key] for key in ("name", "seed", "model", "train")}
    # A path of someone's machine is of no use to others.
    config["train"] = {**config["train"], "init_from": pathlib.PurePath(config["train"]["init_from"]).name}
    return f"<details><summary>config</summary>\n\n```json\n{json.dumps(config, indent=1)}\n```\n\n</details>"


def _limits(synthetic: bool) -> str:
    first = ""
    if synthetic:
        first = (
            "It has seen what a text-to-image model makes of a language model's captions, with the errors and biases of"
            " both, and traces of the real images that the generator was trained on. "
        )
    return first + "For research. Not for decisions about people, and not for surveillance."


def _check(check: Check) -> str:
    if check.features is None or check.pixels is None:
        return f"read back by our own reader: parameters bit for bit the same ({check.note})"
    return f"{check.by}: features differ by {check.features:.1e} at most, pixels by {check.pixels:.1e}"


def _provenance(workdir: pathlib.Path, config: Config) -> dict[str, Any] | None:
    """That of the generated dataset which the run trained on, if it is still there."""
    if config.data.sources:
        return None
    if config.data.path:
        folder = pathlib.Path(config.data.path).expanduser()
    else:
        folder = pathlib.Path(dataset_folder(workdir, dataset_name(config), config.gen.version))
    path = folder / generated.PROVENANCE
    return generated.read_provenance(path) if path.is_file() else None
