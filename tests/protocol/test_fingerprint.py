import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.fingerprint import files_digest, fingerprint

tensors = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.tuples(
        st.sampled_from(["F32", "BF16"]), st.lists(st.integers(0, 3), max_size=2).map(tuple), st.binary(max_size=8)
    ),
    min_size=1,
    max_size=5,
).map(lambda table: [(name, *rest) for name, rest in table.items()])


@given(tensors, st.randoms())
def test_order_does_not_matter(entries, random):
    shuffled = random.sample(entries, len(entries))
    assert fingerprint(shuffled) == fingerprint(entries)


@given(tensors, st.sampled_from([("name", 0), ("dtype", 1), ("shape", 2), ("bytes", 3)]))
def test_every_part_of_a_tensor_counts(entries, part):
    changed = list(entries[0])
    other = {"name": "another name", "dtype": "I64", "shape": (9,), "bytes": b"nine bytes"}
    changed[part[1]] = other[part[0]]
    assert fingerprint([tuple(changed), *entries[1:]]) != fingerprint(entries)


def test_a_tensor_twice_is_refused():
    with pytest.raises(LocalProtocolError, match="'a' twice"):
        fingerprint([("a", "F32", (), b""), ("a", "F32", (), b"")])


def test_nothing_has_no_fingerprint():
    with pytest.raises(LocalProtocolError, match="at least one tensor"):
        fingerprint([])


def test_version_1_gives_this_digest():
    found = fingerprint([("w", "F32", (1, 2), bytes(range(8))), ("b", "BF16", (1,), b"\x80\x3f")])
    assert found == "bdf63bbd6877de6a342f0461a60c819a541dc72539af2c7047cbc1c215f0aa4b"


def test_files_are_told_apart_by_name_and_content():
    assert len({files_digest([("a", b"1")]), files_digest([("a", b"2")]), files_digest([("b", b"1")])}) == 3
    assert files_digest([("a", b"1"), ("b", b"2")]) == files_digest([("b", b"2"), ("a", b"1")])
