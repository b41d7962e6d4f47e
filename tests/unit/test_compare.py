"""Delta_MTL against every row of the paper, and a run's numbers beside the paper's."""

import json

import pytest

from synthclip_jax import compare
from synthclip_jax.evals import catalogue, paper_tables, results

TABLE = paper_tables.load("table1")["models"]
PRINTED = [
    (name, model, baseline, value)
    for name, model in paper_tables.models().items()
    for baseline, value in model.get("delta_mtl", {}).items()
]


def test_every_row_of_table_1_but_the_baselines_has_both_numbers():
    assert len(TABLE) == 7
    assert {name: sorted(model.get("delta_mtl", {})) for name, model in TABLE.items()} == {
        name: [] if name in ("clip_cc3m", "clip_cc12m") else ["clip_cc12m", "clip_cc3m"] for name in TABLE
    }


@pytest.mark.parametrize(("name", "model", "baseline", "printed"), PRINTED, ids=[f"{p[0]}-{p[2]}" for p in PRINTED])
def test_delta_mtl_is_the_papers_within_what_rounding_allows(name, model, baseline, printed):
    ours = compare.delta_mtl(model["averages"], paper_tables.models()[baseline]["averages"])
    # Averages are printed to 0.1: both ends of each may be 0.05 off, and so may the number itself.
    low, high = 0.0, 0.0
    for task in paper_tables.TASKS:
        value, base = model["averages"][task], paper_tables.models()[baseline]["averages"][task]
        low += 20 * ((value - 0.05) / (base + 0.05) - 1)
        high += 20 * ((value + 0.05) / (base - 0.05) - 1)
    assert low - 0.05 <= printed <= high + 0.05
    assert abs(ours - printed) <= 0.15


@pytest.mark.parametrize("name", TABLE)
def test_averages_of_table_1_are_those_of_its_datasets(name):
    for task, values in TABLE[name]["datasets"].items():
        assert TABLE[name]["averages"][task] == pytest.approx(sum(values.values()) / len(values), abs=0.1 + 1e-9)


def test_datasets_of_the_tables_are_those_of_the_catalogue():
    known = {entry.name for entry in catalogue.entries()}
    for table in ("table1", "robustness"):
        for model in paper_tables.load(table)["models"].values():
            assert {name for values in model["datasets"].values() for name in values} <= known


def test_every_table_names_its_source_and_unit():
    for name in paper_tables.TABLES:
        table = paper_tables.load(name)
        assert "2402.01832" in table["source"]
        assert table["unit"]
        assert table["models"]


def write_run(workdir, scale: float = 1.0, leave_out: str = "") -> None:
    """Results as `evaluate` writes them, with the numbers of SynthCI-30M."""
    metrics: dict[str, dict[str, float]] = {}
    for task, values in TABLE["synthci_30m"]["datasets"].items():
        suite, metric = compare.SOURCES[task]
        for name, value in values.items():
            if name == leave_out:
                continue
            entry = next(entry for entry in catalogue.entries() if entry.name == name)
            key = metric or entry.suites["linear_probe"]
            metrics.setdefault(suite, {})[f"{suite}/{name}/{key}"] = scale * value / 100
    for suite, found in metrics.items():
        results.write_result(workdir, 300, suite, found, {key.split("/")[1]: {} for key in found})


def test_a_run_with_the_papers_numbers_has_the_papers_delta(tmp_path):
    write_run(tmp_path)
    ours = compare.of_run(tmp_path)
    assert compare.delta_mtl(ours.averages, compare.of_paper("clip_cc12m").averages) == pytest.approx(0.2, abs=0.15)
    assert compare.delta_mtl(ours.averages, compare.of_paper("synthci_30m").averages) == pytest.approx(0.0, abs=0.1)
    text = compare.table(ours, compare.of_paper("synthci_30m"))
    assert "Delta_MTL against SynthCI-30M: " in text
    assert text.count("+0.0") + text.count("-0.0") >= 24


def test_a_missing_dataset_is_named_and_never_counted_as_zero(tmp_path):
    write_run(tmp_path, leave_out="pets")
    ours = compare.of_run(tmp_path)
    assert "linear_probe" not in ours.averages
    text = compare.table(ours, compare.of_paper("clip_cc12m"))
    assert "Delta_MTL needs all five tasks; missing: linear probe, few-shot" in text
    assert "linear probe: pets" in text


def test_unknown_baselines_and_empty_workdirs_say_what_there_is(tmp_path):
    with pytest.raises(compare.CompareError, match="Did you mean clip_cc12m"):
        compare.of_paper("clip_cc12")
    with pytest.raises(compare.CompareError, match="Evaluate first"):
        compare.of_run(tmp_path)


def test_command_line_prints_the_papers_models(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", "--paper", "--baseline=clip_cc3m"])
    compare.main()
    out = capsys.readouterr().out
    assert "SynthCI-30M" in out
    assert "+60." in out
    json.dumps(paper_tables.models())
