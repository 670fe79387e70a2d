"""`python -m dcp_ref` is the command `dcp-ref`."""

import sys

from dcp_ref.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
