"""Laws of the global order."""

from itertools import islice
from math import lcm, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import (
    Cursor,
    Documents,
    Position,
    merge_cursors,
    permute,
    stream_batches,
    synthetic_documents,
    unpack_batch,
)

V = 12
S = 16
SOURCE = synthetic_documents(vocab_size=1000, count=23, median=9, sigma=1.0)
DP = [1, 2, 3, 4, 6]


def stream(source=SOURCE, cursor=None, *, shard=0, num_shards=1, rows=1, seq_len=S, virtual_shards=V, **options):
    layout = {"shard": shard, "num_shards": num_shards, "rows": rows, "virtual_shards": virtual_shards}
    return stream_batches(source, cursor or Cursor(), seq_len=seq_len, **layout, **options)


def read_globally(count, *, cursor=None, num_shards=1, rows=1, **options):
    """The next `count` global rows, as `num_shards` ranks together give them, and the merged cursor after them."""
    ranks = []
    for shard in range(num_shards):
        batches = stream(cursor=cursor, shard=shard, num_shards=num_shards, rows=rows, **options)
        ranks.append(list(islice(batches, count // (num_shards * rows))))
    by_rank = [[row for batch, _ in rank for row in unpack_batch(batch)] for rank in ranks]
    in_order = [row for together in zip(*by_rank, strict=True) for row in together]
    assert len(in_order) == count
    return in_order, merge_cursors([rank[-1][1] for rank in ranks])


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("num_shards", DP)
def test_global_rows_are_the_same_for_every_dp_and_every_cut(num_shards, rows):
    expected, cursor = read_globally(96)
    assert read_globally(96, num_shards=num_shards, rows=rows) == (expected, cursor)


CUTS = st.tuples(st.sampled_from(DP), st.integers(1, 3))


@given(CUTS, CUTS, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_stopping_and_resuming_on_any_dp_equals_unbroken(before, after, head, tail, shuffle):
    unit = lcm(*map(prod, (before, after)))
    unbroken, end = read_globally((head + tail) * unit, shuffle=shuffle)
    first, cursor = read_globally(head * unit, num_shards=before[0], rows=before[1], shuffle=shuffle)
    rest, last = read_globally(tail * unit, cursor=cursor, num_shards=after[0], rows=after[1], shuffle=shuffle)
    assert (first + rest, last) == (unbroken, end)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_virtual_shard_is_its_documents_end_to_end(shuffle):
    rows, _ = read_globally(V * 20, shuffle=shuffle, seed=5)
    for v in range(V):
        read = [token for row in rows[v::V] for document in row for token in document]
        expected = []
        for t in range(v, 10**6, V):
            epoch, i = divmod(t, len(SOURCE))
            expected += SOURCE[permute(i, len(SOURCE), (5, epoch)) if shuffle else i]
            if len(expected) >= len(read):
                break
        assert read == expected[: len(read)]


def test_every_epoch_has_every_document_once():
    documents = Documents("numbered", [[i] * 3 for i in range(24)])
    rows, _ = read_globally(2 * V, source=documents, seq_len=6)
    # 24 documents of 3 tokens fill 12 rows of 6, so each V rows are an epoch.
    epochs = [[document[0] for row in part for document in row] for part in (rows[:V], rows[V:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_without_shuffling_documents_come_in_order():
    documents = Documents("numbered", [[i] * 3 for i in range(24)])
    rows, _ = read_globally(2 * V, source=documents, seq_len=3, shuffle=False)
    assert [row[0][0] for row in rows] == list(range(24))


def test_rows_are_full_and_pieces_are_not_empty():
    batch, _ = next(stream(rows=50))
    assert batch.tokens_BS.shape == (50, S)
    assert batch.segments_BS.min() == 1
    assert all(document for row in unpack_batch(batch) for document in row)


def test_a_document_longer_than_rows_is_split_over_them():
    source = Documents("long", [list(range(10))])
    rows, cursor = read_globally(3, source=source, virtual_shards=1, seq_len=4)
    assert rows == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9], [0, 1]]]
    assert cursor.positions[""][0][1:] == (1, 2, 0, 0)


def test_a_finished_document_is_not_in_progress():
    _, cursor = read_globally(1, source=Documents("two", [[1, 2], [3, 4]]), virtual_shards=1, seq_len=4)
    assert cursor.positions[""][0][1:] == (2, 0, 0, 0)


def test_every_document_ends_with_eos():
    source = Documents("words", ["ab", "", "c"])
    options = {"virtual_shards": 1, "shuffle": False, "eos_id": 0, "tokenize": lambda text: list(text.encode())}
    rows, _ = read_globally(1, source=source, seq_len=10, **options)
    assert rows == [[[97, 98, 0], [99, 0], [97, 98, 0], [99, 0]]]


def test_a_rank_reads_its_own_virtual_shards_only():
    reads = []
    stepped = list(islice(stream(Counting(reads), shard=1, num_shards=4, shuffle=False), 9))
    cursor = stepped[-1][1]
    positions = cursor.positions[""]
    assert all(position == Position() for v, position in enumerate(positions) if v % 4 != 1)
    assert all(position.at > 0 or position.used > 0 for v, position in enumerate(positions) if v % 4 == 1)


def test_resuming_reads_only_the_documents_in_progress():
    _, cursor = read_globally(V * 50)
    reads = []
    batch, _ = next(stream(Counting(reads), cursor, rows=V))
    assert len(reads) <= sum(len(row) for row in unpack_batch(batch))


class Counting:
    """The source of these tests, which notes what is read."""

    name = "counting"

    def __init__(self, reads):
        self.reads = reads

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, i):
        self.reads.append(i)
        return SOURCE[i]


@pytest.mark.parametrize("shuffle", [True, False])
def test_documents_without_tokens_change_nothing_but_their_turn(shuffle):
    source = Documents("sparse", [[], [1, 2, 3], []])
    rows, cursor = read_globally(400, source=source, shuffle=shuffle, virtual_shards=4, seq_len=3)
    assert rows == [[[1, 2, 3]]] * 400
    more, _ = read_globally(4, source=source, cursor=cursor, shuffle=shuffle, virtual_shards=4, seq_len=3)
    assert more == [[[1, 2, 3]]] * 4


def test_a_source_without_tokens_ends_in_an_error():
    with pytest.raises(ValueError) as caught:
        next(stream(Documents("blank", ["", ""]), tokenize=list))
    assert str(caught.value) == (
        "blank: virtual shard 0 read 40 documents in a row without a token; the source has 2. Leave the empty ones out."
    )


def test_text_without_a_tokenizer_is_an_error():
    with pytest.raises(ValueError, match="words: row 0: documents are text; give `tokenize`"):
        next(stream(Documents("words", ["ab"])))


def test_a_source_that_changed_under_the_cursor_is_an_error():
    _, cursor = read_globally(1, source=Documents("long", [[1] * 10]), virtual_shards=1, seq_len=4)
    with pytest.raises(ValueError, match="the cursor has used 4 tokens of a document that does not have more"):
        next(stream(Documents("short", [[1] * 4]), cursor, virtual_shards=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0, "seq_len": 0}, "rows=0 must be at least 1.\nseq_len=0 must be at least 1."),
        ({"shard": 2, "num_shards": 2}, "shard=2 must be from 0 to 1, as num_shards=2."),
        (
            {"num_shards": 7, "virtual_shards": 240},
            "virtual_shards=240 is not a multiple of num_shards=7: take virtual_shards=238 or 245 "
            "(from the start of a run), or num_shards=6 or 8.",
        ),
        (
            {"num_shards": 5, "virtual_shards": 4},
            "virtual_shards=4 is not a multiple of num_shards=5: take virtual_shards=5 "
            "(from the start of a run), or num_shards=4.",
        ),
        (
            {"cursor": Cursor(2, {"": (Position(),) * 3})},
            "the cursor is of 3 virtual shards, this stream has 12: take virtual_shards=3.",
        ),
        ({"cursor": Cursor(2)}, "the cursor is after 2 rows but has no positions; the start is Cursor()."),
        (
            {"cursor": Cursor(6, {"": (Position(),) * 12}), "num_shards": 4},
            "the cursor is after 6 rows, which num_shards=4 ranks cannot have shared evenly: take num_shards=3 or 6.",
        ),
        ({"source": Documents("none", [])}, "none: the source has no documents."),
    ],
)
def test_contradictions_are_found_before_the_first_batch(options, message):
    with pytest.raises(ValueError) as caught:
        stream(**options)
    assert str(caught.value) == message


def test_arrays_of_a_batch_are_int64():
    batch, _ = next(stream())
    assert {a.dtype for a in (batch.tokens_BS, batch.positions_BS, batch.segments_BS, batch.labels_BS)} == {
        np.dtype(np.int64)
    }
