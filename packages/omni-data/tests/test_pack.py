"""Laws of packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import IGNORE, document_bounds, pack_batch, shard_sequence, unpack_batch

DOCUMENTS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=7)
ROWS = st.lists(st.lists(DOCUMENTS, max_size=5), max_size=4)
PADDING = st.integers(0, 5)


def width(rows, padding):
    return max((sum(map(len, row)) for row in rows), default=0) + padding


@given(ROWS, PADDING)
def test_unpack_is_the_inverse_of_pack(rows, padding):
    assert unpack_batch(pack_batch(rows, width(rows, padding))) == rows


@given(ROWS, PADDING)
def test_arrays_pack_like_lists(rows, padding):
    arrays = [[np.array(document, np.int32) for document in row] for row in rows]
    assert unpack_batch(pack_batch(arrays, width(rows, padding))) == rows


@given(ROWS, PADDING)
def test_every_label_is_the_next_token_of_its_document(rows, padding):
    size = width(rows, padding)
    expected = [[label for document in row for label in (*document[1:], IGNORE)] for row in rows]
    filled = [[*labels, *[IGNORE] * (size - len(labels))] for labels in expected]
    assert pack_batch(rows, size).labels_BS.tolist() == filled


@given(ROWS, PADDING)
def test_positions_restart_and_segments_count_up_in_each_document(rows, padding):
    batch = pack_batch(rows, width(rows, padding), pad_id=9)
    for b, row in enumerate(rows):
        used = sum(map(len, row))
        assert batch.positions_BS[b, :used].tolist() == [i for document in row for i in range(len(document))]
        assert batch.segments_BS[b, :used].tolist() == [n for n, document in enumerate(row, 1) for _ in document]
        assert set(batch.segments_BS[b, used:].tolist()) <= {0}
        assert set(batch.tokens_BS[b, used:].tolist()) <= {9}


def test_arrays_are_int64_of_one_shape():
    batch = pack_batch([[[1, 2]], [[3]]], 4)
    for array in (batch.tokens_BS, batch.positions_BS, batch.segments_BS, batch.labels_BS):
        assert (array.shape, array.dtype) == ((2, 4), np.int64)


def test_all_misfits_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        pack_batch([[[1, 2]], [[1, 2, 3], [4, 5]], [[1], []]], 4)
    assert str(caught.value) == (
        "row 1: 5 tokens in 2 documents do not fit in seq_len=4; `fit_rows` tells which do.\n"
        "row 2: document 1 is empty; leave it out."
    )


@given(ROWS, PADDING)
def test_bounds_are_the_documents_and_the_runs_of_padding(rows, padding):
    size = width(rows, padding)
    spans = []
    for row in rows:
        lengths = [len(document) for document in row]
        spans += lengths + [size - sum(lengths)] * (sum(lengths) < size)
    bounds, longest = document_bounds(pack_batch(rows, size).segments_BS)
    assert bounds.tolist() == np.cumsum([0, *spans]).tolist()
    assert longest == max(spans, default=0)
    assert bounds.dtype == np.int32


@given(ROWS, PADDING, st.integers(1, 5))
def test_slices_of_labels_make_the_whole(rows, padding, count):
    labels = pack_batch(rows, width(rows, padding)).labels_BS
    slices = [shard_sequence(labels, index, count) for index in range(count)]
    whole = np.concatenate(slices, axis=1)
    assert len({part.shape for part in slices}) == 1
    assert 0 <= whole.shape[1] - labels.shape[1] < count
    assert (whole[:, : labels.shape[1]] == labels).all()
    assert (whole[:, labels.shape[1] :] == IGNORE).all()


def test_a_slice_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"index=2 is not a slice of count=2: it goes from 0 to 1\."):
        shard_sequence(np.zeros((1, 4), np.int64), 2, 2)
