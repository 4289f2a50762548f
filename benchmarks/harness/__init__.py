"""What all benchmarks share: servers, processes, figures, tables."""
