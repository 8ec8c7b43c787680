"""The law of the one global order, for every kind of stream: the rows of step k do not depend on who makes them."""

import gzip
import json
from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoders import PICTURES, Lines, refuse_odd, some, with_every_patch, with_patches, with_pixels
from hypothesis import given
from hypothesis import strategies as st

from omni_data import (
    Counts,
    Cursor,
    Documents,
    NoRows,
    Packing,
    Part,
    Position,
    cursor_from_json,
    cursor_to_json,
    merge_cursors,
    pack_batch,
    stream_batches,
    stream_source,
    synthetic_documents,
    unpack_batch,
)

V, S, ROWS = 8, 64, 8
WEB = synthetic_documents(vocab_size=1000, count=301, median=20, sigma=1.0, seed=1)
CODE = synthetic_documents(vocab_size=1000, count=97, median=50, sigma=1.0, seed=2)


ENDING = [synthetic_documents(vocab_size=1000, count=c, median=60, sigma=0.5, seed=c) for c in (20, 110, 140)]


KINDS = {
    "map": {"source": WEB},
    "unshuffled": {"source": WEB, "shuffle": False},
    "streamed": {"source": Lines()},
    "jsonl.gz": {},
    "parquet": {"packing": Packing("fit")},
    "mixed": {"source": [Part(WEB, 0.7), Part(CODE, ((0.0, 0.1), (9000.0, 0.5))), Part(Lines(), 0.2)]},
    "fit": {"source": WEB, "packing": Packing("fit")},
    "fit of a mix": {"source": [Part(WEB, 0.7), Part(Lines(), 0.3)], "packing": Packing("fit", max_len=40)},
    "single": {"source": WEB, "packing": Packing("single", long="right")},
    "media": {"source": CODE, "packing": Packing("fit"), "encode": with_patches},
    "media end to end": {"source": CODE, "encode": with_patches},
    "images": {"source": PICTURES, "packing": Packing("fit"), "encode": with_pixels, "max_bad": 10**9},
    "three that end": {"source": [Part(s, 1.0, epochs=1) for s in ENDING], "until": "all"},
    "the first that ends": {"source": [Part(s, 1.0, epochs=1) for s in ENDING], "until": "first"},
    "a weight that comes": {
        "source": [Part(ENDING[0], 1.0, epochs=1), Part(ENDING[1], ((0, 0), (9000, 0), (12000, 1)), epochs=1)],
        "until": "all",
    },
    "finite": {"source": [Part(WEB, 0.7, epochs=1), Part(CODE, 0.3, epochs=2)], "until": "all"},
}


def media_of_rows(batch):
    """The media of each row, of which there is here as much as there are tokens."""
    stops = (batch.segments_BS > 0).sum(axis=1).cumsum()[:-1]
    parts = [[part.tobytes() for part in np.split(array, stops)] for array in batch.media.values()]
    return list(zip(*parts, strict=True)) if parts else [()] * len(batch.tokens_BS)


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """Files for the kinds that are streamed from some: fewer than virtual shards, and more."""
    for kind, count in (("jsonl.gz", 3), ("parquet", 10)):
        folder = tmp_path_factory.mktemp("files")
        documents = synthetic_documents(vocab_size=1000, count=3000, median=20, sigma=1.0, seed=3)
        for i in range(count):
            records = [{"ids": documents[j]} for j in range(i, 3000, count)]
            if kind == "parquet":
                pq.write_table(pa.Table.from_pylist(records), folder / f"{i}.parquet", row_group_size=70)
            else:
                (folder / f"{i}.{kind}").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
        KINDS[kind]["source"] = stream_source(str(folder), field="ids")


def then_nothing(stream, layout, start):
    """The items of a stream, and then batches without documents: other ranks may have some left."""
    cursor = start
    for item in stream:
        cursor = item[1]
        yield item
    while True:
        cursor = cursor.after(layout["rows"] * layout["num_shards"], S)
        yield pack_batch([[]] * layout["rows"], S), cursor


