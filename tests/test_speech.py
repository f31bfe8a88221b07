"""What stands in front of the standard streams."""

import contextlib
import gc
import io
import sys

import pytest

from spdexport.speech import SilencedError, guarded_streams, styled


def test_a_stream_that_is_closed_by_then_is_no_error_when_its_guard_goes(monkeypatch):
    """Python tells of what a stream's end raises from 3.13 on; before, this shows nothing."""
    told, stream = [], io.TextIOWrapper(io.BytesIO(), write_through=True)
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    with contextlib.redirect_stdout(stream), guarded_streams():
        console = styled(err=False)
        console.write("a")
        print("b")
    assert stream.buffer.getvalue() == b"ab\n"
    stream.close()
    with pytest.raises(SilencedError):
        console.flush()
    del console
    gc.collect()
    assert told == []
