"""The model card of the miniature's text-to-image model, from what its training and `gen.miniature.card` measured."""

import json
import pathlib
from typing import Any

TEXT = """# The text-to-image model of the miniature

Stable Diffusion's classes in small (diffusers' folder format, half precision): an autoencoder to 4 x 4 latents of 12
channels, a U-Net of one resolution with attention to the caption, CLIP's text encoder of two layers. It draws scenes of
one to three items of clothing, shoes and bags, 32 x 32 pixels. `--config.gen.images.model=miniature` takes it, with the
engines `diffusers` and `flax`. It is for experiments with this package, and nothing that it draws is of use elsewhere.

![Photographs and drawn scenes](samples.png)

## Training

On {scenes:,} scenes of {photographs:,} photographs of Fashion-MNIST (Zalando, MIT: `FASHION_MNIST_LICENSE.txt`), by
`python -m gen.miniature.train`: seed {seed}, batch {batch}. These photographs are used for nothing else: neither
CLIP's real data nor any test has one of them. The weights are under this package's licence, Apache-2.0.

{runs}

Loss, means of 100 steps (`loss.csv`): autoencoder {autoencoder}; U-Net and text encoder {denoiser}.

## Does it copy?

{images} drawn scenes of one item on black, beside as many of photographs for validation (V) with the same captions.
Items are cut out and made alike in place, size and colour (`gen.miniature.crops`); distances are to the nearest of
{references:,} photographs that it was trained on (G) and of as many that it was not (R): {draws}.

| | drawn | photographs (V) |
|---|---|---|
{table}

A model that copies is nearer to G than to R, and nearer to G than photographs that it never saw: rows two and three.
More in `nearest.json`.

## Where it fails

An item counts as recognised if the nearest photograph of R is of its kind; photographs themselves are not always.

| item | drawn | photographs (V) |
|---|---|---|
{items}

Weakest: {weakest}. To the eye, sandals have no straps, and prints, buttons and seams are smeared; two items of one
scene can run into each other. Words beyond items, colours and grounds mean nothing to it.

## Make it again

`python -m gen.miniature.train --out=DIR`, then
`python -m gen.miniature.card --model=DIR/model --account=DIR --out=DIR/card`.
"""
ROWS = (
    ("median distance to G", "median_to_G"),
    ("nearer to G than to R", "nearer_to_G_than_to_R"),
    ("nearer to G than 99% of V are", "nearer_to_G_than_99_percent_of_V"),
    ("median distance to R", "median_to_R"),
    ("1% quantile of distances to G", "one_percent_to_G"),
    ("1% quantile of distances to R", "one_percent_to_R"),
)


def card(account: pathlib.Path, result: dict[str, Any]) -> str:
    """The text of README.md.

    Args:
      account: folder with `training.json` and `loss.csv`.
      result: what `nearest.json` holds.
    """
    training = json.loads((account / "training.json").read_text())
    losses = [line.split(",") for line in (account / "loss.csv").read_text().splitlines()[1:]]
    ends = {
        part: f"{own[0][2]} to {own[-1][2]} after {int(own[-1][1]):,} steps"
        for part in ("autoencoder", "denoiser")
        if (own := [row for row in losses if row[0] == part])
    }
    items = result["by_item"]
    weakest = sorted(items, key=lambda item: items[item]["drawn"]["recognised"])[:3]
    return TEXT.format(
        scenes=training["recipe"]["scenes"],
        photographs=training["photographs_used"],
        seed=training["recipe"]["seed"],
        batch=training["recipe"]["batch"],
        runs="\n".join(_run(run) for run in training["runs"]) + _unfinished(training),
        autoencoder=ends["autoencoder"],
        denoiser=ends["denoiser"],
        images=result["images"],
        references=result["photographs_of_each"],
        draws=f"engine {result['engine']}, DPM-Solver++, {result['steps']} steps, guidance {result['guidance']:g}",
        table="\n".join(
            f"| {name} | {_value(result['drawn'][key])} | {_value(result['V'][key])} |" for name, key in ROWS
        ),
        items="\n".join(
            f"| {item} | {of['drawn']['recognised']:.0%} | {of['V']['recognised']:.0%} |" for item, of in items.items()
        ),
        weakest=", ".join(weakest),
    )


def _value(number: float) -> str:
    return f"{number:.3f}"


def _run(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"- until step {run['until'].get('denoiser', 0):,} of the U-Net on {run['device']} ({versions})"


def _unfinished(training: dict[str, Any]) -> str:
    return (
        "" if training["complete"] else f"\n- not all of {training['recipe']['steps']:,} steps: stopped before the end"
    )