def steps_of(kind, count, **how):
    """The rows of each of `count` steps in global order, and the cursor after the last."""
    dp = how.get("dp", 1)
    ranks = []
    for shard in range(dp):
        layout = {"shard": shard, "num_shards": dp, "rows": ROWS // dp, "seq_len": S, "virtual_shards": V}
        options = {"workers": how.get("workers", 0), **layout, **KINDS[kind]}
        stream = stream_batches(cursor=how.get("cursor") or Cursor(), **options)
        ranks.append(list(islice(then_nothing(stream, layout, how.get("cursor") or Cursor()), count)))
        stream.close()
    steps = []
    for together in zip(*ranks, strict=True):
        by_rank = [
            list(zip(unpack_batch(b), b.labels_BS.tolist(), b.sources_B.tolist(), media_of_rows(b), strict=True))
            for b, _ in together
        ]
        steps.append([row for rows in zip(*by_rank, strict=True) for row in rows])
    return steps, merge_cursors([rank[-1][1] for rank in ranks])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dp", [2, 4, 8])
def test_rows_of_a_step_are_the_same_for_every_dp(kind, dp):
    count = 20 if kind == "finite" else 50
    assert steps_of(kind, count, dp=dp) == steps_of(kind, count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [2, 4])
def test_rows_of_a_step_are_the_same_for_every_number_of_workers(kind, workers):
    assert steps_of(kind, 6, workers=workers) == steps_of(kind, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_stop_after_any_step_and_go_on_with_any_dp_and_workers(kind):
    total = 12 if kind == "finite" else 51
    unbroken, end = steps_of(kind, total)
    layout = {"num_shards": 2, "rows": ROWS // 2, "seq_len": S, "virtual_shards": V}
    streams = [stream_batches(cursor=Cursor(), shard=shard, **layout, **KINDS[kind]) for shard in range(2)]
    ranks = [then_nothing(stream, layout, Cursor()) for stream in streams]
    for k in range(1, total):
        cursor = merge_cursors([next(rank)[1] for rank in ranks])
        rest, last = steps_of(kind, 1, dp=4, cursor=cursor_from_json(cursor_to_json(cursor)))
        assert rest == unbroken[k : k + 1], k
    assert last == end


def test_workers_go_on_where_a_run_without_any_stopped():
    unbroken, _ = steps_of("fit", 9)
    _, cursor = steps_of("fit", 4, dp=4)
    assert steps_of("fit", 5, cursor=cursor, workers=2)[0] == unbroken[4:]


@pytest.mark.parametrize("kind", ["map", "fit", "single", "finite"])
def test_an_epoch_has_every_token_once(kind):
    parts = [Part(WEB, epochs=1)]
    options = {**KINDS[kind], "source": parts, "until": "all"}
    if kind == "single":
        options["packing"] = Packing("single")
    stream = stream_batches(cursor=Cursor(), shard=0, num_shards=1, rows=1, seq_len=S, virtual_shards=V, **options)
    read = Counter(t for batch, _ in stream for row in unpack_batch(batch) for document in row for t in document)
    assert read == Counter(t for document in WEB for t in document)


def test_a_source_whose_weight_comes_later_is_read_whole_once_the_others_are_through():
    how = {"shard": 0, "num_shards": 1, "rows": ROWS, "seq_len": S, "virtual_shards": V}
    stream = stream_batches(cursor=Cursor(), **how, **KINDS["a weight that comes"])
    read = sum(len(document) for batch, _ in stream for row in unpack_batch(batch) for document in row)
    assert read == sum(len(document) for source in ENDING[:2] for document in source)


def test_the_clock_of_a_schedule_is_tokens_also_where_rows_become_longer():
    how = {"shard": 0, "num_shards": 1, "virtual_shards": 2}
    zeros, ones = (Documents(str(i), [[i] * 50]) for i in range(2))
    parts = [Part(zeros, ((0.0, 1.0), (799.0, 1.0), (800.0, 0.0))), Part(ones, ((799.0, 0.0), (800.0, 1.0)))]

    def origins(cursor, rows, seq_len, count):
        batches = list(islice(stream_batches(parts, cursor, rows=rows, seq_len=seq_len, **how), count))
        return [batch.sources_B.tolist() for batch, _ in batches], merge_cursors([batches[-1][1]])

    first, cursor = origins(Cursor(), 10, 8, 5)
    assert (cursor.rows, cursor.tokens) == (50, 400)
    # At twice the length, 25 rows are left until 800 tokens; at 16 a row from the start none would be.
    later, cursor = origins(cursor_from_json(cursor_to_json(cursor)), 5, 16, 6)
    assert first == [[0] * 10] * 5 and later == [[0] * 5] * 5 + [[1] * 5]
    assert (cursor.rows, cursor.tokens) == (80, 880)


def test_media_go_with_their_rows():
    stream = stream_batches(
        cursor=Cursor(), shard=0, num_shards=1, rows=4, seq_len=S, virtual_shards=V, **KINDS["media"]
    )
    for batch, _ in islice(stream, 20):
        tokens = [t for row in unpack_batch(batch) for document in row for t in document]
        assert batch.media["patches"][:, 0].astype(int).tolist() == tokens
        learnt = batch.labels_BS[batch.labels_BS >= 0]
        assert (learnt % 2 == 0).all()


def test_best_fit_fills_rows_and_costs_ranks_the_same():
    source = synthetic_documents(vocab_size=1000, count=5000, median=365, sigma=1.0)
    ranks = [
        stream_batches(source, Cursor(), shard=r, num_shards=8, rows=4, seq_len=8192, packing=Packing("fit"))
        for r in range(8)
    ]
    fills, uneven = [], []
    for together in islice(zip(*ranks, strict=True), 10):
        fills += [batch.fill for batch, _ in together]
        squares = [sum(len(d) ** 2 for row in unpack_batch(batch) for d in row) for batch, _ in together]
        uneven.append(max(squares) / np.mean(squares))
    assert np.mean(fills) > 0.95
    assert np.mean(uneven) < 1.5


def test_long_documents_are_cut_as_asked_and_counted():
    source = Documents("long", [list(range(10)), [7, 8]])
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 1, "shuffle": False}
    expected = {
        "left": ([[6, 7, 8, 9]], Counts(documents=1, tokens=4, cut=1)),
        "right": ([[0, 1, 2, 3]], Counts(documents=1, tokens=4, cut=1)),
        "split": ([[0, 1, 2, 3]], Counts(documents=1, tokens=10, cut=0)),
        "drop": ([[7, 8]], Counts(documents=1, tokens=2, dropped=1)),
    }
    for long, (first, counts) in expected.items():
        parts = [Part(source, epochs=1)]
        batches = [b for b, _ in stream_batches(parts, Cursor(), packing=Packing("fit", long=long), **how)]
        assert first in [row for b in batches for row in unpack_batch(b)], long
        total = sum((b.counts for b in batches), Counts())
        assert (total.cut, total.dropped) == (counts.cut + (long == "split"), counts.dropped)
    with pytest.raises(ValueError, match=r"long: row 0: .*10 tokens is longer than the 4 that fit"):
        list(stream_batches(source, Cursor(), packing=Packing("fit", long="error"), **how))


def test_bad_documents_are_counted_up_to_the_limit_and_then_an_error_with_the_first_five():
    source = Documents("numbers", [[i] * 4 for i in range(41)])
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 1, "shuffle": False}
    stream = partial(stream_batches, [Part(source, epochs=1)], Cursor(), encode=refuse_odd, **how)
    assert sum((batch.counts for batch, _ in stream(max_bad=20)), Counts()).bad == 20
    with pytest.raises(
        ValueError, match=r"^numbers: row 1: 1 is odd.\nmax_bad=N leaves out up to N documents that cannot be used.$"
    ):
        list(stream())
    twice = partial(stream_batches, [Part(source, epochs=3)], Cursor(), encode=refuse_odd, **how)
    assert sum((batch.counts for batch, _ in twice(max_bad=20)), Counts()).bad == 60, "read again, and no more of them"
    with pytest.raises(ValueError) as caught:
        list(stream(max_bad=6))
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 documents cannot be used, of max_bad=6:"
    assert lines[1:] == [f"  numbers: row {i}: {i} is odd." for i in (1, 3, 5, 7, 9)]


def test_each_row_has_an_even_share_of_what_was_read_for_its_window():
    """Every step counts what it takes of a window of 32 rows; stopped inside of one, nothing is lost or twice."""
    source = Documents("some", [[i] * (4 if i % 4 else 9) for i in range(400)])
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 1}
    how["packing"] = Packing("fit", long="drop")
    batches = list(stream_batches([Part(source, epochs=1)], Cursor(), **how))
    so_far = np.cumsum([batch.counts.dropped for batch, _ in batches])
    assert so_far[-1] == 100
    assert all(3 <= dropped <= 20 for dropped in np.diff(so_far[:300:32])), "windows have about eleven each"
    assert max(batch.counts.dropped for batch, _ in batches[:300]) == 1, "and rows a third"
    rest = stream_batches([Part(source, epochs=1)], batches[40][1], **how)
    assert [b.counts for b, _ in rest] == [b.counts for b, _ in batches[41:]]


