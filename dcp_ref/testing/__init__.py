"""The conformance suite for other people's pruned caches: what a kernel author calls.

`check_cache` runs it, `parametrize_with_checks` hands its checks to pytest, `skeleton` is a class to begin with;
docs/testing.md shows all three, docs/specification.md is what is checked. It needs the extra `test`.

Read check_list.py, cases.py and drawing.py (histories), definition.py and judging.py (what is right), running.py (an
author's class). suite.py searches, failures.py and report.py tell. functions.py, given_back.py and shipped.py (the
trained model) are the checks that are no search for a history; exporting.py and importing.py are for caches in other
languages. theorem.py is for a policy of one's own, not for a cache. own.py, slot_cache.py and broken.py are caches that
pass and that must not; skeletons.py hands out the skeleton_*.py.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError:
    raise ImportError('dcp_ref.testing needs Hypothesis: pip install "dcp-ref[test]"') from None

from dcp_ref.testing.exporting import export_cases
from dcp_ref.testing.importing import import_answers
from dcp_ref.testing.report import Report, Result
from dcp_ref.testing.skeletons import SKELETONS, skeleton
from dcp_ref.testing.suite import SPECIFICATION, check_cache, parametrize_with_checks
from dcp_ref.testing.theorem import check_policy

__all__ = ["SKELETONS", "SPECIFICATION", "Report", "Result", "check_cache", "check_policy", "export_cases",
           "import_answers", "parametrize_with_checks", "skeleton"]
