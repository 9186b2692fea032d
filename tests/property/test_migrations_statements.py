"""Laws of cutting SQL into statements."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from flotta.migrations.statements import split

_word = st.text("abcxyz_ 1+,()\n", min_size=1).filter(str.strip)
_inner = st.text("ab;'\"$*/-\n \\")
_string = _inner.map(lambda text: "'" + text.replace("'", "''") + "'")
_name = _inner.map(lambda text: '"' + text.replace('"', '""') + '"')
_dollar = _inner.filter(lambda text: "$q$" not in text + "$q$"[:-1]).map(lambda text: f"$q${text}$q$")
_line = st.text("ab;'\"$*/").map(lambda text: f"--{text}\n")
_block = st.text("ab;'\"$-\n").map(lambda text: f"/*{text}*/")
_piece = st.one_of(_word, _string, _name, _dollar, _line, _block).map(lambda text: f" {text} ")
_statement = st.lists(_piece, min_size=1).map(lambda pieces: "x" + "".join(pieces)).map(str.strip)


@given(st.lists(_statement))
def test_joined_statements_are_cut_apart_again(statements: list[str]):
    # A line comment at the very end would swallow the semicolon: a newline ends it.
    assert split("\n;".join(statements)) == statements


@given(st.text("ab;'\"$*/-\n eE\\"))
@example("/*")
@example("$a$")
@example("'")
def test_any_text_is_cut_without_losing_a_character(text: str):
    pieces = split(text)
    rest = text
    for piece in pieces:
        assert piece in rest
        rest = rest[rest.index(piece) + len(piece) :]
    assert all(piece.strip() for piece in pieces)
