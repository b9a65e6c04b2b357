"""Rows to annotation tools and back: Label Studio and CVAT.

`marks.py` has what is said of an image, `label_studio.py` and `cvat.py` write it and read it, `queue.py` orders the rows,
`corrections.py` says what a person has changed. All of it is handed rows; none of it reads a data set.
"""
