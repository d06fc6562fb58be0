"""`python -m asegnet_fast` is `asegnet-fast`."""

import sys

from asegnet_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
