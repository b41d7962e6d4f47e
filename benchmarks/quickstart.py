"""Collects the zero-shot numbers of finished quickstart runs, one per seed, and the worst of them.

    python -m benchmarks.quickstart --out=benchmarks/results runs/quickstart runs/seed1 runs/seed2

The last line's last number is the worst composites top-1 accuracy over chance.
"""

import json
import pathlib
import sys

from benchmarks import turns

METRICS = ("acc1", "acc5", "mean_per_class_recall")


def main() -> None:
    """Reads `eval/*-zeroshot.json` and `train/config.json` of each workdir; prints and optionally writes a summary."""
    parser = turns.make_parser("quickstart", __doc__)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    runs = [_run(workdir) for workdir in arguments.workdirs]
    names = sorted({key.split("/")[1] for run in runs for key in run["metrics"]})
    worst = {
        f"zeroshot/{name}/{metric}": min(run["metrics"][f"zeroshot/{name}/{metric}"] for run in runs)
        for name in names
        for metric in METRICS
    }
    turns.write(arguments.out, "quickstart", {"worst": worst, "runs": runs})
    for key, value in worst.items():
        print(f"worst of {len(runs)}  {key}  {value:.4f}")
    chance = runs[0]["metrics"]["zeroshot/composites/chance"]
    print(f"worst composites top-1 over chance: {worst['zeroshot/composites/acc1'] / chance:.1f}")


def _run(workdir: pathlib.Path) -> dict:
    results = sorted((workdir / "eval").glob("*-zeroshot.json"), key=lambda path: int(path.name.split("-")[0]))
    if not results:
        sys.exit(f"{workdir}: no eval/*-zeroshot.json. Run make quickstart first")
    result = json.loads(results[-1].read_text())
    run = json.loads((workdir / "train" / "config.json").read_text())
    return {
        "seed": run["config"]["seed"],
        "epochs": run["config"]["train"]["epochs"],
        "step": result["step"],
        "config_digest": run["digest"],
        "versions": run["versions"],
        "metrics": {key: value for key, value in result["metrics"].items() if key.startswith("zeroshot/")},
    }


if __name__ == "__main__":
    main()