def test_why_documents_are_left_out_is_told_once_with_the_batch_that_met_them():
    source = Documents("numbers", [[i] * 4 for i in range(6)])
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 1, "shuffle": False, "max_bad": 9}
    batches = [b for b, _ in stream_batches([Part(source, epochs=2)], Cursor(), encode=refuse_odd, **how)]
    told = [(f"numbers: row {i}: {i} is odd.",) for i in (1, 3, 5)]
    assert [b.problems for b in batches] == [(), *told, (), (), ()]
    assert [b.counts.bad for b in batches] == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_bad_documents(workers):
    how = {"shard": 0, "num_shards": 1, "rows": 4, "seq_len": S, "virtual_shards": V, "workers": workers}
    stream = partial(
        stream_batches, [Part(PICTURES, epochs=1)], Cursor(), encode=with_pixels, packing=Packing("fit"), **how
    )
    spoilt = [number for number in range(len(PICTURES)) if number % 7 == 6]
    counts = sum((batch.counts for batch, _ in stream(max_bad=len(spoilt))), Counts())
    assert (counts.bad, counts.documents) == (len(spoilt), len(PICTURES) - len(spoilt))
    with pytest.raises(ValueError) as caught:
        list(stream(max_bad=len(spoilt) - 1))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{len(spoilt)} documents cannot be used, of max_bad={len(spoilt) - 1}:"
    assert len(lines) == 6
    for line in lines[1:]:
        row = int(line.partition(": row ")[2].partition(":")[0])
        assert row in spoilt and f"pictures: row {row}: {row}.img: cannot be decoded: " in line


