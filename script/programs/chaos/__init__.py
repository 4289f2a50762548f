"""script/chaos: orders in a private world in which everything dies at random, and a certificate of what came of it."""
