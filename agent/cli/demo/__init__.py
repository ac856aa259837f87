"""Real QEMU processes with real guests: what the demonstration shows and what the tests watch."""