def test_a_source_that_is_all_bad_stops_with_its_first_reasons():
    source = Documents("odd", [[1], [3], [5]])
    stream = stream_batches(
        source, Cursor(), shard=0, num_shards=1, rows=1, seq_len=4, virtual_shards=1, encode=refuse_odd, max_bad=10**9
    )
    with pytest.raises(ValueError, match="odd: virtual shard 0 read 60 documents in a row without a token") as caught:
        next(stream)
    assert len(str(caught.value).splitlines()) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_in_which_sources_are_given_does_not_matter(workers):
    how = {"shard": 0, "num_shards": 1, "rows": ROWS, "seq_len": S, "virtual_shards": V, "workers": workers}
    parts = [Part(WEB, 0.7, key="b"), Part(CODE, ((0.0, 0.1), (900.0, 0.5)), key="c"), Part(ENDING[0], 0.2, 1, key="a")]
    first, *rest = (
        [
            (unpack_batch(b), [given[i].key for i in b.sources_B])
            for b, _ in islice(stream_batches(given, Cursor(), **how), 9)
        ]
        for given in (parts, parts[::-1], [parts[1], parts[0], parts[2]])
    )
    assert rest == [first, first]


@given(st.integers(1, 3))
def test_adding_a_source_leaves_the_place_in_the_others(steps):
    how = {"shard": 0, "num_shards": 1, "rows": ROWS, "seq_len": S, "virtual_shards": V}
    *_, (_, cursor) = islice(stream_batches([Part(WEB)], Cursor(), **how), steps)
    both = stream_batches([Part(WEB), Part(CODE)], cursor, **how)
    rows = [(row, origin) for b, _ in islice(both, 6) for row, origin in zip(unpack_batch(b), b.sources_B, strict=True)]
    alone = [row for b, _ in islice(stream_batches([Part(WEB)], cursor, **how), 6) for row in unpack_batch(b)]
    web = [row for row, origin in rows if origin == 0]
    assert {origin for _, origin in rows} == {0, 1}
    assert all(row in alone for row in web)


@pytest.mark.parametrize("how", ["concat", "fit", "single"])
def test_documents_that_cannot_be_used_count_where_there_is_no_row_of_them(how):
    odd = Documents("odd", [[2 * i + 1] * 4 for i in range(30)])
    layout = {"shard": 0, "num_shards": 1, "rows": 2, "seq_len": 4, "virtual_shards": 12, "packing": Packing(how)}
    stream = partial(stream_batches, encode=refuse_odd, **layout)
    with pytest.raises(ValueError, match=r"^odd: row \d+: 1?[0-9]+ is odd"):
        list(stream([Part(odd, epochs=1)], Cursor()))
    words = r"none of the documents can be used, of 30 that were read: 30 cannot be used:(\n  odd: .*){5}$"
    with pytest.raises(NoRows, match=words):
        list(stream([Part(odd, epochs=1)], Cursor(), max_bad=10**9))
    rows = len(list(stream([Part(odd, epochs=1)], Cursor(2, {"odd": (Position(),) * 12}), max_bad=10**9)))
    assert rows, "of a stream that goes on, rows came before"
    mixed = Documents("mixed", [[2 * i] * 4 for i in range(8)] + [[1] * 4] * 4)
    batches = list(stream([Part(mixed, epochs=1)], Cursor(), max_bad=4))
    assert sum((batch.counts for batch, _ in batches), Counts()).bad == 4
    with pytest.raises(ValueError, match="4 documents cannot be used, of max_bad=3"):
        list(stream([Part(mixed, epochs=1)], Cursor(), max_bad=3))


