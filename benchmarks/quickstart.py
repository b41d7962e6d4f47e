"""Collects the zero-shot numbers of finished quickstart runs, one per seed, and the worst of them.

    python -m benchmarks.quickstart --out=benchmarks/results runs/quickstart runs/seed1 runs/seed2

The last line's last number is the worst composites top-1 accuracy over chance.
"""

import argparse
import datetime
import json
import pathlib
import sys

METRICS = ("acc1", "acc5", "mean_per_class_recall")


def main() -> None:
    """Reads `eval/*-zeroshot.json` and `train/config.json` of each workdir; prints and optionally writes a summary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quickstart", description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="folder for quickstart.json")
    arguments = parser.parse_args()
    runs = [_run(workdir) for workdir in arguments.workdirs]
    names = sorted({key.split("/")[1] for run in runs for key in run["metrics"]})
    worst = {
        f"zeroshot/{name}/{metric}": min(run["metrics"][f"zeroshot/{name}/{metric}"] for run in runs)
        for name in names
        for metric in METRICS
    }
    summary = {"date": datetime.date.today().isoformat(), "worst": worst, "runs": runs}
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "quickstart.json").write_text(json.dumps(summary, indent=1) + "\n")
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
