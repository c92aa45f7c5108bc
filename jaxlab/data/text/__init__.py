"""Text: sources of documents, tokenizers, streams of tokens."""
