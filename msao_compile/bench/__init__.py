"""The harness of `bench --offload`: real code of edge and cloud under emulated links, device speeds and time."""
