"""Memory of the contrastive losses: temporary bytes on each device against the global batch, dense and ring.

    python -m benchmarks.loss_memory [--out=benchmarks/results] [--plot=docs/loss_memory.png]

Value and gradients (embeddings, logit scale, logit bias) are compiled for 8 devices and XLA is asked what it would
allocate, `memory_analysis()`; nothing is run, so that any machine can measure any batch. The devices are virtual ones
of the CPU: what another backend fuses differs, what grows with which power of the batch does not. The second table
keeps the batch of a device and adds devices. The last number is dense over ring, softmax, at batch 32,768.
"""

import importlib.util
import os
import pathlib
import types

from benchmarks import turns
from synthclip_jax.packages import versions

DEVICES, EMBED_DIM, BLOCK = 8, 512, 1024
BATCHES = tuple(2**power for power in range(11, 18))
PER_DEVICE = 4096
LOSSES, METHODS = ("softmax", "sigmoid"), ("dense", "ring")
HEADLINE = 32_768


def temporary_bytes(loss: str, method: str, devices: int, batch: int) -> int:
    """What the compiled loss with its gradients needs on each device, beside its arguments and results."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from synthclip_jax.devices.sharding import batch_sharding, make_mesh
    from synthclip_jax.training.losses import make_loss

    mesh = make_mesh({"data": devices, "fsdp": 1, "tensor": 1}, jax.devices()[:devices])
    settings = types.SimpleNamespace(loss=loss, loss_method=method, loss_block=BLOCK)
    rows = jax.ShapeDtypeStruct((batch, EMBED_DIM), jnp.float32, sharding=batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    gradients = jax.value_and_grad(make_loss(settings, mesh), argnums=(0, 1, 2, 3), has_aux=True)
    return jax.jit(gradients).lower(rows, rows, scalar, scalar).compile().memory_analysis().temp_size_in_bytes


def plot(curves: dict[str, list[int]], path: pathlib.Path) -> None:
    """Draws the curves over `BATCHES`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=120)
    colours, styles = {"dense": "#c44e52", "ring": "#2a7f62"}, {"softmax": "-", "sigmoid": ":"}
    for name, values in curves.items():
        loss, method = name.split()
        axes.plot(
            BATCHES,
            [value / 2**20 for value in values],
            styles[loss],
            color=colours[method],
            marker="o",
            markersize=4 if loss == "softmax" else 0,
            label=f"{method}, {loss}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
    sizes = [2**power for power in range(2, 17, 2)]
    axes.set_yticks(sizes, [f"{size} MiB" if size < 1024 else f"{size // 1024} GiB" for size in sizes])
    axes.set_xlabel(f"global batch on {DEVICES} devices, pairs")
    axes.set_title("Temporary memory of the loss with its gradients, on each device", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Prints both tables and the ratio."""
    parser = turns.make_parser("loss_memory", __doc__)
    parser.add_argument("--plot", type=pathlib.Path, help="PNG file for the curves; needs matplotlib")
    arguments = parser.parse_args()
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        raise SystemExit("--plot needs matplotlib: pip install matplotlib, or leave --plot out")
    # Read when jax is first imported, which is later.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    os.environ["JAX_PLATFORMS"] = "cpu"

    names = [f"{loss} {method}" for loss in LOSSES for method in METHODS]
    print(f"MiB of temporaries on each of {DEVICES} devices; embeddings of {EMBED_DIM}, blocks of {BLOCK}")
    curves = _table("batch", names, [(batch, DEVICES, batch) for batch in BATCHES])
    print(f"\nthe same with {PER_DEVICE:,} pairs on each of so many devices")
    counts = (1, 2, 4, 8)
    weak = _table("devices", names, [(devices, devices, devices * PER_DEVICE) for devices in counts])

    at = BATCHES.index(HEADLINE)
    ratio = curves["softmax dense"][at] / curves["softmax ring"][at]
    if arguments.plot:
        plot(curves, arguments.plot)
    result = {
        "versions": versions(("jax", "jaxlib")),
        "embed_dim": EMBED_DIM,
        "block": BLOCK,
        "devices": DEVICES,
        "batches": BATCHES,
        "temporary_bytes_per_device": curves,
        "fixed_batch_per_device": {"per_device": PER_DEVICE, "devices": counts, "temporary_bytes_per_device": weak},
        "ratio_dense_to_ring": round(ratio, 2),
    }
    turns.write(arguments.out, "loss_memory", result)
    print(f"dense / ring, softmax, batch {HEADLINE:,} on {DEVICES} devices: {ratio:.1f}")


def _table(head: str, names: list[str], cases: list[tuple[int, int, int]]) -> dict[str, list[int]]:
    """Prints one line a case, (label, devices, batch), and returns a list of bytes for each name."""
    print(f"{head:>9}" + "".join(f"{name:>16}" for name in names))
    columns: dict[str, list[int]] = {name: [] for name in names}
    for label, devices, batch in cases:
        for name in names:
            loss, method = name.split()
            columns[name].append(temporary_bytes(loss, method, devices, batch))
        print(f"{label:>9,}" + "".join(f"{columns[name][-1] / 2**20:>16,.1f}" for name in names), flush=True)
    return columns


if __name__ == "__main__":
    main()
