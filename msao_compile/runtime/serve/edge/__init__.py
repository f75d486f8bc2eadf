"""The edge server: a loaded deployment behind OpenAI's chat completions, on loopback unless told otherwise."""
