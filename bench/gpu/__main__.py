"""The entry point of `python -m consisid.bench.gpu`."""

import faulthandler
import sys

from .runner import main

if __name__ == "__main__":
    faulthandler.enable()  # what crashes inside a library says at which row
    sys.exit(main())
