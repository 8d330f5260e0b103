"""vecdb: an embedded-first vector database."""
