"""Every family of a folder of checkpoints through the command line, judged as an outsider would, as one table."""
