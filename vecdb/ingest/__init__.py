"""Files into collections: sources (which files), readers (by format), mapping (which columns), load (plan and run).

`Database.ingest` and `vecdb ingest` are the doors; importers of other databases' files are in `peers/`.
"""
