"""Laws of fitting documents into rows."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import fit_rows


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 80))
def test_every_document_is_in_one_row_and_every_row_fits(lengths, seq_len):
    rows = fit_rows(lengths, seq_len)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= seq_len for row in rows)


@given(st.lists(st.integers(1, 50), max_size=200))
def test_no_two_rows_could_be_one(lengths):
    used = sorted(sum(lengths[i] for i in row) for row in fit_rows(lengths, 50))
    assert len(used) < 2 or used[0] + used[1] > 50


@given(st.lists(st.integers(1, 50), max_size=50))
def test_rows_and_documents_keep_their_order(lengths):
    rows = fit_rows(lengths, 50)
    assert all(row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_rows_of_log_normal_documents_are_95_percent_full(sigma):
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(6 + sigma * random.standard_normal(5_000)), 1, 4096).astype(int).tolist()
    assert sum(lengths) / (4096 * len(fit_rows(lengths, 4096))) >= 0.95


def test_a_hundred_thousand_documents_take_seconds():
    lengths = np.random.default_rng(0).integers(1, 4097, 100_000).tolist()
    start = time.process_time()
    fit_rows(lengths, 4096)
    assert time.process_time() - start < 5


def test_all_misfits_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        fit_rows([3, 0, 9, 4], 4)
    assert str(caught.value) == (
        "2 of 4 documents do not have 1 to seq_len=4 tokens: document 1 has 0, document 2 has 9. "
        "Split the long ones and leave out the empty ones."
    )


def test_many_misfits_are_counted():
    with pytest.raises(ValueError, match=r"document 4 has 5, and 3 more\. "):
        fit_rows([5] * 8, 4)
