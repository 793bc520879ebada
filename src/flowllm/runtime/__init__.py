"""What every job needs: log, provenance, resuming, locks, signals, devices, processes."""
