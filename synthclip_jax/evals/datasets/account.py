"""What is said of a test set before its numbers: what it is, what is left out, what was decided. Needs no JAX."""

from collections.abc import Iterator, Sequence

from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets.layout import some
from synthclip_jax.evals.datasets.spec import CLASSIFICATION, Dataset
from synthclip_jax.left_out import printable

FIRST = 5  # names of classes that are shown


def lines(dataset: Dataset, templates: Sequence[str] = ()) -> Iterator[str]:
    """Lines on a test set: images, classes and their first names, the first prompt, what is left out, notes.

    Args:
      templates: with which it is evaluated; none where nothing is prompted.
    """
    place = dataset.spec.partition("=")[2]
    split = f", split {dataset.split_name}" if dataset.split_name and "@" not in place else ""
    of = ""
    if dataset.task == CLASSIFICATION:
        of = f" of {len(dataset.class_names):,} classes: {some(dataset.class_names, FIRST)}"
    yield printable(f"{dataset.name} ({place}{split}): {len(dataset):,} images{of}")
    if templates and dataset.class_names:
        prompt = prompts.prompts_for(dataset.class_names[0], templates[:1])[0]
        more = f", and {len(templates) - 1} more templates" if len(templates) > 1 else ""
        yield printable(f"{dataset.name}: the first prompt is {prompt!r}{more}")
    for line in dataset.left_out.lines():
        yield f"{dataset.name}: {line}"
    if dataset.class_counts is not None:
        yield from classes_without_images(dataset.name, dataset.class_names, dataset.class_counts)
    for note in dataset.notes:
        yield printable(f"{dataset.name}: {note}")


def classes_without_images(name: str, class_names: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """A line on the classes that no image has, and that a model may choose all the same, if there are any.

    Args:
      name: of the test set.
      counts: how many images each class has.
    """
    empty = [each for each, count in zip(class_names, counts, strict=True) if not count]
    if empty:
        verb = "classes have" if len(empty) > 1 else "class has"
        yield printable(f"{name}: {len(empty):,} {verb} no image, and can be chosen: {some(empty, FIRST)}")
