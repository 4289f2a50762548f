"""The Python behind the scripts of the same names."""
