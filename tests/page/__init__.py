"""The page in a real browser, and the screenshots of it."""
