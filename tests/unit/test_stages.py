"""The stages of generation: one list that all commands follow."""

import pkgutil
import subprocess
import sys

import pytest

from gen.costs.measured import MEASURES
from gen.stages import BY_NAME, COMMANDS, FOLDERS, STAGES, VERSIONED, before
from synthclip_jax.config import default_config


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stages_functions_are_there_and_what_it_reads_comes_before_it(stage):
    for name in filter(None, (stage.function, stage.planned, stage.check, stage.shards_alone)):
        assert callable(pkgutil.resolve_name(name))
    earlier = [other.name for other in STAGES[: STAGES.index(stage)]]
    assert {*stage.reads, *filter(None, [stage.shards_of])} <= {*earlier}
    assert not stage.part_of or stage.part_of in COMMANDS
    assert bool(stage.dataset) == bool(stage.endings)


def test_a_stage_is_made_from_all_stages_before_those_that_it_reads():
    assert before("concepts") == set()
    assert before("filtered") == {"concepts", "captions", "balance", "images", "agreement"}
    assert VERSIONED == ("concepts", "captions", "balance", "images")
    assert (*VERSIONED, "recaption", "agreement", "filtered") == FOLDERS


def test_optional_stages_run_where_the_configuration_names_a_model():
    config = default_config()
    assert [stage.name for stage in STAGES if not stage.is_asked_for(config)] == ["recaption", "agreement"]
    config.gen.recaption.model = "a-model"
    assert BY_NAME["recaption"].is_asked_for(config)


def test_the_help_names_every_stage():
    text = subprocess.run([sys.executable, "-m", "gen", "--help"], text=True, capture_output=True, check=True).stdout
    listed = text.partition("stages:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == [*COMMANDS]
    assert all(len(line.split()) > 3 for line in listed)


def test_every_stage_that_workers_run_has_resources_on_a_cluster_and_every_optional_one_an_estimate():
    workers = {stage.name for stage in STAGES if stage.sharded and not stage.part_of}
    assert workers == {*default_config().gen.ray} - {"tries"}
    assert {stage.name for stage in STAGES if stage.asked_by} == {*MEASURES}
