"""script/chaos: orders in a private world under random faults, and a certificate of the outcome."""
