"""Speculation: a drafter here, a verifier in the cloud, and one answer that is the verifier's own."""
