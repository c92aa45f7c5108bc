from __future__ import annotations

import inspect
import random
import textwrap

import numpy as np
import pytest

from jaxlab.core import UsageError
from jaxlab.data import Documents, SentencePiece, Tokenizer

spm = pytest.importorskip("sentencepiece")

TEXT = inspect.getsource(textwrap) + "\n\n\n\ta tab, trailing  spaces  \n  and an é.\r\n"
EDGES = ["", " ", "  a", "a  b ", "\n\n\ta\t\n", "é😀 \u3000x", "\x00", "a\u2581b\u2581", "</s>"]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    return SentencePiece.train(Documents([TEXT]), 400, kind=request.param)


@pytest.mark.parametrize("text", EDGES)
def test_every_character_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_text_comes_back_with_its_length_in_bytes(tokenizer):
    rng = random.Random(0)
    alphabet = [*"\n\t\r \u2581\u2028\ufeffé😀ß", "  ", "the", "return"]
    for _ in range(100):
        text = "".join(rng.choices(alphabet, k=rng.randrange(30)))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.num_bytes(ids) == len(text.encode())


def test_lines_encode_to_the_ids_of_the_whole_text(tokenizer):
    whole = spm.SentencePieceProcessor(model_proto=tokenizer.model).encode(TEXT)
    assert tokenizer.encode(TEXT).tolist() == whole
    assert len(whole) < 0.6 * len(TEXT)


def test_boundary_is_never_produced_and_decodes_to_nothing(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    ids = tokenizer.encode(TEXT.encode())
    assert ids.dtype == np.int32 and tokenizer.boundary_id not in ids
    assert ids.max() < tokenizer.num_tokens <= tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.boundary_id, *ids, tokenizer.vocab_size - 1]) == TEXT
    assert tokenizer.num_bytes([tokenizer.boundary_id, tokenizer.vocab_size - 1]) == 0


def test_table_is_rounded_up_to_whole_lanes(tokenizer):
    assert (tokenizer.num_tokens, tokenizer.vocab_size) == (400, 512)


def test_training_again_makes_the_same_model():
    first, again, other = (SentencePiece.train(Documents([TEXT]), size) for size in (350, 350, 351))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_foreign_model_with_a_dummy_prefix_encodes_as_the_library_does(tmp_path):
    prefix = str(tmp_path / "foreign")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_prefix=prefix, vocab_size=120, minloglevel=2
    )
    processor = spm.SentencePieceProcessor(model_file=prefix + ".model")
    tokenizer = SentencePiece(prefix + ".model")
    text = "the lazy\n dog"
    assert tokenizer.encode(text).tolist() == processor.encode(text)
    assert tokenizer.boundary_id == processor.eos_id()


def test_bytes_that_are_not_utf8_are_refused_with_the_way_out(tokenizer):
    with pytest.raises(UsageError, match=r"not UTF-8 \(byte 0xff at 4\).*tokenizer 'bytes'"):
        tokenizer.encode(b"caf \xff")


def test_model_that_is_missing_or_none_is_named(tmp_path):
    with pytest.raises(UsageError, match="no.model' cannot be read"):
        SentencePiece(tmp_path / "no.model")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"junk.model' \(4 bytes\) is not a SentencePiece model"):
        SentencePiece(tmp_path / "junk.model")


def test_vocabulary_that_does_not_fit_the_text_is_refused_with_the_bound():
    with pytest.raises(UsageError, match=r"vocab_size=100 .*at least \d+"):
        SentencePiece.train(Documents([TEXT]), 100)
    with pytest.raises(UsageError, match=r"vocab_size=90000 is too large .* at most \d+"):
        SentencePiece.train(Documents([TEXT]), 90000)
    with pytest.raises(UsageError, match="no text to train on"):
        SentencePiece.train(Documents([""]), 300)
    with pytest.raises(UsageError, match="kind='words'; expected 'bpe' or 'unigram'"):
        SentencePiece.train(Documents([TEXT]), 300, kind="words")
