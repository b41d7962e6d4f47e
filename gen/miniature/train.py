"""Trains the text-to-image model of the miniature on scenes of the photographs that are for it alone.

    python -m gen.miniature.train --out=runs/miniature-model

First the autoencoder, then U-Net and text encoder on its latents. Kill it at any moment: the same command goes on from
the last checkpoint. In DIR are then
- `model`: the pipeline in half precision, as `--config.gen.images.model=DIR/model` takes it with the engines
  `diffusers` and `flax`; `early`: the same after a tenth of the U-Net's steps,
- `loss.csv`: the loss of both parts; `training.json`: settings, and each run's device, versions and seconds.

As many steps as are the default take about three hours on 2 cores, and minutes on a GPU.
"""

import csv
import dataclasses
import importlib.metadata
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from gen.miniature import networks
from gen.miniature.fit import Clock, OutOfTime, Plan, TrainingError, fit
from gen.miniature.photographs import FOLDER, Photographs, read_photographs
from gen.miniature.scenes import grammar_scenes, render
from synthclip_jax.errors import command
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.wording import duration, make_parser

AUTOENCODER_STEPS, AUTOENCODER_BATCH, AUTOENCODER_RATE = 2500, 64, 2e-3
STEPS, BATCH, RATE = 16_000, 128, 1e-3
SCENES = 100_000
KL = 1e-3  # weight of the latents' divergence from a normal distribution, mean by latent, beside the mean by pixel
ABSOLUTE = 0.1  # weight of the absolute error of pixels beside the squared one
WITHOUT_CAPTION = 0.1  # share of captions that are left out in training, for guidance
WITH_FILLERS, FILLERS = 0.3, 8  # share of captions with words that mean nothing, and the most that they have
EARLY = 10  # part of the U-Net's steps after which `early` is kept
ENCODED_AT_ONCE = 500


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the model depends on, beside the photographs."""

    steps: int = STEPS
    autoencoder_steps: int = AUTOENCODER_STEPS
    batch: int = BATCH
    scenes: int = SCENES
    seed: int = 0


def train(photographs: Photographs, out: pathlib.Path, recipe: Recipe, device: str, clock: Clock) -> bool:
    """Trains and writes the model; see the module.

    Returns:
      Whether all steps are done; if not, the time was over, and `model` is as it was then.
    """
    import torch

    start = time.monotonic()
    torch.set_float32_matmul_precision("high")  # TF32 where there is such a thing
    scenes = grammar_scenes(photographs, "generator", recipe.scenes, recipe.seed)
    images = torch.from_numpy(render(photographs, scenes, networks.SIDE)).to(device).permute(0, 3, 1, 2).contiguous()
    print(f"train: {len(images):,} scenes, {time.monotonic() - start:.0f}s, on {device}", file=sys.stderr, flush=True)
    settings = {"seed": recipe.seed, "scenes": recipe.scenes, "photographs": photographs.digest}
    losses: dict[str, Sequence[tuple[int, float]]] = {}
    done = False
    torch.manual_seed(recipe.seed)
    autoencoder = networks.make_autoencoder().to(device)
    unet = networks.make_unet().to(device)
    tokenizer = networks.write_tokenizer(out / "state" / "tokenizer")
    text_encoder = networks.make_text_encoder(tokenizer).to(device)
    try:
        plan = Plan(
            "autoencoder", recipe.autoencoder_steps, AUTOENCODER_RATE, 0.995, settings | {"batch": AUTOENCODER_BATCH}
        )
        losses["autoencoder"] = fit(plan, [autoencoder], _reconstruction(autoencoder, images), out / "state", clock)
        means, deviations = _encoded(autoencoder.eval(), images)
        tokens = _tokens(tokenizer, scenes.captions).to(device)
        predict = _denoising(unet, text_encoder, (means, deviations), tokens, recipe.batch)
        settings |= {"batch": recipe.batch, "autoencoder_steps": recipe.autoencoder_steps}

        def early() -> None:
            networks.save_pipeline(out / "early", autoencoder, unet, text_encoder)

        plan = Plan("denoiser", recipe.steps, RATE, 0.999, settings)
        at = {max(1, recipe.steps // EARLY): early}
        losses["denoiser"] = fit(plan, [unet, text_encoder], predict, out / "state", clock, at)
        done = True
    except OutOfTime as error:
        losses[error.part] = error.losses
        print(f"train: the time is over; the same command goes on with the {error.part}", file=sys.stderr, flush=True)
    networks.save_pipeline(out / "model", autoencoder, unet, text_encoder)
    seconds = time.monotonic() - start
    _write_account(out, recipe, photographs, device, losses, seconds, done)
    return done


def _reconstruction(autoencoder: Any, images: Any) -> Callable[[int, Any], Any]:
    """The loss of the autoencoder on images drawn by the generator."""
    import torch

    def loss(step: int, generator: Any) -> Any:
        rows = torch.randint(len(images), (AUTOENCODER_BATCH,), generator=generator, device=images.device)
        batch = images[rows].float() / 127.5 - 1
        posterior = autoencoder.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=images.device)
        error = autoencoder.decode(posterior.mean + posterior.std * noise).sample - batch
        divergence = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean() / 2
        return (error**2).mean() + ABSOLUTE * error.abs().mean() + KL * divergence

    return loss


def _encoded(autoencoder: Any, images: Any) -> tuple[Any, Any]:
    """Means and deviations of the latents of images, after the autoencoder's latents were made standard ones."""
    import torch

    with torch.no_grad():
        parts = [
            autoencoder.encode(images[start : start + ENCODED_AT_ONCE].float() / 127.5 - 1).latent_dist
            for start in range(0, len(images), ENCODED_AT_ONCE)
        ]
        means, deviations = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std"))
        centre = means.mean((0, 2, 3))
        spread = ((means - centre[:, None, None]) ** 2 + deviations**2).mean((0, 2, 3)).sqrt()
        networks.standardise(autoencoder, centre, spread)
        return (means - centre[:, None, None]) / spread[:, None, None], deviations / spread[:, None, None]


