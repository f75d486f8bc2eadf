"""The runtime behind a socket: what the extra `serve` installs."""
