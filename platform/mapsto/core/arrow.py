"""fsspec's file systems as pyarrow's.

pyarrow's own handler asks `isfile` before it opens, and fsspec answers False to that whatever went wrong: a store that
is away for a moment would look like a file that is gone. Here the file is opened, and the error is what it was.
"""

from __future__ import annotations

from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler


class Handler(FSSpecHandler):
    def open_input_stream(self, path: str) -> PythonFile:
        return PythonFile(self.fs.open(path, mode="rb"), mode="r")

    def open_input_file(self, path: str) -> PythonFile:
        return PythonFile(self.fs.open(path, mode="rb"), mode="r")
