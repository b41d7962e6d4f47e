"""Our loader beside tf.data: the same TFRecords, the same work, taking turns on the same machine.

    python -m benchmarks.loader [--rounds=11] [--out=benchmarks/results]

Both read tf.train.Examples of 256-px JPEGs, check their CRC, shuffle, repeat, decode, crop at random (half to all of
the area, ratio 3/4 to 4/3), resize to 224 px bilinearly, and give uint8 batches in a fixed order. Captions are
tokenised by the same tokenizer in both, in tf.data's case where its batches arrive, beside its own threads. tf.data
decodes only the crop (`decode_and_crop_jpeg`), leaves all numbers of threads to AUTOTUNE, and shuffles file names and a
buffer of records, where ours is one permutation of all.

Each is a process of its own that is stopped while the other runs. A turn begins with batches that are not counted, so
that nothing made ahead of time is. Before that, the quickstart's training runs for a while on as many invented images
as it draws, and its log says what share of a step it waits for data.

The last line's last number is the median ratio of a turn of ours to the turns of tf.data before and after it, in
images per second; the line before has the same of processor time, which other programs on the machine disturb less.

With --source=parquet the same pairs as `gen.publish` writes them, read by our loader, take turns with our loader on the
TFRecords, and the ratio is that of these two.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import turns
from synthclip_jax.packages import installed

QUICKSTART = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
SIZE, CROP = 256, 224
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
SHARDS = 8
SHUFFLE_BUFFER = 1024
PACKAGES = {
    "ours": ("grain", "simplejpeg", "opencv-python-headless", "numpy", "tokenizers"),
    "tf.data": ("tensorflow-cpu", "tensorflow"),
}
WORDS = ("a", "the", "red", "small", "old", "dog", "castle", "river", "table", "beside", "under", "with", "painted")


def main(argv: list[str] | None = None) -> None:
    parser = turns.make_parser("loader", __doc__)
    parser.add_argument("--images", type=int, default=4096, help="in the dataset that is made for it")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=12, help="batches timed per turn")
    parser.add_argument("--rounds", type=int, default=11, help="turns of ours, each between two of tf.data")
    parser.add_argument(
        "--steps", type=int, default=240, help="steps of the quickstart's training; the first third is not counted"
    )
    parser.add_argument(
        "--source", default="tfrecord", choices=("tfrecord", "parquet"), help="what is read; parquet: beside TFRecords"
    )
    parser.add_argument("--serve", choices=PIPELINES, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        serve(PIPELINES[arguments.serve](arguments.dataset, arguments.batch), arguments.batches * arguments.batch)
        return
    one, other = ("ours", "tf.data") if arguments.source == "tfrecord" else ("parquet", "ours")
    wait = data_wait(arguments.steps) if arguments.steps and arguments.source == "tfrecord" else None
    with tempfile.TemporaryDirectory() as folder:
        size = write_dataset(pathlib.Path(folder), arguments.images)
        if arguments.source == "parquet":
            write_parquet(pathlib.Path(folder))
        print(f"{arguments.images} JPEGs of {SIZE} px, {size / arguments.images / 1024:.1f} KB each", flush=True)
        with contextlib.ExitStack() as stack:
            command = [sys.executable, "-m", "benchmarks.loader", f"--dataset={folder}"]
            command += [f"--batch={arguments.batch}", f"--batches={arguments.batches}"]
            contenders = {name: stack.enter_context(Contender([*command, f"--serve={name}"])) for name in (one, other)}
            taken: dict[str, list[np.ndarray]] = {one: [], other: [contenders[other].turn()]}
            for _ in range(arguments.rounds):
                taken[one].append(contenders[one].turn())
                taken[other].append(contenders[other].turn())
    summary = {
        **summarise(taken[one], taken[other], f"{one} / {other}", arguments),
        "kilobytes": round(size / arguments.images / 1024, 1),
        "data_wait_in_the_quickstart": wait,
    }
    turns.write(arguments.out, "loader" if one == "ours" else f"loader_{one}", summary)
    if wait is not None:
        print(f"the quickstart's training waits for data: {wait:.2%} of a step, its first third not counted")
    low, high = summary["middle_half"]
    print(f"{arguments.rounds} turns of {arguments.batches * arguments.batch} images; middle half {low} to {high}")
    print(f"{one} over {other}, images per second of processor time: {summary['ratio_of_processor_time']}")
    print(f"{one} over {other}, images per second: {summary['ratio']}")


def summarise(
    ours: list[np.ndarray], others: list[np.ndarray], what: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The medians of what each turn of ours is to the two of the other one around it."""
    # Of speeds, where the turns are seconds.
    seconds, processor = 1 / np.transpose(turns.ratios(ours, others))
    return {
        "versions": {name: installed(packages) for name, packages in PACKAGES.items()},
        "cores": len(os.sched_getaffinity(0)),
        "batch": arguments.batch,
        "pictures_per_turn": arguments.batch * arguments.batches,
        "ratios": seconds.round(3).tolist(),
        "middle_half": np.quantile(seconds, (0.25, 0.75)).round(3).tolist(),
        "ratio_of_processor_time": round(float(np.median(processor)), 3),
        "ratio_of": f"{what}, images per second, median over turns",
        "ratio": round(float(np.median(seconds)), 3),
    }