def _tokens(tokenizer: Any, captions: Sequence[str]) -> Any:
    """Ids of captions and, in a last row, of none; a tensor [captions + 1, context].

    Raises:
      TrainingError: a caption has too many tokens.
    """
    import torch

    rows = tokenizer([*captions, ""], padding="max_length")["input_ids"]  # nothing is cut
    if (longest := max(map(len, rows))) > networks.CONTEXT:
        raise TrainingError(f"a caption has {longest} tokens, of {networks.CONTEXT}. Raise networks.CONTEXT")
    return torch.tensor(rows)


def _denoising(unet: Any, text_encoder: Any, latents: tuple[Any, Any], tokens: Any, batch: int) -> Callable:
    """The loss of U-Net and text encoder: the squared error of the velocity (arXiv 2202.00512)."""
    import torch

    (means, deviations), device = latents, latents[0].device
    kept = torch.cumprod(1 - torch.tensor(networks.betas(), dtype=torch.float64), 0)
    signal, noise = (part.sqrt().float().to(device)[:, None, None, None] for part in (kept, 1 - kept))
    fillers = _meaningless(tokens)

    def loss(step: int, generator: Any) -> Any:
        def uniform(*shape: int) -> Any:
            return torch.rand(shape, generator=generator, device=device)

        rows = torch.randint(len(means), (batch,), generator=generator, device=device)
        drawn = torch.randn((2, batch, *means.shape[1:]), generator=generator, device=device)
        clean = means[rows] + deviations[rows] * drawn[0]
        # One time from each of as many equal parts: less chance than times of their own.
        times = ((torch.arange(batch, device=device) + uniform(batch)) / batch * networks.TIMES).long()
        times = times.clamp(max=networks.TIMES - 1)
        noisy = signal[times] * clean + noise[times] * drawn[1]
        velocity = signal[times] * drawn[1] - noise[times] * clean
        chosen = torch.where(uniform(batch) < WITHOUT_CAPTION, len(tokens) - 1, rows)
        hidden = text_encoder(_with_fillers(tokens[chosen], fillers, uniform))[0]
        return ((unet(noisy, times, hidden).sample - velocity) ** 2).mean()

    return loss


