"""The config file: its sections and keys, its loader, and its reload in a running agent.

Start at `model`, whose class `Config` describes the whole file. Some packages define their own sections. agent.config imports the packages
that define sections, and the packages below them. agent.session and the packages above agent.session import agent.config.
"""
