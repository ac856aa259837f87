"""What it takes to run the agent on hosts of one's own."""
