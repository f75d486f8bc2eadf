"""The command line: parse, draw, exit; nothing else prints."""
