"""From a delivery to its ack, and what follows the commit. `handling` alone decides what becomes of a delivery."""
