"""How the miniature's text-to-image model is made: its tokens, its noise, its latents, and a training that resumes."""

import re

import numpy as np
import pytest
import torch

from gen.engines import models
from gen.miniature import fit as fit_module
from gen.miniature import networks, words
from gen.miniature.fit import Clock, OutOfTime, Plan, TrainingError, fit
from gen.miniature.train import _with_fillers
from synthclip_jax.text import tokenizer as clip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return networks.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_captions_of_scenes_have_the_tokens_that_they_have_in_clip(tokenizer):
    texts = [template.caption(concept) for template in words.all_templates()[:60] for concept in words.CONCEPTS[::7]]
    names = {number: token for token, number in clip.vocabulary().items()}
    theirs = [[names[number] for number in row] for row in clip.encode(texts)]
    ours = [tokenizer.convert_ids_to_tokens(row)[1:-1] for row in tokenizer(texts)["input_ids"]]
    assert ours == theirs


def test_no_caption_of_a_scene_is_cut_and_any_text_has_tokens(tokenizer):
    longest = max(words.CONCEPTS, key=lambda concept: len(tokenizer(concept)["input_ids"]))
    texts = [template.caption(longest) for template in words.all_templates()]
    assert max(len(row) for row in tokenizer(texts)["input_ids"]) <= networks.CONTEXT
    row = tokenizer("An Umbrella of 7 zebras, naïve!")["input_ids"]
    assert re.sub("</w>", " ", "".join(tokenizer.convert_ids_to_tokens(row)[1:-1])).startswith("an umbrella of 7 ")


def test_the_noise_schedule_begins_with_the_image_and_ends_with_next_to_none_of_it():
    kept = np.cumprod(1 - np.array(networks.betas()))
    assert len(kept) == 1000
    assert kept[0] == pytest.approx(1 / (1 + networks.LEAST_NOISE**2))
    assert kept[-1] == pytest.approx(1 / (1 + networks.MOST_NOISE**2))
    assert all(0 < beta < 1 for beta in networks.betas())


def test_standardised_latents_decode_to_the_same_images():
    torch.manual_seed(0)
    autoencoder = networks.make_autoencoder().eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = autoencoder.encode(images).latent_dist
        decoded = autoencoder.decode(before.mean).sample
        mean, deviation = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        networks.standardise(autoencoder, mean, deviation)
        after = autoencoder.encode(images).latent_dist
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(12), atol=1e-5, rtol=0)
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(12), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(after.std, before.std / deviation[:, None, None], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(autoencoder.decode(after.mean).sample, decoded, atol=1e-5, rtol=1e-4)


def test_fillers_come_between_the_tokens_of_a_caption_and_not_before_or_behind_them():
    tokens = torch.full((400, networks.CONTEXT), 99)
    tokens[:, 0] = 98
    tokens[:, 1:7] = torch.arange(1, 7)
    tokens[0, 1:] = 99  # no caption
    generator = torch.Generator().manual_seed(0)
    mixed = _with_fillers(tokens, torch.tensor([50, 51, 52]), lambda *shape: torch.rand(shape, generator=generator))
    filled = 0
    for row in mixed.tolist():
        end = row.index(99)
        assert row[0] == 98
        assert set(row[end:]) == {99}
        assert [token for token in row[1:end] if token < 50] in ([], [1, 2, 3, 4, 5, 6])
        filled += any(50 <= token < 60 for token in row)
    assert mixed[0].tolist() == tokens[0].tolist()
    assert 60 < filled < 180


def train_line(folder, clock=None, steps=30, at=None):
    """Fits a line to noisy points; gives its weights and the log of losses."""
    torch.manual_seed(1)
    network = torch.nn.Linear(3, 1)

    def loss(step, generator):
        points = torch.randn(16, 3, generator=generator)
        return ((network(points) - points.sum(1, keepdim=True)) ** 2).mean()

    plan = Plan("line", steps, 0.05, 0.9, {"seed": 2})
    losses = fit(plan, [network], loss, folder, clock or Clock(), at)
    return network.weight.detach().clone(), losses


def test_training_that_is_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "LOG_EVERY", 10)
    whole, losses = train_line(tmp_path / "whole")
    assert [step for step, _ in losses] == [10, 20, 30]
    assert losses[-1][1] < losses[0][1]
    for number in (1, 2):
        with pytest.raises(OutOfTime, match="line") as stopped:
            train_line(tmp_path / "parts", Clock(end=0))
        assert stopped.value.losses == losses[:number]
    parts, again = train_line(tmp_path / "parts")
    torch.testing.assert_close(parts, whole, atol=0, rtol=0)
    assert again == losses
    done, _ = train_line(tmp_path / "parts")
    torch.testing.assert_close(done, whole, atol=0, rtol=0)


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "LOG_EVERY", 10)
    train_line(tmp_path)
    with pytest.raises(TrainingError, match="steps=30, asked for is 40"):
        train_line(tmp_path, steps=40)
    (tmp_path / "line.pt").write_bytes(b"PK")
    with pytest.raises(TrainingError, match="damaged"):
        train_line(tmp_path)


def test_what_is_called_on_the_way_sees_averaged_weights_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "LOG_EVERY", 10)
    seen = []
    whole, _ = train_line(tmp_path / "whole")
    called, _ = train_line(tmp_path / "called", at={3: lambda: seen.append(3), 30: lambda: seen.append(30)})
    torch.testing.assert_close(called, whole, atol=0, rtol=0)
    assert seen == [3, 30]


def test_the_name_miniature_is_the_folder_inside_the_package_and_an_error_where_that_is_gone(tmp_path, monkeypatch):
    assert models.image_model_location("some/model") == "some/model"
    monkeypatch.setattr(models, "MINIATURE_FOLDER", tmp_path)
    with pytest.raises(models.ImageModelMissing, match=r"python -m gen\.miniature\.train"):
        models.image_model_location("miniature")
    (tmp_path / "model_index.json").write_text("{}")
    assert models.image_model_location("miniature") == str(tmp_path)
