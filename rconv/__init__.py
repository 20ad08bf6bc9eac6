"""R-CONV."""
