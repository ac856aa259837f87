"""What is worth waking somebody for, made of the records that pass. An alert is a record too."""
