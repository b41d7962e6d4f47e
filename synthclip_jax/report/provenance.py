"""The section that says where everything came from."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from synthclip_jax.report.markup import Html, plural, tag, text
from synthclip_jax.report.missing import Missing, optional
from synthclip_jax.report.workdir import Run


def provenance(run: Run) -> Html:
    """Digests, seeds, models, versions, and whose work the pictures are."""
    rows: list[tuple[str, Any]] = []
    bank = optional(lambda: run.bank)
    made = optional(lambda: run.provenance)
    trained = optional(lambda: run.training)
    evaluated = optional(lambda: run.zeroshot)
    seeds: dict[str, Any] = {}
    if bank:
        rows.append(("concept bank", tag("code", bank["digest"])))
    for name in ("captions", "images"):
        stage = optional(run.stage, name)
        if stage:
            source = stage.plan.get("source", {})
            rows += [(f"{name} from", _inline(source))] if source else []
            seeds[name] = stage.plan.get("seed")
    if made:
        rows.append(
            ("dataset", f"{made['name']} {made['version']}, {plural(made['records'], 'record')}, {made['created']}")
        )
    if trained:
        seeds["training"] = trained["config"]["seed"]
        rows.append(("training's config", tag("code", trained.get("digest", "–"))))
        rows.append(("training's dataset", tag("code", trained.get("dataset", {}).get("digest", "–"))))
    if seeds:
        rows.append(("seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items() if seed is not None)))
    if evaluated:
        rows.append(("evaluated", f"step {evaluated[-1]['step']:,}, {evaluated[-1].get('date', '')}"))
    versions: dict[str, str] = {}
    for source in (made, trained, evaluated[-1] if evaluated else None):
        versions |= (source or {}).get("versions", {})
    if versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))))
    rows += run.credits()
    if not rows:
        raise Missing("Nothing to say where it came from.")
    parts = [tag("dl", ((tag("dt", name), tag("dd", value)) for name, value in rows), class_="provenance")]
    config = (trained or {}).get("config") or (made or {}).get("config")
    if config:
        written = json.dumps(config, indent=1, ensure_ascii=False)
        parts.append(tag("details", tag("summary", "The whole configuration"), tag("pre", written)))
    return text(parts)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items() if item not in ("", None))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(_inline, value))
    return str(value)
