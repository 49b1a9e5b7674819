from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data.words import distinct_words, words


@given(st.text())
def test_words_are_lower_case_letters_that_stand_in_the_text(text: str) -> None:
    for word in words(text):
        assert word.isascii()
        assert word.isalpha()
        assert word.islower()
        assert word in text.lower()


@given(st.text(alphabet="abAB_ .1"))
def test_no_letter_is_lost(text: str) -> None:
    assert "".join(words(text)) == "".join(c for c in text.lower() if c.isalpha())


@given(st.text())
def test_distinct_words_are_the_set_of_words_and_stable(text: str) -> None:
    distinct = distinct_words(text)
    assert sorted(distinct.split()) == sorted(set(words(text)))
    assert distinct_words(distinct) == distinct
