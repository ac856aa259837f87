"""What pytest reads first."""

pytest_plugins = ["tests.lab.fixtures"]
