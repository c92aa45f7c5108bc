from __future__ import annotations

import json

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Bytes, Documents, SentencePiece, Tokenizer, open_tokenizer


def test_bytes_are_their_own_ids():
    ids = Bytes().encode("é\n")
    assert ids.dtype == np.int32
    assert ids.tolist() == [0xC3, 0xA9, 10]
    assert Bytes().encode(bytes(range(256))).tolist() == list(range(256))


def test_bytes_decode_drops_what_is_no_byte_and_replaces_what_is_not_utf8():
    assert Bytes().decode([256, 104, 259, 105, 256]) == "hi"
    assert Bytes().decode([104, 255]) == "h\ufffd"
    assert Bytes().num_bytes([256, 104, 259, 105]) == 2


def test_byte_table_has_the_size_of_the_paper():
    tokenizer = Bytes()
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.num_tokens, tokenizer.boundary_id) == (260, 257, 256)
    assert json.loads(json.dumps(tokenizer.fingerprint())) == tokenizer.fingerprint()


def test_spec_opens_the_tokenizer_it_names(tmp_path):
    pytest.importorskip("sentencepiece")
    assert isinstance(open_tokenizer("bytes"), Bytes)
    path = tmp_path / "small.model"
    trained = SentencePiece.train(Documents(["one two three\n" * 9]), 272, path)
    assert trained.spec == f"sentencepiece:{path}"
    assert open_tokenizer(trained.spec).fingerprint() == trained.fingerprint()


def test_unknown_spec_names_the_nearest():
    with pytest.raises(UsageError, match="unknown tokenizer 'byte'.*did you mean 'bytes'"):
        open_tokenizer("byte")
    with pytest.raises(UsageError, match="expected 'bytes' or 'sentencepiece:<model file>'"):
        open_tokenizer("sentencepiece:")
