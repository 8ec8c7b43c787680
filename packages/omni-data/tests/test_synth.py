"""Laws of documents that need no download."""

import numpy as np
import pytest

from omni_data import builtin_corpus, synthetic_documents
from omni_data.synth import cut_text


def test_the_corpus_is_english_in_documents_of_a_page():
    corpus = builtin_corpus()
    lengths = [len(text) for text in corpus]
    assert len(corpus) > 300
    assert sum(400 <= n <= 1500 for n in lengths) / len(lengths) > 0.9
    assert all(text.strip() for text in corpus)
    assert sum(" the " in text for text in corpus) / len(corpus) > 0.8


def test_the_corpus_is_the_same_every_time():
    assert list(builtin_corpus()) == list(builtin_corpus())


def test_cutting_loses_no_paragraph():
    text = "\n\n".join("x" * n for n in (5, 90, 3, 3, 3, 40, 7))
    documents = cut_text(text, shortest=10, longest=50)
    assert [p for d in documents for p in d.strip("\n").split("\n\n")] == text.split("\n\n")
    assert [len(d) for d in documents] == [6, 91, 14, 50]


def test_a_synthetic_document_is_a_function_of_its_index():
    few, many = (synthetic_documents(vocab_size=100, count=count, seed=3) for count in (10, 1000))
    assert [few[i] for i in reversed(range(10))] == [many[i] for i in range(9, -1, -1)]
    assert few[0] != synthetic_documents(vocab_size=100, count=10, seed=4)[0]


def test_lengths_are_log_normal_and_tokens_in_the_vocabulary():
    documents = list(synthetic_documents(vocab_size=77, count=3000, median=50, sigma=0.7))
    logs = np.log([len(document) for document in documents])
    assert abs(np.median(logs) - np.log(50)) < 0.1
    assert abs(logs.std() - 0.7) < 0.05
    assert {0, 76} <= {token for document in documents for token in document} <= set(range(77))


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="vocab_size=0, median=-1 must be positive"):
        synthetic_documents(vocab_size=0, median=-1)
