"""`python -m consisid.engine`: consisid-generate."""

import sys

from .cli import main

sys.exit(main())