def test_data_of_which_nothing_is_left_is_an_error_with_what_became_of_it():
    left_out = Documents("left out", [[1] * 9, [], [2] * 9, [3]])
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 2, "encode": refuse_odd}
    packing = Packing("single", long="drop")
    with pytest.raises(NoRows) as caught:
        list(stream_batches([Part(left_out, epochs=1)], Cursor(), packing=packing, max_bad=9, **how | {"encode": some}))
    assert str(caught.value) == (
        "none of the documents can be used, of 4 that were read: 2 are longer than allowed and dropped, 1 are empty, "
        "1 cannot be used:\n  left out: row 3: 3 is odd."
    )


def test_a_rank_that_got_nothing_is_no_error_where_it_read_nothing():
    source = Documents("one", [[2, 2]])
    how = {"num_shards": 2, "rows": 1, "seq_len": 4, "virtual_shards": 2, "shuffle": False}
    each = [list(stream_batches([Part(source, epochs=1)], Cursor(), shard=shard, **how)) for shard in range(2)]
    assert [[unpack_batch(batch) for batch, _ in rank] for rank in each] == [[[[[2, 2]]], [[]]], [[[]]]]


def test_media_are_never_cut_and_too_much_of_them_is_told_by_its_place():
    source = Documents("tall", [[i] * n for i, n in enumerate((40, 40, 20, 64, 65, 3))])
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": S, "virtual_shards": 1, "shuffle": False}
    stream = partial(stream_batches, [Part(source, epochs=1)], Cursor(), encode=with_every_patch, **how)
    rows = [[len(document) for document in row] for batch, _ in stream(max_bad=1) for row in unpack_batch(batch)]
    assert [row for row in rows if row] == [[40], [40, 20], [64], [3]]
    with pytest.raises(ValueError, match=r"^tall: row 4: a document of 65 tokens with patches cannot be cut"):
        list(stream())


def test_unshuffled_shards_that_meet_the_same_documents_again_say_so():
    source = Documents("same", [[]] + [[2]] * 5)
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 3, "shuffle": False}
    list(islice(stream_batches(source, Cursor(), **how), 9))
    how["virtual_shards"] = 6
    with pytest.raises(
        ValueError, match=r"the source has 6, of which this shard reads 1, again and again, as they are"
    ):
        list(islice(stream_batches(source, Cursor(), **how), 9))


def test_documents_that_are_all_dropped_are_an_error_and_no_hang():
    source = Documents("long", [list(range(10))] * 7)
    how = {"shard": 0, "num_shards": 1, "rows": 1, "seq_len": 4, "virtual_shards": 2}
    with pytest.raises(ValueError, match=r"long: row \d: this and the 9999 documents before it are longer"):
        next(stream_batches(source, Cursor(), packing=Packing("fit", long="drop"), **how))
    with pytest.raises(ValueError, match=r"longer than the 4 that fit.*\nNone of the 9999 documents before it can be"):
        next(stream_batches(source, Cursor(), packing=Packing("fit", long="error"), **how))


def test_a_source_that_comes_back_goes_on_where_it_left():
    how = {"shard": 0, "num_shards": 1, "rows": 4, "seq_len": 16, "virtual_shards": 2, "packing": Packing("single")}
    one, other = (Documents(name, [[i] * 8 for i in range(k, k + 600)]) for name, k in (("one", 0), ("other", 1000)))

    def read(parts, cursor, steps):
        stream = stream_batches(parts, cursor, **how)
        taken = list(islice(stream, steps))
        return [row[0][0] for batch, _ in taken for row in unpack_batch(batch)], taken[-1][1]

    first, cursor = read([Part(one), Part(other)], Cursor(), 5)
    _, cursor = read([Part(one)], cursor_from_json(cursor_to_json(cursor)), 5)
    again, _ = read([Part(one), Part(other)], cursor_from_json(cursor_to_json(cursor)), 5)
    seen = [token for token in first + again if token >= 1000]
    assert len(seen) > 10 and len(seen) == len(set(seen))
