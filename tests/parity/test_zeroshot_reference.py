"""Our classifier and metrics against open_clip's and scikit-learn's, on the same features."""

import numpy as np
import pytest

from synthclip_jax.evals import prompts
from synthclip_jax.evals.zeroshot import Predictions, metrics, text_classifier

CLASSES = [f"thing {index}" for index in range(23)]
TEMPLATES = prompts.template_sets()["imagenet80"]


class TableModel:
    """Stands in for a model: an embedding for each of the prompts, the tokens being the prompts' numbers."""

    def __init__(self, torch):
        self.torch = torch
        texts = [template.format(c=name) for name in CLASSES for template in TEMPLATES]
        self.number = {text: index for index, text in enumerate(texts)}
        self.embeddings = np.random.default_rng(0).normal(size=(len(texts), 32)).astype(np.float32)

    def tokenizer(self, texts):
        return self.torch.tensor([self.number[text] for text in texts])

    def encode_text(self, tokens, normalize=False):
        features = self.torch.from_numpy(self.embeddings)[tokens]
        return self.torch.nn.functional.normalize(features, dim=-1) if normalize else features


def test_the_classifier_equals_open_clips():
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    model = TableModel(torch)
    templates = [template.replace("{c}", "{}") for template in TEMPLATES]
    theirs = open_clip.build_zero_shot_classifier(model, model.tokenizer, CLASSES, templates)
    ours = text_classifier(
        lambda texts: model.embeddings[[model.number[text] for text in texts]], CLASSES, TEMPLATES, batch_size=100
    )
    np.testing.assert_allclose(ours, theirs.numpy().T, atol=1e-6)


def test_the_packaged_imagenet_prompts_and_names_equal_open_clips():
    open_clip = pytest.importorskip("open_clip")
    for ours, theirs in (
        ("imagenet80", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("imagenet7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert prompts.template_sets()[ours] == tuple(template("{c}") for template in theirs)
    assert prompts.class_names_of("imagenet1k") == tuple(open_clip.IMAGENET_CLASSNAMES)


def test_the_metrics_equal_scikit_learns_top_k_and_balanced_accuracy():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    labels = rng.choice(23, 700, p=rng.dirichlet(np.ones(23)))
    scores = rng.normal(size=(700, 23)).astype(np.float32) + 2 * np.eye(23, dtype=np.float32)[labels]
    top = np.argsort(-scores, axis=1)[:, :5].astype(np.int32)
    predictions = Predictions(
        "d", tuple(CLASSES), tuple(map(str, range(700))), labels, top, np.take_along_axis(scores, top, 1)
    )
    ours = metrics(predictions)
    for k in (1, 5):
        theirs = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(23))
        assert ours[f"acc{k}"] == pytest.approx(theirs, abs=1e-12)
    expected = sklearn_metrics.balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert ours["mean_per_class_recall"] == pytest.approx(expected, abs=1e-12)
