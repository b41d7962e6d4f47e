"""The page itself, with Gradio: three tabs over one collection and one model.

Captions and concepts are untrusted text: Gradio puts the captions of a gallery and the labels of a classification on
the page as text, never as HTML, and nothing here builds HTML from them.
"""

import pathlib
from collections.abc import Sequence

import gradio as gr
import numpy as np
from PIL import Image
from scipy.special import softmax

from synthclip_jax.evals.prompts import template_sets
from synthclip_jax.evals.zeroshot import text_classifier
from synthclip_jax.explore.collection import Collection
from synthclip_jax.images.decoding import ImageError, check_image, open_image
from synthclip_jax.model.encoder import Encoder

SHOWN = 24  # images of a gallery
SIDE = 1024  # of the largest image in it, pixels
TOP = 10  # classes of a classification


class Explorer:
    """What the page does, without the page."""

    def __init__(self, collection: Collection, encoder: Encoder):
        self.collection, self.encoder = collection, encoder

    def search(self, text: str) -> list[tuple[Image.Image, str]]:
        """The nearest images to a text, each with its similarity and caption."""
        if not text.strip():
            return []
        (vector,) = self.encoder.texts([text])
        found = self.collection.nearest(vector, SHOWN)
        return [self._shown(number, f"{similarity:.3f}  ") for number, similarity in found]

    def classify(self, image: str | None, classes: str, templates: str) -> dict[str, float]:
        """Probability of each class name (one a line) for an image, by the model's own logit scale.

        Args:
          image: the file that was dropped on the page, as it came.

        Raises:
          gr.Error: there are no class names, or the image cannot be encoded.
        """
        if image is None:
            return {}
        names = list(dict.fromkeys(line.strip() for line in classes.split("\n") if line.strip()))
        if not names:
            raise gr.Error("Write at least one class name, one a line.", print_exception=False)
        classifier = text_classifier(self.encoder.texts, names, template_sets()[templates], self.encoder.batch_size)
        data = pathlib.Path(image).read_bytes()
        try:  # by its header, and a JPEG at an eighth of its size: to say what is wrong with it
            check_image(data, self.encoder.max_pixels)
        except ImageError as error:
            raise gr.Error(f"This picture cannot be read: {error}.", print_exception=False) from None
        (batch,) = self.encoder.images([(0, data)])
        if batch.skipped:
            raise gr.Error("This picture does not decode.", print_exception=False)
        logits = np.exp(np.asarray(self.encoder.params["logit_scale"])) * (classifier @ batch.embeddings[0])
        return dict(zip(names, map(float, softmax(logits)), strict=True))

    def walk(self, concept: str | None, page: int) -> tuple[list[tuple[Image.Image, str]], str, int]:
        """One screen of a concept's images, what is shown in words, and the page that it is."""
        numbers = self.collection.of_concept(concept or "")
        pages = max(1, -(-len(numbers) // SHOWN))
        page %= pages
        part = numbers[page * SHOWN : (page + 1) * SHOWN]
        return [self._shown(number) for number in part], f"{len(numbers):,} pictures, page {page + 1} of {pages}", page

    def _shown(self, number: int, before: str = "") -> tuple[Image.Image, str]:
        caption = before + self.collection.entries[number].caption
        try:
            image = open_image(self.collection.image(number)).convert("RGB")
        except ImageError:
            return Image.new("RGB", (64, 64)), f"(does not decode) {caption}"
        image.thumbnail((SIDE, SIDE))
        return image, caption


def build_page(explorer: Explorer, title: str, default_classes: Sequence[str]) -> gr.Blocks:
    """The page, not yet served."""
    collection = explorer.collection
    taken = f"{len(collection):,} of {collection.total:,} pictures" if len(collection) < collection.total else (
        f"all {collection.total:,} pictures"
    )  # fmt: skip
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown("# Explore")
        gr.Textbox(f"{title}: {taken} of {collection.place}", show_label=False, interactive=False)
        with gr.Tab("Find pictures"):
            text = gr.Textbox(label="Text", placeholder="a dog on a beach", elem_id="search")
            found = gr.Gallery(label="Nearest pictures, with their cosine similarity", columns=6, elem_id="found")
            text.submit(explorer.search, text, found)
        with gr.Tab("Name a picture"):
            with gr.Row():
                image = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,  # as it came: no decoding before the size is known
                    sources=["upload", "clipboard"],
                    elem_id="picture",
                )
                with gr.Column():
                    classes = gr.Textbox("\n".join(default_classes), label="Class names, one a line", lines=10)
                    templates = gr.Dropdown(sorted(template_sets()), value="simple", label="Prompt templates")
            label = gr.Label(label="Zero-shot", num_top_classes=TOP, elem_id="label")
            # One event for all three: what was changed last is what is shown last.
            gr.on(
                [image.change, classes.change, templates.change],
                explorer.classify,
                [image, classes, templates],
                label,
                show_progress="minimal",
                trigger_mode="always_last",
            )
        with gr.Tab("Walk the concepts", visible=bool(collection.concepts)):
            number = gr.State(0)
            concept = gr.Dropdown(collection.concepts, label="Concept", value=None, elem_id="concept")
            position = gr.Textbox(show_label=False, interactive=False)
            shown = gr.Gallery(label="Pictures", columns=6, elem_id="shown")
            with gr.Row():
                back, forward = gr.Button("Back"), gr.Button("Forward")
            outputs = [shown, position, number]
            concept.change(lambda concept: explorer.walk(concept, 0), concept, outputs)
            back.click(lambda concept, page: explorer.walk(concept, page - 1), [concept, number], outputs)
            forward.click(lambda concept, page: explorer.walk(concept, page + 1), [concept, number], outputs)
    return page
