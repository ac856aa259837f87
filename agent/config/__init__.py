"""The config file: its sections and keys, its loader, and its reload in a running agent."""
