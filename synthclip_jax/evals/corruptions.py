"""Zero-shot classification of corrupted images; see `synthclip_jax.evals.image_corruptions`.

Images are made on the fly from any test set: scaled and cropped to a square of 224 pixels, for which the strengths are
made, corrupted, and only then prepared as the model asks. What is drawn at random depends on the image's key alone,
so every model sees the same images. `eval.corruptions` says which kinds, severities and how many images.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import calibration, intervals
from synthclip_jax.evals.datasets import CLASSIFICATION, Dataset
from synthclip_jax.evals.encode import encode
from synthclip_jax.evals.image_corruptions import SIDE, corrupt, group_of
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Measure, Measured
from synthclip_jax.evals.zeroshot import ZeroShot, best_of, text_classifier
from synthclip_jax.left_out import LeftOut

GROUPS = ("noise", "blur", "weather", "digital")


@dataclasses.dataclass(frozen=True)
class Part:
    """Every k-th image of a test set, held in memory."""

    dataset: Dataset
    count: int

    def __post_init__(self) -> None:
        wanted = set((np.arange(self.count) * len(self.dataset) // self.count).tolist())
        object.__setattr__(self, "examples", [each for index, each in enumerate(self.dataset) if index in wanted])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


def metrics(
    right: Bool[np.ndarray, "n kinds severities"],
    sure: Float[np.ndarray, "n kinds severities"],
    kinds: tuple[str, ...],
    severities: tuple[int, ...],
) -> dict[str, float]:
    """acc1 of all corrupted images with its bounds, of each group of kinds, each severity, each kind, each kind at each
    severity; then the calibration error of all, and at each severity.

    An image counts once in each kind and severity: the intervals take that into account.
    """

    def share(name: str, hits: Bool[np.ndarray, "n ..."]) -> dict[str, float]:
        flat = hits.reshape(len(hits), -1)
        count = np.full(len(flat), flat.shape[1])
        return intervals.with_bounds(name, *intervals.clustered(flat.sum(1).astype(float), count))

    def error(name: str, at: Any) -> dict[str, float]:
        return {name: calibration.reliability(sure[at].ravel(), right[at].ravel()).error}

    values = share("acc1", right) | error("ece", np.s_[:])
    groups = [group_of(kind) for kind in kinds]
    for group in dict.fromkeys(groups):
        values |= share(group, right[:, [each == group for each in groups]])
    for place, severity in enumerate(severities):
        values |= share(f"severity_{severity}", right[:, :, place])
        values |= error(f"ece_severity_{severity}", np.s_[:, :, place])
    for row, kind in enumerate(kinds):
        values |= share(kind, right[:, row])
        for place, severity in enumerate(severities):
            values |= share(f"{kind}_{severity}", right[:, row, place])
    return values


class Corruptions(ZeroShot):
    """Evaluates zero-shot classification of corrupted images. See `synthclip_jax.evals.suite`.

    Raises:
      PromptError: prompts cannot be used.
      EvaluationError: `eval.corruptions` names no kind or no severity.
    """

    name, task, main = "corruptions", CLASSIFICATION, "acc1"
    columns = (
        Column("images", "n", percent=False),
        Column("clean acc1 %", "clean"),
        Column("corrupted % [95%]", "acc1", interval=True),
        *(Column(f"{group} %", group) for group in GROUPS),
        Column("clean ECE %", "clean_ece"),
        Column("corrupted ECE %", "ece"),
    )
    title = "Corrupted images"
    about = (
        "Zero-shot accuracy on the same images as they are, and with noise, blur, weather and digital faults: the kinds"
        " and severities of ImageNet-C, but for the frost, which is drawn."
    )
    measures = (
        Measure("clean", "chance", "as they are", "top-1 of the images as they are"),
        Measure("acc1", "chance", "corrupted", "top-1 of corrupted images"),
        *(Measure(group, "chance", group, f"top-1 with {group} faults") for group in GROUPS),
    )
    papers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, config: Config, *arguments: Any, **others: Any):
        super().__init__(config, *arguments, **others)
        settings = config.eval.corruptions
        self.kinds, self.severities = tuple(settings.kinds), tuple(settings.severities)
        if not self.kinds or not self.severities:
            raise EvaluationError("eval.corruptions: name at least one of kinds and one of severities")

    @classmethod
    def describe(cls, config: Config, dataset: Dataset) -> dict[str, Any]:
        """As of zero-shot classification, with what corrupts how many images."""
        settings = config.eval.corruptions
        chosen = {"kinds": list(settings.kinds), "severities": list(settings.severities), "images": settings.images}
        return super().describe(config, dataset) | chosen

    def measure(self, dataset: Dataset, encoder: Any) -> Measured:
        """Metrics of a test set, and which image was named rightly under which corruption."""
        names, templates = dataset.class_names, self.chosen[dataset.name]
        classifier = text_classifier(encoder.texts, names, templates)
        encoder.cut.clear()  # the suite zeroshot says of them
        images = self.config.eval.corruptions.images
        part: Any = Part(dataset, images) if 0 < images < len(dataset) else dataset
        prepare = dataclasses.replace(encoder.preprocess, image_size=SIDE)

        def keep(vectors: Float[np.ndarray, "n embed"]) -> tuple[np.ndarray, np.ndarray]:
            scores = vectors @ classifier.T
            return best_of(scores, 1)[0][:, 0], calibration.confidence(scores, encoder.logit_scale)

        def altered(kind: str, severity: int, key: Any, image: Image.Image) -> Image.Image:
            return Image.fromarray(corrupt(prepare(image), kind, severity, key[0]))

        clean = self.encode(encoder, part, keep=keep)
        labels: Int[np.ndarray, " n"] = np.array(clean.answers, np.int32)
        guesses, sure = clean.arrays
        shape = (len(labels), len(self.kinds), len(self.severities))
        right, surely = np.zeros(shape, bool), np.zeros(shape)
        for row, kind in enumerate(self.kinds):
            for place, severity in enumerate(self.severities):
                alter = functools.partial(altered, kind, severity)
                found = encode(encoder, part, self.log, LeftOut("images"), keep, alter=alter)
                right[:, row, place], surely[:, row, place] = found.arrays[0] == labels, found.arrays[1]
        whole = guesses == labels
        values = intervals.share("clean", int(whole.sum()), len(labels))
        values["clean_ece"] = calibration.reliability(sure, whole).error
        values |= metrics(right, surely, self.kinds, self.severities)
        values |= {"n": len(labels), "classes": len(names), "chance": 1 / len(names), "skipped": len(clean.skipped)}
        details = {"keys": np.array(clean.keys, str), "labels": labels, "clean": whole, "right": right, "sure": surely}
        return values, details | {"kinds": np.array(self.kinds, str), "severities": np.array(self.severities)}
