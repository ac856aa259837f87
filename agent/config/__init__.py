"""The config file: its sections and keys, its loader, and its reload in a running agent.

Start at `model`, whose `Config` is the whole file as types. Some packages define their own sections. agent.config imports these packages
and the packages below them. agent.session and the packages above it import agent.config.
"""