def data_wait(steps: int) -> float:
    """Share of a step for which the quickstart's training waits for data, with images invented."""
    from synthclip_jax.config import load_config
    from synthclip_jax.training.metrics import read_metrics

    config = load_config(QUICKSTART)
    count = 80 * config.train.batch_size  # as many as the quickstart draws, or so
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(pathlib.Path(folder, "dataset"), count, config.gen.images.size)
        command = [sys.executable, "-m", "synthclip_jax.train", f"--config={QUICKSTART}", f"--workdir={folder}/run"]
        command += [f"--config.data.path={folder}/dataset", f"--config.train.epochs={steps / 80}"]
        command += ["--config.eval.datasets=", f"--config.train.save_every={steps}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        lines = read_metrics(pathlib.Path(folder, "run", "train", "metrics.jsonl"))
    return round(statistics.mean(line["data_wait"] for line in lines if line["step"] > steps // 3), 4)


class Contender:
    """One pipeline in a process of its own, which is stopped unless it is its turn."""

    def __init__(self, command: list[str]):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        self.turn()  # reads all files, and lets AUTOTUNE find its numbers

    def turn(self) -> np.ndarray:
        """Seconds that a turn takes, of the clock and of the processor."""
        self._process.send_signal(signal.SIGCONT)
        print("turn", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(self._process.stderr.read())  # type: ignore[union-attr]
        self._process.send_signal(signal.SIGSTOP)
        return np.array(json.loads(line))

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


Batches = Iterator[tuple[np.ndarray, np.ndarray]]  # images, tokens


def serve(batches: Batches, count: int) -> None:
    """Takes a turn whenever a line comes in."""
    for _ in sys.stdin:
        # What was made ahead of time is taken first, a quarter of a turn at least.
        take(batches, count // 4)
        started = time.perf_counter(), time.process_time()
        take(batches, count)
        print(json.dumps([time.perf_counter() - started[0], time.process_time() - started[1]]), flush=True)


def take(batches: Batches, count: int) -> None:
    while count > 0:
        images, tokens = next(batches)
        assert images.shape[1:] == (CROP, CROP, 3)
        assert images.dtype == np.uint8
        assert tokens.shape == (len(images), 77)
        count -= len(images)


def parquet(folder: pathlib.Path, batch: int) -> Batches:
    """The training loader on the same pairs as Parquet."""
    return ours(folder, batch, (f"parquet:{folder / 'parquet'}",))


def ours(folder: pathlib.Path, batch: int, sources: tuple[str, ...] = ()) -> Batches:
    """The training loader with its default settings."""
    from synthclip_jax.config import default_config
    from synthclip_jax.data.stream import make_loader, open_dataset
    from synthclip_jax.text.tokenizer import Tokenizer

    data = default_config().data
    data.update(image_size=CROP, crop_scale=SCALE, crop_ratio=RATIO, interpolation="bilinear", sources=sources)
    loader = make_loader(data, open_dataset(data, folder), Tokenizer(), batch, seed=0)
    return ((made.images, made.tokens) for made in loader)


def tf_data(folder: pathlib.Path, batch: int) -> Batches:
    """The pipeline that TensorFlow's guides advise for such data."""
    import tensorflow as tf

    from synthclip_jax.text.tokenizer import Tokenizer

    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", "caption")}

    def read(payload):
        example = tf.io.parse_single_example(payload, features)
        shape = tf.image.extract_jpeg_shape(example["image"])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4]),
            area_range=SCALE,
            aspect_ratio_range=RATIO,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, [CROP, CROP], method="bilinear")
        return tf.cast(tf.round(image), tf.uint8), example["caption"]

    files = sorted(str(path) for path in folder.glob("*.tfrecord-?????-of-?????"))
    dataset = (
        tf.data.Dataset.from_tensor_slices(files)
        .shuffle(len(files))
        .repeat()
        .interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE)
        .shuffle(SHUFFLE_BUFFER)
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    tokenize = Tokenizer()
    for images, captions in dataset.as_numpy_iterator():
        yield images, tokenize([caption.decode() for caption in captions])


PIPELINES: dict[str, Callable[[pathlib.Path, int], Batches]] = {"tf.data": tf_data, "ours": ours, "parquet": parquet}


def write_dataset(folder: pathlib.Path, count: int, side: int = SIZE) -> int:
    """Writes shards of images as rich in detail as photographs, with captions; returns the bytes of the images."""
    from synthclip_jax.data.example_proto import serialize_example
    from synthclip_jax.data.records import INDEX_SUFFIX, ShardName, frame_shard

    folder.mkdir(exist_ok=True)
    total = 0
    for shard in range(SHARDS):
        payloads = []
        for number in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
            rng = np.random.default_rng(number)
            image = photograph(rng, side)
            total += len(image)
            caption = " ".join(rng.choice(WORDS, 12))
            payloads.append(serialize_example({"image": [image], "caption": [caption.encode()]}))
        content, index = frame_shard(payloads)
        path = folder / str(ShardName("invented", "train", shard, SHARDS))
        path.write_bytes(content)
        path.with_name(path.name + INDEX_SUFFIX).write_bytes(index)
    return total


def write_parquet(folder: pathlib.Path) -> None:
    """Writes the same pairs in the same order as `gen.publish` does."""
    from gen.publishing import parquet_shards
    from gen.publishing.source import Example
    from synthclip_jax.data.example_proto import parse_example
    from synthclip_jax.data.records import IndexedShard, list_shards

    (folder / "parquet").mkdir()
    for number, path in enumerate(list_shards(folder, "train")[0]):
        pairs = (parse_example(payload) for payload in IndexedShard(path))
        rows = (
            Example(f"{row}", pair["image"][0], (pair["caption"][0].decode(),), "", 0, (), 0, 0)
            for row, pair in enumerate(pairs)
        )
        (folder / "parquet" / parquet_shards.file_name("", number, SHARDS)).write_bytes(
            parquet_shards.write(rows, False)
        )


def photograph(rng: np.random.Generator, size: int) -> bytes:
    """A JPEG of smooth noise in five octaves: as many bytes as a photograph of this size."""
    import cv2

    image = np.full((size, size, 3), 128, np.float32)
    for side, strength in ((3, 50), (12, 35), (48, 25), (128, 12), (size, 6)):
        noise = rng.normal(0, strength, (min(side, size), min(side, size), 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), (cv2.IMWRITE_JPEG_QUALITY, 80))[1].tobytes()


if __name__ == "__main__":
    main()
