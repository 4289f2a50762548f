"""Speed, measured. One file a question; each says how to run it."""
