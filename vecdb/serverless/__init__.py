"""The serverless form of the index of bits: codes of a collection as files on any web server or bucket, searched from afar.

`export` writes a folder of them (`layout` has the bytes); `collection` opens it where it lies and searches it: `transport`
reads ranges, `cache` keeps them on this machine, `reader` checks all that comes, and `segment` scans the codes of one object
while they arrive and then ranks the rows of the short list. Nothing runs where the files are.
"""
