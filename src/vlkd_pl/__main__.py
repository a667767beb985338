"""``python -m vlkd_pl``: the same as ``vlkd-pl``."""

import sys

from vlkd_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
