"""Records, read by the official CloudEvents SDKs."""
