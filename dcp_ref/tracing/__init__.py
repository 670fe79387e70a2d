"""Who dropped whom, in which layer, when, and why: everything that the page shows is a public array.

Read record.py (Trace, and how decoding is recorded), replay.py (the hidden states once more) and reasons.py (why a
token fell). Then counterfactual.py (what if it had stayed), differences.py (two traces) and, for whole texts, kinds.py
and summarize.py. pieces.py is the text of each token, text_picture.py what a terminal shows, trace_files.py a file,
as_json.py what a page reads. page.py, with the sources in page/, and page_data.py make the page; picture.py draws one
sentence.
"""

from dcp_ref.tracing.counterfactual import Counterfactual
from dcp_ref.tracing.differences import Differences
from dcp_ref.tracing.drops import REASONS, Drops
from dcp_ref.tracing.reasons import Why
from dcp_ref.tracing.record import Trace
from dcp_ref.tracing.recording import trace, windows
from dcp_ref.tracing.summarize import Summary, summary
from dcp_ref.tracing.trace_files import load

__all__ = ["REASONS", "Counterfactual", "Differences", "Drops", "Summary", "Trace", "Why", "load", "summary", "trace",
           "windows"]
