"""What a process of ours keeps from being imported."""

from __future__ import annotations

import sys

_UNUSED = ("accelerate", "pandas", "pyarrow", "scipy", "sklearn")


def leave_out_unused(*, cuda: bool) -> None:
    """transformers imports these wherever they are installed, for things that neither training nor serving does (assisted
    decoding, big models in parts): 215 MB and a quarter of the start. Call it before transformers is imported, in a process
    that is ours alone."""
    for name in (*_UNUSED, *(() if cuda else ("triton",))):
        if name not in sys.modules:
            # What is None there cannot be imported, and `find_spec` says that it is not installed.
            sys.modules[name] = None  # type: ignore[assignment]
