"""Smaller forms of vectors: what a search reads first, before it looks at the rows themselves."""
