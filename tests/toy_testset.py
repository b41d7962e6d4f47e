"""Test sets of coloured images."""

import io
import tarfile

from PIL import Image

CLASSES = ("red", "green", "blue", "white", "black", "gray")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128))


def image_bytes(colour=(200, 30, 30), size=(20, 16), form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def write_wds(folder, examples, class_names=CLASSES, templates=("a {c} square.",), per_shard=4, split="test"):
    """A webdataset folder of (key, {extension: bytes}) in CLIP_benchmark's layout; no class names: for retrieval."""
    (folder / split).mkdir(parents=True)
    shards = [examples[start : start + per_shard] for start in range(0, len(examples), per_shard)]
    for index, shard in enumerate(shards):
        with tarfile.open(folder / split / f"{index}.tar", "w") as tar:
            for key, parts in shard:
                for extension, data in parts.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
    if class_names:
        (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
    else:
        (folder / "dataset_type.txt").write_text("retrieval\n")
    if templates:
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def coloured(count=12):
    return [
        (f"s{index:04d}", {"png": image_bytes(COLOURS[index % 6]), "cls": str(index % 6).encode()})
        for index in range(count)
    ]
