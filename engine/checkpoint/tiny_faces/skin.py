"""What the fixture detectors look for: a blob of skin colour, by the chrominance rule of Chai and Ngan (1999).

The rule is four one-sided constraints on linear functions of the colour, so that a convolution and a ReLU express it;
hair of a similar hue counts along, which makes the blob a head. And where the parts of a face lie in such a blob.
"""

import numpy as np
from numpy.typing import NDArray

# Cb and Cr of BT.601 as linear functions of R, G, B in [0, 255], plus 128.
CB = np.array([-0.168736, -0.331264, 0.5])
CR = np.array([0.5, -0.418688, -0.081312])
SOFTNESS = 6.0  # a colour this far outside the rule is no skin at all

# Of a head that is one unit wide, relative to its centre of mass: the box, then eyes, nose and corners of the mouth.
BOX = np.array([[-0.38, -0.36], [0.38, 0.62]])
POINTS = np.array([[-0.155, 0.07], [0.145, 0.07], [-0.015, 0.21], [-0.125, 0.365], [0.115, 0.365]])


def constraints() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """weights [4, 3] for R, G, B in [0, 255] and biases [4]: every value is the amount by which a bound is broken."""
    weights = np.stack((-CB, CB, -CR, CR)) / SOFTNESS
    bounds = np.array([77 - 128, 128 - 120, 139 - 128, 128 - 165]) / SOFTNESS
    return weights, bounds
