"""The config file: its model, its loader and live reload."""
