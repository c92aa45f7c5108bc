"""One file per study: frozen dataclasses and named variants."""
