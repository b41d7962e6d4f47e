"""The stages of generation in the order in which they run: what every command that goes through them iterates over."""

import dataclasses
import operator
import pkgutil
from typing import Any

from synthclip_jax.config.schema import Config
from synthclip_jax.data.readers.agreement import SUFFIX as SCORES
from synthclip_jax.data.readers.recaptions import SUFFIX as RECAPTIONS
from synthclip_jax.data.records import INDEX_SUFFIX
from synthclip_jax.files.locations import Location
from synthclip_jax.workdir import generated


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage. Functions are named by import strings, so that nothing is loaded before it is needed.

    Attributes:
      name: as `--stages` has it; its folder is W/gen/NAME.
      about: what it makes, for the help text.
      function: runs it, given configuration, workdir and executor; returns a summary, empty where it was not asked for.
      unit: its items, in the plural; empty: it has no folder of its own.
      count_key: the key of its plan that says how many items; empty: as `unit`.
      reads: the stages whose work must be complete before it can begin; see also `before`.
      asked_by: the configuration key that asks for an optional stage; empty: it always runs.
      part_of: the stage that runs it; empty: it is run by itself.
      sharded: it commits its work shard by shard.
      shards_of: the stage whose shards it takes one by one; empty: it plans its own.
      planned: says what is planned of each shard, where more is known than that there is one.
      check: names what is wrong inside the files of a shard; empty: their digests say all.
      shards_alone: makes its shards and nothing from them, where `function` does more.
      files: that it writes beside its shards; without the last one it does its own work again.
      dataset: the dataset that its shards' files belong to; empty: they lie in its own folder.
      endings: of those files, after the shard's name.
    """

    name: str
    about: str
    function: str
    unit: str = ""
    count_key: str = ""
    reads: tuple[str, ...] = ()
    asked_by: str = ""
    part_of: str = ""
    sharded: bool = True
    shards_of: str = ""
    planned: str = ""
    check: str = ""
    shards_alone: str = ""
    files: tuple[str, ...] = ()
    dataset: str = ""
    endings: tuple[str, ...] = ()

    @property
    def optional(self) -> bool:
        """Whether a complete workdir may be without it."""
        return bool(self.asked_by or self.part_of)

    def is_asked_for(self, config: Config) -> bool:
        """Whether the configuration asks for it."""
        return not self.asked_by or bool(operator.attrgetter(self.asked_by)(config))

    def run(self, config: Config, workdir: Location, executor: Any, *more: Any) -> Any:
        """Runs it; see `function`."""
        return pkgutil.resolve_name(self.function)(config, workdir, executor, *more)


STAGES = (
    Stage(
        "concepts",
        "the texts that captions are made of",
        "gen.concepts:run",
        unit="concepts",
        sharded=False,
        files=(generated.BANK, generated.BANK_RECORD),
    ),
    Stage(
        "captions",
        "captions for every concept, by a language model",
        "gen.captions:run",
        unit="captions",
        reads=("concepts",),
        planned="gen.checks.planned:caption_shards",
        check="gen.checks.shards:caption_problems",
    ),
    Stage(
        "balance",
        "the choice of captions to draw, so that frequent concepts do not drown rare ones",
        "gen.balance:run",
        unit="captions",
        reads=("captions",),
        shards_of="captions",
        shards_alone="gen.balance:match",
        files=(generated.COUNTS_BEFORE, generated.COUNTS_AFTER, generated.SELECTED, generated.BALANCE),
    ),
    Stage(
        "images",
        "images of the chosen captions",
        "gen.images:run",
        unit="images",
        count_key="pictures",  # as in all plans that were ever written
        reads=("balance",),
        planned="gen.checks.planned:image_shards",
        check="gen.checks.shards:image_problems",
        dataset="NAME",
        endings=("", INDEX_SUFFIX),
    ),
    Stage(
        "recaption",
        "descriptions of the images by a vision-language model (optional)",
        "gen.recaption:run",
        unit="images",
        reads=("images",),
        asked_by="gen.recaption.model",
        shards_of="images",
        check="gen.checks.shards:recaption_problems",
        dataset="NAME",
        endings=(RECAPTIONS, RECAPTIONS + INDEX_SUFFIX),
    ),
    Stage(
        "agreement",
        "scores of how well image and caption agree, by a CLIP checkpoint (optional)",
        "gen.agreement:run",
        unit="pairs",
        reads=("images",),
        asked_by="gen.agreement.checkpoint",
        shards_of="images",
        check="gen.checks.shards:score_problems",
        dataset="NAME",
        endings=(SCORES,),
    ),
    Stage(
        "filtered",
        "the dataset without the pairs that score low",
        "gen.finalize:run",
        unit="pairs",
        reads=("agreement",),
        part_of="finalize",
        shards_of="images",
        planned="gen.checks.planned:filtered_shards",
        check="gen.checks.shards:filtered_problems",
        dataset="NAME_filtered",
        endings=("", INDEX_SUFFIX),
    ),
    Stage(
        "finalize",
        "metadata, card and provenance of the dataset",
        "gen.finalize:run",
        reads=("images",),
        sharded=False,
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}
COMMANDS = tuple(stage.name for stage in STAGES if not stage.part_of)  # what `--stages` allows
FOLDERS = tuple(stage.name for stage in STAGES if stage.unit)  # those with a folder in W/gen


def before(name: str) -> set[str]:
    """All stages that a stage is made from."""
    found = set(BY_NAME[name].reads)
    return found.union(*map(before, found))


# A version of the dataset may have its own folder of each of these; what comes then belongs to the dataset.
VERSIONED = tuple(stage.name for stage in STAGES if stage.name in {*before("images"), "images"})
