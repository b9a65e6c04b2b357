"""Curation: what an image's pixels say about its worth, which images show the same, and which labels are likely wrong.

Pure numpy on what it is handed; `stages/clean.py` runs it over a data set.
"""
