from __future__ import annotations

from jaxlab.data import Documents, InvalidUtf8, check_utf8, find_invalid_utf8


def test_first_invalid_byte_is_found_with_its_document():
    source = Documents(["fine", b"x" * 17 + b"\xff\xfe", b"\xff"], ["a.txt", "notes.txt", "c.txt"])
    found = find_invalid_utf8(source)
    assert found == InvalidUtf8("notes.txt", 17, 0xFF)
    assert str(found) == "notes.txt is not UTF-8 (byte 0xff at 17)"


def test_search_ends_at_the_limit():
    source = Documents(["fine", b"\xff"])
    assert find_invalid_utf8(source, max_documents=1) is None
    assert find_invalid_utf8(source, max_documents=2) is not None


def test_utf8_is_accepted_whole():
    assert check_utf8("a é 😀".encode()) is None


def test_character_that_is_cut_off_is_invalid():
    assert check_utf8("é".encode()[:1]) == InvalidUtf8("text", 0, 0xC3)
