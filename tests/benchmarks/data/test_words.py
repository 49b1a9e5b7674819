from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data.words import without_punctuation, words


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
def test_text_without_punctuation_keeps_letters_digits_and_order(text: str) -> None:
    plain = without_punctuation(text)
    assert plain.replace(" ", "") == "".join(c for c in text if c.isascii() and c.isalnum())
    assert without_punctuation(plain) == plain
