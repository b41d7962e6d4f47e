"""What stock open_clip and transformers make of exports; runs where `benchmarks.referee` lets them be imported.

IMAGES COUNT [EXPORT OUT.npz]... [TEXT ...]     images are a folder of files; COUNT: how many exports
"""

import pathlib
import sys

import numpy as np
import open_clip
import torch
import transformers
from PIL import Image


def main(folder: str, count: str, *arguments: str) -> None:
    """Writes what each export gives."""
    places, texts = arguments[: 2 * int(count)], arguments[2 * int(count) :]
    for export, out in zip(places[::2], places[1::2], strict=True):
        write_features(export, folder, out, *texts)


def write_features(export: str, folder: str, out: str, *texts: str) -> None:
    """Writes unit vectors and pixels of both libraries, token ids, and the pipeline's scores."""
    images = [Image.open(path).convert("RGB") for path in sorted(pathlib.Path(folder).iterdir())]
    found = {}

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{export}")
    tokens = open_clip.get_tokenizer(f"local-dir:{export}")(list(texts))
    pixels = torch.stack([preprocess(image) for image in images])
    model.eval()
    with torch.inference_mode():
        found["open_clip_images"] = model.encode_image(pixels, normalize=True)
        found["open_clip_texts"] = model.encode_text(tokens, normalize=True)
    found |= {"open_clip_pixels": pixels, "open_clip_tokens": tokens, "open_clip_scale": model.logit_scale.exp()}

    model = transformers.AutoModel.from_pretrained(export).eval()
    for backend in ("pil", "torchvision"):
        processor = transformers.AutoProcessor.from_pretrained(export, backend=backend)
        inputs = processor(text=list(texts), images=images, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        name = f"transformers_{backend}"
        found |= {f"{name}_pixels": inputs["pixel_values"], f"{name}_images": outputs.image_embeds}
    found |= {"transformers_texts": outputs.text_embeds, "transformers_tokens": inputs["input_ids"]}

    classify = transformers.pipeline("zero-shot-image-classification", model=export)
    short = list(texts[:2])  # the pipeline does not cut long ones
    answers = classify(images[0], candidate_labels=short, hypothesis_template="{}")
    scores = {answer["label"]: answer["score"] for answer in answers}
    found["pipeline"] = torch.tensor([scores[text] for text in short])
    np.savez(out, **{name: value.detach().numpy() for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
