"""Laws of tars of samples."""

import io
import pickle
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_data import open_records, open_source, place_of


def write(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


CONTENT = st.binary(max_size=2000)


@given(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=5), st.booleans())
def test_samples_come_back_in_any_order(tmp_path_factory, pairs, apart):
    members = [
        (f"d.1/{i:03}.{ending}", pair[at]) for i, pair in enumerate(pairs) for at, ending in enumerate(("a", "b.c"))
    ]
    members.sort(key=lambda member: member[0].partition("/")[2].partition(".")[2] if apart else "")
    source = open_records(write(tmp_path_factory.mktemp("tar") / "a.tar", members))
    wanted = [{"__key__": f"d.1/{i:03}", "a": a, "b.c": b} for i, (a, b) in enumerate(pairs)]
    assert [source[i] for i in reversed(range(len(source)))] == wanted[::-1]
    assert list(pickle.loads(pickle.dumps(source))) == wanted


def test_members_are_decoded_by_their_ending(tmp_path):
    members = [("1.json", b'{"a": [1]}'), ("1.cls", b"7\n"), ("1.TXT", "é".encode()), ("1.jpg", b"\xff")]
    [record] = open_records(write(tmp_path / "a.tar", members))
    assert record == {"__key__": "1", "json": {"a": [1]}, "cls": 7, "TXT": "é", "jpg": b"\xff"}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_only_keys(tmp_path, format):
    names = ["../../up.txt", "/root.txt", "a/" * 40 + "deep.txt", "./x.txt", "é.txt"]
    source = open_records(write(tmp_path / "a.tar", [(name, b"") for name in names], format))
    assert [record["__key__"] for record in source] == [name.removesuffix(".txt") for name in names]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_only_the_columns_are_read(tmp_path):
    path = write(tmp_path / "a.tar", [("1.txt", b"one"), ("1.json", b"no json"), ("2.txt", b"two")])
    assert list(open_source(path, field="txt")) == ["one", "two"]
    assert list(open_records(path, columns=["__key__"])) == [{"__key__": "1"}, {"__key__": "2"}]
    assert place_of(open_source(path, field="txt"), 1) == f"{path}: sample '2'"
    with pytest.raises(ValueError) as caught:
        open_source(path)
    found = "there are '__key__', 'txt', 'json'. Did you mean field='txt'?"
    assert str(caught.value) == f"{path}: sample '1': no field 'text'; {found}"


def test_what_is_no_sample_is_left_out(tmp_path):
    members = [("a/LICENSE", b"x"), ("a/.hidden.txt", b"x"), ("a/1.txt", b"one")]
    assert [record["txt"] for record in open_records(write(tmp_path / "a.tar", members))] == ["one"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], r"a\.tar: no samples; a member of one is named KEY\.ENDING"),
        ([("README", b"")], "no samples"),
        ([("1.txt", b"a"), ("1.txt", b"b")], r"two members are called '1\.txt'"),
        ([("1.json", b'{"a"\n1}')], r"a\.tar: sample '1': member 'json': 2:1: Expecting ':' delimiter"),
        ([("1.json", b'"a\xff"')], r"sample '1': member 'json': 1:3: byte 0xff is not UTF-8"),
        ([("1.txt", b"a\xff")], r"sample '1': member 'txt': byte 1: byte 0xff is not UTF-8"),
        ([("1.cls", b"cat")], r"sample '1': member 'cls': invalid literal for int"),
    ],
)
def test_a_bad_sample_is_named(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_records(write(tmp_path / "a.tar", members))


def test_a_tar_cut_anywhere_is_an_error(tmp_path):
    whole = tmp_path / "whole.tar"
    write(whole, [(f"{i}.txt", b"x" * 700) for i in range(4)])
    content = whole.read_bytes()
    assert len(list(open_records(str(whole)))) == 4
    cut = tmp_path / "cut.tar"
    for size in [*range(0, 4 * 1536, 256), 1, 513, 4 * 1536 + 511]:
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.tar: not a whole tar: "):
            open_records(str(cut))


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    path = tmp_path / "a.tar"
    write(path, [(f"{i}.txt", b"x") for i in range(3)])
    content = bytearray(path.read_bytes())
    content[1024 + 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a whole tar: the header at byte 1024 is broken, after 1 files"):
        open_records(str(path))
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"a\.tar: not a whole tar: "):
        open_records(str(path))
