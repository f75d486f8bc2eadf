"""`python -m tests.bench`: one table of this project's speed beside its peers, on one machine in one run."""
