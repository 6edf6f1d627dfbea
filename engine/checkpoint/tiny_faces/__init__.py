"""The face models of TINY: real file layouts and outputs, with weights that answer to the colour of skin."""
