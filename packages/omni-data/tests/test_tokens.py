"""Laws of tokenizers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from omni_data import byte_tokenizer, read_tokenizer

BYTES = byte_tokenizer()


@given(st.text())
def test_bytes_come_back_exactly(text):
    ids = BYTES.encode(text).ids
    assert ids == list(text.encode())
    assert BYTES.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["", " a  b\n\t", "héllo 👩‍👩‍👧 日本", "\x00\x7f\ufeff", "a\r\n"])
def test_awkward_text_comes_back_exactly(text):
    assert BYTES.decode(BYTES.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_has_the_id_of_its_value():
    assert BYTES.get_vocab_size() == 257
    assert BYTES.encode("<|endoftext|>").ids == [256]
    assert BYTES.encode("".join(map(chr, range(128)))).ids == list(range(128))


def test_a_saved_tokenizer_is_read_as_the_same(tmp_path):
    saved = read_tokenizer("bytes").save(tmp_path / "new" / "folder")
    again = read_tokenizer(str(saved))
    plain = Tokenizer.from_file(str(saved / "tokenizer.json"))
    assert again.encode("héé") == plain.encode("héé").ids == list("héé".encode())
    assert (again.eos_id, again.vocab_size) == (256, 257)
    config = json.loads((saved / "tokenizer_config.json").read_text())
    assert (config["tokenizer_class"], config["eos_token"]) == ("PreTrainedTokenizerFast", "<|endoftext|>")


def words(folder, **files):
    """A folder with a tokenizer of three words, saved with a limit and a first token as some are."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "</s>": 7}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def test_a_document_is_neither_cut_nor_padded(tmp_path):
    assert read_tokenizer(words(tmp_path)).encode("a b a b a") == [0, 1, 2, 1, 2, 1]
    assert read_tokenizer(words(tmp_path)).encode("b") == [0, 2]


@pytest.mark.parametrize(
    ("files", "eos_id"),
    [
        ({}, None),
        ({"tokenizer_config": {"eos_token": "</s>"}}, 7),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}}, "generation_config": {"eos_token_id": 2}}, 7),
        ({"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": "</s>"}}, 7),
        ({"tokenizer_config": {"eos_token": "unheard of"}, "generation_config": {"eos_token_id": [2, 1]}}, 2),
        ({"generation_config": {"eos_token_id": 2}}, 2),
    ],
)
def test_eos_is_from_the_first_file_that_tells(tmp_path, files, eos_id):
    assert read_tokenizer(words(tmp_path, **files)).eos_id == eos_id


def test_vocab_size_counts_up_to_the_largest_id(tmp_path):
    assert read_tokenizer(words(tmp_path)).vocab_size == 8


def test_saving_copies_the_files_of_the_tokenizer_and_no_other(tmp_path):
    source = words(tmp_path / "in", special_tokens_map={"eos_token": "</s>"}, generation_config={}, config={})
    (tmp_path / "in" / "chat_template.jinja").write_text("{{ messages }}")
    saved = read_tokenizer(source).save(tmp_path / "out")
    assert sorted(p.name for p in saved.iterdir()) == [
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("chat_template.jinja", "special_tokens_map.json", "tokenizer.json"):
        assert (saved / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    assert json.loads((saved / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ValueError) as caught:
        read_tokenizer(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: no tokenizer.json. Name a folder that has one as tokenizer='...', or 'bytes'; of a tokenizer "
        "that transformers can read, AutoTokenizer.from_pretrained(name).save_pretrained(folder) writes one."
    )


def test_a_broken_file_is_named(tmp_path):
    words(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON: Expecting property name"):
        read_tokenizer(str(tmp_path))


@pytest.mark.parametrize("source", ["/no/such", "./no", "~/no such", "a/b/c", "no/"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(source):
    with pytest.raises(ValueError) as caught:
        read_tokenizer(source)
    assert str(caught.value) == f"{source}: no such folder."


def test_a_hub_name_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError) as caught:
        read_tokenizer("some-org/some-model")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("some-org/some-model: no such folder, and its tokenizer cannot be had from the hub: ")
    assert lines[-1].startswith("Where there is network, run `hf download some-org/some-model` first, or copy ")


def test_what_is_no_hub_name_says_so():
    with pytest.raises(ValueError, match="no such folder, and its tokenizer cannot be had from the hub"):
        read_tokenizer("not a name")