def _meaningless(tokens: Any) -> Any:
    """Ids of the vocabulary that no caption of a scene has."""
    import torch

    used = torch.zeros(int(tokens.max()) + 1, dtype=torch.bool, device=tokens.device)
    used[tokens.flatten()] = True
    return torch.nonzero(~used)[:, 0]


def _with_fillers(tokens: Any, fillers: Any, uniform: Callable[..., Any]) -> Any:
    """Captions, some with other tokens between theirs: the text encoder learns to pass over words that mean nothing.

    A language model's captions have such words.
    """
    import torch

    count, context = tokens.shape
    places = torch.arange(context, device=tokens.device).expand(count, -1).float()
    lengths = (tokens != tokens[:, -1:]).sum(1, keepdim=True)  # with the start token, without the end's
    wanted = (uniform(count, 1) < WITH_FILLERS) & (lengths > 1)
    number = uniform(count, 1) * FILLERS
    active = wanted & (torch.arange(FILLERS, device=tokens.device) < number)
    inserted = torch.where(active, uniform(count, FILLERS) * lengths, float(2 * context))
    ids = fillers[(uniform(count, FILLERS) * len(fillers)).long()]
    order = torch.cat([places, inserted], 1).argsort(dim=1, stable=True)[:, :context]
    mixed = torch.cat([tokens, ids], 1).gather(1, order)
    mixed[:, -1] = tokens[:, -1]  # the end token, where the caption became too long
    return mixed


def _write_account(
    out: pathlib.Path,
    recipe: Recipe,
    photographs: Photographs,
    device: str,
    losses: dict[str, Sequence[tuple[int, float]]],
    seconds: float,
    done: bool,
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["part", "steps", "loss"])
    writer.writerows([part, step, f"{loss:.5f}"] for part, entries in losses.items() for step, loss in entries)
    write_atomic(out / "loss.csv", buffer.getvalue().encode())
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else device
    versions = {package: importlib.metadata.version(package) for package in ("torch", "diffusers", "transformers")}
    steps = {part: entries[-1][0] for part, entries in losses.items() if entries}
    run = {"until": steps, "device": name, "versions": versions, "seconds": round(seconds, 1)}
    path, account = out / "training.json", dataclasses.asdict(recipe)
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    runs = earlier.get("runs", []) if earlier.get("recipe") == account else []
    account = {
        "recipe": account, "complete": done, "photographs": photographs.digest,
        "photographs_used": len(photographs.splits["generator"]), "runs": [*runs, run],
    }  # fmt: skip
    write_atomic(path, (json.dumps(account, indent=1) + "\n").encode())


@command("train")
def main() -> None:
    """Command line of `python -m gen.miniature.train`."""
    parser = make_parser("gen.miniature.train", __doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder that is filled")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of U-Net and text encoder (default {STEPS:,})")
    parser.add_argument(
        "--autoencoder-steps", type=int, default=AUTOENCODER_STEPS, help=f"(default {AUTOENCODER_STEPS:,})"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help=f"scenes in a step of the U-Net (default {BATCH})")
    parser.add_argument("--scenes", type=int, default=SCENES, help=f"different ones (default {SCENES:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long, with a checkpoint; 0: never")
    parser.add_argument("--device", default="auto", help="a device of torch; auto takes a GPU if there is one")
    parser.add_argument("--photographs", default=FOLDER, help=f"folder of the idx files (default {FOLDER})")
    parser.add_argument("--unchecked", action="store_true", help="take other photographs than those of the release")
    arguments = parser.parse_args()
    for name in ("steps", "autoencoder_steps", "batch", "scenes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: given {getattr(arguments, name)}, allowed: at least 1")
    clock = Clock.of_minutes(arguments.minutes)
    try:
        import diffusers  # noqa: F401
        import torch
    except ImportError as error:
        raise TrainingError(f"it needs torch and diffusers: pip install 'synthclip_jax[gen]' ({error})") from error
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(arguments.steps, arguments.autoencoder_steps, arguments.batch, arguments.scenes, arguments.seed)
    start = time.monotonic()
    done = train(read_photographs(arguments.photographs, arguments.unchecked), arguments.out, recipe, device, clock)
    state = "done" if done else "not done yet"
    print(f"train: {state}, {arguments.out / 'model'}, {duration(time.monotonic() - start)}", flush=True)


if __name__ == "__main__":
    main()
