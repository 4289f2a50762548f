"""Says how the system is, and changes nothing."""
