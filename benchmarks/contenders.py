"""The training steps that `benchmarks.train_step` compares, each in a process of its own.

    python -m benchmarks.contenders NAME < config.json

A process builds its model, optimizer and one synthetic batch on the device, compiles and warms up, and writes a line
of JSON that says what it is. For every line `STEPS` it then reads, it takes so many steps and writes the seconds that
they took and the memory at its peak so far; at the end of input it ends. All of them take the same config, so that
batch, precision and model are the same: float32 parameters, matrix products in `config.model.compute_dtype`, AdamW.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from synthclip_jax import config as config_lib
from synthclip_jax.config.schema import Config

WARM_UP = 3


class Contender(NamedTuple):
    """A warm training step."""

    about: dict[str, Any]  # parameters, device, versions
    run: Callable[[int], float]  # takes so many steps; the seconds they took
    peak_bytes: Callable[[], int | None]  # of device memory; None where the device has none of its own
    program: Callable[[], str] = str  # the compiled program as text; empty where there is none


def ours(config: Config, devices: Sequence[Any] | None = None) -> Contender:
    """`synthclip_jax.training.step`, the step that training takes; on the first device unless others are given."""
    import jax
    import jax.numpy as jnp

    from synthclip_jax.devices.sharding import make_mesh
    from synthclip_jax.model.towers import parameter_count
    from synthclip_jax.training.optim import Length
    from synthclip_jax.training.step import make_program, seed_key

    batch = config.train.batch_size
    mesh = make_mesh(config.train.mesh, devices or jax.devices()[:1])
    program = make_program(config, mesh, Length(1000 * batch, batch, 1000, 100))
    compiled = program.lower().compile()
    state = program.init(seed_key(config.seed))
    size = config.data.image_size
    pixels = jax.random.bits(jax.random.key(0), (batch, size, size, 3), jnp.uint8)
    arrays = [
        jax.device_put(x, shape.sharding) for x, shape in zip((pixels, _tokens(config)), program.batch, strict=True)
    ]

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, *arrays)
        jax.block_until_ready((state, metrics))
        if not np.isfinite(metrics["loss"]):
            raise SystemExit(f"loss {metrics['loss']}")
        return time.perf_counter() - start

    def peak_bytes() -> int | None:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None

    run(WARM_UP)
    memory = compiled.memory_analysis()
    about = {
        "parameters": parameter_count(program.state.params),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
        "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    }
    return Contender(about, run, peak_bytes, compiled.as_text)


def open_clip(config: Config) -> Contender:
    """open_clip's model and loss, autocast as its `--precision amp_bf16` does, torch's fused AdamW, eager."""
    return _open_clip(config, lambda model: model)


def open_clip_compiled(config: Config) -> Contender:
    """The same under `torch.compile`, as open_clip's `--torchcompile` does."""
    import torch

    return _open_clip(config, torch.compile)


def _open_clip(config: Config, prepare: Callable) -> Contender:
    from benchmarks.references import import_references

    import_references()
    import open_clip
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # As open_clip's own training sets them.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    plain_model = _open_clip_model(config).to(device).train()
    model = prepare(plain_model)
    loss_of = open_clip.ClipLoss()
    batch, size = config.train.batch_size, config.data.image_size
    images = torch.randn(batch, 3, size, size, device=device)
    tokens = torch.from_numpy(_tokens(config)).long().to(device)
    train = config.train
    decayed = [p for p in plain_model.parameters() if p.ndim >= 2]
    others = [p for p in plain_model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=train.lr_start,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=True,
    )
    half = config.model.compute_dtype == "bfloat16"

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            image_emb, text_emb, logit_scale = model(images, tokens)[:3]
            loss = loss_of(image_emb, text_emb, logit_scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            plain_model.logit_scale.clamp_(0, train.logit_scale_max)
        return loss

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if not np.isfinite(loss.item()):
            raise SystemExit(f"loss {loss.item()}")
        return time.perf_counter() - start

    run(WARM_UP)
    about = {
        "parameters": sum(p.numel() for p in plain_model.parameters()),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
    }
    return Contender(about, run, lambda: torch.cuda.max_memory_allocated() if device.type == "cuda" else None)


def _open_clip_model(config: Config) -> Any:
    """The model of `config.model`, as `synthclip_jax.formats.weights` would fill it."""
    import open_clip

    vision, text = config.model.vision, config.model.text
    text_cfg = {key: text[key] for key in ("context_length", "vocab_size", "width", "heads", "layers")}
    if config.model.tower == "openai":
        vision_cfg = {
            "image_size": config.data.image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "patch_size": vision.patch_size,
        }
        return open_clip.CLIP(config.model.embed_dim, vision_cfg, text_cfg, quick_gelu=True)
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
    vision_cfg = {
        "timm_model_name": f"vit_{sizes[vision.width]}_patch{vision.patch_size}_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": config.data.image_size,
    }
    return open_clip.CustomTextCLIP(config.model.embed_dim, vision_cfg, text_cfg, quick_gelu=True)


def _tokens(config: Config) -> np.ndarray:
    """Captions of all lengths: start token, random ids, end token, padding."""
    text, batch = config.model.text, config.train.batch_size
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, text.vocab_size - 2, (batch, text.context_length), dtype=np.int32)
    ends = draw.integers(2, text.context_length, batch)
    tokens[:, 0] = text.vocab_size - 2
    tokens[np.arange(batch), ends] = text.vocab_size - 1
    tokens[np.arange(text.context_length) > ends[:, None]] = 0
    return tokens


CONTENDERS = {"ours": ours, "open_clip": open_clip, "open_clip_compiled": open_clip_compiled}


def main() -> None:
    """The side of the process; see the module's docstring."""
    contender = CONTENDERS[sys.argv[1]](config_lib.from_plain(json.loads(sys.stdin.readline())))
    print(json.dumps(contender.about), flush=True)
    for line in sys.stdin:
        seconds = contender.run(int(line))
        process_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            json.dumps({"seconds": seconds, "peak_bytes": contender.peak_bytes(), "process_bytes": process_bytes}),
            flush=True,
        )


if __name__ == "__main__":
    main()
