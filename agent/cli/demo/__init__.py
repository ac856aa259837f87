"""Real QEMU processes with real guests, for the demo and the tests."""
