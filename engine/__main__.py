"""`python -m consisid.engine`: consisid-generate."""

import sys

from .entry import generate

sys.exit(generate())
